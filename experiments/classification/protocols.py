"""Which epoch a network is judged at, and how soon it is as good as backprop.

The paper takes the epoch of the best test accuracy, which picks peaks where the
accuracy swings. Two others are beside it: the last epoch, and the epoch that is best on
one half of the test images, judged on the other half, both ways averaged.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.common import report


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
      values: [epochs, 2, runs], the higher the better.

    Returns:
      [runs].
    """
    epochs = values.argmax(0)  # [2, runs]
    runs = np.arange(values.shape[2])
    judged = [values[epochs[half], 1 - half, runs] for half in range(2)]
    return np.mean(judged, axis=0)


def epochs_to(level: float, accuracy: Any) -> int | None:
    """The first epoch (from 1) whose mean over the runs, [epochs, runs], is `level`."""
    mean = report.array(accuracy).mean(1)
    reached = np.flatnonzero(mean >= level)
    return int(reached[0]) + 1 if len(reached) else None


def to_backprop(methods: Mapping[str, Any]) -> dict[str, int | None]:
    """By method, the epoch at which it has BP's final accuracy; empty without BP."""
    if "BP" not in methods:
        return {}
    level = report.array(methods["BP"]["test"]["top1"])[-1].mean()
    return {
        name: epochs_to(level, curves["test"]["top1"])
        for name, curves in methods.items()
    }
