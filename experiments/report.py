"""What the experiments show: live progress, tables, JSON and plots."""

import dataclasses
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.live
from rich.console import Console, Group
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

import pcjax
from experiments.runner import Record, Trainer

# Okabe and Ito's colours, which the colour-blind can tell apart; the backprop runs
# are dashed and the marker tells the optimizer.
STYLES: dict[str, dict[str, Any]] = {
    "BP": {"color": "#000000", "linestyle": "--"},
    "BP-Adam": {"color": "#000000", "linestyle": ":"},
    "IL": {"color": "#56B4E9"},
    "IL-MQ": {"color": "#56B4E9", "marker": "o"},
    "SeqIL": {"color": "#D55E00"},
    "SeqIL-MQ": {"color": "#D55E00", "marker": "o"},
    "SeqIL-Adam": {"color": "#E69F00", "marker": "s"},
    "iPC": {"color": "#009E73", "marker": "^"},
}


class Live:
    """A table of methods that follows the training, above a progress bar.

    Where the output is no terminal, every epoch becomes one line instead.
    """

    def __init__(self, methods: Sequence[str], epochs: int) -> None:
        self._console = Console()
        self._epochs = epochs
        self._rows: dict[str, tuple[str, ...]] = dict.fromkeys(methods, ("",) * 5)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._progress.add_task("", total=len(methods) * epochs)
        self._live = rich.live.Live(console=self._console, get_renderable=self._render)

    def __enter__(self) -> "Live":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def status(self, text: str) -> None:
        """Says what is going on beside the bar."""
        self._progress.update(self._task, description=text)

    def update(self, trainer: Trainer, record: Record) -> None:
        """Shows an epoch that has ended."""
        self._rows[trainer.name] = (
            f"{record.epoch}/{self._epochs}",
            f"{record.train_loss.mean():.4f}",
            f"{record.test.loss.mean():.4f}",
            f"{100 * record.test.top1.mean():.2f}",
            f"{record.seconds:.2f}",
        )
        self._progress.update(
            self._task, advance=1, description=f"{trainer.name} epoch {record.epoch}"
        )
        if not self._console.is_terminal:
            epoch, train, test, accuracy, seconds = self._rows[trainer.name]
            print(
                f"{trainer.name:<11} epoch {epoch}  train loss {train}  "
                f"test loss {test}  test accuracy {accuracy} %  {seconds} s",
                flush=True,
            )

    def _render(self) -> Group:
        table = Table("method", *(_right(h) for h in _LIVE_COLUMNS), box=None)
        for name, row in self._rows.items():
            table.add_row(name, *row)
        return Group(table, self._progress)


_LIVE_COLUMNS = ("epoch", "train loss", "test loss", "test acc. %", "s/epoch")


def _right(header: str) -> Column:
    return Column(header, justify="right")


def summarise(trainers: Sequence[Trainer], config: Any, settings: Any) -> dict:
    """Everything a run found, ready for JSON.

    Accuracies are fractions; means and standard deviations (ddof = 1) are over seeds.
    """
    curves = {t.name: _accuracies(t) for t in trainers}
    to_beat = curves["BP"].mean(1).max() if "BP" in curves else None
    return provenance(config, settings) | {
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
                        "test_loss": record.test.loss.tolist(),
                        "test_accuracy": record.test.top1.tolist(),
                        "test_top5": record.test.top5.tolist(),
                    }
                    for record in trainer.records
                ],
            }
            for trainer in trainers
        ],
    }


def provenance(config: Any, settings: Any) -> dict:
    """How a result came about: command, settings, versions, device and time."""
    return {
        "command": shlex.join(["python", "-m", _module_name(), *sys.argv[1:]]),
        "config": _plain(config),
        "settings": _plain(settings),
        "versions": {"pcjax": pcjax.__version__, "jax": jax.__version__},
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} host cores",
        "machine": platform.machine(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def save(summary: dict, out: Path) -> None:
    """Writes `summary.json` in one go, so that a killed run leaves a whole file."""
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / "summary.json.tmp"
    temporary.write_text(json.dumps(summary, indent=1) + "\n")
    temporary.replace(out / "summary.json")


def print_table(summary: dict, out: Path) -> None:
    """Prints the comparison and where it was written."""
    seeds = summary["config"]["seeds"]
    table = Table(
        "method",
        *(
            _right(header)
            for header in (
                "best test acc. %",
                "final test acc. %",
                "epochs to BP's best",
                f"s/epoch ({_seeds(seeds)})",
                "optimizer state",
            )
        ),
        title=(
            f"{summary['config']['dataset']}, {summary['settings']['epochs']} epochs, "
            f"{_seeds(seeds)} (mean ± standard deviation)"
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
    console = Console()
    if not console.is_terminal:  # a log has room for the whole table
        console = Console(width=120)
    console.print(table)
    console.print(f"Written: {out / 'summary.json'} and {out / 'curves.png'}")


def plot(summary: dict, path: Path) -> None:
    """Draws test accuracy and training loss against the epoch, mean and std band."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for row in summary["methods"]:
        epochs = [epoch["epoch"] for epoch in row["epochs"]]
        style = {"markersize": 4, "linewidth": 1.6, **STYLES[row["name"]]}
        for axes, key, scale in (
            (left, "test_accuracy", 100),
            (right, "train_loss", 1),
        ):
            values = scale * np.array([epoch[key] for epoch in row["epochs"]])
            mean, std = values.mean(1), _std(values, axis=1)
            axes.plot(epochs, mean, label=row["name"], **style)
            axes.fill_between(
                epochs, mean - std, mean + std, color=style["color"], alpha=0.12, lw=0
            )
    left.set(ylabel="test accuracy (%)", title=summary["config"]["dataset"])
    right.set(ylabel="training loss (nats)", yscale="log")
    for axes in (left, right):
        axes.set(xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _accuracies(trainer: Trainer) -> np.ndarray:
    """Test accuracies, [epochs, seeds]."""
    return np.array([record.test.top1 for record in trainer.records])


def _std(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """The sample standard deviation, 0 where there is but one sample."""
    count = values.shape[axis]
    return values.std(axis, ddof=1) if count > 1 else np.zeros_like(values.mean(axis))


def _mean_std(name: str, values: np.ndarray) -> dict[str, float]:
    return {f"{name}_mean": float(values.mean()), f"{name}_std": float(_std(values))}


def _first(curve: np.ndarray, level: float | None) -> int | None:
    """The first epoch (from 1) at which the curve reaches a level."""
    if level is None or curve.max() < level:
        return None
    return int(np.argmax(curve >= level)) + 1


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _percent(row: dict, name: str) -> str:
    return f"{100 * row[f'{name}_mean']:.2f} ± {100 * row[f'{name}_std']:.2f}"


def _plain(config: Any) -> dict:
    """A dataclass as JSON takes it."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _module_name() -> str:
    """The experiment's module, as `python -m` was given it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else "experiments"
