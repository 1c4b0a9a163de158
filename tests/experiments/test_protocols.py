"""Which epoch counts, against loops."""

import numpy as np
import pytest

from experiments.classification import protocols


def test_an_epoch_chosen_on_one_half_is_judged_on_the_other():
    values = np.random.default_rng(0).uniform(0, 100, (7, 2, 3))
    found = protocols.chosen_on_halves(values)
    for run in range(3):
        judged = []
        for half in range(2):
            best = max(range(7), key=lambda e, h=half, r=run: values[e, h, r])
            judged.append(values[best, 1 - half, run])
        assert found[run] == pytest.approx(sum(judged) / 2)
    # Noise alone: the best test epoch picks its peak, the halves do not.
    noise = np.random.default_rng(1).normal(50, 5, (100, 2, 200))
    assert noise.mean(1).max(0).mean() > 57
    assert protocols.chosen_on_halves(noise).mean() == pytest.approx(50, abs=0.7)


def test_all_protocols():
    test = np.array([[0.1, 0.5], [0.4, 0.3], [0.2, 0.2]])
    halves = np.stack([test + 0.02, test - 0.02], axis=1)
    curves = {"test": {"top1": test}, "halves": {"top1": halves}}
    found = protocols.accuracies(curves, "top1")
    np.testing.assert_allclose(found.best, [40, 50])
    np.testing.assert_allclose(found.final, [20, 20])
    np.testing.assert_allclose(found.halves, [40, 50])
    old = protocols.accuracies({"test": {"top1": test}}, "top1")
    assert old.halves is None  # results of before


def test_epochs_to_backprop():
    def method(*accuracies):
        return {"test": {"top1": [[a - 0.1, a + 0.1] for a in accuracies]}}

    found = protocols.to_backprop(
        {"BP": method(0.2, 0.6, 0.5), "fast": method(0.5), "slow": method(0.1, 0.4)}
    )
    assert found == {"BP": 2, "fast": 1, "slow": None}
    assert protocols.to_backprop({"fast": method(0.5)}) == {}


def test_bold_are_those_that_a_t_test_does_not_tell_from_the_best():
    def method(*finals):
        return {"test": {"top1": [[0.1] * len(finals), list(finals)]}}

    found = protocols.best_epochs(
        {
            "a": method(0.50, 0.51, 0.52),
            "b": method(0.49, 0.51, 0.53),
            "c": method(0.40, 0.41, 0.42),
            "one": method(0.90),  # one seed does not compete
        },
        "top1",
    )
    assert found["bold"] == ["a", "b"]
    assert set(found["p_values_to_best"]) == {"b", "c"}
    assert found["epoch"]["c"].tolist() == [2, 2, 2]
    np.testing.assert_allclose(found["final"]["one"], [90])
    alike = {"a": method(0.5, 0.5), "b": method(0.5, 0.5)}
    assert protocols.best_epochs(alike, "top1")["bold"] == ["a", "b"]
    for alone in ({"one": method(0.9)}, {"a": method(0.5, 0.6), "one": method(0.9)}):
        assert protocols.best_epochs(alone, "top1")["bold"] is None
