"""What a training iteration costs, as counted products and as measured time.

python -m benchmarks.kernels --net mlp --json FILE
"""

import json
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Column, Table

from benchmarks import hlo, timing, workloads


@dataclass(frozen=True)
class Config:
    """Compares training iterations, interleaved, with backprop by SGD."""

    net: Literal["mlp", "conv", "vgg5", "autoencoder", "residual", "all"] = "mlp"
    """The paper's nets, the field's VGG5 at a quarter of its width, 64 residual layers
    of 128."""
    rounds: int = 30
    """Timed calls of every program."""
    batch_size: int = 64
    """Examples an iteration."""
    only: tuple[str, ...] = ()
    """Measure only these programs (and BP-SGD), by name."""
    json: Path | None = None
    """Where the result goes, besides the screen."""


@dataclass(frozen=True)
class Row:
    """One program's figures; times in milliseconds, memory in bytes."""

    name: str
    median_ms: float
    min_ms: float
    ratio_median: float
    ratio_min: float
    compile_seconds: float
    dots: int | None
    convolutions: int | None
    flops: int | None
    floor_flops: int
    floor_ratio: float
    matmul_fraction: float
    temporary_bytes: int
    peak_bytes: int


def measure(net: str, config: Config) -> tuple[list[Row], float]:
    """Times every program of a net; returns the rows and the matmul rate."""
    load = workloads.NETS[net](config.batch_size)
    programs = [
        program
        for index, program in enumerate(workloads.programs(load))
        if index == 0 or not config.only or program.name in config.only
    ]
    runners, compiled, seconds_to_compile = [], [], []
    for program in programs:
        state = workloads.start(load, program)
        started = time.perf_counter()
        step = jax.jit(program.update, donate_argnums=(0, 1))
        executable = step.lower(*state, load.inputs, load.targets).compile()
        seconds_to_compile.append(time.perf_counter() - started)
        compiled.append(executable)
        runners.append(_stepper(executable, state, load))
    matmul, flops = _matmul()
    *seconds, matmul_seconds = timing.interleave([*runners, matmul], config.rounds)
    rate = flops / matmul_seconds.min()
    rows = []
    for program, executable, times, compile_time in zip(
        programs, compiled, seconds, seconds_to_compile, strict=True
    ):
        try:
            counts: hlo.Counts | None = hlo.count(executable)
        except ValueError:  # products inside a vendor's library
            counts = None
        memory: Any = executable.memory_analysis()
        median, minimum = timing.ratios(times, seconds[0])
        rows.append(
            Row(
                name=program.name,
                median_ms=1e3 * float(np.median(times)),
                min_ms=1e3 * float(times.min()),
                ratio_median=median,
                ratio_min=minimum,
                compile_seconds=compile_time,
                dots=counts and counts.dots,
                convolutions=counts and counts.convolutions,
                flops=counts and counts.flops,
                floor_flops=program.floor,
                floor_ratio=program.floor / programs[0].floor,
                matmul_fraction=program.floor / float(np.median(times)) / rate,
                temporary_bytes=memory.temp_size_in_bytes,
                peak_bytes=memory.temp_size_in_bytes
                + memory.argument_size_in_bytes
                + memory.output_size_in_bytes
                - memory.alias_size_in_bytes,
            )
        )
    return rows, rate


def _stepper(executable, state, load):
    """A function that does one training iteration and waits for it."""
    box = [state]

    def step():
        params, opt_state, _ = executable(*box[0], load.inputs, load.targets)
        box[0] = jax.block_until_ready((params, opt_state))

    return step


def _matmul(size: int = 2048):
    """A large square product, the yardstick of what the machine can do."""
    if jax.devices()[0].platform != "cpu":
        size = 8192
    product = jax.jit(jnp.matmul)
    matrix = jnp.ones((size, size))

    def run():
        jax.block_until_ready(product(matrix, matrix))

    return run, 2 * size**3


def show(net: str, rows: list[Row], rate: float) -> None:
    """Prints one net's table."""
    headers = (
        "ms",
        "x BP (median)",
        "x BP (min)",
        "floor",
        "of matmul rate",
        "dots",
        "convs",
        "MFLOP",
        "compile s",
        "temp MB",
        "peak MB",
    )
    table = Table(
        "program",
        *(Column(header, justify="right") for header in headers),
        title=f"{net}: one training iteration; matmul rate {rate / 1e9:.0f} GFLOP/s",
    )
    for row in rows:
        table.add_row(
            row.name,
            f"{row.median_ms:.2f}",
            f"{row.ratio_median:.2f}",
            f"{row.ratio_min:.2f}",
            f"{row.floor_ratio:.2f}",
            f"{row.matmul_fraction:.0%}",
            _or_dash(row.dots),
            _or_dash(row.convolutions),
            _or_dash(row.flops and f"{row.flops / 1e6:.0f}"),
            f"{row.compile_seconds:.1f}",
            f"{row.temporary_bytes / 1e6:.1f}",
            f"{row.peak_bytes / 1e6:.1f}",
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def main(config: Config) -> None:
    """Measures, prints and writes."""
    nets = list(workloads.NETS) if config.net == "all" else [config.net]
    result: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.kernels", *sys.argv[1:]]),
        "environment": timing.environment(),
        "rounds": config.rounds,
        "batch_size": config.batch_size,
        "nets": {},
    }
    for net in nets:
        rows, rate = measure(net, config)
        show(net, rows, rate)
        result["nets"][net] = {
            "matmul_flops_per_second": rate,
            "programs": [asdict(row) for row in rows],
        }
        if config.json:
            config.json.parent.mkdir(parents=True, exist_ok=True)
            config.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config))
