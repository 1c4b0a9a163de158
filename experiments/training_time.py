"""Loss and accuracy against wall-clock seconds (Figure 10).

python -m experiments.training_time
python -m experiments.training_time --preset cpu --data-dir DIR

The paper's three nets. Methods take turns epoch by epoch on the same machine; seconds
are those of training, without compilation and evaluation. They are what this
experiment is about, so that its results are the only ones that two runs do not share.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common import report
from experiments.common.claims import no_longer, times_as_long
from experiments.common.harness import (
    Claim,
    Experiment,
    Options,
    Run,
    cli,
    execute,
)
from experiments.common.methods import MethodName, select
from experiments.common.options import BatchSize, Epochs, LearningRate, adapted
from experiments.common.runner import Plan, train_methods
from experiments.common.settings import Net, settings
from experiments.common.tasks import make_task

METHODS: tuple[MethodName, ...] = (
    "BP",
    "BP-Adam",
    "IL",
    "SeqIL",
    "SeqIL-MQ",
    "SeqIL-Adam",
)
NETS: tuple[Net, ...] = ("mlp", "conv", "autoencoder")


@dataclass(frozen=True)
class Size:
    """How much is trained, by net; None stands for what the paper's settings say."""

    seeds: int = 1
    epochs: tuple[int | None, ...] = (None, None, None)
    train_images: tuple[int | None, ...] = (None, None, None)


@dataclass(frozen=True)
class Config(Options, Epochs, BatchSize, LearningRate):
    """Trains the paper's three nets against the clock."""

    methods: tuple[MethodName, ...] = METHODS
    """The methods to train."""


def measure(config: Config, size: Size, run: Run) -> dict[str, Any]:
    """All methods on every net, a part for each net."""
    images = config.load()
    found: dict[str, Any] = {}
    for net, epochs, count in zip(NETS, size.epochs, size.train_images, strict=True):
        chosen = adapted(settings(net, config.dataset_name), config)
        task = make_task(net, images, chosen, train_images=count)
        trained = train_methods(
            run,
            net,
            task,
            select(config.methods),
            chosen,
            jax.random.split(jax.random.key(config.seed), size.seeds),
            Plan(epochs=epochs),
        )
        found[net] = {
            "settings": dataclasses.asdict(chosen),
            "train_images": len(task.train.labels),
            "methods": trained,
        }
    return {"dataset": config.dataset_name, "nets": found}


def clock(curves: dict[str, Any]) -> np.ndarray:
    """Seconds of training until the end of every epoch, [epochs].

    Every epoch counts as the median one: an epoch is the same work each time, and
    other programs on the machine would bend the axis.
    """
    seconds = report.array(curves["seconds"])
    return np.median(seconds) * np.arange(1, len(seconds) + 1)


def claims(results: dict[str, Any]) -> list[Claim]:
    """Time of an epoch against backprop's, and the time to backprop's best loss."""
    rows = []
    for net, found in results["nets"].items():
        trained = found["methods"]
        if "BP" not in trained:
            continue
        base = report.array(trained["BP"]["seconds"])
        total = clock(trained["BP"])[-1]
        for name, curves in trained.items():
            ratio = np.median(report.array(curves["seconds"]) / base)
            reached = to_backprops_best(trained, name)
            when = (
                f"reaches BP's best test loss after {reached:.1f} s"
                if reached < np.inf
                else "does not reach BP's best test loss"
            )
            rows.append(
                Claim(
                    f"{net}, {name}: time of an epoch over BP's, median",
                    "Figure 10 (no numbers)",
                    f"{ratio:.2f}; {when} (BP trained {total:.1f} s)",
                )
            )
        if "SeqIL-MQ" in trained:
            ours, theirs = (of_runs(trained, n) for n in ("SeqIL-MQ", "BP"))
            rows.append(
                Claim(
                    f"{net}: SeqIL-MQ's training time matches BP's, to BP's best loss",
                    "section 9, Figure 10",
                    times_as_long(ours, theirs),
                    no_longer(ours, theirs),
                )
            )
    return rows


def to_backprops_best(trained: dict[str, Any], name: str) -> float:
    """Seconds until the mean test loss is the lowest of BP; inf if never."""
    return float(_reached(trained, name, lambda loss: loss.mean(1, keepdims=True))[0])


def of_runs(trained: dict[str, Any], name: str) -> np.ndarray:
    """The same of every run, [runs]."""
    return _reached(trained, name, lambda loss: loss)


def _reached(
    trained: dict[str, Any], name: str, of: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    losses = report.array(trained["BP"]["test"]["loss"]).mean(1)
    best = np.fmin.reduce(losses)  # NaN only if all are
    reached = of(report.array(trained[name]["test"]["loss"])) <= best
    seconds = clock(trained[name])[reached.argmax(0)]
    return np.where(reached.any(0), seconds, np.inf)


def plot(results: dict[str, Any], folder: Path) -> None:
    """Test loss, and accuracy where there is one, against seconds."""
    with report.figure(folder / "time.png", rows=2, columns=len(NETS)) as panels:
        for column, (net, found) in zip(panels.T, results["nets"].items(), strict=True):
            upper, lower = column
            for name, curves in found["methods"].items():
                seconds, test = clock(curves), curves["test"]
                report.band(upper, seconds, test["loss"], name)
                values = (
                    100 * report.array(test["top1"])
                    if "top1" in test
                    else curves["train_loss"]
                )
                report.band(lower, seconds, values, name)
            drawn = [curves["test"]["loss"] for curves in found["methods"].values()]
            report.cut_off(upper, drawn)
            unit = "BCE a pixel" if net == "autoencoder" else "nats"
            upper.set(ylabel=f"test loss ({unit})", xscale="log")
            upper.set_title(f"{results['dataset']}, {net}")
            label = "training loss (BCE an image)"
            lower.set_ylabel(label if net == "autoencoder" else "test accuracy (%)")
            lower.set(xlabel="seconds of training", xscale="log")
            for panel in column:
                report.log_axis(panel.xaxis)
        report.legend_beside(panels[0, -1])


EXPERIMENT = Experiment(
    name="training_time",
    paper="Figure 10",
    title="Loss against seconds",
    sizes={
        "smoke": Size(epochs=(2, 2, 2), train_images=(640, 640, 640)),
        "cpu": Size(epochs=(8, 6, 6), train_images=(20_000, 3_000, 10_000)),
        "paper": Size(),
    },
    measure=measure,
    plot=plot,
    claims=claims,
)
main = partial(execute, EXPERIMENT)

if __name__ == "__main__":
    cli(main, Config)
