"""Runs every experiment of the paper and writes one report.

python -m experiments.reproduce
python -m experiments.reproduce --preset cpu --data-dir DIR
python -m experiments.reproduce --preset paper --dataset cifar10 --data-dir DIR

What is already done is not done again, and what was interrupted goes on, so that the
command can be repeated until everything is there. The report sets each number beside
the paper's: report.md, and report.html with the figures in it.
"""

import dataclasses
import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from experiments.common import page
from experiments.common.harness import (
    InterruptedRun,
    Options,
    cli,
    execute,
    interrupted,
)
from experiments.common.joined import read, read_all
from experiments.common.options import KeepWeights

FULL = "-paper"  # in the name of a folder: the same at the paper's length


@dataclass(frozen=True)
class Job:
    """An experiment with its options.

    Attributes:
      module: its name.
      options: fields of its `Config` besides those of `Options`.
      net: the net it is about, for the name of its folder; "" if it has all.
      dataset: the only data set it is for; None takes the one that is asked for.
      data: whether it looks at images at all.
    """

    module: str
    options: dict[str, Any] = field(default_factory=dict)
    net: str = ""
    dataset: str | None = None
    data: bool = True

    def folder(self, out: Path, dataset: str) -> Path:
        """Where it writes: out/MODULE/DATASET-NET."""
        name = "-".join(
            part for part in (dataset if self.data else "", self.net) if part
        )
        return out / self.module / name if name else out / self.module


def _net(module: str, net: str, dataset: str | None = None) -> Job:
    return Job(module, {"net": net}, net, dataset)


JOBS = (
    Job("costs", data=False),
    Job("inference_errors"),
    Job("proximal_objective"),
    _net("update_magnitudes", "mlp"),
    _net("update_magnitudes", "conv"),
    Job("inference_iterations"),
    _net("classification", "mlp"),
    _net("classification", "conv"),
    _net("classification", "conv", "tiny_imagenet"),
    Job("autoencoder"),
    Job("training_time"),
)


ExperimentName = Literal[
    "costs",
    "inference_errors",
    "proximal_objective",
    "update_magnitudes",
    "inference_iterations",
    "classification",
    "autoencoder",
    "training_time",
]


@dataclass(frozen=True)
class Config(Options, KeepWeights):
    """Runs every experiment of the paper and writes one report."""

    only: tuple[ExperimentName, ...] = ()
    """Run only these experiments."""


def main(config: Config) -> list[page.Section]:
    """Runs what is left to do, and writes the report after every experiment.

    Raises:
      SystemExit: if an experiment is not known, if none could be run, or if the output
        folder cannot be written.
    """
    known = list(dict.fromkeys(job.module for job in JOBS))
    if unknown := sorted(set(config.only) - set(known)):
        raise SystemExit(f"--only: expected some of {known}, got {unknown}.")
    out = config.out or Path("out/reproduce") / config.preset
    try:
        return _run_all(config, out)
    except InterruptedRun:
        raise
    except KeyboardInterrupt:
        interrupted(out)
    except OSError as error:
        raise SystemExit(
            f"{out} cannot be used: {error}. Name another folder with --out."
        ) from error


def _run_all(config: Config, out: Path) -> list[page.Section]:
    out.mkdir(parents=True, exist_ok=True)
    jobs = [job for job in JOBS if not config.only or job.module in config.only]
    if config.preset == "smoke" and config.dataset_name != "tiny_imagenet":
        jobs = [job for job in jobs if job.dataset is None]
    console = Console()
    sections: list[page.Section] = []
    for number, job in enumerate(jobs, 1):
        console.rule(f"{number} of {len(jobs)}: {job.module} {job.net}")
        sections.append(_run(job, config, out))
        page.write(out, config.preset, sections)
    console.print(f"Report: {out / 'report.md'} and {out / 'report.html'}")
    if not any(section.here for section in sections):
        raise SystemExit("No experiment could be run: see above.")
    return sections


def _run(job: Job, config: Config, out: Path) -> page.Section:
    """Runs an experiment; what is wrong with it becomes part of the report."""
    module = importlib.import_module(f"experiments.{job.module}")
    dataset = job.dataset or config.dataset_name
    folder = job.folder(out, dataset)
    asked = {entry.name for entry in dataclasses.fields(config)}
    options = {
        entry.name: getattr(config, entry.name)
        for entry in dataclasses.fields(module.Config)
        if entry.name in asked
    }
    options |= {"dataset": dataset, "out": folder, **job.options}
    if not job.data:  # nothing is trained, so there are no seeds
        options["seeds"] = None
    experiment = module.EXPERIMENT
    long = read_all(experiment, folder.with_name(folder.name + FULL))
    failure = ""
    try:
        execute(experiment, module.Config(**options))
    except InterruptedRun:
        raise
    except SystemExit as error:
        failure = str(error)
        Console().print(f"Not run: {failure}", style="bold", highlight=False)
    here = None if failure else read(experiment, folder)
    return page.Section(
        experiment.title,
        experiment.paper,
        failure,
        here,
        full=long[0] if long else None,
        more=long[1:],
    )


if __name__ == "__main__":
    cli(main, Config)
