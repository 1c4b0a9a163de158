"""Test accuracy against the number of inference iterations T (Figure 4).

python -m experiments.inference_iterations
python -m experiments.inference_iterations --preset cpu --data-dir DIR

Sequential and simultaneous inference with Adam, T = 1..5. For every method and T a
grid of learning rates and step sizes is trained as one program, its best point
chosen on images held out of the training set, and then trained with fresh seeds.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax

import pcjax
from experiments.common import grid, methods, report
from experiments.common.claims import above, below, difference
from experiments.common.harness import (
    Claim,
    Experiment,
    Options,
    Run,
    cli,
    execute,
)
from experiments.common.methods import Hyper, Method
from experiments.common.options import BatchSize, Epochs, adapted
from experiments.common.runner import Plan, constantly, timeless, train_methods
from experiments.common.settings import Settings, settings
from experiments.common.tasks import make_task

RATES = (1e-4, 5e-5, 1e-5)
STEP_SIZES = (0.02, 0.05, 0.1, 0.3)
HELD_OUT = 0.1
MARGIN = 2.0  # points of accuracy that are "about the same"


def simultaneous(settings, step_size):
    """Standard inference with the T and the decaying steps of sequential inference."""
    method = pcjax.simultaneous(settings.num_steps, lambda t: step_size / (1 + t))
    return methods.inference_learning(settings, method)


def _method(name: str, rule: Callable) -> Method:
    return Method(name, rule, methods.constant(optax.adam), lambda s: s.step_size)


METHODS = (
    _method("SeqIL-Adam", methods.sequential),
    _method("SimIL-Adam", simultaneous),
)


@dataclass(frozen=True)
class Size:
    """How much is trained; None stands for all training images."""

    seeds: int = 5
    num_steps: tuple[int, ...] = (1, 2, 3, 4, 5)
    epochs: int = 45
    train_images: int | None = None
    grid_epochs: int = 45
    grid_images: int | None = None
    hidden: tuple[int, ...] = (1024, 1024, 1024, 1024)
    rates: tuple[float, ...] = RATES
    step_sizes: tuple[float, ...] = STEP_SIZES


@dataclass(frozen=True)
class Config(Options, Epochs, BatchSize):
    """Trains with T = 1..5 iterations of sequential and simultaneous inference."""


def measure(config: Config, size: Size, run: Run) -> dict[str, Any]:
    """A grid and a final training for every method and T."""
    images = config.load()
    base = adapted(settings("mlp", config.dataset_name), config)
    base = dataclasses.replace(base, hidden=size.hidden)
    task = make_task("mlp", images, base, train_images=size.train_images)
    tuning = make_task(
        "mlp",
        images,
        base,
        train_images=size.grid_images,
        validation=HELD_OUT,
    )
    # The networks of the grid are not among those that are reported.
    grid_key, *keys = jax.random.split(jax.random.key(config.seed), 1 + size.seeds)
    results = {}
    for method in METHODS:
        for num_steps in size.num_steps:
            chosen = dataclasses.replace(base, num_steps=num_steps)
            name = f"{method.name}-T{num_steps}"
            tuned = _tune(run, name, tuning, method, chosen, size, grid_key)
            trained = train_methods(
                run,
                name,
                task,
                [method],
                chosen,
                jax.numpy.stack(keys),
                Plan(
                    epochs=size.epochs,
                    hyper=constantly(Hyper(**tuned["chosen"])),
                    on_nonfinite=config.on_nonfinite,
                ),
            )
            curves = timeless(run, name, trained)[method.name]
            accuracy = 100 * report.array(curves["test"]["top1"])
            results[name] = {
                "method": method.name,
                "T": num_steps,
                "grid": tuned,
                "accuracy": accuracy,
                "best": accuracy.max(0),
                "train_loss": curves["train_loss"],
            }
    return {
        "dataset": config.dataset_name,
        "train_images": len(task.train.labels),
        "settings": dataclasses.asdict(base),
        "runs": results,
    }


def _tune(
    run: Run,
    name: str,
    task: Any,
    method: Method,
    chosen: Settings,
    size: Size,
    key: jax.Array,
) -> dict[str, Any]:
    """The validation accuracies of the grid, [points], and the best point."""
    points = grid.points(size.rates, size.step_sizes)
    hyper, keys = grid.runs(points, key[None])
    part = f"{name}-grid"
    trained = train_methods(
        run,
        part,
        task,
        [method],
        chosen,
        keys,
        Plan(epochs=size.grid_epochs, hyper=constantly(hyper)),
    )
    validation = timeless(run, part, trained)[method.name]["validation"]["top1"]
    best = grid.choose(validation, validation, len(points))
    return {
        "points": [point._asdict() for point in points],
        "validation_accuracy": 100 * report.array(validation).max(0),
        "chosen": points[best.point]._asdict(),
    }


def accuracies(results: dict[str, Any], name: str) -> dict[int, Any]:
    """Best test accuracies of a method, [seeds], by T."""
    return {
        row["T"]: report.array(row["best"])
        for row in results["runs"].values()
        if row["method"] == name
    }


def claims(results: dict[str, Any]) -> list[Claim]:
    """The accuracies at every T, the gap, and how much T matters."""
    seq, sim = (accuracies(results, method.name) for method in METHODS)
    rows = [
        Claim(
            f"T = {t}: best test accuracy, SeqIL-Adam; SimIL-Adam; gap",
            "Figure 4 (no numbers)",
            f"{report.mean_std(seq[t])}; {report.mean_std(sim[t])}; "
            f"{report.mean_std(seq[t] - sim[t])}",
        )
        for t in seq
    ]
    low, high = min(seq), max(seq)
    lost = difference(seq[high], seq[low])
    behind = difference(seq[low], sim[low])
    rows.append(
        Claim(
            f"sequential inference loses under {MARGIN:g} points from T = {high} to "
            f"T = {low}",
            "about the same for all T",
            lost.text("points"),
            below(lost, MARGIN),
        )
    )
    rows.append(
        Claim(
            f"simultaneous inference falls {MARGIN:g} points behind at T = {low}",
            "degrades significantly",
            behind.text("points"),
            above(behind, MARGIN),
        )
    )
    return rows


def plot(results: dict[str, Any], folder: Path) -> None:
    """Best test accuracy against T, mean and standard deviation."""
    with report.figure(folder / "accuracy.png", figsize=(4.8, 3.6)) as panels:
        panel = panels[0, 0]
        for method, style in zip(METHODS, ("SeqIL-Adam", "IL-Adam"), strict=True):
            found = accuracies(results, method.name)
            report.band(
                panel,
                list(found),
                [found[t] for t in found],
                method.name,
                **report.STYLES[style],
            )
        panel.set(
            xlabel="inference iterations T",
            ylabel="best test accuracy (%)",
            title=f"{results['dataset']}, {results['train_images']:,} images",
        )
        report.whole_numbers(panel)
        panel.legend(frameon=False)


EXPERIMENT = Experiment(
    name="inference_iterations",
    paper="Figure 4",
    title="Test accuracy against T",
    sizes={
        "smoke": Size(
            seeds=2,
            num_steps=(1, 3),
            epochs=3,
            train_images=640,
            grid_epochs=1,
            grid_images=640,
            hidden=(64, 64, 64),
            rates=(1e-3, 3e-3),
            step_sizes=(0.05, 0.1),
        ),
        "cpu": Size(
            seeds=3, epochs=5, train_images=10_000, grid_epochs=2, grid_images=4_000
        ),
        "paper": Size(),
    },
    measure=measure,
    plot=plot,
    claims=claims,
)
main = partial(execute, EXPERIMENT)

if __name__ == "__main__":
    cli(main, Config)
