"""How a point of a grid is chosen, against loops."""

import jax
import numpy as np
import pytest

from experiments import tune
from experiments.common import grid, report
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


def _tuned(**accuracies):
    """Results of `tune` with two rates, [epochs, seeds] of test accuracy each."""
    return {
        "measure": "top1",
        "methods": {
            name.replace("_", "-"): {
                "points": [
                    {"learning_rate": rate, "step_size": 0.1} for rate in (1.0, 3.0)
                ],
                "protocols": {
                    "validation": {
                        "point": 1,
                        "epochs": [2] * len(rows[0]),
                        "test": rows[1],
                    }
                },
                "train_loss": np.ones(np.shape(rows)),
                "test": {"top1": rows},
            }
            for name, rows in accuracies.items()
        },
    }


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([0.61, 0.62, 0.63], True),
        ([0.51, 0.52, 0.53], False),
        ([0.61, 0.62], "undecided"),
    ],
)
def test_rates_that_are_tuned_alike(ours, verdict):
    few = [0.2] * len(ours)
    results = _tuned(
        BP=[[0.2, 0.2, 0.2], [0.56, 0.57, 0.58], [0.5, 0.5, 0.5]],
        SeqIL_MQ=[few, ours, few],
        never=[[0.1], [0.2], [0.3]],
    )
    rows = {row.what: row for row in tune.claims(results)}
    chosen = rows["BP, chosen by validation: test accuracy, %"]
    assert chosen.here == (
        "57.00 ± 1.00 (rate 3, the edge of the grid, epochs [2, 2, 2])"
    )
    ours_shown = rows["SeqIL-MQ, chosen by validation: test accuracy, %"].here
    assert "the edge of the grid, eps 0.1, epochs" in ours_shown
    ends = "epochs to BP's final accuracy, rates chosen by validation"
    assert rows[f"BP, {ends}"].here == rows[f"SeqIL-MQ, {ends}"].here == "2"
    assert rows[f"never, {ends}"].here == "never"
    found = rows["SeqIL-MQ is not worse than BP, rates and epochs chosen by validation"]
    assert found.holds == verdict
    seconds = {f"{name}, per epoch": {name: [30, 12, 60]} for name in ("BP", "never")}
    clock = [row.here.split(";")[0] for row in tune.times(results, seconds)]
    # Two epochs of 12 s, in which 2 rates and 3 seeds were trained.
    assert clock == ["4 s", "never"]
    del results["methods"]["BP"]["train_loss"]  # results of before
    assert len(tune.claims(results)) == 3
    assert not tune.times(results, seconds)


def test_the_curves_of_a_point_are_its_seeds():
    values = np.arange(24.0).reshape(2, 12)  # 2 epochs, 4 points of 3 seeds
    found = tune._of_point({"train_loss": values, "test": {"top1": -values}}, 2, 4)
    assert found["train_loss"].tolist() == [[6, 7, 8], [18, 19, 20]]
    assert found["test"]["top1"].tolist() == [[-6, -7, -8], [-18, -19, -20]]


def test_the_best_epoch_of_a_point_that_diverges_is_one_before():
    values = [[0.7, 0.5, 0.9, 0.4], [0.6, np.nan, 0.3, 0.2]]  # 2 points of 2 seeds
    assert tune._best(values, "loss", 2).tolist() == [0.55, 0.25]
    assert tune._best(values, "top1", 2).tolist() == [0.6, 0.65]


@pytest.mark.parametrize(
    ("step_sizes", "expected"),
    [
        ((0.1,), {"test", "validation"}),
        (
            (0.1, 0.2),
            {"test", "validation"}
            | {
                f"eps {eps}, {of}"
                for eps in (0.1, 0.2)
                for of in ("test", "validation")
            },
        ),
    ],
)
def test_the_legend_names_the_lines_of_all_panels(
    tmp_path, monkeypatch, step_sizes, expected
):
    def method(sizes):
        points = grid.points((1.0, 3.0), sizes)
        best = [0.5] * len(points)
        points = [point._asdict() for point in points]
        return {"points": points, "best": {"test": best, "validation": best}}

    drawn = []
    monkeypatch.setattr(
        report, "legend_beside", lambda panel, **to: drawn.append(panel.legend(**to))
    )
    methods = {"SeqIL": method(step_sizes), "BP": method((0.1,))}
    tune.plot({"measure": "top1", "methods": methods}, tmp_path)
    texts = [text.get_text() for text in drawn[0].get_texts()]
    assert len(texts) == len(set(texts))
    assert set(texts) == expected
