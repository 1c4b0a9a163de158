"""All experiments at the smoke preset, on digits, through `reproduce`."""

import dataclasses
import importlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from experiments import (
    inference_errors,
    inference_iterations,
    reproduce,
    training_time,
    update_magnitudes,
)
from experiments.common import joined, page, report
from experiments.common import settings as settings_of
from tests.tiers import thorough

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


# What is small of the quick runs: nets, sizes and methods. Of two nets the MLP stands
# for both; what has a test of its own is left to that.
OWN_TEST = ("costs", "proximal_objective")
NETS = {
    "mlp": {"hidden": (8,)},
    "autoencoder": {"hidden": (8,)},
}
SIZES = {
    inference_errors: {"images": 50, "hidden": (8, 8)},
    inference_iterations: {
        "num_steps": (1,),
        "hidden": (8,),
        "epochs": 1,
        "rates": (1e-3, 1e-2),
        "step_sizes": (0.05,),
    },
    training_time: {"epochs": (1,), "train_images": (640,)},
}
METHODS = {
    "classification": ("BP", "SeqIL-MQ"),
    "autoencoder": ("SeqIL", "SeqIL-Adam"),
    "training_time": ("BP",),
}


def _small_jobs() -> Iterator[reproduce.Job]:
    for job in reproduce.JOBS:
        if job.module not in OWN_TEST and (job.net != "conv" or job.dataset):
            names = METHODS.get(job.module)
            more = {"methods": names} if names else {}
            yield dataclasses.replace(job, options=job.options | more)


@contextmanager
def _small() -> Iterator[None]:
    """Experiments as small as they can be."""
    with pytest.MonkeyPatch.context() as patch:
        for net, changes in NETS.items():
            found = settings_of.settings(net, "digits")
            small = dataclasses.replace(found, **changes)
            patch.setitem(settings_of._SETTINGS, (net, "digits"), small)
        for module, changes in SIZES.items():
            sizes = module.EXPERIMENT.sizes
            patch.setitem(
                sizes, "smoke", dataclasses.replace(sizes["smoke"], **changes)
            )
        patch.setattr(training_time, "NETS", ("mlp",))
        patch.setattr(update_magnitudes, "METHODS", ("IL-MQ", "SeqIL-MQ"))
        patch.setattr(reproduce, "JOBS", tuple(_small_jobs()))
        yield


class Reproduced(NamedTuple):
    """A run of all experiments; `again` runs some of them in the same folder."""

    folder: Path
    jobs: list[reproduce.Job]
    whole: bool

    def again(self, *only):
        with nullcontext() if self.whole else _small():
            reproduce.main(reproduce.Config(out=self.folder, only=only))

    def results(self, *path):
        text = self.folder.joinpath(*path, "results.json").read_text()
        return json.loads(text)["results"]


@pytest.fixture(scope="module", params=["small", *thorough(["whole"])])
def out(request, tmp_path_factory):
    whole = request.param == "whole"
    jobs = reproduce.JOBS if whole else _small_jobs()
    jobs = [job for job in jobs if job.dataset is None]
    found = Reproduced(tmp_path_factory.mktemp("reproduce"), jobs, whole)
    found.again()
    return found


def test_every_experiment_has_results_figures_and_a_place_in_the_report(out):
    out, jobs, _ = out
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
    def runs():
        return {path: path.read_bytes() for path in out.folder.rglob("run.json")}

    def sections():
        return (out.folder / "report.html").read_text().count("<h2>")

    before, count = runs(), sections()
    out.again("inference_errors", "autoencoder")
    assert "epoch 1/2" not in capsys.readouterr().out
    assert runs() == before
    assert count > sections() == 2


def test_errors_reach_the_layers_when_the_paper_says(out):
    found = out.results("inference_errors", "digits")
    errors, count = found["errors"], 5 if out.whole else 3
    assert found["layers"] == count
    for name, delayed in (("sequential", False), ("simultaneous", True)):
        rows = np.array(errors[name])  # [seeds, T+1, L]
        assert (rows[:, 0, :-1] == 0).all()
        assert (rows[:, 0, -1] > 0).all()
        for layer in range(1, count):
            first = count - layer if delayed else 1
            assert (rows[:, :first, layer - 1] == 0).all()
            assert (rows[:, first:, layer - 1] > 0).all()


