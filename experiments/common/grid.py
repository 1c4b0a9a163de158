"""Grids of learning rates and step sizes, and how a point of them is chosen."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import report
from experiments.common.methods import Hyper


class Choice(NamedTuple):
    """A point of a grid, and how good it is on the test set.

    Attributes:
      point: its number.
      epochs: the epoch (from 1) whose weights count, of every seed.
      test: the test measure at that epoch, of every seed.
    """

    point: int
    epochs: list[int]
    test: list[float]


def points(rates: Sequence[Any], step_sizes: Sequence[Any]) -> list[Hyper]:
    """All pairs, learning rates outside."""
    return [Hyper(*pair) for pair in itertools.product(rates, step_sizes)]


def runs(grid: Sequence[Hyper], keys: jax.Array) -> tuple[Hyper, jax.Array]:
    """Every point with every key along one axis, points outside.

    Args:
      grid: P points.
      keys: S random keys, the same for all points.

    Returns:
      The hyper-parameters and the keys, [P S] each.
    """
    columns = zip(*grid, strict=True)
    repeat = [jnp.repeat(jnp.array(column), len(keys)) for column in columns]
    return Hyper(*repeat), jnp.tile(keys, len(grid))


def choose(
    select_by: Any, test: Any, num_points: int, *, higher_is_better: bool = True
) -> Choice:
    """The point and epochs that are best by one measure, and the test measure there.

    The paper's protocol selects by the test measure itself; the honest one by that of
    a validation set. A point counts by the mean over seeds of each seed's best epoch.

    Args:
      select_by: [epochs, P S], what is selected by; NaN loses.
      test: [epochs, P S], what is reported.
      num_points: P.
      higher_is_better: False for losses.
    """
    sign = 1.0 if higher_is_better else -1.0
    score, shown = (
        report.array(values).reshape(len(values), num_points, -1)
        for values in (select_by, test)
    )
    score = np.where(np.isnan(score), -np.inf, sign * score)
    point = int(score.max(0).mean(-1).argmax())
    epochs = score[:, point].argmax(0)
    seeds = np.arange(len(epochs))
    return Choice(point, (epochs + 1).tolist(), shown[epochs, point, seeds].tolist())
