"""The quickstart, end to end on digits, and its messages."""

import json

import numpy as np
import pytest

from experiments import quickstart


def test_quickstart_on_digits(tmp_path, capsys):
    config = quickstart.Config(
        epochs=3, seeds=2, methods=("BP", "SeqIL-MQ"), out=tmp_path
    )
    quickstart.main(config)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    backprop, seqil = summary["methods"]
    assert [backprop["name"], seqil["name"]] == ["BP", "SeqIL-MQ"]
    accuracies = np.array([epoch["test_accuracy"] for epoch in seqil["epochs"]])
    assert accuracies.shape == (3, 2)
    assert accuracies[-1].min() > 0.5
    best = accuracies.max(0)
    assert seqil["best_accuracy_mean"] == pytest.approx(best.mean())
    assert seqil["best_accuracy_std"] == pytest.approx(best.std(ddof=1))
    assert seqil["final_accuracy_mean"] == pytest.approx(accuracies[-1].mean())
    # Four layers' scalars and a counter; backprop counts for its decaying rate.
    assert seqil["optimizer_state_bytes"] == 4 * 5
    assert backprop["optimizer_state_bytes"] == 4
    to_beat = max(np.mean(epoch["test_accuracy"]) for epoch in backprop["epochs"])
    reached = [n for n, a in enumerate(accuracies.mean(1), 1) if a >= to_beat]
    assert seqil["epochs_to_bp_best"] == (reached[0] if reached else None)
    shown = capsys.readouterr().out
    assert "SeqIL-MQ    epoch 3" in shown
    assert f"{100 * seqil['best_accuracy_mean']:.2f} ±" in shown
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    curves = results["methods"]["SeqIL-MQ"]
    assert curves["test"]["top1"] == accuracies.tolist()
    assert "seconds" not in curves  # so that results are repeatable


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    curves = []
    for name in "ab":
        out = tmp_path / name
        quickstart.main(
            quickstart.Config(epochs=1, seeds=1, methods=("SeqIL",), out=out)
        )
        summary = json.loads((out / "summary.json").read_text())
        curves.append(summary["methods"][0]["epochs"][0]["train_loss"])
    assert curves[0] == curves[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "imagenet"}, "imagenet.*digits.*cifar10"),
        ({"methods": ("BP", "Adam")}, r"methods of \['BP'.*got \['Adam'\]"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        quickstart.main(quickstart.Config(out=tmp_path, **options))
