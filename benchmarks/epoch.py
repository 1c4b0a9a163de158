"""Whole epochs: from uint8 images on the device to trained weights, in one dispatch.

python -m benchmarks.epoch --json FILE --plot FILE
"""

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Column, Table

from benchmarks import timing, workloads
from pcjax import training
from pcjax.learning.gradients import Info


@dataclass(frozen=True)
class Config:
    """Times epochs against their steps and against backprop, and how cost grows."""

    rounds: int = 10
    """Timed epochs of every program."""
    steps: int = 50
    """Training iterations in an epoch of the first table."""
    sweep_rounds: int = 3
    """Timed epochs of every point of the sweeps; 0 leaves them out."""
    max_width: int = 4096
    """The widest net of the sweep."""
    json: Path | None = None
    """Where the result goes, besides the screen."""
    plot: Path | None = None
    """Where the log-log plot of the sweeps goes."""


@dataclass(frozen=True)
class Row:
    """An epoch's figures.

    Attributes:
      name: the program.
      seeds: networks trained side by side.
      images_per_second: of all seeds together.
      ratio_to_bp: time over that of the backprop epoch of one seed, median.
      ratio_to_steps: time over that of as many single dispatches, median; None
        where they were not timed.
    """

    name: str
    seeds: int
    images_per_second: float
    ratio_to_bp: float
    ratio_to_steps: float | None


PREPARE = training.classification(10)


def random_data(load: workloads.Workload, steps: int) -> training.Data:
    """Random images: arithmetic takes as long on them as on photographs."""
    random = np.random.default_rng(0)
    batch, *shape = load.inputs.shape
    images = random.integers(0, 256, (steps * batch, *shape), dtype=np.uint8)
    return training.device_data(images, random.integers(0, 10, len(images)), 10)


def _state(load: workloads.Workload, program: workloads.Program, seeds: int) -> Any:
    def init(key):
        return training.init_state(load.network, program.tx, key, load.inputs)

    if seeds == 1:
        return init(jax.random.key(0))
    return jax.vmap(init)(jax.random.split(jax.random.key(0), seeds))


class Epoch:
    """Trains one epoch at a call, and waits for it.

    Attributes:
      compiled: the epoch.
      compile_seconds: to trace and compile it.
    """

    def __init__(self, load, program, data, seeds=1, update=None) -> None:
        update = update or program.update
        epoch = training.make_epoch(update, PREPARE, load.inputs.shape[0])
        mapped = epoch if seeds == 1 else jax.vmap(epoch, in_axes=(0, None))
        self._state = _state(load, program, seeds)
        self._data = data
        started = time.perf_counter()
        step = jax.jit(mapped, donate_argnums=0)
        self.compiled = step.lower(self._state, data).compile()
        self.compile_seconds = time.perf_counter() - started

    def __call__(self) -> None:
        state, _ = self.compiled(self._state, self._data)
        self._state = jax.block_until_ready(state)


def empty_epoch(load, program, data) -> Epoch:
    """An epoch that shuffles, gathers and scales, but trains nothing."""

    def update(params, opt_state, inputs, targets):
        energy = jnp.sum(inputs) + jnp.sum(targets)
        info = Info(energy[None], targets, energy[None], energy[None])
        return params, opt_state, (energy, info)

    return Epoch(load, program, data, update=update)


def steps_runner(load, program, data) -> Callable[[], None]:
    """The same number of iterations, each a dispatch of its own on ready floats."""
    state = _state(load, program, 1)
    step = jax.jit(program.update, donate_argnums=(0, 1))
    inputs, targets = PREPARE(
        data.images[: len(load.inputs)], data.labels[: len(load.inputs)]
    )
    arguments = state.params, state.opt_state, inputs, targets
    compiled = step.lower(*arguments).compile()
    box = [arguments[:2]]
    count = len(data.images) // len(load.inputs)

    def run():
        for _ in range(count):
            params, opt_state, _ = compiled(*box[0], inputs, targets)
            box[0] = params, opt_state
        jax.block_until_ready(box[0])

    return run


def table(config: Config) -> list[Row]:
    """One seed and five, against single steps and against backprop."""
    load = workloads.mlp()
    data = random_data(load, config.steps)
    programs = [
        workloads.backprop(load, "SGD"),
        workloads.backprop(load, "Adam"),
        workloads.inference_learning(load, "sequential", 1, "MQ"),
        workloads.inference_learning(load, "sequential", 3, "MQ"),
        workloads.inference_learning(load, "simultaneous", 15, "SGD"),
    ]
    runs: list[tuple[str, int, Callable]] = []
    for program in programs:
        runs.append((program.name, 1, Epoch(load, program, data)))
        runs.append((program.name, 0, steps_runner(load, program, data)))
    runs.append((programs[3].name, 5, Epoch(load, programs[3], data, 5)))
    runs.append((programs[0].name, 5, Epoch(load, programs[0], data, 5)))
    runs.append(("no training", 1, empty_epoch(load, programs[0], data)))
    seconds = timing.interleave([run for *_, run in runs], config.rounds, warmup=1)
    by_name = {
        (name, seeds): s for (name, seeds, _), s in zip(runs, seconds, strict=True)
    }
    rows = []
    for (name, seeds), times in by_name.items():
        if seeds == 0:
            continue
        steps = by_name.get((name, 0)) if seeds == 1 else None
        rows.append(
            Row(
                name,
                seeds,
                seeds * len(data.images) / float(np.median(times)),
                timing.ratios(times, seconds[0])[0],
                None if steps is None else timing.ratios(times, steps)[0],
            )
        )
    return rows


