"""Trains an MLP with backprop and predictive coding and compares them.

python -m experiments.quickstart
python -m experiments.quickstart --dataset cifar10 --data-dir DIR --epochs 10

Besides what every experiment writes there is summary.json, with means, times and the
curves of every method.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.classification.protocols import epochs_to
from experiments.common import report
from experiments.common.folders import plain, write_json
from experiments.common.harness import (
    Claim,
    Experiment,
    Options,
    Run,
    cli,
    execute,
    output_folder,
    read_run,
)
from experiments.common.methods import MethodName, select
from experiments.common.options import (
    BatchSize,
    Epochs,
    KeepWeights,
    LearningRate,
    adapted,
)
from experiments.common.runner import Plan, timeless, train_methods
from experiments.common.settings import settings
from experiments.common.tasks import TrainingSize as Size
from experiments.common.tasks import make_task
from experiments.common.trainer import Trainer

PART = "quickstart"
EPOCHS = 20  # at most, unless asked for


@dataclass(frozen=True)
class Config(Options, Epochs, BatchSize, LearningRate, KeepWeights):
    """Trains an MLP with backprop and predictive coding and compares them."""

    methods: tuple[MethodName, ...] = (
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
    out: Path | None = Path("out/quickstart")
    """Where summary.json, curves.png and the rest go."""
    replace: bool = True
    """Runs anew where the folder holds a finished run, or one of other settings."""


def measure(config: Config, size: Size, run: Run) -> dict[str, Any]:
    """Trains all methods in turn."""
    images = config.load()
    found = adapted(settings("mlp", config.dataset_name), config)
    epochs = size.epochs or min(found.epochs, EPOCHS)
    found = dataclasses.replace(found, epochs=epochs)
    task = make_task("mlp", images, found)

    def compilation(trainer: Trainer) -> dict[str, float]:
        return {"compile_seconds": trainer.compile_seconds}

    trained = train_methods(
        run,
        PART,
        task,
        select(config.methods),
        found,
        jax.random.split(jax.random.key(config.seed), size.seeds),
        Plan(
            extra=compilation,
            on_nonfinite=config.on_nonfinite,
            keep_weights=config.keep_weights,
        ),
    )
    curves = timeless(run, PART, trained)
    run.seconds["compilation"] = {
        name: found.pop("compile_seconds") for name, found in curves.items()
    }
    return {
        "dataset": config.dataset_name,
        "settings": dataclasses.asdict(found),
        "methods": curves,
    }


def main(config: Config) -> dict[str, Any]:
    """Runs the comparison; prints it as a table and writes summary.json."""
    found = execute(EXPERIMENT, config)
    folder = output_folder(EXPERIMENT, config)
    summary = summarise(found, read_run(folder))
    write_json(folder / "summary.json", plain(summary))
    print_table(summary, folder)
    return found


def summarise(found: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Results and times in one, with what is read off them.

    Accuracies are fractions; means and standard deviations (ddof = 1) are over seeds.
    """
    results = found["results"]
    curves = results["methods"]
    accuracy = {name: report.array(c["test"]["top1"]) for name, c in curves.items()}
    to_beat = accuracy["BP"].mean(1).max() if "BP" in curves else None
    about = {name: found[name] for name in ("versions", "device", "machine")}
    return {
        "command": run["command"],
        "config": found["config"] | {"seeds": found["size"]["seeds"]},
        "settings": results["settings"],
        **about,
        "finished": run["finished"],
        "methods": [
            _row(name, results, run["seconds_by_part"], to_beat) for name in curves
        ],
    }


def _row(
    name: str, results: dict[str, Any], seconds: dict[str, Any], to_beat: float | None
) -> dict[str, Any]:
    """What is known of a method."""
    curves = results["methods"][name]
    test = {key: report.array(rows) for key, rows in curves["test"].items()}
    accuracy, each = test["top1"], seconds[f"{PART}, per epoch"][name]
    reached = None if to_beat is None else epochs_to(to_beat, accuracy)
    return {
        "name": name,
        **_mean_std("best_accuracy", accuracy.max(0)),
        **_mean_std("final_accuracy", accuracy[-1]),
        "epochs_to_bp_best": reached,
        "seconds_per_epoch": float(np.median(each)),
        "compile_seconds": seconds["compilation"][name],
        "optimizer_state_bytes": curves["optimizer_state_bytes"],
        "epochs": [
            {
                "epoch": index + 1,
                "seconds": each[index],
                "energy": curves["energy"][index],
                "train_loss": curves["train_loss"][index],
                "test_loss": test["loss"][index],
                "test_accuracy": test["top1"][index],
                "test_top5": test["top5"][index],
            }
            for index in range(len(each))
        ],
    }


def print_table(summary: dict[str, Any], out: Path) -> None:
    """Prints the comparison and where it was written."""
    seeds = report.seeds(summary["config"]["seeds"])
    headers = (
        "best test acc. %",
        "final test acc. %",
        "epochs to BP's best",
        f"s/epoch ({seeds})",
        "optimizer state",
    )
    table = Table(
        "method",
        *(report.right(header) for header in headers),
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


def plot(results: dict[str, Any], folder: Path) -> None:
    """Draws test accuracy and training loss against the epoch, mean and std band."""
    options: dict[str, Any] = {"columns": 2, "figsize": (11, 4.2)}
    with report.figure(folder / "curves.png", **options) as panels:
        left, right = panels[0]
        for name, curves in results["methods"].items():
            loss = curves["train_loss"]
            epochs = range(1, len(loss) + 1)
            accuracy = 100 * report.array(curves["test"]["top1"])
            report.band(left, epochs, accuracy, name)
            report.band(right, epochs, loss, name)
        left.set(ylabel="test accuracy (%)", title=results["dataset"])
        right.set(ylabel="training loss (nats)", yscale="log")
        for panel in (left, right):
            panel.set(xlabel="epoch")
            report.whole_numbers(panel)
        report.legend_beside(right)


def claims(results: dict[str, Any]) -> Sequence[Claim]:
    """None: the quickstart shows methods beside each other, not beside the paper."""
    del results
    return []


def _mean_std(name: str, values: np.ndarray) -> dict[str, float]:
    return {
        f"{name}_mean": float(values.mean()),
        f"{name}_std": float(report.std(values)),
    }


def _percent(row: dict[str, Any], name: str) -> str:
    return f"{100 * row[f'{name}_mean']:.2f} ± {100 * row[f'{name}_std']:.2f}"


EXPERIMENT = Experiment(
    name="quickstart",
    paper="a first look",
    title="Methods beside each other",
    sizes={
        "smoke": Size(seeds=3),
        "cpu": Size(seeds=1, epochs=10),
        "paper": Size(epochs=110),
    },
    measure=measure,
    plot=plot,
    claims=claims,
    free=("methods",),
)

if __name__ == "__main__":
    cli(main, Config)
