"""When a statement is judged, and by what."""

import math

import numpy as np
import pytest
import scipy.stats

from experiments.classification import statements
from experiments.common import claims
from experiments.common.claims import UNDECIDED, Claim, Difference, Sample


@pytest.mark.parametrize("sizes", [(2, 2), (3, 5), (7, 4)])
def test_difference_is_welchs(sizes):
    random = np.random.default_rng(sum(sizes))
    a, b = random.normal(0.3, 1, sizes[0]), random.normal(0, 3, sizes[1])
    found = claims.difference(a, b)
    theirs = scipy.stats.ttest_ind(a, b, equal_var=False)
    interval = theirs.confidence_interval(0.95)
    assert found.mean == pytest.approx(a.mean() - b.mean())
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value == pytest.approx(theirs.pvalue)
    # The paper's side is known by mean and standard deviation alone.
    summary = Sample(b.mean(), b.std(ddof=1), sizes[1])
    assert claims.difference(a, summary) == pytest.approx(found)


def test_change_is_the_paired_interval():
    values = np.random.default_rng(0).normal(1, 2, 6)
    found = claims.change(values)
    theirs = scipy.stats.ttest_1samp(values, 0)
    interval = theirs.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("values", [[1.0], [1.0, np.nan, 2.0]])
def test_without_an_uncertainty_nothing_is_decided(values):
    for found in (claims.difference(values, [0.0, 1.0]), claims.change(values)):
        assert math.isnan(found.low)
        assert math.isnan(found.p_value)
        for verdict in (claims.above, claims.below):
            assert verdict(found) == UNDECIDED
        assert claims.within(found, 1) == claims.not_worse(found, 1) == UNDECIDED
        assert "nan, 9" not in found.text("points")


@pytest.mark.parametrize(
    ("interval", "above", "below", "within", "not_worse"),
    [
        ((0.1, 0.9), True, False, True, True),
        ((-0.9, -0.1), False, True, True, False),  # significantly, if little
        ((-0.5, 0.5), UNDECIDED, UNDECIDED, True, True),
        ((-20.0, 4.0), UNDECIDED, UNDECIDED, UNDECIDED, UNDECIDED),
        ((2.0, 4.0), True, False, False, True),
        ((-9.0, -7.0), False, True, False, False),
    ],
)
def test_verdicts(interval, above, below, within, not_worse):
    found = Difference(sum(interval) / 2, *interval, 0.5)
    assert claims.above(found) == above
    assert claims.below(found) == below
    assert claims.within(found, 1.0) == within
    assert claims.not_worse(found, 1.0) == not_worse


def test_smoke_and_two_seeds_judge_nothing_but_counts():
    rows = [Claim("a", "", "", True), Claim("b", "", "", False), Claim("c", "", "")]

    def verdicts(**options):
        return [claim.holds for claim in claims.judged(rows, **options)]

    given = [True, False, None]
    nothing = [UNDECIDED, UNDECIDED, None]
    assert verdicts(exact=False, preset="smoke", seeds=5) == nothing
    assert verdicts(exact=False, preset="paper", seeds=2) == nothing
    assert verdicts(exact=False, preset="cpu", seeds=3) == given
    assert verdicts(exact=True, preset="smoke", seeds=1) == given


def _results(ours, theirs, **changes):
    """Results of two methods, [seeds] of final accuracy in % after two epochs."""

    def curves(final):
        final = np.array(final) / 100
        test = np.stack([final - 0.1, final])
        return {
            "train_loss": np.stack([1 - final, final]),
            "test": {"top1": test},
            "halves": {"top1": np.stack([test, test], axis=1)},
        }

    return {
        "net": "mlp",
        "dataset": "cifar10",
        "full": False,
        "settings": {"epochs": 110},
        "train_images": [20_000, 50_000],
        "best": {"top1": {"bold": None}},
        "methods": {"BP": curves(theirs), "SeqIL-MQ": curves(ours)},
        **changes,
    }


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([42.0, 58.0, 44.0], [56.0, 57.0, 55.0], UNDECIDED),  # -8 points, p > .05
        ([42.0], [50.0], UNDECIDED),
        ([50.1, 50.2, 50.3], [50.0, 50.1, 50.2], True),
        ([48.1, 48.2, 48.3], [50.0, 50.1, 50.2], False),
    ],
)
def test_never_worse_needs_an_effect_and_an_uncertainty(ours, theirs, expected):
    rows = statements.claims(_results(ours, theirs))
    found = [row for row in rows if "never significantly worse" in row.what]
    assert len(found) == 3  # by every protocol
    assert {row.holds for row in found} == {expected}
    shown = "95 % interval" if len(ours) > 1 else "one seed: no interval"
    assert all(shown in row.here and "nan" not in row.here for row in found)


