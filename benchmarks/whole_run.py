"""A whole training run of one of the paper's nets, and where its time goes.

python -m benchmarks.whole_run --epochs 110 --seeds 5 --json FILE
python -m benchmarks.whole_run --net conv --program "SeqIL-SGD T=1" --steps 50
"""

import dataclasses
import json
import shlex
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Column, Table

from benchmarks import hlo, timing, workloads
from benchmarks.epoch import Epoch, random_data


@dataclass(frozen=True)
class Config:
    """Times epochs of a program on 50,000 images, then profiles one."""

    net: Literal["mlp", "conv", "vgg5"] = "mlp"
    """The paper's nets that classify, and VGG5 at a quarter of its width."""
    program: str = "SeqIL-MQ T=3"
    """What trains it: a name that `benchmarks.kernels` prints."""
    epochs: int = 2
    """Epochs that are timed; the paper's run has 110."""
    seeds: int = 1
    """Networks trained side by side; the paper's run has 5."""
    steps: int = 781
    """Training iterations of 64 images in an epoch."""
    profiled_steps: int = 50
    """Training iterations of the profile."""
    json: Path | None = None
    """Where the result goes, besides the screen."""


def profile(epoch: Epoch) -> tuple[float, dict[str, float]]:
    """Seconds of one epoch by the kind of work, as the profiler of JAX sees it.

    Returns:
      The wall-clock seconds, and those of every kind of instruction: its own time
      without that of the instructions inside it. "idle" is when none was going on:
      launching, waiting, the host. Instructions that run side by side add up to more
      than the wall-clock time.

    Raises:
      RuntimeError: if this JAX cannot read its profiles, or there is nothing in them.
    """
    if not hasattr(jax.profiler, "ProfileData"):
        raise RuntimeError(
            f"profile: JAX {jax.__version__} has no jax.profiler.ProfileData; expected "
            "a newer one."
        )
    kinds = hlo.kinds(epoch.compiled)
    epoch()  # warm
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            started = time.perf_counter()
            epoch()
            seconds = time.perf_counter() - started
        [path] = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
        lines = _instructions(data.planes)
    if not any(lines):
        raise RuntimeError("profile: the profiler recorded no instruction.")
    spent: dict[str, float] = defaultdict(float)
    for line in lines:
        for name, own in _own_times(line):
            spent[kinds.get(name, "other")] += own * 1e-9
    spent["idle"] = seconds - 1e-9 * _covered([e for line in lines for e in line])
    return seconds, spent


def _instructions(planes: Iterable[Any]) -> list[list[tuple[str, float, float]]]:
    """`(instruction, start, end)` in nanoseconds, for every line of a profile.

    Of a GPU everything on its own planes counts, kernels of no known instruction too,
    and nothing of the host, which only launches it. On a CPU the host does the work,
    and what is an instruction is marked so.
    """
    planes = list(planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    lines = []
    for plane in devices or planes:
        for line in plane.lines:
            found = []
            for event in line.events:
                name = dict(event.stats).get("hlo_op", event.name if devices else None)
                if name is not None:
                    end = event.start_ns + event.duration_ns
                    found.append((name, event.start_ns, end))
            lines.append(sorted(found, key=lambda entry: (entry[1], -entry[2])))
    return lines


def _covered(events: list[tuple[str, float, float]]) -> float:
    """How long at least one event was going on."""
    total, until = 0.0, -np.inf
    for _, start, end in sorted(events, key=lambda event: event[1]):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _own_times(events: list[tuple[str, float, float]]) -> Iterator[tuple[str, float]]:
    """Every event's time without that of the events inside it."""
    open_: list[list] = []  # name, end, own time

    for name, start, end in events:
        while open_ and open_[-1][1] <= start:
            done, _, own = open_.pop()
            yield done, own
        if open_:
            open_[-1][2] -= end - start
        open_.append([name, end, end - start])
    for name, _, own in open_:
        yield name, own


def measure(config: Config) -> dict:
    """The figures of the run."""
    load = workloads.NETS[config.net]()
    known = {program.name: program for program in workloads.programs(load)}
    if config.program not in known:
        raise SystemExit(
            f"--program: expected one of {[*known]}, got {config.program!r}."
        )
    program = known[config.program]
    data = random_data(load, config.steps)
    epoch = Epoch(load, program, data, config.seeds)
    epoch()  # the first touches all memory
    seconds = []
    for _ in range(config.epochs):
        started = time.perf_counter()
        epoch()
        seconds.append(time.perf_counter() - started)
    short = random_data(load, config.profiled_steps)
    wall: float | None = None
    spent: dict[str, float] = {}
    try:
        wall, spent = profile(Epoch(load, program, short, config.seeds))
    except RuntimeError as error:  # the times are good without it
        print(error)
    flops = program.floor * config.steps * config.seeds
    median = float(np.median(seconds))
    return {
        "net": config.net,
        "program": program.name,
        "epochs": config.epochs,
        "seeds": config.seeds,
        "compile_seconds": epoch.compile_seconds,
        "seconds": sum(seconds),
        "median_epoch_seconds": median,
        "images_per_second": len(data.images) * config.seeds / median,
        "flops_per_second": flops / median,
        "profiled_seconds": wall,
        "share_of_time": {
            kind: spent[kind] / wall
            for kind in sorted(spent, key=spent.__getitem__)
            if wall
        },
    }


def show(found: dict) -> None:
    """Prints the figures."""
    networks = "network" if found["seeds"] == 1 else "networks at once"
    table = Table(
        "kind of work",
        Column("share of time", justify="right"),
        title=f"{found['program']}, {found['seeds']} {networks}",
    )
    for kind, share in reversed(found["share_of_time"].items()):
        table.add_row(kind, f"{share:.1%}")
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    images, rate = found["images_per_second"], found["flops_per_second"] / 1e12
    console.print(
        f"{found['epochs']} epochs in {found['seconds']:.1f} s, compiled in "
        f"{found['compile_seconds']:.1f} s; {images:,.0f} images/s, {rate:.3f} TFLOP/s"
    )


def main(config: Config) -> None:
    """Measures, prints and writes."""
    found = measure(config)
    show(found)
    if config.json:
        result = {
            "command": shlex.join(
                ["python", "-m", "benchmarks.whole_run", *sys.argv[1:]]
            ),
            "environment": timing.environment(),
            "config": json.loads(json.dumps(dataclasses.asdict(config), default=str)),
            **found,
        }
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config))
