"""What several devices cost: counted communication, times, and when they pay.

python -m benchmarks.scaling --json FILE

On a machine without accelerators the devices are virtual: what a step sends is
counted in the compiled program and is the same on real ones, times are not.
"""

import dataclasses
import json
import math
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Column, Table

from benchmarks import hlo, payoff, timing, workloads
from pcjax.training import sharding


@dataclass(frozen=True)
class Config:
    """Counts and times training iterations on 1, 2, 4, ... devices."""

    devices: int = 8
    """The largest number of devices; virtual ones where there are no others."""
    rounds: int = 5
    """Timed calls of every program; 0 leaves the times out."""
    batch_size: int = 64
    """Examples of a batch (strong scaling), or of each device (weak scaling)."""
    width: int = 1024
    """Units of the three hidden layers."""
    hardware: payoff.Hardware = field(default_factory=payoff.Hardware)
    """What the arithmetic assumes."""
    json: Path | None = None
    """Where the result goes, besides the screen."""


@dataclass(frozen=True)
class Row:
    """A program on a number of devices.

    Attributes:
      scaling: `weak` or `strong`.
      program: method and optimizer.
      devices: over how many the batch is split.
      batch_size: examples of the whole batch.
      flops: of the matrix products of each device.
      sent: `{kind of collective: {calls, arrays, bytes}}` of each device.
      bytes_per_parameter: of everything sent, per parameter; 4 is one float.
      milliseconds: a step, median and minimum; None where it was not timed.
    """

    scaling: str
    program: str
    devices: int
    batch_size: int
    flops: int
    sent: dict
    bytes_per_parameter: float
    milliseconds: tuple[float, float] | None


@dataclass(frozen=True)
class Layout:
    """What a step of SeqIL-MQ sends under one arrangement of the devices."""

    mesh: dict
    networks: int
    flops: int
    sent: dict
    parameters_per_device: int


def scale(config: Config, strong: bool) -> list[Row]:
    """Splits the batch over 1, 2, 4, ... devices: the same batch, or a larger one."""
    counts = [2**i for i in range(config.devices.bit_length())]
    rows = []
    for index in range(len(payoff.programs(workloads.mlp(1, config.width)))):
        runs, found = [], []
        for count in counts:
            load = workloads.mlp(
                config.batch_size * (1 if strong else count), config.width
            )
            program = payoff.programs(load)[index]
            mesh = sharding.make_mesh(count, devices=jax.devices()[:count])
            state = sharding.place_state(mesh, workloads.start(load, program))
            batch = sharding.place_batch(mesh, (load.inputs, load.targets))
            step = jax.jit(program.update, donate_argnums=(0, 1))
            compiled = step.lower(*state, *batch).compile()
            sent = _sent(compiled)
            found.append(
                Row(
                    scaling="strong" if strong else "weak",
                    program=program.name,
                    devices=count,
                    batch_size=len(load.inputs),
                    flops=hlo.count(compiled).flops,
                    sent=sent,
                    bytes_per_parameter=_bytes(sent) / _size(state[0]),
                    milliseconds=None,
                )
            )
            runs.append(_stepper(compiled, state, batch))
        if config.rounds:
            times = 1e3 * timing.interleave(runs, config.rounds, warmup=1)
            found = [
                dataclasses.replace(row, milliseconds=(float(np.median(t)), t.min()))
                for row, t in zip(found, times, strict=True)
            ]
        rows += found
    return rows


def _stepper(compiled, state, batch) -> Callable[[], None]:
    """A function that does one training iteration and waits for it."""
    box = [state]

    def step():
        params, opt_state, _ = compiled(*box[0], *batch)
        box[0] = jax.block_until_ready((params, opt_state))

    return step


