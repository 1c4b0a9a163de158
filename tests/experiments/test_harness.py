"""The frame of the experiments: parts, headers, locks and JSON."""

import dataclasses
import json
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import tune
from experiments.common import folders, harness, live
from experiments.common.harness import Claim, Experiment, Options, Run, execute
from experiments.common.options import (
    BatchSize,
    Changes,
    Epochs,
    JpegQuality,
    LearningRate,
    adapted,
    is_papers,
    resized,
)
from experiments.common.settings import settings
from experiments.generative import experiment as generative
from pcjax.checkpoints.locks import FolderLock


@dataclass(frozen=True)
class Size:
    seeds: int = 3
    factor: float = 2.0


class Counted:
    """An experiment of two parts that counts what it computes."""

    def __init__(self, fail=False):
        self.calls, self.fail = [], fail
        self.experiment = Experiment(
            name="counted",
            paper="none",
            title="Counts",
            sizes={"smoke": Size(), "cpu": lambda config: Size(factor=config.seed)},
            measure=self.measure,
            plot=lambda results, folder: (folder / "plot.png").write_bytes(b"plot"),
            claims=lambda results: [Claim("sum", "7", str(sum(results["a"])), True)],
            exact=True,
        )

    def part(self, name, value):
        self.calls.append(name)
        return value

    def measure(self, config, size, run):
        first = run.part("a", lambda: self.part("a", np.arange(size.seeds) / 3))
        if self.fail:
            raise KeyboardInterrupt
        second = run.part("b", lambda: self.part("b", size.factor))
        return {"a": first, "b": second}


