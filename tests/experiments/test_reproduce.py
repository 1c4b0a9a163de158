"""All experiments at the smoke preset, on digits, through `reproduce`."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments import reproduce
from experiments.common import page

FIGURES = {
    "costs": {"costs.png"},
    "inference_errors": {"errors.png"},
    "inference_iterations": {"accuracy.png"},
    "classification": {"curves.png"},
    "autoencoder": {"curves.png", "pictures.png"},
    "update_magnitudes": {"magnitudes.png"},
    "training_time": {"time.png"},
    "proximal_objective": {"change.png", "figure1.png", "figure8.png"},
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce")
    reproduce.main(reproduce.Config(out=folder))
    return folder


def results(out, *path):
    return json.loads(out.joinpath(*path, "results.json").read_text())["results"]


def test_every_experiment_has_results_figures_and_a_place_in_the_report(out):
    jobs = [job for job in reproduce.JOBS if job.dataset is None]
    markdown = (out / "report.md").read_text()
    html = (out / "report.html").read_text()
    assert markdown.count("\n## ") == html.count("<h2>") == len(jobs)
    assert "Not run" not in markdown
    for job in jobs:
        folder = job.folder(out, "digits")
        found = json.loads((folder / "results.json").read_text())
        run = json.loads((folder / "run.json").read_text())
        assert found["experiment"] == job.module
        assert run["seconds"] > 0
        assert found["claims"], job.module
        for claim in found["claims"]:
            assert claim["here"].replace("|", "\\|") in markdown
        drawn = {path.name for path in folder.glob("*.png")}
        assert drawn == FIGURES[job.module]
        for name in drawn:
            assert (folder / name).read_bytes().startswith(b"\x89PNG")
            link = (folder / name).relative_to(out).as_posix()
            assert f"]({link})" in markdown
    # The page stands alone.
    assert html.count('src="data:image/png;base64,') == html.count("<img")
    assert not re.search(r'(src|href)="(?!data:|#)', html)


def test_nothing_is_done_twice(out, capsys):
    before = {path: path.read_bytes() for path in out.rglob("run.json")}
    report = (out / "report.html").read_text()
    reproduce.main(reproduce.Config(out=out, only=("inference_errors", "autoencoder")))
    assert "epoch 1/2" not in capsys.readouterr().out
    assert {path: path.read_bytes() for path in out.rglob("run.json")} == before
    assert report.count("<h2>") > (out / "report.html").read_text().count("<h2>")


def test_errors_reach_the_layers_when_the_paper_says(out):
    errors = results(out, "inference_errors", "digits")["errors"]
    count = 5
    for name, delayed in (("sequential", False), ("simultaneous", True)):
        rows = np.array(errors[name])  # [seeds, T+1, L]
        assert (rows[:, 0, :-1] == 0).all()
        assert (rows[:, 0, -1] > 0).all()
        for layer in range(1, count):
            first = count - layer if delayed else 1
            assert (rows[:, :first, layer - 1] == 0).all()
            assert (rows[:, first:, layer - 1] > 0).all()


def test_mq_makes_the_updates_alike(out):
    ratios = results(out, "update_magnitudes", "digits-mlp")["ratios"]
    mean = {name: np.mean(row) for name, row in ratios.items()}
    assert mean["IL-norm"] > 10 * mean["IL-MQ"]
    assert mean["SeqIL"] > 10 * mean["SeqIL-MQ"]
    assert mean["SeqIL"] > 10 * mean["SeqIL-Adam"]
    assert mean["IL-MQ"] < 10


def test_simultaneous_inference_needs_iterations(out):
    runs = results(out, "inference_iterations", "digits")["runs"]
    best = {name: np.mean(row["best"]) for name, row in runs.items()}
    assert best["SeqIL-Adam-T1"] > best["SimIL-Adam-T1"] + 5
    for row in runs.values():
        grid = row["grid"]
        accuracies = dict(
            zip(map(str, grid["points"]), grid["validation_accuracy"], strict=True)
        )
        assert max(accuracies, key=accuracies.get) == str(grid["chosen"])


def test_pictures_and_losses_of_the_autoencoder(out):
    from experiments.autoencoder import decode

    found = results(out, "autoencoder", "digits")
    inputs = decode(found["pictures"]).astype(float)
    assert inputs.shape == (8, 64)
    for curves in found["methods"].values():
        outputs = decode(curves["pictures"]).astype(float)
        assert outputs.shape == inputs.shape
        loss = np.array(curves["test"]["loss"])
        assert (loss[-1] < np.log(2)).all()  # better than grey
    # What learns more draws better.
    error = {
        name: np.mean((decode(curves["pictures"]) - inputs) ** 2)
        for name, curves in found["methods"].items()
    }
    assert error["SeqIL"] < error["SeqIL-Adam"]


def test_table_of_classification(out):
    found = results(out, "classification", "digits-mlp")
    for name, curves in found["methods"].items():
        accuracy = 100 * np.array(curves["test"]["top1"])
        best = found["best"]["top1"]
        np.testing.assert_allclose(best["accuracy"][name], accuracy.max(0))
        np.testing.assert_allclose(best["final"][name], accuracy[-1])
        assert best["epoch"][name] == (1 + accuracy.argmax(0)).tolist()
    bold = found["best"]["top1"]["bold"]
    means = {n: np.mean(a) for n, a in found["best"]["top1"]["accuracy"].items()}
    assert bold[0] == max(means, key=means.get)


def test_a_missing_data_set_is_reported_and_the_rest_is_run(tmp_path):
    config = reproduce.Config(
        preset="smoke",
        dataset="cifar10",
        data_dir=tmp_path / "nothing",
        out=tmp_path / "out",
        only=("inference_errors",),
    )
    with pytest.raises(SystemExit, match="No experiment could be run"):
        reproduce.main(config)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Not run: inference_errors: cifar10 is not prepared in" in text
    with pytest.raises(SystemExit, match=r"--only: expected some of \['costs'.*magic"):
        reproduce.main(reproduce.Config(only=("magic",)))


def test_the_page_escapes_what_it_shows(tmp_path):
    claims = [{"what": "<b>", "paper": "a|b", "here": "&", "holds": False}]
    here = _measured(tmp_path, claims)
    sections = [page.Section("T", "Fig. <1>", here=here)]
    page.write(tmp_path, "smoke", sections)
    html = (tmp_path / "report.html").read_text()
    assert "<b>" not in html
    assert "<td>&lt;b&gt;</td><td>a|b</td><td>&amp;</td>" in html
    assert "| <b> | a\\|b | & | does not hold |" in (tmp_path / "report.md").read_text()
    assert "0 hold here, 1 do not and 0 are not decided" in html


def _measured(folder, claims, **about):
    found = {"claims": claims, "results": {}, "versions": {}, "device": "cpu", **about}
    run = {"command": "python <x>", "seconds": 1.0, "finished": "now"}
    return page.Measured(folder, found, run)


def test_runs_at_full_length_stand_beside_the_short_ones(tmp_path):
    def row(what, here, holds):
        return {"what": what, "paper": "9", "here": here, "holds": holds}

    short = [row("a", "1", "undecided"), row("b", "2", "undecided")]
    long = [row("a", "8 (1 of 5 seeds)", True), row("c", "7", None)]
    section = page.Section(
        "T",
        "Table 2",
        here=_measured(tmp_path / "mlp", short),
        full=_measured(tmp_path / "mlp-paper", long, unfinished=["SeqIL"]),
    )
    text = page.markdown(tmp_path, "cpu", [section])
    assert "| what | paper | at full length |  | here |  |" in text
    assert "| a | 9 | 8 (1 of 5 seeds) | holds | 1 | not decided |" in text
    assert "| b | 9 | - |  | 2 | not decided |" in text
    assert "| c | 9 | 7 |  | - |  |" in text
    assert "not finished: SeqIL" in text
    # The full length counts where it was tested.
    assert "1 hold here, 0 do not and 1 are not decided" in text


RESULTS = Path(__file__).parents[2] / "experiments" / "results"


@pytest.mark.parametrize("job", reproduce.JOBS, ids=lambda job: job.module + job.net)
def test_results_of_before_are_still_read(job):
    folder = job.folder(RESULTS, job.dataset or "cifar10")
    module = importlib.import_module(f"experiments.{job.module}")
    found = reproduce._read(module.EXPERIMENT, folder)
    assert found.claims
    seeds = found.found["size"].get("seeds", 1)
    if not module.EXPERIMENT.exact and seeds < 3:
        assert not any(isinstance(claim.holds, bool) for claim in found.claims)
