"""The frame of the experiments: parts, headers, locks and JSON."""

import json
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import folders
from experiments.common.harness import Claim, Experiment, Options, Run, execute
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


def test_an_interrupted_experiment_goes_on(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    execute(Counted().experiment, Options(out=whole))
    interrupted = Counted(fail=True)
    with pytest.raises(KeyboardInterrupt):
        execute(interrupted.experiment, Options(out=broken))
    resumed = Counted()
    found = execute(resumed.experiment, Options(out=broken))
    assert (interrupted.calls, resumed.calls) == (["a"], ["b"])
    assert found["results"] == {"a": [0, 1 / 3, 2 / 3], "b": 2.0}
    results = [(path / "results.json").read_bytes() for path in (whole, broken)]
    assert results[0] == results[1]
    assert json.loads((broken / "run.json").read_text())["resumed"]
    names = {path.name for path in broken.iterdir()} - {".lock"}
    assert names == {"results.json", "run.json", "plot.png"}


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
    assert "another" in shown


def test_other_settings_are_refused(tmp_path):
    execute(Counted().experiment, Options(out=tmp_path))
    with pytest.raises(SystemExit, match=r"size\.seeds is 3 there, 5 here"):
        execute(Counted().experiment, Options(out=tmp_path, seeds=5))
    with pytest.raises(SystemExit, match=r"config\.preset is smoke there, cpu here"):
        execute(Counted().experiment, Options(out=tmp_path, preset="cpu"))


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
