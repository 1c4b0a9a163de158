"""Trains an MLP with backprop and predictive coding and compares them.

python -m experiments.quickstart
python -m experiments.quickstart --dataset cifar10 --data-dir DIR --epochs 10
"""

import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import pcjax
from experiments.common import data, methods, report, runner
from experiments.common.harness import command, plain, write_json
from experiments.common.settings import Settings, settings
from experiments.common.tasks import make_task
from pcjax.optimizers.finite import NonFiniteError


@dataclass(frozen=True)
class Config:
    """Trains an MLP with backprop and predictive coding and compares them."""

    dataset: str = "digits"
    """digits (built in), cifar10, svhn_cropped, mnist or fashion_mnist."""
    data_dir: Path | None = None
    """The folder of prepared TFDS data sets; digits needs none."""
    epochs: int | None = None
    """Passes over the training set; by default 20, or what the settings say if less."""
    seeds: int = 3
    """Networks trained at once, each with its own initial weights and data order."""
    seed: int = 0
    """Decides all randomness."""
    methods: tuple[str, ...] = (
        "BP",
        "BP-Adam",
        "IL",
        "IL-MQ",
        "SeqIL",
        "SeqIL-MQ",
        "SeqIL-Adam",
        "iPC",
    )
    """The methods to train."""
    out: Path = Path("out/quickstart")
    """Where summary.json and curves.png go."""


def main(config: Config) -> None:
    """Runs the comparison, writing its results after every round of epochs."""
    if config.seeds < 1 or (config.epochs is not None and config.epochs < 1):
        raise SystemExit(
            "--seeds and --epochs must be at least 1, got "
            f"{config.seeds} and {config.epochs}."
        )
    try:
        chosen = methods.select(config.methods)
        images = data.load(config.dataset, config.data_dir)
        found = settings("mlp", config.dataset)
    except (ValueError, data.DatasetError) as error:
        raise SystemExit(str(error)) from error
    found = dataclasses.replace(found, epochs=config.epochs or min(found.epochs, 20))
    task = make_task("mlp", images, found)
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    with report.Live(config.dataset, config.methods, found.epochs) as live:
        trainers = []
        for method in chosen:
            live.status(f"compiling {method.name}")
            hyper = method.hyper(found)
            trainers.append(
                runner.Trainer(method, task, found, hyper, keys, on_nonfinite="stop")
            )
        try:
            for trainer, record in runner.train(trainers, found.epochs):
                live.update(trainer, record)
                if trainer is trainers[-1]:
                    summary = summarise(trainers, config, found)
                    write_json(config.out / "summary.json", plain(summary))
        except NonFiniteError as error:
            raise SystemExit(str(error)) from error
    plot(summary, config.out / "curves.png")
    print_table(summary, config.out)


def summarise(
    trainers: Sequence[runner.Trainer], config: Config, found: Settings
) -> dict:
    """Everything a run found, ready for JSON.

    Accuracies are fractions; means and standard deviations (ddof = 1) are over seeds.
    """
    curves = {
        trainer.name: np.array([record.test["top1"] for record in trainer.records])
        for trainer in trainers
    }
    to_beat = curves["BP"].mean(1).max() if "BP" in curves else None
    return {
        "command": command(),
        "config": json.loads(json.dumps(dataclasses.asdict(config), default=str)),
        "settings": dataclasses.asdict(found),
        "versions": {"pcjax": pcjax.__version__, "jax": jax.__version__},
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} host cores",
        "machine": platform.machine(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "methods": [
            {
                "name": trainer.name,
                **_mean_std("best_accuracy", curves[trainer.name].max(0)),
                **_mean_std("final_accuracy", curves[trainer.name][-1]),
                "epochs_to_bp_best": _first(curves[trainer.name].mean(1), to_beat),
                "seconds_per_epoch": float(
                    np.median([record.seconds for record in trainer.records])
                ),
                "compile_seconds": trainer.compile_seconds,
                "optimizer_state_bytes": trainer.optimizer_state_bytes,
                "epochs": [
                    {
                        "epoch": record.epoch,
                        "seconds": record.seconds,
                        "energy": record.energy.tolist(),
                        "train_loss": record.train_loss.tolist(),
                        "test_loss": record.test["loss"].tolist(),
                        "test_accuracy": record.test["top1"].tolist(),
                        "test_top5": record.test["top5"].tolist(),
                    }
                    for record in trainer.records
                ],
            }
            for trainer in trainers
        ],
    }


def print_table(summary: dict, out: Path) -> None:
    """Prints the comparison and where it was written."""
    seeds = report.seeds(summary["config"]["seeds"])
    table = Table(
        "method",
        *(
            report.right(header)
            for header in (
                "best test acc. %",
                "final test acc. %",
                "epochs to BP's best",
                f"s/epoch ({seeds})",
                "optimizer state",
            )
        ),
        title=(
            f"{summary['config']['dataset']}, {summary['settings']['epochs']} epochs, "
            f"{seeds} (mean ± standard deviation)"
        ),
    )
    for row in summary["methods"]:
        reached = row["epochs_to_bp_best"]
        table.add_row(
            row["name"],
            _percent(row, "best_accuracy"),
            _percent(row, "final_accuracy"),
            "-" if reached is None else str(reached),
            f"{row['seconds_per_epoch']:.2f}",
            f"{row['optimizer_state_bytes']:,} B",
        )
    # A log has room for the whole table.
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(f"Written: {out / 'summary.json'} and {out / 'curves.png'}")


def plot(summary: dict, path: Path) -> None:
    """Draws test accuracy and training loss against the epoch, mean and std band."""
    with report.figure(path, columns=2, figsize=(11, 4.2)) as panels:
        left, right = panels[0]
        for row in summary["methods"]:
            epochs = [epoch["epoch"] for epoch in row["epochs"]]
            accuracy = [epoch["test_accuracy"] for epoch in row["epochs"]]
            loss = [epoch["train_loss"] for epoch in row["epochs"]]
            report.band(left, epochs, 100 * report.array(accuracy), row["name"])
            report.band(right, epochs, loss, row["name"])
        left.set(ylabel="test accuracy (%)", title=summary["config"]["dataset"])
        right.set(ylabel="training loss (nats)", yscale="log")
        for panel in (left, right):
            panel.set(xlabel="epoch")
            report.whole_numbers(panel)
        report.legend_beside(right)


def _mean_std(name: str, values: np.ndarray) -> dict[str, float]:
    return {
        f"{name}_mean": float(values.mean()),
        f"{name}_std": float(report.std(values)),
    }


def _first(curve: np.ndarray, level: float | None) -> int | None:
    """The first epoch (from 1) at which the curve reaches a level."""
    if level is None or curve.max() < level:
        return None
    return int(np.argmax(curve >= level)) + 1


def _percent(row: dict, name: str) -> str:
    return f"{100 * row[f'{name}_mean']:.2f} ± {100 * row[f'{name}_std']:.2f}"


if __name__ == "__main__":
    main(tyro.cli(Config))
