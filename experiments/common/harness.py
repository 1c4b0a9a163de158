"""The frame of every experiment: options, a folder that can be resumed, results.

An experiment is a function that measures, one that plots and one that sets numbers
beside the paper's. `execute` runs it in an output folder:

    results.json  what was measured, with config, settings, versions and device; the
                  same to the bit however often the run was interrupted
    run.json      the command, how long it took, and when
    *.png         the figures

While it runs, finished parts lie in parts/ and the state of networks in training in
checkpoints/, so that a killed run goes on where it was.
"""

import dataclasses
import json
import math
import os
import platform
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import pcjax
from experiments.common import data
from pcjax.checkpoints.locks import FolderLock
from pcjax.optimizers.finite import NonFiniteError

Preset = Literal["smoke", "cpu", "paper"]
MARKS = {True: "holds", False: "does not hold", None: ""}  # of a claim
_NUMBERS = re.compile(r"\[(?:null|[-+.\deE,\s])*\]")  # lists that go on one line


@dataclass(frozen=True)
class Options:
    """What every experiment can be asked for."""

    preset: Preset = "smoke"
    """smoke: seconds, on digits. cpu: minutes on two cores, on CIFAR-10. paper: the
    paper's epochs, seeds and grids, for a GPU."""
    dataset: str | None = None
    """digits (built in), cifar10, svhn_cropped, tiny_imagenet, ...; by default digits
    for smoke and cifar10 for the others."""
    data_dir: Path | None = None
    """The folder of prepared TFDS data sets; digits needs none."""
    seeds: int | None = None
    """Networks trained, each with its own weights and order of data; by default what
    the preset says."""
    seed: int = 0
    """Decides all randomness."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What happens to a training step that is not finite: the run stops and says what
    went wrong, or the step is left out. Grids, timings and the measures of Figures 1,
    2, 8 and 9 have no guard: there such a run shows as NaN."""
    out: Path | None = None
    """Where results and figures go; by default out/EXPERIMENT/PRESET-DATASET."""

    def __post_init__(self) -> None:
        if self.seeds is not None and self.seeds < 1:
            raise ValueError(f"--seeds must be at least 1, got {self.seeds}.")

    @property
    def dataset_name(self) -> str:
        """The data set that is meant."""
        return self.dataset or ("digits" if self.preset == "smoke" else "cifar10")

    def load(self) -> data.Dataset:
        """Loads the data set."""
        return data.load(self.dataset_name, self.data_dir)


class Claim(NamedTuple):
    """A number beside the paper's.

    Attributes:
      what: what is claimed or measured.
      paper: the paper's number or words.
      here: the number found.
      holds: whether the claim holds here; None where there is nothing to hold.
    """

    what: str
    paper: str
    here: str
    holds: bool | None = None


class Experiment(NamedTuple):
    """A figure or table of the paper.

    Attributes:
      name: of its module in `experiments`.
      paper: the figures and tables it is about.
      title: what is measured, in one line.
      sizes: how much is measured, by preset; or functions of the config of it.
      measure: `(config, size, run) -> results`, in JSON types.
      plot: `(results, folder)`: draws the figures.
      claims: `results -> [Claim]`.
    """

    name: str
    paper: str
    title: str
    sizes: Mapping[str, Any]
    measure: Callable[[Any, Any, "Run"], dict]
    plot: Callable[[dict, Path], None]
    claims: Callable[[dict], list[Claim]]


