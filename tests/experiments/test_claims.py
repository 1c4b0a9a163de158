"""When a statement is judged, and by what."""

import math
import re

import numpy as np
import pytest
import scipy.stats

from experiments import autoencoder, training_time
from experiments.classification import sentences, statements
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
            "test": {"top1": test, "loss": 2 - test},
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
    results = _results(ours, theirs, full=True)
    rows = statements.claims(results)
    found = [row for row in rows if "never significantly worse" in row.what]
    assert len(found) == 3  # by every protocol
    # Of the test losses too, which are 2 - accuracy here.
    losses = [row for row in rows if row.what.startswith("SeqIL-MQ's test loss")]
    assert [row.paper for row in losses] == ["section 9", "-"]
    assert {row.holds for row in losses} == {expected}
    results["full"] = False  # long before the end there is nothing to judge
    for row in statements.claims(results):
        if row.what in {row.what for row in (*found, *losses)}:
            assert row.holds == UNDECIDED
            assert row.here.endswith("long before convergence")
    assert {row.holds for row in found} == {expected}
    shown = "95 % interval" if len(ours) > 1 else "one seed: no interval"
    assert all(shown in row.here and "nan" not in row.here for row in found)


def test_what_falls_short_of_the_paper_is_said_in_the_cell():
    rows = statements.claims(_results([60.0, 61.0], [50.0] * 2))
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
    assert sentences.shortfall(whole) == ""
    assert sentences.shortfall(_results([1], [1], dataset="digits")) == ""


def test_the_papers_number_is_met_by_the_whole_interval():
    for shift, expected in ((0.2, True), (1.0, UNDECIDED), (3.0, False)):
        values = 56.55 + shift + np.array([-0.1, -0.05, 0, 0.05, 0.1])
        rows = statements.claims(_results(values, values, full=True))
        assert rows[0].what.startswith("BP, top1 test accuracy")
        assert rows[0].holds == expected
        assert f"; {shift:+.2f} points, 95 % interval" in rows[0].here


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
        gap = np.mean(ours) - 56.1
        narrow = f"the narrowest is SeqIL-MQ > BP, {gap:+.2f} points, 95 % interval"
        assert narrow in row.here
        first = "SeqIL-MQ > BP" if np.mean(ours) > 56.1 else "BP > SeqIL-MQ"
        assert row.here.startswith(f"{first}: ")
    # One that is not in the paper's table has no part in it.
    more = _more(_results(ours, theirs, full=True), IL=np.array([52.0]))
    more = [r for r in statements.claims(more) if r.what.startswith("the order")]
    assert more == found
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


def _more(results, **finals):
    """The results with further methods, [seeds] of final accuracy in %."""
    for name, final in finals.items():
        added = _results([1.0], final)["methods"]["BP"]
        results["methods"][name.replace("_", "-")] = added
    return results


def _row(rows, start):
    [found] = [row for row in rows if row.what.startswith(start)]
    return found


FIVE = np.array([-0.2, -0.1, 0.0, 0.1, 0.2])


@pytest.mark.parametrize(
    ("net", "behind", "what", "verdict"),
    [
        ("mlp", 0.2, "SeqIL-Adam matches SeqIL-MQ", True),
        ("mlp", 1.6, "SeqIL-Adam matches SeqIL-MQ", False),
        ("mlp", 1.0, "SeqIL-Adam matches SeqIL-MQ", UNDECIDED),
        ("conv", 8.0, "SeqIL-Adam struggles in conv nets", True),
        ("conv", 0.0, "SeqIL-Adam struggles in conv nets", UNDECIDED),
        ("conv", -1.0, "SeqIL-Adam struggles in conv nets", False),
    ],
)
def test_what_is_said_of_adam(net, behind, what, verdict):
    results = _results(57 + FIVE, 56 + FIVE, net=net, full=True)
    rows = statements.claims(_more(results, SeqIL_Adam=57 - behind + FIVE))
    assert _row(rows, what).holds == verdict
    assert f"ahead by {behind:+.2f} points" in _row(rows, what).here
    results["full"] = False
    short = _row(statements.claims(results), what)
    assert short.holds == UNDECIDED
    assert short.here.endswith("long before convergence")