def test_mq_makes_the_updates_alike(out):
    found = out.results("update_magnitudes", "digits-mlp")
    for name, rows in found["magnitudes"].items():
        ratios = [max(row) / min(row) for row in rows]
        np.testing.assert_allclose(found["ratios"][name], ratios)
    mean = {name: np.mean(row) for name, row in found["ratios"].items()}
    if not out.whole:
        assert mean["IL-MQ"] < mean["IL-norm"]
        return
    assert mean["IL-norm"] > 10 * mean["IL-MQ"]
    assert mean["SeqIL"] > 10 * mean["SeqIL-MQ"]
    assert mean["SeqIL"] > 10 * mean["SeqIL-Adam"]
    assert mean["IL-MQ"] < 10


def test_simultaneous_inference_needs_iterations(out):
    runs = out.results("inference_iterations", "digits")["runs"]
    best = {name: np.mean(row["best"]) for name, row in runs.items()}
    if out.whole:  # with one hidden layer the two are the same
        assert best["SeqIL-Adam-T1"] > best["SimIL-Adam-T1"] + 5
    for row in runs.values():
        grid = row["grid"]
        accuracies = dict(
            zip(map(str, grid["points"]), grid["validation_accuracy"], strict=True)
        )
        assert max(accuracies, key=accuracies.get) == str(grid["chosen"])


def test_pictures_and_losses_of_the_autoencoder(out):
    from experiments.autoencoder import decode

    found = out.results("autoencoder", "digits")
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
    found = out.results("classification", "digits-mlp")
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
    found.setdefault("size", {})
    run = {"command": "python <x>", "seconds": 1.0, "finished": "now"}
    return page.Measured(folder, found, {**run, "resumed": False})


@pytest.mark.parametrize(
    ("resumed", "by_part", "expected"),
    [
        (False, {"a": 3.0}, 1.0),
        (True, {"a": 3.0, "b": 4.0}, 7.0),
        (True, {"a": 0.2}, 1.0),
        # A pause in the second epoch is none of the run's work.
        (True, {"a": 3.0, "a, per epoch": {"BP": [5, 900, 5], "IL": [7, 7]}}, 29.0),
        (True, {"a": 3.0, "a, by step": {"training": 2.5}}, 3.0),
    ],
)
def test_the_seconds_of_a_run_that_was_interrupted(
    tmp_path, resumed, by_part, expected
):
    found = _measured(tmp_path, [])
    found.run.update(resumed=resumed, seconds_by_part=by_part)
    assert found.seconds == expected
    words = f"{expected:.0f} s, in several stretches, on cpu"
    assert found.facts.startswith(words if resumed else "1 s on cpu")


def test_a_smaller_size_than_the_papers_is_said(tmp_path):
    size = {"seeds": 1, "epochs": [8, 6], "images": 1000, "steps": [1, 2]}
    papers = {"seeds": 5, "epochs": [None, None], "images": None, "steps": [1, 2]}
    found = _measured(tmp_path, [], size=size)
    assert "; 1 seed; " in found.facts
    assert "the paper's" not in found._replace(papers=size).facts
    assert found._replace(papers=papers).facts.endswith(
        "; in brackets the paper's: seeds 1 (5), epochs 8, 6 (all, all), "
        "images 1000 (all)"
    )
    results = {"settings": {"epochs": 110}}
    found = _measured(tmp_path, [], size={"epochs": 10}, results=results)
    short = found._replace(papers={"epochs": None}).facts
    assert short.endswith("in brackets the paper's: epochs 10 (110)")
    found.found["size"]["epochs"] = None
    assert "brackets" not in found._replace(papers={"epochs": None}).facts


def test_runs_at_full_length_stand_beside_the_short_ones(tmp_path):
    def row(what, here, holds):
        return {"what": what, "paper": "9", "here": here, "holds": holds}

    short = [row("a", "1", "undecided"), row("b", "2", "undecided")]
    long = [row("a", "8 (1 of 5 seeds)", True), row("c", "7", None)]
    long += [{"what": "d", "paper": "-", "here": "6", "holds": True}]  # not the paper's
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


def _finished(folder, methods, *, seeds=3, epochs=2, **config):
    """A finished run of autoencoders on which nothing was trained."""
    loss = {name: np.full((epochs, seeds), value) for name, value in methods.items()}
    config = {"preset": "paper", "methods": [*methods], "seeds": seeds, **config}
    found = {
        "config": config,
        "size": {"seeds": seeds},
        "results": {
            "settings": {"epochs": epochs},
            "methods": {
                name: {"train_loss": rows.tolist(), "test": {"loss": rows.tolist()}}
                for name, rows in loss.items()
            },
        },
    }
    run = {"command": f"python {folder.name}", "seconds_by_part": {}, "resumed": False}
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(found))
    (folder / "run.json").write_text(json.dumps(run))


