"""One table of several runs that differ in nothing but their methods and seeds."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.common.folders import plain
from experiments.common.harness import Experiment, read_run, statements
from experiments.common.methods import METHODS
from experiments.common.page import Measured

# What runs that are shown together may differ in.
_FREE = ("methods", "seeds")


def read(experiment: Experiment, folder: Path) -> Measured | None:
    """The results in a folder with the statements as they are judged now."""
    if not (folder / "results.json").exists():
        return None
    found, run = json.loads((folder / "results.json").read_text()), read_run(folder)
    found["claims"] = _judged(experiment, found)
    times = experiment.times(found["results"], run["seconds_by_part"])
    size = experiment.sizes.get("paper")
    papers = {} if size is None or callable(size) else dataclasses.asdict(size)
    return Measured(folder, found, run, times, plain(papers))


def read_all(experiment: Experiment, folder: Path) -> list[Measured]:
    """The results in `folder` and in those whose name begins with its name and a dash.

    The first holds all their methods, each from the run with most seeds, and the
    statements on them together. The others are the runs that methods were taken from. A
    run of other settings, data or length is none of them.
    """
    beside = sorted(folder.parent.glob(f"{folder.name}-*"))
    runs = [found for path in (folder, *beside) if (found := read(experiment, path))]
    if not runs or "methods" not in runs[0].found["results"]:
        return runs[:1]
    first = runs[0]
    alike = [run for run in runs if _settings(run) == _settings(first)]
    alike.sort(key=lambda run: -_seeds(run))  # keeps the order of equals
    return _joined(experiment, alike)


def _joined(experiment: Experiment, runs: Iterable[Measured]) -> list[Measured]:
    first, *others = runs
    methods = dict(first.found["results"]["methods"])
    taken = []
    for run in others:
        new = {
            name: curves
            for name, curves in run.found["results"]["methods"].items()
            if name not in methods
        }
        methods |= new
        taken += [run] if new else []
    order = [method.name for method in METHODS]
    known = [name for name in order if name in methods]
    methods = {name: methods[name] for name in dict.fromkeys([*known, *methods])}
    found = {**first.found, "results": {**first.found["results"], "methods": methods}}
    found["claims"] = _judged(experiment, found)
    return [first._replace(found=found), *taken]


def _judged(experiment: Experiment, found: dict[str, Any]) -> list[dict[str, Any]]:
    return plain([claim._asdict() for claim in statements(experiment, found)])


def _settings(run: Measured) -> dict[str, Any]:
    asked = {k: v for k, v in run.found["config"].items() if k not in _FREE}
    # What was not asked for is None, or missing in runs of before there was the option.
    asked = {name: value for name, value in asked.items() if value is not None}
    return asked | {"settings": run.found["results"].get("settings")}


def _seeds(run: Measured) -> int:
    return run.found["size"].get("seeds", 1)