def test_an_interrupted_experiment_goes_on(tmp_path, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    execute(Counted().experiment, Options(out=whole))
    interrupted = Counted(fail=True)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        execute(interrupted.experiment, Options(out=broken))
    assert ended.value.code == 130
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert f"kept in {broken}; to go on: python -m " in shown
    with pytest.raises(SystemExit, match="b is not finished in"):
        execute(Counted().experiment, Options(out=broken, finished_only=True))
    resumed = Counted()
    found = execute(resumed.experiment, Options(out=broken))
    shown = capsys.readouterr().out
    assert f"{broken}: going on with an interrupted run" in shown
    assert "a: finished before in 0 s, taken from" in shown
    assert (interrupted.calls, resumed.calls) == (["a"], ["b"])
    assert found["results"] == {"a": [0, 1 / 3, 2 / 3], "b": 2.0}
    results = [(path / "results.json").read_bytes() for path in (whole, broken)]
    assert results[0] == results[1]
    assert json.loads((broken / "run.json").read_text())["resumed"]
    names = {path.name for path in broken.iterdir()} - {".lock"}
    assert names == {"results.json", "run.json", "plot.png"}


def test_parts_brought_from_another_machine(tmp_path, monkeypatch):
    """The results say where they were measured, and can be read again here."""
    with monkeypatch.context() as there:
        there.setattr(harness.platform, "machine", lambda: "there")
        with pytest.raises(SystemExit):
            execute(Counted(fail=True).experiment, Options(out=tmp_path))
    with pytest.raises(SystemExit, match="machine is there there"):
        execute(Counted().experiment, Options(out=tmp_path))
    [path] = (tmp_path / "parts").glob("a.json")
    path.with_name("b.json").write_text(path.read_text())
    for _ in range(2):
        found = execute(Counted().experiment, Options(out=tmp_path, finished_only=True))
        assert found["machine"] == "there"
    with pytest.raises(SystemExit, match=r"size\.seeds is 3 there, 5 here"):
        execute(
            Counted().experiment, Options(out=tmp_path, finished_only=True, seeds=5)
        )


def test_parts_of_several_machines(tmp_path):
    for name, device in (("a", "gpu"), ("b", "cpu")):
        Run(tmp_path, {"device": device}).part(name, lambda: 1)
    run = Run(tmp_path, {"device": "cpu"})
    assert run.origin() == {}
    run.part("a", lambda: 2)
    assert run.origin() == {"device": "gpu"}
    run.part("b", lambda: 2)
    assert run.origin() == {}


def test_a_finished_experiment_is_not_run_again(tmp_path, capsys):
    execute(Counted().experiment, Options(out=tmp_path))
    before = (tmp_path / "run.json").read_bytes()
    (tmp_path / "plot.png").unlink()
    again = Counted()
    claims = [Claim("another", "1", "2")]
    execute(again.experiment._replace(claims=lambda _: claims), Options(out=tmp_path))
    assert again.calls == []
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["claims"] == [claims[0]._asdict()]  # from what was measured, anew
    assert (tmp_path / "run.json").read_bytes() == before
    assert (tmp_path / "plot.png").exists()  # figures are drawn anew
    shown = capsys.readouterr().out
    assert "holds" in shown
    assert "finished before, nothing is run" in shown
    assert "another" in shown


def test_other_settings_are_refused(tmp_path):
    execute(Counted().experiment, Options(out=tmp_path))
    with pytest.raises(SystemExit, match=r"size\.seeds is 3 there, 5 here"):
        execute(Counted().experiment, Options(out=tmp_path, seeds=5))
    with pytest.raises(SystemExit, match=r"config\.preset is smoke there, cpu here"):
        execute(Counted().experiment, Options(out=tmp_path, preset="cpu"))


def test_a_run_of_other_settings_is_replaced_on_request(tmp_path):
    execute(Counted().experiment, Options(out=tmp_path))
    anew = Counted()
    found = execute(anew.experiment, Options(out=tmp_path, seeds=5, replace=True))
    assert anew.calls == ["a", "b"]
    assert len(found["results"]["a"]) == 5
    assert not (tmp_path / "replaced").exists()


def test_a_run_that_fails_at_once_replaces_nothing(tmp_path):
    """Such as one whose data set is not there."""
    execute(Counted().experiment, Options(out=tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    assert len(before) == 2

    def measure(config, size, run):
        raise ValueError("There is no data set.")

    asked = Options(out=tmp_path, seeds=5, replace=True)
    with pytest.raises(SystemExit, match="no data set"):
        execute(Counted().experiment._replace(measure=measure), asked)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.json")} == before
    assert not (tmp_path / "replaced").exists()
    # What was begun takes its place.
    with pytest.raises(SystemExit):
        execute(Counted(fail=True).experiment, asked)
    assert not (tmp_path / "results.json").exists()
    going_on = Counted()
    found = execute(going_on.experiment, Options(out=tmp_path, seeds=5))
    assert going_on.calls == ["b"]
    assert len(found["results"]["a"]) == 5
    assert not (tmp_path / "replaced").exists()


def test_what_depends_on_chance_is_not_judged_at_smoke(tmp_path, capsys):
    experiment = Counted().experiment._replace(exact=False)
    found = execute(experiment, Options(out=tmp_path))
    assert found["claims"][0]["holds"] == "undecided"
    assert "not decided" in capsys.readouterr().out


def test_an_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"file.out cannot be used: .*--out"):
        execute(Counted().experiment, Options(out=tmp_path / "file" / "out"))


@dataclass(frozen=True)
class Training(Options, Epochs, BatchSize, LearningRate, Changes, JpegQuality):
    pass


@dataclass(frozen=True)
class Sizes:
    seeds: int = 1
    epochs: tuple[int | None, int] = (None, 2)


def test_options_of_training_change_size_and_settings():
    config = Training(epochs=7, batch_size=5, learning_rate=0.5)
    assert resized(Sizes(), config).epochs == (7, 7)
    assert resized(Sizes(), Training()) == Sizes()
    # A size may have a batch size of its own.
    assert resized(generative.SMOKE, config).batch_size == 5
    assert resized(generative.SMOKE, Training()) == generative.SMOKE
    found = settings("mlp", "digits")
    changed = adapted(found, config)
    assert changed.batch_size == 5
    assert set(changed.learning_rates.values()) == {0.5}
    assert adapted(found, Training()) == found
    assert adapted(found, Options()) == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"batch_size": -3}, "--batch-size must be at least 1, got -3"),
        ({"learning_rate": -0.1}, "--learning-rate must be positive, got -0.1"),
        ({"learning_rate": float("nan")}, "--learning-rate must be positive, got nan"),
        ({"jpeg_quality": 0}, "--jpeg-quality must be 1 to 100, got 0"),
        ({"jpeg_quality": 101}, "--jpeg-quality must be 1 to 100, got 101"),
    ],
)
def test_bad_options_of_training(options, message):
    with pytest.raises(ValueError, match=message):
        Training(**options)


@pytest.mark.parametrize(
    ("changes", "epochs", "expected"),
    [
        ({}, None, True),
        ({}, 20, True),
        ({}, 19, False),
        ({"preset": "cpu"}, None, False),
        ({"batch_size": 32}, None, False),
        ({"learning_rate": 0.1}, None, False),
        ({"set": {"clamp": 0.1}}, None, False),
        ({"jpeg_quality": 75}, None, False),
    ],
)
def test_a_run_is_the_papers_if_nothing_was_changed(changes, epochs, expected):
    config = Training(**{"preset": "paper"} | changes)
    assert is_papers(config, epochs, settings("mlp", "digits")) is expected


def test_nothing_is_replaced_by_what_runs_nothing(tmp_path):
    with pytest.raises(ValueError, match="--replace runs anew, --finished-only"):
        Options(out=tmp_path, replace=True, finished_only=True)


def test_single_numbers_of_the_settings_can_be_changed():
    found = settings("mlp", "digits")
    changed = adapted(found, Training(set={"low": -1.0, "num_steps": 5.0}))
    assert changed == dataclasses.replace(found, low=-1.0, num_steps=5)
    assert isinstance(changed.num_steps, int)
    with pytest.raises(ValueError, match=r"some of \[.*'clamp'.*got 'hidden'"):
        adapted(found, Training(set={"hidden": 3.0}))
    with pytest.raises(ValueError, match=r"num_steps must be of type int, got 2\.5"):
        adapted(found, Training(set={"num_steps": 2.5}))
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(
            ValueError, match=f"clamp must be >= 0 and finite, got {value}"
        ):
            adapted(found, Training(set={"clamp": value}))


