"""What trains deep, and what of it is backprop?

python -m experiments.depth
python -m experiments.depth --preset cpu --dataset digits
python -m experiments.depth --preset cpu --data-dir DIR

Nets of many depths, trained by every method with learning rates of one grid chosen on
held-out images. Beside the accuracies stands what the gradients are, at the weights
that BP-Adam has found: the cosine of each layer to backprop's gradient and to that of
the equilibrium, and the largest curvature of inference.
"""

import contextlib
import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

import pcjax
from experiments.common import grid, report
from experiments.common.folders import UnfinishedError
from experiments.common.harness import (
    Experiment,
    Options,
    Run,
    execute,
)
from experiments.common.methods import Method
from experiments.common.options import BatchSize, Epochs, adapted
from experiments.common.runner import Plan, constantly, timeless, train_methods
from experiments.common.settings import Settings, settings
from experiments.common.tasks import Task, make_task
from experiments.depth import plots, shown
from experiments.depth.cells import (
    BY_TINY,
    NETWORKS,
    Cell,
    Name,
    methods,
    rates,
    sized,
)
from experiments.depth.gradients import at_weights, comparison, to_backprop


@dataclass(frozen=True)
class Size:
    """How much is trained.

    Attributes:
      cells: the nets of the map.
      transfer: nets of other widths, of which BP-Adam and PC-Adam alone are trained.
      batches: the same of steps of few and of many images.
      epochs: passes over the training images.
      seeds: networks of a cell, method and rate.
      train_images: None takes all.
      batch: images on which gradients are compared.
      passes: the most to the equilibrium.
      methods: the names of those that train; none stands for all that suit a cell.
    """

    cells: tuple[Cell, ...]
    transfer: tuple[Cell, ...] = ()
    batches: tuple[Cell, ...] = ()
    epochs: int = 10
    seeds: int = 1
    train_images: int | None = None
    batch: int = 64
    passes: int = 80
    methods: tuple[str, ...] = ()


