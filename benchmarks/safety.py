"""What safety costs: a guard against non-finite steps, and a checkpoint every epoch.

python -m benchmarks.safety --json FILE
"""

import dataclasses
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Column, Table

import pcjax
from benchmarks import timing, workloads
from benchmarks.epoch import PREPARE
from pcjax import training
from pcjax.checkpoints.checkpoints import Checkpoints
from pcjax.optimizers import finite


@dataclass(frozen=True)
class Config:
    """Times epochs of the paper's MLP on random images, in turn."""

    images: int = 50_000
    """As many as CIFAR-10 has to train on."""
    epochs: int = 3
    """Epochs of a timed stretch with checkpoints, and of one without."""
    rounds: int = 4
    """Timed stretches of either kind."""
    guard_images: int = 3_200
    """Images of the epochs with and without a guard."""
    guard_rounds: int = 15
    """Timed epochs of every guard."""
    json: Path | None = None
    """Where the result goes, besides the screen."""


OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "SGD": lambda: optax.sgd(0.1),
    "MQ": lambda: pcjax.mq(1e-3),
    "Adam": lambda: optax.adam(1e-4),
}
GUARDS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "none": lambda tx: tx,
    "pcjax.finite.guard": finite.guard,
    "optax.apply_if_finite": lambda tx: optax.apply_if_finite(tx, 10),
}


class Training:
    """Sequential inference learning, T = 3, an epoch at a call."""

    def __init__(self, tx: optax.GradientTransformation, count: int) -> None:
        load = workloads.mlp()
        grad_fn = pcjax.value_and_grad(
            load.network,
            pcjax.sequential(3, 0.05),
            output=load.output,
            clamp=pcjax.soft_clamp(0.01),
        )
        random = np.random.default_rng(0)
        batch, *shape = load.inputs.shape
        images = random.integers(0, 256, (count, *shape), dtype=np.uint8)
        self._data = training.device_data(images, random.integers(0, 10, count), 10)
        key = jax.random.key(0)
        self.state = training.init_state(load.network, tx, key, load.inputs)
        epoch = training.make_epoch(training.make_update(grad_fn, tx), PREPARE, batch)
        step = jax.jit(epoch, donate_argnums=0)
        self._compiled = step.lower(self.state, self._data).compile()

    def __call__(self) -> None:
        state, _ = self._compiled(self.state, self._data)
        self.state = jax.block_until_ready(state)


def guards(config: Config) -> list[dict]:
    """Epochs with every guard, against those without one."""
    rows = []
    for name, optimizer in OPTIMIZERS.items():
        runs = [
            Training(guard(optimizer()), config.guard_images)
            for guard in GUARDS.values()
        ]
        seconds = timing.interleave(runs, config.guard_rounds, warmup=1)
        for guard, times in zip(GUARDS, seconds, strict=True):
            median, minimum = timing.ratios(times, seconds[0])
            rows.append(
                {
                    "optimizer": name,
                    "guard": guard,
                    "ratio_median": median,
                    "ratio_min": minimum,
                }
            )
    return rows


def checkpoints(config: Config, folder: Path) -> dict:
    """Stretches of epochs with a checkpoint after each, and without."""
    train = Training(pcjax.mq(1e-3), config.images)
    held: list[float] = []
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    step = 0
    train()
    with Checkpoints(folder) as saves:
        for _ in range(config.rounds):
            for kind, taken in seconds.items():
                started = time.perf_counter()
                for _ in range(config.epochs):
                    train()
                    if kind == "with":
                        step += 1
                        before = time.perf_counter()
                        saves.save(step, train.state)
                        held.append(time.perf_counter() - before)
                saves.wait()  # the last one is on the disk
                taken.append(time.perf_counter() - started)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(train.state.params))
    median, minimum = timing.ratios(
        np.array(seconds["with"]), np.array(seconds["without"])
    )
    return {
        "checkpoint_bytes": size,
        "seconds_per_epoch": float(np.median(seconds["without"])) / config.epochs,
        "seconds_held_by_save": float(np.median(held)),
        "ratio_median": median,
        "ratio_min": minimum,
        "stretches": seconds,
    }


def show(rows: list[dict], found: dict) -> None:
    """Prints both tables."""
    console = Console(width=None if sys.stdout.isatty() else 90)
    right = [Column(name, justify="right") for name in ("median", "minimum")]
    table = Table("optimizer", "guard", *right, title="epoch time over that without")
    for row in rows:
        ratios = f"{row['ratio_median']:.3f}", f"{row['ratio_min']:.3f}"
        table.add_row(row["optimizer"], row["guard"], *ratios)
    console.print(table)
    console.print(
        f"A checkpoint of {found['checkpoint_bytes'] / 1e6:.0f} MB after every epoch "
        f"of {found['seconds_per_epoch']:.1f} s: {found['ratio_median']:.3f} x the "
        f"time without (minimum {found['ratio_min']:.3f}); `save` holds training for "
        f"{1e3 * found['seconds_held_by_save']:.0f} ms."
    )


def main(config: Config) -> None:
    """Measures, prints and writes."""
    rows = guards(config)
    with tempfile.TemporaryDirectory() as folder:
        found = checkpoints(config, Path(folder))
    show(rows, found)
    if config.json:
        result = {
            "command": shlex.join(["python", "-m", "benchmarks.safety", *sys.argv[1:]]),
            "environment": timing.environment(),
            "config": json.loads(json.dumps(dataclasses.asdict(config), default=str)),
            "guards": rows,
            "checkpoints": found,
        }
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config))
