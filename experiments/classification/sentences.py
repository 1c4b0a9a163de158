"""The paper's sentences on Table 2 and Figures 5 and 6 (section 6)."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from experiments.classification.paper import PAPER, SEEDS
from experiments.classification.protocols import (
    PROTOCOLS,
    Accuracies,
    accuracies,
    best_epochs,
)
from experiments.common import report
from experiments.common.claims import (
    UNDECIDED,
    Claim,
    Difference,
    Sample,
    Verdict,
    above,
    all_of,
    below,
    difference,
    enough,
    jackknife,
    missing,
    not_worse,
    within,
)

MARGIN = 1.0  # points of accuracy that make no difference
LOSS_MARGIN = 0.02  # nats that make none


class _Runs(NamedTuple):
    """What the sentences are about.

    Attributes:
      results: of the experiment.
      found: the accuracies of every method.
    """

    results: dict[str, Any]
    found: Mapping[str, Accuracies]

    @property
    def full(self) -> bool:
        """Whether the runs are the paper's: what is said of minima needs that."""
        return self.results["full"]

    def has(self, *names: str) -> bool:
        return set(names) <= set(self.found)

    def gap(self, ours: str, theirs: str, protocol: str = "best") -> Difference | None:
        """How far a method is ahead; None where the protocol was not measured."""
        values = [getattr(self.found[name], protocol) for name in (ours, theirs)]
        return None if any(v is None for v in values) else difference(*values)

    def at_the_end(self, names: Sequence[str], verdict: Verdict) -> Verdict:
        """The verdict on these methods, if they were trained to the paper's end."""
        return enough(self.results, names, verdict) if self.full else UNDECIDED


def sentences(results: dict[str, Any]) -> list[Claim]:
    """What the paper says in words, of the methods that are there."""
    curves = results["methods"]
    found = {name: accuracies(rows, "top1") for name, rows in curves.items()}
    runs = _Runs(results, found)
    return [
        *_not_worse(runs, "is never significantly worse than BP", "BP"),
        *_not_worse(runs, "is comparable to BP-Adam, or better", "BP-Adam"),
        *_better(runs),
        *_loss(runs),
        *_sooner(runs, "SeqIL-MQ"),
        *(_sooner(runs, "SeqIL") if results["net"] == "mlp" else ()),
        *_converged(runs),
        *_alike(runs),
        *_poorer(runs, "SeqIL-MQ"),
        *_poorer(runs, "BP"),
        *_adam(runs),
        *_order(runs),
    ]


def shortfall(results: dict[str, Any], *names: str) -> str:
    """` (1 of 5 seeds, 10 of 110 epochs)`: what there is less of than in the paper.

    Args:
      results: of the experiment.
      *names: the methods that are meant; by default all.
    """
    if (results["net"], results["dataset"], "top1") not in PAPER:
        return ""
    return missing(results, names or tuple(results["methods"]), SEEDS)


def _not_worse(runs: _Runs, words: str, other: str) -> list[Claim]:
    """SeqIL-MQ against another method, by every protocol."""
    if not runs.has("SeqIL-MQ", other):
        return []
    rows = []
    for protocol, label in PROTOCOLS.items():
        gap = runs.gap("SeqIL-MQ", other, protocol)
        if gap is not None:
            rows.append(
                Claim(
                    f"SeqIL-MQ {words} ({label})",
                    "section 6" if protocol == "best" else "-",
                    _with_p(gap) + _end(runs, "SeqIL-MQ", other),
                    runs.at_the_end(["SeqIL-MQ", other], not_worse(gap, MARGIN)),
                )
            )
    return rows


def _better(runs: _Runs) -> list[Claim]:
    """What is said of Tiny ImageNet alone."""
    if runs.results["dataset"] != "tiny_imagenet":
        return []
    what = "SeqIL-MQ is slightly better than BP on Tiny ImageNet"
    return _ahead(runs, what, "SeqIL-MQ", "BP", above)


def _loss(runs: _Runs) -> list[Claim]:
    """Section 9 says that the final loss matches; the lowest and the last epoch's."""
    if not runs.has("SeqIL-MQ", "BP"):
        return []
    ours, theirs = (
        report.array(runs.results["methods"][name]["test"]["loss"])
        for name in ("SeqIL-MQ", "BP")
    )
    rows = []
    for label, paper, a, b in (
        ("lowest", "section 9", ours.min(0), theirs.min(0)),
        ("last epoch", "-", ours[-1], theirs[-1]),
    ):
        gap = difference(a, b)
        rows.append(
            Claim(
                f"SeqIL-MQ's test loss is not above BP's ({label})",
                paper,
                f"{a.mean():.3f}, {b.mean():.3f}; {gap.text(digits=3)}"
                f"{_end(runs, 'SeqIL-MQ', 'BP')}",
                runs.at_the_end(
                    ["SeqIL-MQ", "BP"], not_worse(difference(b, a), LOSS_MARGIN)
                ),
            )
        )
    return rows


def _sooner(runs: _Runs, name: str) -> list[Claim]:
    """The training loss of the first epoch against backprop's."""
    if not runs.has(name, "BP"):
        return []
    curves = runs.results["methods"]
    ours, theirs = (report.array(curves[n]["train_loss"])[0] for n in (name, "BP"))
    gap = difference(ours, theirs)
    return [
        Claim(
            f"{name} reduces the loss more quickly than BP early on",
            "section 6",
            f"training loss of epoch 1: {ours.mean():.3f}, {theirs.mean():.3f}; "
            f"{gap.text(digits=3)}{shortfall(runs.results, name, 'BP')}",
            enough(runs.results, [name, "BP"], below(gap)),
        )
    ]