def test_a_run_that_was_refused_leaves_the_folder_to_others(tmp_path):
    from experiments.classification import EXPERIMENT, Config

    out = tmp_path / "out"
    wrong = Config(out=out, methods=("BP",), set={"nonsense": 3.0})
    with pytest.raises(SystemExit, match="--set: expected some of"):
        execute(EXPERIMENT, wrong)
    assert not (out / "parts").exists()
    # What is done is kept.
    run = Run(out, {"config": {}, "size": {}})
    run.open()
    run.part("a", lambda: 1)
    run.forget_if_empty()
    assert (out / "parts" / "a.json").exists()
    assert (out / "parts" / "header.json").exists()
    run = Run(tmp_path / "states", {"config": {}, "size": {}})
    run.open()
    (run.checkpoints("BP") / "1").mkdir(parents=True)
    run.forget_if_empty()
    assert (tmp_path / "states" / "parts" / "header.json").exists()


@pytest.mark.parametrize("name", ["rates", "factors", "step_sizes"])
def test_tune_refuses_rates_that_are_not_positive(name):
    with pytest.raises(ValueError, match="must be positive, got -1"):
        tune.Config(**{name: (0.1, -1.0)})
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        tune.Config(held_out=1.0)


def test_a_part_of_another_run(tmp_path):
    """It is taken if the runs differ in what is free alone."""

    def header(**changes):
        config = {"net": "mlp", "methods": ["BP"]} | changes
        return {"config": config, "size": {"seeds": 2}, "device": "cpu"}

    path = tmp_path / "parts" / "x.json"
    Run(tmp_path, header(), free=("methods",)).part("x", lambda: 1)
    other = Run(tmp_path, header(methods=["IL"]), free=("methods",))
    assert other.part("x", lambda: 2) == 1
    with pytest.raises(ValueError, match=r"other settings \(config.net is mlp there"):
        Run(tmp_path, header(net="conv"), free=("methods",)).part("x", lambda: 2)
    elsewhere = Run(tmp_path, header() | {"device": "gpu"}, free=("methods",))
    assert elsewhere.part("x", lambda: 2) == 1
    assert elsewhere.elsewhere == {"x": "device is cpu there, gpu here"}
    path.write_text('{"value": 3, "seconds": 1}')  # of before parts had headers
    assert Run(tmp_path, header()).part("x", lambda: 2) == 3


@pytest.mark.parametrize(
    ("seconds", "text"), [(41.2, "41 s"), (754, "13 min"), (12345, "3.4 h")]
)
def test_the_time_left_is_a_number(seconds, text):
    assert live.time_left(seconds) == f"{text} left"


def test_sizes_may_depend_on_the_options(tmp_path):
    config = Options(preset="cpu", seed=4, out=tmp_path)
    assert execute(Counted().experiment, config)["results"]["b"] == 4


@pytest.mark.faults
def test_a_folder_in_use_is_refused(tmp_path, faults):
    lock = FolderLock(tmp_path)
    try:
        with pytest.raises(SystemExit, match=r"process \d+ is using it already"):
            execute(Counted().experiment, Options(out=tmp_path))
    finally:
        lock.release()
    execute(Counted().experiment, Options(out=tmp_path))
    faults.report("a second writer of an output folder", 1, 1)


def test_what_is_wrong_is_said_without_a_traceback(tmp_path):
    def measure(config, size, run):
        config.load()

    experiment = Counted().experiment._replace(measure=measure)
    with pytest.raises(SystemExit, match="counted: Unknown data set 'imagenet'"):
        execute(experiment, Options(dataset="imagenet", out=tmp_path))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Options(seeds=0)


def test_parts_come_back_to_the_bit(tmp_path):
    values = np.random.default_rng(0).normal(size=100).astype(np.float32) / 3
    run = Run(tmp_path, {})
    first = run.part("x", lambda: {"values": jnp.asarray(values), "n": np.int32(3)})
    again = Run(tmp_path, {}).part("x", lambda: pytest.fail("computed twice"))
    assert first == again == {"values": [float(v) for v in values], "n": 3}
    assert (np.array(again["values"], np.float32) == values).all()


def test_json_has_no_numbers_that_are_not_finite(tmp_path):
    value = {"a": [1.5, np.nan, np.inf], "b": "x", "c": [], "d": {"e": True, 1: None}}
    folders.write_json(tmp_path / "x.json", folders.plain(value))
    text = (tmp_path / "x.json").read_text()
    assert '"a": [ 1.5, null, null ]' in text  # lists of numbers on one line
    assert json.loads(text) == {
        "a": [1.5, None, None],
        "b": "x",
        "c": [],
        "d": {"e": True, "1": None},
    }