@dataclass(frozen=True)
class Config(Options, Epochs, BatchSize):
    """Trains nets of many depths and sets their gradients beside backprop's."""

    depths: tuple[int, ...] = ()
    """The depths of the map to train; by default all of the preset."""
    methods: tuple[Name, ...] = ()
    """The methods, BP-Adam among them; by default all that suit a net."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.methods and "BP-Adam" not in self.methods:
            raise ValueError("--methods must hold BP-Adam, beside which all stands.")


def measure(config: Config, size: Size, run: Run) -> dict[str, Any]:
    """A part for every cell and method."""
    images = config.load()
    found = adapted(settings("mlp", config.dataset_name), config)
    keys = jax.random.split(jax.random.key(config.seed), size.seeds)
    results: dict[str, Any] = {"cells": {}, "transfer": {}, "batches": {}}
    for group in results:
        for cell in getattr(size, group):
            if group == "cells" and cell.depth not in (config.depths or (cell.depth,)):
                continue
            own = sized(found, cell)
            task = make_task(
                "mlp", images, own, train_images=size.train_images, validation=0.1
            )
            network = _network(cell, images)
            names = config.methods or size.methods
            if group != "cells":
                names = shown.FEW
            chosen = [m for m in methods(cell) if m.name in names or not names]
            train = partial(
                _train, run, size, task._replace(network=network), own, keys
            )
            rows = {}
            for method in chosen:
                with contextlib.suppress(UnfinishedError):  # it is named by the run
                    rows[method.name] = train(cell, method, group != "batches")
            if "BP-Adam" not in rows:  # beside which all stands
                continue
            results[group][cell.name] = {**dataclasses.asdict(cell), "methods": rows}
    if not results["cells"]:
        raise UnfinishedError(f"No net is finished in {run.folder}.")
    return {"dataset": config.dataset_name, "epochs": size.epochs, **results}


def _network(cell: Cell, images: Any) -> pcjax.Network:
    pixels = images.train.images[0].size
    return NETWORKS[cell.kind](cell, pixels, images.num_classes)


def _train(
    run: Run,
    size: Size,
    task: Task,
    found: Settings,
    keys: jax.Array,
    cell: Cell,
    method: Method,
    compare: bool,
) -> dict[str, Any]:
    """A method at all rates; of the best by validation what it reached, and how.

    With `compare` its gradients are set beside others.
    """
    step_size = method.step_size(found)
    points = grid.points(rates(cell, method), (step_size,))
    hyper, repeated = grid.runs(points, keys)
    looks = {}
    if compare and method.name == "BP-Adam":
        looks["gradients"] = comparison(task, found, size.passes)
    if compare and method.name in BY_TINY:
        looks["own"] = to_backprop(task, method.rule(found, step_size))
    part = f"{cell.name}-{method.name}".replace(" ", "")
    trained = train_methods(
        run,
        part,
        task,
        [method],
        found,
        repeated,
        Plan(
            epochs=size.epochs,
            hyper=constantly(hyper),
            extra=partial(at_weights, looks, task, size.batch, len(keys)),
        ),
    )
    curves = timeless(run, part, trained)[method.name]
    validation, test = (curves[name]["top1"] for name in ("validation", "test"))
    choice = grid.choose(validation, test, len(points))
    shape = (size.epochs, len(points), len(keys))
    losses = report.array(curves["train_loss"]).reshape(shape)
    return {
        "rates": [point.learning_rate for point in points],
        "choice": choice._asdict(),
        "test": report.array(test).reshape(shape)[:, choice.point].mean(-1),
        "last_train_loss": losses[-1].mean(-1),
        "best_validation": report.array(validation).reshape(shape).max(0).mean(-1),
        "gradients": curves.get("gradients"),
        "own": curves.get("own"),
    }


def _map(width: int, residual: tuple[int, ...], plain: tuple[int, ...], conv: int):
    return (
        *(
            Cell("residual", parametrisation, depth, width)
            for parametrisation in ("standard", "muPC")
            for depth in residual
        ),
        *(
            Cell("plain", parametrisation, depth, width)
            for parametrisation in ("standard", "muPC")
            for depth in plain
        ),
        *(
            Cell("conv", parametrisation, conv, max(4, width // 4))
            for parametrisation in ("standard", "muPC")
        ),
    )


def _batches(batches: tuple[int, ...], depth: int, width: int) -> tuple[Cell, ...]:
    return tuple(Cell("residual", "standard", depth, width, batch) for batch in batches)


def _widths(widths: tuple[int, ...], depth: int) -> tuple[Cell, ...]:
    return tuple(
        Cell("residual", parametrisation, depth, width)
        for parametrisation in ("standard", "muPC", "depth-muP")
        for width in widths
    )


EXPERIMENT = Experiment(
    name="depth",
    paper="beyond the paper",
    title="What trains deep, and what of it is backprop",
    sizes={
        "smoke": Size(
            (Cell("residual", "muPC", 3, 8),),
            epochs=1,
            train_images=200,
            batch=8,
            methods=("BP-Adam", "PC-Adam"),
        ),
        "cpu": Size(
            _map(32, (4, 16, 64), (4, 16), 4),
            _widths((16, 128), 4),
            _batches((1, 16, 256, 1024), 4, 32),
            train_images=2000,
        ),
        "paper": Size(
            _map(512, (2, 4, 8, 16, 32, 64, 128), (2, 4, 8, 16, 32, 64, 128), 12),
            _widths((64, 256, 1024), 8),
            _batches((1, 16, 256, 1024), 8, 512),
            epochs=50,
            seeds=3,
        ),
    },
    measure=measure,
    plot=plots.plot,
    claims=shown.claims,
    times=shown.times,
    free=("depths", "methods"),
)
main = partial(execute, EXPERIMENT)
