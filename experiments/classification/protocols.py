"""Which epoch a network is judged at, and how soon it is as good as backprop.

The paper takes the epoch of the best test accuracy, which picks peaks where the
accuracy swings. Two others are beside it: the last epoch, and the epoch that is best on
one half of the test images, judged on the other half, both ways averaged.
"""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from experiments.common import report

SIGNIFICANT = 0.05  # the level of the two-sample t-test
PROTOCOLS = {
    "best": "best test epoch",
    "halves": "epoch chosen on half of the test images, judged on the others",
    "final": "last epoch",
}


class Accuracies(NamedTuple):
    """Test accuracies of a method in %, [runs] each.

    Attributes:
      best: of the best test epoch of every run, the paper's protocol.
      halves: of the epoch chosen on one half of the test images, on the other half;
        None in results that were measured before the halves were.
      final: of the last epoch.
    """

    best: np.ndarray
    halves: np.ndarray | None
    final: np.ndarray


def accuracies(curves: Mapping[str, Any], measure: str) -> Accuracies:
    """All protocols, of tests [epochs, runs] and halves [epochs, 2, runs]."""
    test = 100 * report.array(curves["test"][measure])
    halves = None
    if measure in curves.get("halves", {}):
        halves = chosen_on_halves(100 * report.array(curves["halves"][measure]))
    return Accuracies(test.max(0), halves, test[-1])


def chosen_on_halves(values: np.ndarray) -> np.ndarray:
    """The mean over both halves of the value at the epoch best on the other half.

    Args:
      values: [epochs, 2, runs], the higher the better; NaN is never chosen.

    Returns:
      [runs].
    """
    epochs = np.where(np.isnan(values), -np.inf, values).argmax(0)  # [2, runs]
    runs = np.arange(values.shape[2])
    judged = [values[epochs[half], 1 - half, runs] for half in range(2)]
    return np.mean(judged, axis=0)


def epochs_to(level: float, accuracy: Any) -> int | None:
    """The first epoch (from 1) whose mean over the runs, [epochs, runs], is `level`."""
    mean = report.array(accuracy).mean(1)
    reached = np.flatnonzero(mean >= level)
    return int(reached[0]) + 1 if len(reached) else None


def epochs_of_runs(level: float, accuracy: Any) -> np.ndarray:
    """The first epoch (from 1) of every run, [runs], that is `level`; inf if none."""
    reached = report.array(accuracy) >= level  # [epochs, runs]
    return np.where(reached.any(0), 1.0 + reached.argmax(0), np.inf)


def to_backprop(methods: Mapping[str, Any]) -> dict[str, int | None]:
    """By method, the epoch at which it has BP's final accuracy; empty without BP."""
    if "BP" not in methods:
        return {}
    level = report.array(methods["BP"]["test"]["top1"])[-1].mean()
    return {
        name: epochs_to(level, curves["test"]["top1"])
        for name, curves in methods.items()
    }


def best_epochs(curves: Mapping[str, Any], measure: str) -> dict[str, Any]:
    """Accuracies in % by the paper's protocol, the best test epoch of every seed.

    `bold` are the method of the best mean and those that a two-sample t-test over the
    seeds does not tell from it; methods with one seed do not compete, and it is None if
    fewer than two methods do.
    """
    tests = {
        name: 100 * report.array(found["test"][measure])
        for name, found in curves.items()
    }
    best = {name: values.max(0) for name, values in tests.items()}
    compete = {name: row for name, row in best.items() if len(row) > 1}
    top = max(compete, key=lambda name: compete[name].mean(), default="")
    with warnings.catch_warnings():  # of seeds that are all alike
        warnings.simplefilter("ignore", RuntimeWarning)
        values = {
            name: float(scipy.stats.ttest_ind(compete[top], row).pvalue)
            for name, row in compete.items()
            if name != top
        }
    return {
        "accuracy": best,
        "epoch": {name: 1 + values.argmax(0) for name, values in tests.items()},
        "final": {name: values[-1] for name, values in tests.items()},
        "p_values_to_best": values,
        "bold": [top, *(n for n, p in values.items() if not p < SIGNIFICANT)]
        if values
        else None,
    }