@pytest.mark.parametrize(
    ("ahead", "verdict"), [(0.5, True), (-0.5, False), (-3.0, False)]
)
def test_what_is_said_of_adam_with_backprop(ahead, verdict):
    results = _more(
        _results(57 + FIVE, 56 + FIVE, full=True), BP_Adam=57 - ahead + FIVE
    )
    rows = [r for r in statements.claims(results) if "comparable to BP-Adam" in r.what]
    assert [row.holds for row in rows] == [verdict] * 3  # by every protocol
    assert all(row.here.startswith(f"{ahead:+.2f} points") for row in rows)


def test_convergence_is_the_epoch_of_the_lowest_test_error():
    results = _results(57 + FIVE, 56 + FIVE, full=True)
    for name, epochs in {"SeqIL-MQ": [3, 4, 5, 3, 4], "BP": [8, 9, 9, 8, 7]}.items():
        curves = results["methods"][name]
        curves["train_loss"] = np.ones((10, 5))
        test = np.full((10, 5), 0.3)
        test[np.array(epochs) - 1, np.arange(5)] = 0.5
        curves["test"] = {"top1": test, "loss": 2 - test}
        curves["halves"]["top1"] = np.stack([test, test], axis=1)
    row = _row(statements.claims(results), "SeqIL-MQ converges more quickly")
    assert row.holds is True
    assert row.here.startswith("epoch 3.8, 8.2; -4.4 epochs, 95 % interval")
    # Where most are best at the end, no more than the end was seen.
    best = results["methods"]["BP"]["test"]["top1"]
    kept = best.copy()
    best[9, :3] = 0.6
    row = _row(statements.claims(results), "SeqIL-MQ converges more quickly")
    assert row.holds == UNDECIDED
    best[:] = kept
    results["methods"] = {
        "BP": results["methods"]["SeqIL-MQ"],
        "SeqIL-MQ": results["methods"]["BP"],
    }
    row = _row(statements.claims(results), "SeqIL-MQ converges more quickly")
    assert row.holds is False
    results["full"] = False
    row = _row(statements.claims(results), "SeqIL-MQ converges more quickly")
    assert row.holds == UNDECIDED


def test_leaving_one_seed_out_of_means_is_welch():
    random = np.random.default_rng(0)
    a, b = random.normal(size=5), random.normal(1.0, 3.0, size=4)
    found = claims.jackknife(lambda a, b: a.mean() - b.mean(), a, b)
    np.testing.assert_allclose(found, claims.difference(a, b), rtol=1e-12)
    # Of a ratio of means it is that of its derivatives, where these barely vary.
    a, b = 8 + 0.01 * a, 2 + 0.01 * b
    ratio = claims.jackknife(lambda a, b: a.mean() / b.mean(), a, b)
    assert ratio.mean == a.mean() / b.mean()
    linear = claims.difference(a / b.mean(), b * a.mean() / b.mean() ** 2)
    np.testing.assert_allclose(ratio.high - ratio.low, linear.high - linear.low, 1e-2)
    alone = claims.jackknife(lambda a, b: a.mean() - b.mean(), a, b[:1])
    assert alone.mean == a.mean() - b[0]
    assert np.isnan(alone.low)


def test_the_curves_of_all_methods_count_in_how_near_they_are():
    what = "SeqIL-MQ's learning curve"

    def shown(noise):
        results = _results(57 + FIVE, 56 + noise * FIVE, full=True)
        row = _row(statements.claims(_more(results, BP_Adam=57.5 + FIVE)), what)
        low, high = re.search(r"interval (\S+) to (\S+)", row.here).groups()
        return float(high) - float(low)

    assert shown(5.0) > 1.5 * shown(1.0)


def test_whose_learning_curve_is_nearer():
    what = "SeqIL-MQ's learning curve"
    for adam, verdict in ((57.5, True), (54.0, False), (58.0, UNDECIDED)):
        results = _results(57 + FIVE, 56 + FIVE, full=True)
        results = _more(results, BP_Adam=adam + FIVE)
        row = _row(statements.claims(results), what)
        assert row.holds == verdict
    # Distances to a curve of the mean: 1 to both but for the seeds' noise.
    assert row.here.startswith("1.00, 1.00 points away; +0.00 points, 95 %")
    results["full"] = False
    assert _row(statements.claims(results), what).holds == UNDECIDED


def test_early_on_is_said_of_seqil_in_mlps_alone():
    for net, count in (("mlp", 2), ("conv", 1)):
        results = _more(_results(57 + FIVE, 56 + FIVE, net=net), SeqIL=58 + FIVE)
        rows = [r for r in statements.claims(results) if "early on" in r.what]
        assert [row.holds for row in rows] == [True] * count
    # The training loss of the first epoch is 1 - accuracy here.
    assert rows[0].here.startswith("training loss of epoch 1: 0.430, 0.440; -0.010")