def sweeps(config: Config) -> Iterator[dict]:
    """How an epoch's cost grows, each point against the sweep's first backprop."""
    axes: dict[str, list[int]] = {
        "T": [1, 2, 4, 8, 16],
        "width": [w for w in (256, 512, 1024, 2048, 4096) if w <= config.max_width],
        "depth": [2, 4, 8, 16, 32],
        "batch": [1, 4, 16, 64, 256, 1024],
        "seeds": [1, 2, 4, 8, 16],
    }
    for axis, values in axes.items():
        for value in values:
            point = {"T": 3, "width": 256, "depth": 4, "batch": 64, "seeds": 1}
            point[axis] = value
            load = workloads.mlp(point["batch"], point["width"], point["depth"])
            data = random_data(load, max(2, min(20, 1280 // point["batch"])))
            kinds = {
                "BP": workloads.backprop(load, "SGD"),
                "SeqIL": workloads.inference_learning(
                    load, "sequential", point["T"], "SGD"
                ),
                "IL": workloads.inference_learning(
                    load, "simultaneous", point["T"], "SGD"
                ),
            }
            runs = [
                Epoch(load, program, data, point["seeds"]) for program in kinds.values()
            ]
            seconds = timing.interleave(runs, config.sweep_rounds, warmup=1)
            for name, run, times in zip(kinds, runs, seconds, strict=True):
                images = point["seeds"] * len(data.images)
                yield {
                    "axis": axis,
                    "value": value,
                    "program": name,
                    "microseconds_per_image": 1e6 * float(np.median(times)) / images,
                    "ratio_to_bp": timing.ratios(times, seconds[0])[0],
                    "compile_seconds": run.compile_seconds,
                }


def show(rows: list[Row]) -> None:
    """Prints the first table."""
    headers = ("seeds", "images/s", "x BP epoch", "x its single steps")
    out = Table("epoch", *(Column(header, justify="right") for header in headers))
    for row in rows:
        steps = "-" if row.ratio_to_steps is None else f"{row.ratio_to_steps:.3f}"
        out.add_row(
            row.name,
            str(row.seeds),
            f"{row.images_per_second:,.0f}",
            f"{row.ratio_to_bp:.3f}",
            steps,
        )
    Console(width=None if sys.stdout.isatty() else 100).print(out)


def plot(points: list[dict], path: Path) -> None:
    """Time an image against every axis, log-log."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axes_names = list(dict.fromkeys(point["axis"] for point in points))
    figure, panels = plt.subplots(
        1, len(axes_names), figsize=(3.1 * len(axes_names), 3.2), layout="constrained"
    )
    styles = {
        "BP": ("#000000", "s--"),
        "SeqIL": ("#D55E00", "o-"),
        "IL": ("#56B4E9", "^-"),
    }
    for panel, axis in zip(np.atleast_1d(panels), axes_names, strict=True):
        for name, (color, marker) in styles.items():
            own = [p for p in points if p["axis"] == axis and p["program"] == name]
            panel.plot(
                [p["value"] for p in own],
                [p["microseconds_per_image"] for p in own],
                marker,
                color=color,
                label=name,
                markersize=4,
            )
        panel.set(xscale="log", yscale="log", xlabel=_LABELS[axis])
        panel.set_xticks([p["value"] for p in points if p["axis"] == axis])
        panel.xaxis.set_major_formatter("{x:.0f}")
        panel.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        panel.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        panel.tick_params(axis="x", rotation=45)
        panel.grid(alpha=0.3)
    np.atleast_1d(panels)[0].set_ylabel("µs per image and network")
    np.atleast_1d(panels)[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


_LABELS = {
    "T": "inference iterations T",
    "width": "hidden width",
    "depth": "layers L",
    "batch": "batch size",
    "seeds": "networks at once",
}


def main(config: Config) -> None:
    """Measures, prints and writes."""
    result: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.epoch", *sys.argv[1:]]),
        "environment": timing.environment(),
        "config": json.loads(json.dumps(dataclasses.asdict(config), default=str)),
    }
    rows = table(config)
    show(rows)
    result["epochs"] = [dataclasses.asdict(row) for row in rows]
    result["sweeps"] = []
    for point in sweeps(config) if config.sweep_rounds else ():
        result["sweeps"].append(point)
        print(
            f"{point['axis']:<6}{point['value']:>6}  {point['program']:<6}"
            f"{point['microseconds_per_image']:10.1f} µs an image  "
            f"{point['ratio_to_bp']:.2f} x BP  "
            f"compiled in {point['compile_seconds']:.2f} s"
        )
        _write(result, config)
    _write(result, config)
    if config.plot and result["sweeps"]:
        plot(result["sweeps"], config.plot)


def _write(result: dict, config: Config) -> None:
    if config.json:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config))
