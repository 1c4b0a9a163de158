"""Test accuracies of MLPs and convolutional nets (Table 2, Figures 5 and 6).

python -m experiments.classification
python -m experiments.classification --preset cpu --net conv --data-dir DIR
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax

from experiments.classification.paper import METHODS
from experiments.classification.protocols import best_epochs
from experiments.classification.statements import claims, times
from experiments.common import report
from experiments.common.harness import Experiment, Options, Run, execute
from experiments.common.methods import MethodName, select
from experiments.common.options import (
    BatchSize,
    Changes,
    Epochs,
    JpegQuality,
    KeepWeights,
    LearningRate,
    adapted,
    is_papers,
)
from experiments.common.runner import Plan, timeless, train_methods
from experiments.common.settings import settings
from experiments.common.tasks import TrainingSize, make_task


@dataclass(frozen=True)
class Config(
    Options, Epochs, BatchSize, LearningRate, Changes, JpegQuality, KeepWeights
):
    """Trains a net with backprop and predictive coding: test accuracies."""

    net: Literal["mlp", "conv"] = "mlp"
    """Which of the paper's nets."""
    methods: tuple[MethodName, ...] = METHODS
    """The methods to train."""


def measure(config: Config, size: TrainingSize, run: Run) -> dict[str, Any]:
    """Trains every method over the seeds."""
    found = adapted(settings(config.net, config.dataset_name), config)
    images = config.load()
    task = make_task(config.net, images, found, train_images=size.train_images)
    keys = jax.random.split(jax.random.key(config.seed), size.seeds)
    trained = train_methods(
        run,
        config.net,
        task,
        select(config.methods),
        found,
        keys,
        Plan(
            epochs=size.epochs,
            on_nonfinite=config.on_nonfinite,
            in_turn=config.preset != "paper",
            keep_weights=config.keep_weights,
        ),
    )
    curves = timeless(run, config.net, trained)
    measures = ("top1", "top5") if images.num_classes > 10 else ("top1",)
    return {
        "net": config.net,
        "dataset": config.dataset_name,
        "full": is_papers(config, size.epochs, found),
        "train_images": [len(task.train.labels), len(images.train.labels)],
        "settings": found.__dict__,
        "best": {name: best_epochs(curves, name) for name in measures},
        "methods": curves,
    }


def plot(results: dict[str, Any], folder: Path) -> None:
    """Test accuracy, test loss and training loss against the epoch."""
    panels_of = (
        ("test accuracy (%)", lambda c: 100 * report.array(c["test"]["top1"])),
        ("test loss (nats)", lambda c: c["test"]["loss"]),
        ("training loss (nats)", lambda c: c["train_loss"]),
    )
    with report.figure(folder / "curves.png", columns=3) as panels:
        for panel, (label, values) in zip(panels[0], panels_of, strict=True):
            for name, curves in results["methods"].items():
                rows = values(curves)
                report.band(panel, range(1, len(rows) + 1), rows, name)
            if label != "test accuracy (%)":
                drawn = [values(curves) for curves in results["methods"].values()]
                report.cut_off(panel, drawn)
            panel.set(xlabel="epoch", ylabel=label)
            report.whole_numbers(panel)
        panels[0, 0].set_title(f"{results['dataset']}, {results['net']}")
        report.legend_beside(panels[0, -1])


def _cpu(config: Config) -> TrainingSize:
    """About ten minutes on two cores; convolutions cost more."""
    if config.net == "mlp":
        return TrainingSize(epochs=10, seeds=3, train_images=20_000)
    if config.dataset_name == "tiny_imagenet":
        return TrainingSize(epochs=5, seeds=2, train_images=8_000)
    return TrainingSize(epochs=8, seeds=2, train_images=10_000)


EXPERIMENT = Experiment(
    name="classification",
    paper="Table 2, Figures 5 and 6",
    title="Best test accuracy",
    sizes={
        "smoke": TrainingSize(epochs=2, seeds=2, train_images=640),
        "cpu": _cpu,
        "paper": TrainingSize(),
    },
    measure=measure,
    plot=plot,
    claims=claims,
    times=times,
    free=("methods",),
)
main = partial(execute, EXPERIMENT)