def test_runs_of_other_methods_and_seeds_are_one_table(tmp_path):
    from experiments.autoencoder import EXPERIMENT

    folder = tmp_path / "cifar10-paper"
    assert joined.read_all(EXPERIMENT, folder) == []
    _finished(folder.with_name("cifar10-paper-cpu"), {"SeqIL": 0.5, "BP": 9.0}, seeds=1)
    [alone] = joined.read_all(EXPERIMENT, folder)
    assert [claim.what.split(",")[0] for claim in alone.claims[:2]] == ["BP", "SeqIL"]
    assert alone.papers == {"epochs": None, "seeds": 5, "train_images": None}
    _finished(folder, {"SeqIL-MQ": 0.7, "BP": 0.6}, set=None)
    _finished(folder.with_name("cifar10-paper-b"), {"BP": 8.0}, seeds=2)  # adds nothing
    other = folder.with_name("cifar10-paper-rates")
    _finished(other, {"SeqIL-Adam": 0.1}, set={"clamp": 1.0})  # not the paper's
    older = folder.with_name("cifar10-paper-older")  # of other settings by default
    _finished(older, {"SeqIL-Adam": 0.1}, epochs=3)
    first, more = joined.read_all(EXPERIMENT, folder)
    assert (first.folder.name, more.folder.name) == (
        "cifar10-paper",
        "cifar10-paper-cpu",
    )
    rows = {claim.what: claim for claim in first.claims}
    # BP is that of most seeds; one seed is said to be one.
    assert [name.split(",")[0] for name in rows][:3] == ["BP", "SeqIL", "SeqIL-MQ"]
    assert "0.6000" in rows["BP, test loss (BCE a pixel): epoch 1; best; last"].here
    faster = rows["SeqIL reduces the loss faster than BP early on"]
    assert "-0.1000, one seed: no interval" in faster.here
    assert "(1 of 5 seeds)" in faster.here
    assert faster.holds == "undecided"
    assert rows["SeqIL-MQ reduces the loss faster than BP early on"].holds is False
    # All commands are in the report.
    about = {"versions": {}, "device": "cpu"}
    first, more = (m._replace(found=m.found | about) for m in (first, more))
    for measured in (first, more):
        measured.run.update(seconds=1.0, finished="now")
    section = page.Section("T", "Figure 6", full=first, more=[more])
    text = page.markdown(tmp_path, "paper", [section])
    assert "`python cifar10-paper`" in text
    assert "`python cifar10-paper-cpu`" in text
    page.write(tmp_path, "paper", [section])
    assert "python cifar10-paper-cpu" in (tmp_path / "report.html").read_text()


def test_a_loss_that_diverges_leaves_the_others_to_be_seen(tmp_path):
    falling = [[2.0, 1.8], [1.0, 1.2], [0.5, 0.6]]
    far = [[1.5, 1.5], [0.9, 0.9], [1e28, np.nan]]
    for drawn, ends in (
        ([falling, far], (0.5 - 0.075, 2.0 + 0.075)),
        # What comes before it is seen: here 4, which is twice the first loss.
        ([falling, [[2.0], [4.0], [9.0], [1e28]]], (0.5 - 0.175, 4.0 + 0.175)),
        ([falling], None),
        ([falling, [[2.0], [15.0], [None]]], None),  # up to ten times is shown
        ([[[None], [None]]], None),
    ):
        with report.figure(tmp_path / "a.png") as panels:
            for rows in drawn:
                report.band(panels[0, 0], range(len(rows)), rows, "BP")
            before = panels[0, 0].get_ylim()
            report.cut_off(panels[0, 0], drawn)
            assert panels[0, 0].get_ylim() == pytest.approx(ends or before)


def test_results_of_any_method_are_read(tmp_path):
    from experiments.autoencoder import EXPERIMENT

    folder = tmp_path / "cifar10-paper"
    _finished(folder, {"IL-norm": 0.7, "BP": 0.6})  # no method of the tables
    [found] = joined.read_all(EXPERIMENT, folder)
    assert [*found.found["results"]["methods"]] == ["BP", "IL-norm"]


RESULTS = Path(__file__).parents[2] / "experiments" / "results"


@pytest.mark.parametrize("job", reproduce.JOBS, ids=lambda job: job.module + job.net)
def test_results_of_before_are_still_read(job):
    folder = job.folder(RESULTS, job.dataset or "cifar10")
    module = importlib.import_module(f"experiments.{job.module}")
    found = joined.read(module.EXPERIMENT, folder)
    assert found.claims
    seeds = found.found["size"].get("seeds", 1)
    if not module.EXPERIMENT.exact and seeds < 3:
        assert not any(isinstance(claim.holds, bool) for claim in found.claims)