def test_training_time_is_judged_at_full_length():
    what = "SeqIL-MQ's training time"

    def found(ours, each=3.0, **changes):
        results = _results(ours, [50.0] * len(ours), full=True, **changes)
        seconds = {"mlp, per epoch": {"BP": [2.0, 2.0], "SeqIL-MQ": [9.0, each]}}
        return _row(statements.times(results, seconds), what)

    # BP is at 50 % in epoch 2, SeqIL-MQ at 61 % in epoch 1, at 52 % in epoch 2.
    fast, slow = [61.0] * 3, [52.0] * 3
    assert found(fast).holds is True
    assert found(fast).here.startswith(
        "3.0 s, 4.0 s: 0.75 times, 95 % interval 0.75 to"
    )
    assert found(slow).holds is False
    assert found(slow, each=2.1).holds is True
    assert found([61.0, 52.0, 52.0], each=2.1).holds == UNDECIDED
    assert found([61.0] * 2).holds == UNDECIDED
    never = found([41.0, 42.0, 43.0])
    assert never.holds is False
    assert never.here.startswith("never in 3 of 3 and 0 of 3 runs")
    assert found([41.0, 61.0, 61.0]).holds == UNDECIDED
    short = _results(fast, [50.0] * 3)
    seconds = {"mlp, per epoch": {"BP": [2.0], "SeqIL-MQ": [1.0]}}
    assert not any(r.what.startswith(what) for r in statements.times(short, seconds))


def test_tiny_imagenet_has_a_sentence_of_its_own():
    what = "SeqIL-MQ is slightly better than BP"
    for ours, verdict in ((57, True), (56, UNDECIDED), (55, False)):
        results = _results(
            ours + FIVE, 56 + FIVE, full=True, dataset="tiny_imagenet", net="conv"
        )
        assert _row(statements.claims(results), what).holds == verdict
    rows = statements.claims(_results(57 + FIVE, 56 + FIVE, full=True))
    assert not any(row.what.startswith(what) for row in rows)


def test_seqil_is_set_against_backprop_too():
    results = _more(_results(57 + FIVE, 56 + FIVE, full=True), SeqIL=56.5 + FIVE)
    what = "without an optimizer SeqIL converges to poorer minima than "
    rows = statements.claims(results)
    assert _row(rows, what + "SeqIL-MQ").holds is True
    assert _row(rows, what + "BP").holds is False
    assert _row(rows, what + "BP").here.startswith("BP is ahead by -0.50 points")


def test_steps_left_out_are_said_in_the_cell():
    results = _results([50.0] * 5, [50.0] * 5, full=True, settings={"epochs": 2})
    results |= {"train_images": [1, 1]}
    results["methods"]["BP"]["refused_steps"] = [0, 0, 1000, 0, 34]
    assert sentences.shortfall(results, "SeqIL-MQ") == ""
    assert sentences.shortfall(results, "BP") == (" (1,034 steps not finite, left out)")
    # Of several methods, what the shortest has.
    curves = results["methods"]["SeqIL-MQ"]
    curves["train_loss"] = curves["train_loss"][:, :1]
    assert sentences.shortfall(results, "BP", "SeqIL-MQ") == (
        " (1 of 5 seeds, 1,034 steps not finite, left out)"
    )


def _reconstructed(**bests):
    """Results of an autoencoder: [seeds] of the lowest test loss, in epoch 2 of 3."""
    methods = {
        name.replace("_", "-"): {
            "train_loss": np.ones((3, len(best))),
            "test": {"loss": np.stack([best + 0.1, best, best + 0.02])},
        }
        for name, best in bests.items()
    }
    return {"settings": {"epochs": 3}, "methods": methods}


