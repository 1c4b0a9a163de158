"""How a point of a grid is chosen, against loops."""

import jax
import numpy as np
import pytest

from experiments.common import grid
from experiments.common.methods import Hyper


def test_points_and_runs():
    points = grid.points([1.0, 2.0], [0.1, 0.2, 0.3])
    assert points[1] == Hyper(1.0, 0.2)
    assert points[3] == Hyper(2.0, 0.1)
    keys = jax.random.split(jax.random.key(0), 2)
    hyper, repeated = grid.runs(points, keys)
    np.testing.assert_allclose(hyper.learning_rate, [1] * 6 + [2] * 6)
    np.testing.assert_allclose(hyper.step_size, np.repeat([0.1, 0.2, 0.3] * 2, 2))
    data = jax.random.key_data(repeated)
    data = np.asarray(data)
    assert (data[0::2] == np.asarray(jax.random.key_data(keys[0]))).all()
    assert (data[1::2] == np.asarray(jax.random.key_data(keys[1]))).all()


@pytest.mark.parametrize("higher", [True, False])
def test_choose(higher):
    rng = np.random.default_rng(1)
    epochs, points, seeds = 7, 5, 3
    by, test = rng.normal(size=(2, epochs, points * seeds))
    by[2, 4] = np.nan
    best, expected = -np.inf, None
    for point in range(points):
        total, chosen = 0.0, []
        for seed in range(seeds):
            column = by[:, point * seeds + seed] * (1 if higher else -1)
            epoch = max(
                (e for e in range(epochs) if not np.isnan(column[e])),
                key=lambda e, column=column: column[e],
            )
            total += column[epoch]
            chosen.append(epoch)
        if total > best:
            shown = [test[e, point * seeds + s] for s, e in enumerate(chosen)]
            best, expected = total, (point, [e + 1 for e in chosen], shown)
    found = grid.choose(by, test, points, higher_is_better=higher)
    assert found == grid.Choice(*expected)


def test_the_honest_choice_does_not_look_at_the_test_set():
    validation = [[0.1, 0.9], [0.2, 0.3]]  # [epochs, points]
    test = [[0.5, 0.4], [0.8, 0.7]]
    assert grid.choose(validation, test, 2) == grid.Choice(1, [1], [0.4])
    assert grid.choose(test, test, 2) == grid.Choice(0, [2], [0.8])