def layouts(config: Config) -> list[Layout]:
    """All devices for the batch, for seeds, for wide layers, and mixtures."""
    total = config.devices
    load = workloads.mlp(config.batch_size, config.width)
    program = workloads.inference_learning(load, "sequential", 3, "MQ")
    one = jax.eval_shape(partial(workloads.start, load, program))
    rows = []
    for sizes in (
        {"batch": total},
        {"seeds": total, "batch": 1},
        {"seeds": total // 2, "batch": 2},
        {"batch": 1, "model": total},
        {"batch": total // 2, "model": 2},
    ):
        mesh = sharding.make_mesh(**sizes, devices=jax.devices()[:total])
        networks, state, update = sizes.get("seeds", 1), one, program.update
        if "seeds" in sizes:
            state = jax.tree.map(
                lambda x, n=networks: jax.ShapeDtypeStruct((n, *x.shape), x.dtype), one
            )
            update = jax.vmap(update, in_axes=(0, 0, None, None))
        split: sharding.Split = sharding.replicated
        if "model" in sizes:
            split = sharding.split_features(config.width)
        places = sharding.state_shardings(mesh, state, split)
        batch = NamedSharding(mesh, PartitionSpec(sharding.BATCH))
        step = jax.jit(
            update,
            in_shardings=(*places, batch, batch),
            out_shardings=(*places, None),
        )
        compiled = step.lower(*state, load.inputs, load.targets).compile()
        kept = jax.tree.map(
            lambda x, place: math.prod(place.shard_shape(x.shape)), state[0], places[0]
        )
        rows.append(
            Layout(
                dict(mesh.shape),
                networks,
                hlo.count(compiled).flops,
                _sent(compiled),
                sum(jax.tree.leaves(kept)),
            )
        )
    return rows


def _size(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _sent(compiled: jax.stages.Compiled) -> dict[str, dict[str, int]]:
    return {kind: c._asdict() for kind, c in hlo.collectives(compiled).items()}


def _bytes(sent: dict[str, dict[str, int]]) -> int:
    return sum(counts["bytes"] for counts in sent.values())


def _describe(sent: dict[str, dict[str, int]]) -> str:
    return (
        ", ".join(
            f"{c['calls']} {kind} ({c['arrays']} arrays, {c['bytes'] / 1e6:.2f} MB)"
            for kind, c in sent.items()
        )
        or "nothing"
    )


def _table(title: str, headers: tuple[str, ...], rows: list[tuple]) -> None:
    columns = (Column(header, justify="right") for header in headers[1:])
    table = Table(headers[0], *columns, title=title)
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def show_scaling(rows: list[Row], config: Config) -> None:
    """Prints what is sent and how long it took."""
    _table(
        f"3072-3x{config.width}-10: a step of each device",
        ("program", "scaling", "devices", "batch", "MFLOP", "sends", "B/param", "ms"),
        [
            (
                row.program,
                row.scaling,
                row.devices,
                row.batch_size,
                f"{row.flops / 1e6:.0f}",
                _describe(row.sent),
                f"{row.bytes_per_parameter:.6f}",
                f"{row.milliseconds[0]:.1f}" if row.milliseconds else "-",
            )
            for row in rows
        ],
    )
    if jax.devices()[0].platform == "cpu":
        print(
            f"These {config.devices} devices are virtual and share {os.cpu_count()} "
            "cores. Their times show the overhead of splitting and prove nothing about "
            "scaling; the counts hold for real devices."
        )


def show_layouts(rows: list[Layout], config: Config) -> None:
    """Prints what arrangements of the devices send."""
    _table(
        f"SeqIL-MQ T=3, batch {config.batch_size}: a step of each device",
        ("mesh", "networks", "MFLOP", "parameters", "sends"),
        [
            (
                " x ".join(f"{name} {size}" for name, size in row.mesh.items()),
                row.networks,
                f"{row.flops / 1e6:.0f}",
                f"{row.parameters_per_device:,}",
                _describe(row.sent),
            )
            for row in rows
        ],
    )


def show_payoffs(rows: list[payoff.Payoff], config: Config) -> None:
    """Prints the arithmetic of data parallelism."""
    batches = list(rows[0].speedups)
    hardware = config.hardware
    _table(
        f"speed-up of {config.devices} devices by arithmetic: "
        f"{hardware.rate / 1e12:g} TFLOP/s, {hardware.memory / 1e12:g} TB/s of memory, "
        f"{hardware.bandwidth / 1e9:g} GB/s between devices, nothing overlapped",
        (
            "program",
            "width",
            "parameters",
            "MFLOP/example",
            "all-reduce µs",
            *(f"batch {batch}" for batch in batches),
        ),
        [
            (
                row.program,
                row.width,
                f"{row.parameters:,}",
                f"{row.flops_per_example / 1e6:.0f}",
                f"{row.all_reduce_microseconds:.0f}",
                *(f"{row.speedups[batch]:.2f}" for batch in batches),
            )
            for row in rows
        ],
    )


def main(config: Config) -> None:
    """Counts, measures, prints and writes."""
    jax.config.update("jax_num_cpu_devices", config.devices)
    if jax.device_count() < config.devices or config.devices < 2:
        raise SystemExit(
            f"scaling: --devices {config.devices}: expected at least 2 and at most "
            f"the {jax.device_count()} there are."
        )
    rows = scale(config, strong=False) + scale(config, strong=True)
    show_scaling(rows, config)
    arranged = layouts(config)
    show_layouts(arranged, config)
    paying = payoff.payoffs(config.devices, config.hardware)
    show_payoffs(paying, config)
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.scaling", *sys.argv[1:]]),
        "environment": timing.environment(),
        "virtual_devices": jax.devices()[0].platform == "cpu",
        "config": json.loads(json.dumps(dataclasses.asdict(config), default=str)),
        "scaling": [dataclasses.asdict(row) for row in rows],
        "layouts": [dataclasses.asdict(row) for row in arranged],
        "payoffs": [row._asdict() for row in paying],
    }
    if config.json:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config))