def _converged(runs: _Runs) -> list[Claim]:
    """How soon the lowest test error is there, which the figures call convergence.

    Where most networks are best at their last epoch, the end of training is all that
    was seen.
    """
    if not runs.has("SeqIL-MQ", "BP"):
        return []
    epochs = best_epochs(runs.results["methods"], "top1")["epoch"]
    ours, theirs = epochs["SeqIL-MQ"], epochs["BP"]
    gap = difference(ours, theirs)
    length = len(runs.results["methods"]["BP"]["train_loss"])
    cut = any(np.mean(best == length) > 0.5 for best in (ours, theirs))
    return [
        Claim(
            "SeqIL-MQ converges more quickly than BP (epoch of the lowest test error)",
            "section 6: typically, much more",
            f"epoch {ours.mean():.1f}, {theirs.mean():.1f}; "
            f"{gap.text('epochs', digits=1)}{_end(runs, 'SeqIL-MQ', 'BP')}",
            runs.at_the_end(["SeqIL-MQ", "BP"], UNDECIDED if cut else below(gap)),
        )
    ]


def _alike(runs: _Runs) -> list[Claim]:
    """Whose curve of test accuracy that of SeqIL-MQ is nearer to, over all epochs.

    Nearer to the mean of their seeds; the interval is over the seeds of all three.
    """
    names = ("SeqIL-MQ", "BP-Adam", "BP")
    if not runs.has(*names):
        return []
    methods = runs.results["methods"]
    ours, adam, plain = (
        100 * report.array(methods[name]["test"]["top1"]) for name in names
    )
    gap = jackknife(lambda a, b, c: _apart(a, b) - _apart(a, c), ours, adam, plain)
    return [
        Claim(
            "SeqIL-MQ's learning curve is nearer to BP-Adam's than to BP's",
            "section 6: looked more similar",
            f"{_apart(ours, adam):.2f}, {_apart(ours, plain):.2f} points away; "
            f"{gap.text('points')}{_end(runs, *names)}",
            runs.at_the_end(names, below(gap)),
        )
    ]


def _apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The mean distance of curves, [epochs, seeds], from the mean of others."""
    return float(np.abs(ours - theirs.mean(1, keepdims=True)).mean())


def _poorer(runs: _Runs, other: str) -> list[Claim]:
    """What the optimizer is for."""
    what = f"without an optimizer SeqIL converges to poorer minima than {other}"
    return _ahead(runs, what, other, "SeqIL", above)


def _adam(runs: _Runs) -> list[Claim]:
    """SeqIL-Adam is said to match SeqIL-MQ in MLPs and to struggle in conv nets."""
    if runs.results["net"] == "mlp":
        what = "SeqIL-Adam matches SeqIL-MQ in fully connected nets"
        judge = partial(within, margin=MARGIN)
        return _ahead(runs, what, "SeqIL-MQ", "SeqIL-Adam", judge)
    what = "SeqIL-Adam struggles in conv nets"
    return _ahead(runs, what, "SeqIL-MQ", "SeqIL-Adam", above)


def _ahead(
    runs: _Runs,
    what: str,
    ours: str,
    theirs: str,
    judge: Callable[[Difference], Verdict],
) -> list[Claim]:
    """By how much a method is ahead of another at the best test epoch."""
    if not runs.has(ours, theirs):
        return []
    gap = runs.gap(ours, theirs)
    assert gap is not None  # the best epoch is always known
    return [
        Claim(
            what,
            "section 6",
            f"{ours} is ahead by {gap.text('points')}{_end(runs, ours, theirs)}",
            runs.at_the_end([ours, theirs], judge(gap)),
        )
    ]


def _end(runs: _Runs, *names: str) -> str:
    if not runs.full:
        return ", long before convergence"
    return shortfall(runs.results, *names)


def _order(runs: _Runs) -> list[Claim]:
    """Whether methods that the paper tells apart come in its order here."""
    results, found = runs.results, runs.found
    said = PAPER.get((results["net"], results["dataset"], "top1"), {})
    paper = {name: Sample(*said[name], SEEDS) for name in found if name in said}
    apart = [
        (a, b)
        for a, b in itertools.permutations(paper, 2)
        if difference(paper[a], paper[b]).low > 0
    ]
    if not apart or not runs.full:
        return []
    rows = []
    for protocol, label in PROTOCOLS.items():
        ours = {name: getattr(found[name], protocol) for name in paper}
        if any(values is None for values in ours.values()):
            continue
        gaps = {(a, b): difference(ours[a], ours[b]) for a, b in apart}
        verdicts = [above(gap) for gap in gaps.values()]
        narrow = min(gaps, key=lambda pair: gaps[pair].mean)
        means = {name: values.mean() for name, values in ours.items()}
        rows.append(
            Claim(
                f"the order of the methods ({label})",
                _ranked({name: known.mean for name, known in paper.items()}),
                f"{_ranked(means)}: of {len(apart)} pairs that the paper tells apart, "
                f"{verdicts.count(True)} are so, {verdicts.count(False)} are not; the "
                f"narrowest is {' > '.join(narrow)}, {gaps[narrow].text('points')}"
                f"{shortfall(results, *paper)}",
                enough(results, [*paper], all_of(verdicts)),
            )
        )
    return rows


def _ranked(values: dict[str, float]) -> str:
    return " > ".join(sorted(values, key=values.__getitem__, reverse=True))


def _with_p(gap: Difference) -> str:
    known = not np.isnan(gap.p_value)
    return gap.text("points") + (f", p = {gap.p_value:.2g}" if known else "")