@pytest.mark.parametrize(
    ("worse", "verdict"),
    [(0.0, True), (-0.02, False), (0.02, False), (0.01, UNDECIDED)],
)
def test_what_is_said_of_reconstructions(worse, verdict):
    best = 0.6 + FIVE / 1000
    results = _reconstructed(BP=best, SeqIL=best, SeqIL_MQ=best + worse)
    rows = autoencoder.claims(results)
    row = _row(rows, "SeqIL-MQ converges to a reconstruction loss similar to BP's")
    assert row.holds == verdict
    assert row.here.startswith(f"best {0.6 + worse:.4f}, 0.6000; {worse:+.4f}")
    # It is said of those with an optimizer.
    assert not any(row.what.startswith("SeqIL converges") for row in rows)
    early = _row(rows, "SeqIL-MQ reduces the loss faster than BP early")
    assert early.here.startswith(f"after epoch 1: {0.7 + worse:.4f}, 0.7000")
    results["settings"]["epochs"] = 4
    row = _row(autoencoder.claims(results), "SeqIL-MQ converges")
    assert row.holds == UNDECIDED
    assert row.here.endswith("(3 of 4 epochs)")
    halves = np.array([[0.7, 0.8], [0.6, 0.5], [np.nan, np.nan]])
    halves = np.repeat(halves[..., None], 5, axis=2)
    results["methods"]["BP"]["halves"] = {"loss": halves}
    row = _row(autoencoder.claims(results), "BP, test loss (BCE a pixel), epoch chosen")
    assert row.here.startswith("0.5500 ± 0.0000")
    one = _reconstructed(BP=best, SeqIL_MQ=best[:1])
    row = _row(autoencoder.claims(one), "SeqIL-MQ converges")
    assert row.holds == UNDECIDED
    assert row.here.endswith("one seed: no interval (1 of 5 seeds)")


def test_training_time_to_backprops_best_loss():
    def curves(losses, seconds, seeds=1):
        rows = np.array(losses)[:, None] + np.zeros(seeds)
        return {"test": {"loss": rows}, "seconds": [seconds] * len(losses)}

    trained = {
        "BP": curves([2.0, 1.0, 1.5], 4.0),
        "SeqIL-MQ": curves([1.2, 1.0, 0.9], 4.3),
        "never": curves([3.0, 2.0, 1.1], 1.0),
    }
    found = {"nets": {"mlp": {"methods": trained}}}
    assert training_time.to_backprops_best(trained, "SeqIL-MQ") == pytest.approx(8.6)
    assert training_time.to_backprops_best(trained, "never") == np.inf
    rows = training_time.claims(found)
    assert "does not reach BP's best test loss (BP trained 12.0 s)" in rows[2].here
    assert rows[3].holds == UNDECIDED
    assert rows[3].here == "8.6 s, 8.0 s: 1.07 times, one seed: no interval"
    for seconds, verdict in ((4.3, True), (4.5, False)):
        trained["BP"] = curves([2.0, 1.0, 1.5], 4.0, seeds=3)
        trained["SeqIL-MQ"] = curves([1.2, 1.0, 0.9], seconds, seeds=3)
        assert training_time.claims(found)[3].holds is verdict
    trained["SeqIL-MQ"] = curves([3.0, 2.0, 1.1], 1.0, seeds=3)
    assert training_time.claims(found)[3].holds is False
    # A loss of BP's that is not finite is none that could be reached.
    trained["BP"]["test"]["loss"][0] = np.nan
    assert training_time.claims(found)[3].holds is False
    trained["BP"]["test"]["loss"][:] = np.nan
    assert training_time.claims(found)[3].holds == UNDECIDED


def test_a_method_of_fewer_seeds_than_the_others_decides_nothing():
    results = _more(
        _results(57 + FIVE, 40 + FIVE, full=True),
        BP_Adam=[57.0, 57.1],
        SeqIL=[40.0, 40.1],
        SeqIL_Adam=[40.0, 40.1],
    )
    verdicts = {row.what: row.holds for row in statements.claims(results)}
    assert (
        verdicts["SeqIL-MQ is never significantly worse than BP (last epoch)"] is True
    )
    few = [
        "SeqIL, top1 test accuracy, %, best test epoch",
        "SeqIL-MQ is comparable to BP-Adam, or better (last epoch)",
        "SeqIL reduces the loss more quickly than BP early on",
        "SeqIL-MQ's learning curve is nearer to BP-Adam's than to BP's",
        "without an optimizer SeqIL converges to poorer minima than SeqIL-MQ",
        "SeqIL-Adam matches SeqIL-MQ in fully connected nets",
        "the order of the methods (best test epoch)",
    ]
    assert {verdicts[what] for what in few} == {UNDECIDED}
    best = 0.6 + FIVE / 1000
    rows = autoencoder.claims(_reconstructed(BP=best, SeqIL_MQ=best[:2] - 0.3))
    assert {row.holds for row in rows if row.paper != "-"} == {UNDECIDED}