class Run:
    """An output folder in use: finished parts are kept, and found again.

    Attributes:
      folder: where everything goes.
      seconds: what took how long, for run.json.
    """

    def __init__(self, folder: Path, header: dict) -> None:
        self.folder = folder
        self.header = header
        self.seconds: dict[str, Any] = {}

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` returns, from the folder if it was computed before.

        Args:
          name: of the part, fit for a file name.
          compute: makes the part, of numbers, arrays, lists and dicts.

        Returns:
          It, as JSON gives it back.
        """
        path = self.folder / "parts" / f"{name}.json"
        if not path.exists():
            started = time.perf_counter()
            value = plain(compute())
            self.seconds[name] = round(time.perf_counter() - started, 2)
            write_json(path, {"value": value, "seconds": self.seconds[name]})
        saved = json.loads(path.read_text())
        self.seconds.setdefault(name, saved["seconds"])
        return saved["value"]

    def checkpoints(self, name: str) -> Path:
        """The folder for the state of a network in training."""
        return self.folder / "checkpoints" / name


def execute(experiment: Experiment, config: Any) -> dict:
    """Runs an experiment, or what is left of it; shows and returns its results.

    Raises:
      SystemExit: with what is wrong, if the data set, the options or the output
        folder are.
    """
    size = experiment.sizes[config.preset]
    if callable(size):
        size = size(config)
    if config.seeds is not None:
        size = dataclasses.replace(size, seeds=config.seeds)
    header = _header(experiment, config, size)
    folder = config.out or Path("out") / experiment.name / (
        f"{config.preset}-{config.dataset_name}"
    )
    console = Console(width=None if sys.stdout.isatty() else 110)
    try:
        with _locked(folder):
            found = _finished(folder, header)
            if found is None:
                found = _measure(experiment, config, size, Run(folder, header))
            claims = [plain(c._asdict()) for c in experiment.claims(found["results"])]
            if found.get("claims") != claims:  # new, or of an older version
                found["claims"] = claims
                write_json(folder / "results.json", found)
            experiment.plot(found["results"], folder)
    except NonFiniteError as error:
        raise SystemExit(
            f"{experiment.name}: {error} Or leave such steps out: --on-nonfinite skip."
        ) from error
    except (ValueError, data.DatasetError) as error:
        raise SystemExit(f"{experiment.name}: {error}") from error
    console.print(claims_table(experiment, found))
    console.print(f"Written: {folder / 'results.json'} and the figures beside it.")
    return found


def _measure(experiment: Experiment, config: Any, size: Any, run: Run) -> dict:
    started = time.perf_counter()
    resumed = (run.folder / "parts" / "header.json").exists()
    write_json(run.folder / "parts" / "header.json", run.header)
    results = plain(experiment.measure(config, size, run))
    found = {**run.header, "results": results}
    write_json(
        run.folder / "run.json",
        {
            "command": command(),
            "seconds": round(time.perf_counter() - started, 1),
            "resumed": resumed,  # then these are the seconds of the last stretch
            "seconds_by_part": run.seconds,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )
    write_json(run.folder / "results.json", found)
    for folder in ("parts", "checkpoints"):
        shutil.rmtree(run.folder / folder, ignore_errors=True)
    return found


def _header(experiment: Experiment, config: Any, size: Any) -> dict:
    """What decides the results."""
    chosen = dataclasses.asdict(config) | {"dataset": config.dataset_name}
    for name in ("out", "data_dir", "on_nonfinite"):
        chosen.pop(name)
    return plain(
        {
            "experiment": experiment.name,
            "paper": experiment.paper,
            "config": chosen,
            "size": dataclasses.asdict(size),
            "versions": {
                "pcjax": pcjax.__version__,
                "jax": jax.__version__,
                "numpy": np.__version__,
            },
            "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} host cores",
            "machine": platform.machine(),
        }
    )


def _finished(folder: Path, header: dict) -> dict | None:
    """The results in the folder, if they are there; refuses those of another run."""
    for path in (folder / "results.json", folder / "parts" / "header.json"):
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        different = _differences(found, header)
        if different:
            changes = "; ".join(different)
            raise ValueError(
                f"{folder} holds a run of other settings ({changes}). Name another "
                "folder with --out, or delete it."
            )
        return found if "results" in found else None
    return None


def _differences(found: dict, header: dict, prefix: str = "") -> list[str]:
    """What another run's header says otherwise."""
    rows = []
    for key, asked in header.items():
        there = found.get(key)
        if isinstance(asked, dict) and isinstance(there, dict):
            rows += _differences(there, asked, f"{prefix}{key}.")
        elif there != asked:
            rows.append(f"{prefix}{key} is {there} there, {asked} here")
    return rows


@contextmanager
def _locked(folder: Path):
    """Keeps other processes out of the folder as long as this one lives."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FolderLock(folder)
    except BlockingIOError as error:
        raise ValueError(
            f"{folder}: {error}. Wait for it, or name another folder with --out."
        ) from None
    try:
        yield
    finally:
        lock.release()


def claims_table(experiment: Experiment, found: dict) -> Table:
    """The numbers beside the paper's, for the screen."""
    table = Table(
        "what", "paper", "here", "", title=f"{experiment.title} ({experiment.paper})"
    )
    for row in found["claims"]:
        table.add_row(row["what"], row["paper"], row["here"], MARKS[row["holds"]])
    return table


def command() -> str:
    """The command line of this process."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name if spec else "experiments"
    return shlex.join(["python", "-m", name, *sys.argv[1:]])


def plain(value: Any) -> Any:
    """The value in JSON types; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def write_json(path: Path, value: Any) -> None:
    """Writes a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    text = json.dumps(value, indent=1, allow_nan=False)
    with temporary.open("w") as file:
        file.write(_NUMBERS.sub(lambda list_: " ".join(list_[0].split()), text) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