def test_what_falls_short_of_the_paper_is_said_in_the_cell():
    rows = statements.claims(_results([50.0] * 2, [50.0] * 2))
    [best] = [
        row for row in rows if row.what.startswith("BP, top1") and "best" in row.what
    ]
    assert best.paper == "56.55 ± 0.08"
    assert best.here == (
        "50.00 ± 0.00 (2 of 5 seeds, 2 of 110 epochs, 20,000 of 50,000 images)"
    )
    whole = _results(
        [50.0] * 5, [50.0] * 5, settings={"epochs": 2}, train_images=[1, 1]
    )
    assert statements.shortfall(whole) == ""
    assert statements.shortfall(_results([1], [1], dataset="digits")) == ""


def test_the_papers_number_is_met_by_the_whole_interval():
    for shift, expected in ((0.2, True), (1.0, UNDECIDED), (3.0, False)):
        values = 56.55 + shift + np.array([-0.1, -0.05, 0, 0.05, 0.1])
        rows = statements.claims(_results(values, values, full=True))
        assert rows[0].what.startswith("BP, top1 test accuracy")
        assert rows[0].holds == expected


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict", "counts"),
    [
        ([57.1, 57.2, 57.3], [56.0, 56.1, 56.2], True, "1 are so, 0 are not"),
        ([55.1, 55.2, 55.3], [56.0, 56.1, 56.2], False, "0 are so, 1 are not"),
        ([54.0, 56.2, 58.4], [56.0, 56.1, 56.2], UNDECIDED, "0 are so, 0 are not"),
    ],
)
def test_the_order_of_the_methods(ours, theirs, verdict, counts):
    rows = statements.claims(_results(ours, theirs, full=True))
    found = [row for row in rows if row.what.startswith("the order")]
    assert len(found) == 3  # by every protocol
    for row in found:
        assert row.paper == "SeqIL-MQ > BP"
        assert row.holds == verdict
        assert f"of 1 pairs that the paper tells apart, {counts}" in row.here
        first = "SeqIL-MQ > BP" if np.mean(ours) > 56.1 else "BP > SeqIL-MQ"
        assert row.here.startswith(f"{first}: ")
    short = statements.claims(_results(ours, theirs))
    assert not any(row.what.startswith("the order") for row in short)
    # The paper's own numbers do not tell BP from SeqIL-MQ on the conv net.
    conv = statements.claims(_results(ours, theirs, full=True, net="conv"))
    assert not any(row.what.startswith("the order") for row in conv)


def test_seconds_to_backprops_accuracy_are_those_of_run_json():
    seconds = {"mlp, per epoch": {"BP": [2.0, 2.0], "SeqIL-MQ": [5.0, 3.0]}}
    found = statements.times(_results([61.0] * 3, [50.0] * 3), seconds)
    assert found[0].here.startswith("4 s; 2 s the fastest epoch (3 of 5 seeds")
    # The first epoch is enough.
    assert found[1].here.startswith("3 s; 3 s the fastest epoch")
    assert statements.times(_results([61.0], [50.0]), {}) == []
    slow = statements.times(_results([40.0] * 3, [50.0] * 3), seconds)
    assert slow[1].here.startswith("never; ")


def test_how_accuracy_swings_over_the_last_epochs_is_said_of_long_runs():
    found = _results([50.0], [50.0])
    assert not any("last 10 epochs" in row.what for row in statements.claims(found))
    for curves in found["methods"].values():
        curves["train_loss"] = np.ones((20, 1))
        test = np.array([*[0.1] * 10, 0.5, *[0.55] * 8, 0.6])[:, None]
        curves["test"]["top1"] = test
        curves["halves"]["top1"] = np.stack([test, test], axis=1)
    rows = [row for row in statements.claims(found) if "last 10 epochs" in row.what]
    assert [row.what.split(",")[0] for row in rows] == ["BP", "SeqIL-MQ"]
    assert rows[0].here.startswith("55.00, from 50.00 to 60.00 (1 of 5 seeds, 20 of")
