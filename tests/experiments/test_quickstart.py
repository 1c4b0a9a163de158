"""The quickstart, end to end on digits, and its messages."""

import contextlib
import io
import json

import numpy as np
import pytest

from experiments import quickstart


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run, and what it showed."""
    out = tmp_path_factory.mktemp("quickstart")
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        quickstart.main(_config(("BP", "SeqIL-MQ"), out))
    return out, shown.getvalue()


def _config(methods, out):
    return quickstart.Config(epochs=3, seeds=2, methods=methods, out=out)


def test_quickstart_on_digits(finished):
    folder, shown = finished
    summary = json.loads((folder / "summary.json").read_text())
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
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
    assert "SeqIL-MQ    epoch 3" in shown
    assert f"{100 * seqil['best_accuracy_mean']:.2f} ±" in shown
    results = json.loads((folder / "results.json").read_text())["results"]
    curves = results["methods"]["SeqIL-MQ"]
    assert curves["test"]["top1"] == accuracies.tolist()
    assert "seconds" not in curves  # so that results are repeatable


def test_the_same_seed_gives_the_same_numbers(finished, tmp_path):
    quickstart.main(_config(("SeqIL-MQ",), tmp_path))
    curves = [
        json.loads((out / "results.json").read_text())["results"]["methods"]["SeqIL-MQ"]
        for out in (tmp_path, finished[0])
    ]
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
