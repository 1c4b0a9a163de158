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
import os
import platform
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import pcjax
from experiments.common.claims import MARKS, Claim, judged
from experiments.common.compiling import compile_quickly
from experiments.common.data import DatasetError
from experiments.common.folders import (
    Run,
    UnfinishedError,
    finished,
    locked,
    plain,
    set_aside,
    write_json,
)
from experiments.common.options import NEUTRAL, Options, resized
from pcjax.checkpoints import CheckpointError
from pcjax.optimizers.finite import NonFiniteError

__all__ = ["Claim", "Experiment", "Options", "Run", "cli", "execute"]


def _no_times(results: dict, seconds: dict) -> list[Claim]:
    del results, seconds
    return []


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
      times: `(results, seconds of run.json) -> [Claim]`, of the clock: they are shown
        but not in results.json, which is repeatable.
      exact: whether the claims are of counts and zeros, with no part for chance.
      free: see `Run`: options that say which parts there are.
    """

    name: str
    paper: str
    title: str
    sizes: Mapping[str, Any]
    measure: Callable[[Any, Any, Run], dict]
    plot: Callable[[dict, Path], None]
    claims: Callable[[dict], Sequence[Claim]]
    times: Callable[[dict, dict], list[Claim]] = _no_times
    exact: bool = False
    free: Sequence[str] = ()


class InterruptedRun(SystemExit):
    """Ctrl-C: the run ended, and its line is printed already."""


def cli(main: Callable[[Any], Any], config: type) -> None:
    """Runs `main` with the options of the command line.

    A run at smoke is over in seconds, most of which would go into compiling.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    options: Any = tyro.cli(config, prog=f"python -m {_module()}")
    if getattr(options, "preset", None) == "smoke":
        compile_quickly()
    main(options)


def execute(experiment: Experiment, config: Any) -> dict:
    """Runs an experiment, or what is left of it; shows and returns its results.

    Raises:
      SystemExit: with what is wrong, if the data set, the options or the output
        folder are; or with how to go on, if it was interrupted.
    """
    folder = output_folder(experiment, config)
    try:
        return _execute(experiment, config, folder)
    except KeyboardInterrupt:
        interrupted(folder)
    except NonFiniteError as error:
        raise SystemExit(
            f"{experiment.name}: {error} Or leave such steps out: --on-nonfinite skip."
        ) from error
    except (ValueError, DatasetError, UnfinishedError, CheckpointError) as error:
        raise SystemExit(f"{experiment.name}: {error}") from error
    except OSError as error:
        raise SystemExit(
            f"{experiment.name}: {folder} cannot be used: {error}. Name another folder "
            "with --out."
        ) from error


def output_folder(experiment: Experiment, config: Any) -> Path:
    """Where results and figures go."""
    default = Path("out") / experiment.name / f"{config.preset}-{config.dataset_name}"
    return config.out or default


def interrupted(folder: Path) -> NoReturn:
    """Ends after Ctrl-C with the one line that says how to go on."""
    print(
        f"Interrupted. Finished parts and the last checkpoints are kept in {folder}; "
        f"to go on: {command()}",
        file=sys.stderr,
    )
    raise InterruptedRun(130)


def _execute(experiment: Experiment, config: Any, folder: Path) -> dict:
    size = experiment.sizes[config.preset]
    size = resized(size(config) if callable(size) else size, config)
    header = _header(experiment, config, size)
    with locked(folder):
        if config.replace and _to_replace(folder, header, experiment.free):
            set_aside(folder)
        found = finished(folder, header, experiment.free, config.finished_only)
        if found is None:
            run = Run(
                folder,
                header,
                free=experiment.free,
                finished_only=config.finished_only,
            )
            found = _measure(experiment, config, size, run)
        else:
            print(f"{folder}: finished before, nothing is run. Anew: --replace.")
            _refuse_missing_weights(config, folder)
        claims = plain([c._asdict() for c in statements(experiment, found)])
        if found.get("claims") != claims:  # new, or of an older version
            found["claims"] = claims
            write_json(folder / "results.json", found)
        experiment.plot(found["results"], folder)
    console = Console(width=None if sys.stdout.isatty() else 110)
    shown = table(experiment, found, read_run(folder))
    if shown.row_count:
        console.print(shown)
    console.print(f"Written: {folder}")
    return found


def _to_replace(folder: Path, header: dict, free: Sequence[str]) -> bool:
    """Whether there is more than the beginning of the run that is asked for."""
    try:
        return finished(folder, header, free) is not None
    except ValueError:
        return True


def _refuse_missing_weights(config: Any, folder: Path) -> None:
    if getattr(config, "keep_weights", False) and not (folder / "weights").exists():
        raise ValueError(
            f"{folder} holds a finished run without weights. Name another folder with "
            "--out, or run it anew with --replace."
        )


def _measure(experiment: Experiment, config: Any, size: Any, run: Run) -> dict:
    started = time.perf_counter()
    resumed = run.open() if not run.finished_only else True
    try:
        results = plain(experiment.measure(config, size, run))
    except BaseException:
        if not resumed:
            run.forget_if_empty()
        raise
    found = {**run.header, **run.origin(), "results": results}
    if run.unfinished:
        found["unfinished"] = run.unfinished
    about = {
        "command": command(),
        "seconds": round(time.perf_counter() - started, 1),
        "resumed": resumed,  # then these are the seconds of the last stretch
        "seconds_by_part": run.seconds,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if run.elsewhere:
        about["parts_from_elsewhere"] = run.elsewhere
    write_json(run.folder / "run.json", about)
    write_json(run.folder / "results.json", found)
    run.close()
    return found


def _header(experiment: Experiment, config: Any, size: Any) -> dict:
    """What decides the results."""
    chosen = dataclasses.asdict(config) | {"dataset": config.dataset_name}
    for name in NEUTRAL:
        chosen.pop(name, None)
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


def statements(experiment: Experiment, found: dict) -> list[Claim]:
    """The claims of results.json, not judged where there is nothing to judge by."""
    return judged(
        list(experiment.claims(found["results"])),
        exact=experiment.exact,
        preset=found["config"]["preset"],
        seeds=found["size"].get("seeds", 1),
    )


def read_run(folder: Path) -> dict:
    """What is in run.json."""
    return json.loads((folder / "run.json").read_text())


def table(experiment: Experiment, found: dict, run: dict) -> Table:
    """The numbers beside the paper's, for the screen."""
    shown = Table(
        "what", "paper", "here", "", title=f"{experiment.title} ({experiment.paper})"
    )
    times = experiment.times(found["results"], run["seconds_by_part"])
    for row in [*(Claim(**claim) for claim in found["claims"]), *times]:
        shown.add_row(row.what, row.paper, row.here, MARKS[row.holds])
    for name in found.get("unfinished", ()):
        shown.add_row(f"{name} is not finished", "", "", "")
    return shown


def command() -> str:
    """The command line of this process."""
    return shlex.join(["python", "-m", _module(), *sys.argv[1:]])


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec else "experiments"
