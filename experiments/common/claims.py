"""Statements beside the paper's, and when there is enough to judge them by.

A statement on trained networks is judged by an effect and its uncertainty: the
difference of two means over seeds with Welch's 95 % confidence interval,

    d = mean(a) - mean(b),  s^2 = s_a^2 / n_a + s_b^2 / n_b,  d +- t(.975, nu) s

with nu by Welch and Satterthwaite. It is decided if all of the interval is on one side
of what is claimed, and not decided otherwise.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import scipy.stats

from experiments.common.report import array

UNDECIDED: Final = "undecided"
# True, False: it holds here, or not; None: there is nothing that could hold.
Verdict = bool | Literal["undecided"] | None
MARKS: dict[Verdict, str] = {
    True: "holds",
    False: "does not hold",
    UNDECIDED: "not decided",
    None: "",
}
MIN_SEEDS = 3  # with fewer, nothing that depends on chance is judged
LEVEL = 0.95
MATCH = 1.1  # times another's seconds that count as the same


class Claim(NamedTuple):
    """A number beside the paper's.

    Attributes:
      what: what is claimed or measured.
      paper: the paper's number or words.
      here: the number found.
      holds: the verdict, one of `MARKS`.
    """

    what: str
    paper: str
    here: str
    holds: Verdict = None


class Sample(NamedTuple):
    """What is known of a number over seeds; `std` with ddof = 1."""

    mean: float
    std: float
    size: int


class Difference(NamedTuple):
    """A difference of means with its confidence interval and p-value.

    The last three are NaN where fewer than two samples leave no uncertainty to tell.
    """

    mean: float
    low: float
    high: float
    p_value: float

    def text(self, unit: str = "", digits: int = 2) -> str:
        """`+1.20 points, 95 % interval -0.30 to +2.70`."""
        unit = f" {unit}" if unit else ""
        mean = f"{self.mean:+.{digits}f}{unit}"
        if math.isnan(self.low):
            return f"{mean}, one seed: no interval"
        ends = (f"{end:+.{digits}f}" for end in (self.low, self.high))
        return f"{mean}, 95 % interval {' to '.join(ends)}"


def sample(values: Any) -> Sample:
    """Mean and standard deviation of a list."""
    row = array(values)
    std = float(row.std(ddof=1)) if row.size > 1 else math.nan
    return Sample(float(row.mean()), std, row.size)


def difference(ours: Any, theirs: Any) -> Difference:
    """How much larger the mean of ours is; lists of numbers, or a `Sample`."""
    a, b = (x if isinstance(x, Sample) else sample(x) for x in (ours, theirs))
    mean = a.mean - b.mean
    if min(a.size, b.size) < 2:
        return Difference(mean, math.nan, math.nan, math.nan)
    parts = [x.std**2 / x.size for x in (a, b)]
    freedom = _freedom(parts, [a.size, b.size])
    return _interval(mean, math.sqrt(sum(parts)), freedom)


def change(values: Any) -> Difference:
    """How far the mean of paired differences is from 0."""
    found = sample(values)
    if found.size < 2:
        return Difference(found.mean, math.nan, math.nan, math.nan)
    error = found.std / math.sqrt(found.size)
    return _interval(found.mean, error, found.size - 1)


def jackknife(statistic: Callable[..., float], *samples: np.ndarray) -> Difference:
    """A number that is no difference of means, of samples that all are of chance.

    The squared error of the j-th sample, of n_j seeds, is by leaving one out at a time

        s_j^2 = (n_j - 1) / n_j  sum_i (theta_-i - mean theta)^2,

    with the sum over j in Welch's place; of a difference of means it is Welch's.

    Args:
      statistic: `samples -> number`.
      *samples: arrays whose last axis is the seeds.
    """
    mean = float(statistic(*samples))
    counts = [values.shape[-1] for values in samples]
    if min(counts) < 2:
        return Difference(mean, math.nan, math.nan, math.nan)
    parts = []
    for j, values in enumerate(samples):
        left = [
            statistic(*samples[:j], np.delete(values, i, axis=-1), *samples[j + 1 :])
            for i in range(counts[j])
        ]
        parts.append((counts[j] - 1) * float(np.var(left)))
    return _interval(mean, math.sqrt(sum(parts)), _freedom(parts, counts))


def _freedom(parts: list[float], counts: list[int]) -> float:
    total = sum(parts)
    if total == 0:
        return math.inf
    return total**2 / sum(
        part**2 / (count - 1) for part, count in zip(parts, counts, strict=True)
    )


def _interval(mean: float, error: float, freedom: float) -> Difference:
    if math.isnan(mean) or math.isnan(error):  # a network that diverged
        return Difference(mean, math.nan, math.nan, math.nan)
    if error == 0:
        return Difference(mean, mean, mean, float(mean == 0))
    half = error * float(scipy.stats.t.ppf((1 + LEVEL) / 2, freedom))
    p_value = 2 * float(scipy.stats.t.sf(abs(mean) / error, freedom))
    return Difference(mean, mean - half, mean + half, p_value)


def above(found: Difference, bound: float = 0.0) -> Verdict:
    """Whether the difference is larger than `bound`."""
    if found.low > bound:
        return True
    return False if found.high <= bound else UNDECIDED


def below(found: Difference, bound: float = 0.0) -> Verdict:
    """Whether the difference is smaller than `bound`."""
    if found.high < bound:
        return True
    return False if found.low >= bound else UNDECIDED


def within(found: Difference, margin: float) -> Verdict:
    """Whether the difference is at most `margin`, either way."""
    if -margin <= found.low and found.high <= margin:
        return True
    return False if found.low > margin or found.high < -margin else UNDECIDED


def not_worse(found: Difference, margin: float) -> Verdict:
    """Whether ours is not below theirs: no more than a margin, and not significantly.

    Not to be significantly worse is no merit of a measurement that could not tell: so
    the interval must exclude a loss of more than `margin`.
    """
    if found.high < 0:
        return False
    return True if found.low > -margin else UNDECIDED


def all_of(verdicts: Any) -> Verdict:
    """Holds if all do, fails if one does, and is not decided otherwise."""
    found = set(verdicts)
    return False if False in found else True if found == {True} else UNDECIDED


def judged(claims: list[Claim], *, exact: bool, preset: str, seeds: int) -> list[Claim]:
    """The claims, with no verdict where there is nothing to judge by.

    Args:
      claims: of an experiment.
      exact: whether they are of counts and zeros, which chance has no part in.
      preset: of the run; `smoke` only shows that everything runs.
      seeds: of the run.
    """
    if exact or (preset != "smoke" and seeds >= MIN_SEEDS):
        return claims
    return [c if c.holds is None else c._replace(holds=UNDECIDED) for c in claims]


def missing(results: dict[str, Any], names: Sequence[str], seeds: int) -> str:
    """` (1 of 5 seeds, 10 of 110 epochs)`: what there is less of than in the paper.

    Args:
      results: of an experiment that trains: `methods`, `settings` and, if known,
        `train_images`, the number trained on and that of the data set.
      names: the methods that are meant.
      seeds: the paper's.
    """
    found = [results["methods"][name] for name in names]
    epochs, runs = np.min([np.shape(curves["train_loss"]) for curves in found], axis=0)
    counts = (
        (runs, seeds, "seeds"),
        (epochs, results["settings"]["epochs"], "epochs"),
        (*results.get("train_images", (0, 0)), "images"),
    )
    texts = [
        f"{here:,} of {meant:,} {what}" for here, meant, what in counts if here < meant
    ]
    if refused := int(sum(np.sum(curves.get("refused_steps", 0)) for curves in found)):
        texts.append(f"{refused:,} steps not finite, left out")
    return f" ({', '.join(texts)})" if texts else ""


def enough(results: dict[str, Any], names: Sequence[str], verdict: Verdict) -> Verdict:
    """The verdict, if all the methods that it is on have seeds enough to judge by."""
    curves = [results["methods"][name]["train_loss"] for name in names]
    seeds = min(np.shape(rows)[1] for rows in curves)
    return UNDECIDED if verdict is not None and seeds < MIN_SEEDS else verdict


def times_as_long(ours: np.ndarray, theirs: np.ndarray) -> str:
    """`9.0 s, 10.0 s: 0.90 times, 95 % interval 0.80 to 1.01`, of seconds [runs]."""
    never = [int(np.isinf(seconds).sum()) for seconds in (ours, theirs)]
    if any(never):
        counts = f"{never[0]} of {len(ours)} and {never[1]} of {len(theirs)} runs"
        return f"never in {counts}"
    gap = difference(np.log(ours), np.log(theirs))
    low, mean, high = (math.exp(x) for x in (gap.low, gap.mean, gap.high))
    interval = "one seed: no interval"
    if not math.isnan(low):
        interval = f"95 % interval {low:.2f} to {high:.2f}"
    return f"{ours.mean():.1f} s, {theirs.mean():.1f} s: {mean:.2f} times, {interval}"


def no_longer(ours: np.ndarray, theirs: np.ndarray) -> Verdict:
    """Whether seconds [runs] are at most `MATCH` times others; inf is never."""
    if np.isinf(ours).all() and np.isfinite(theirs).all():
        return False
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return UNDECIDED
    gap = difference(np.log(ours), np.log(theirs))
    if gap.high <= math.log(MATCH):
        return True
    return False if gap.low > math.log(MATCH) else UNDECIDED
