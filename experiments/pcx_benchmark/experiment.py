"""Accuracies of predictive coding on image classification: the field's benchmark.

python -m experiments.pcx_benchmark
python -m experiments.pcx_benchmark --preset cpu --net vgg5 --data-dir DIR
python -m experiments.pcx_benchmark --preset paper --net vgg9 --dataset tiny_imagenet
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import jax
import numpy as np

import pcjax
from experiments.common.data import Dataset, Split
from experiments.common.harness import Experiment, Options, Run, execute
from experiments.common.options import BatchSize, Epochs
from experiments.common.runner import Plan, constantly, timeless, train_methods
from experiments.common.tasks import Task, subset
from experiments.common.trainer import Trainer
from experiments.pcx_benchmark.algorithms import Algorithm, Length, algorithm
from experiments.pcx_benchmark.measures import cosines, residuals
from experiments.pcx_benchmark.plots import plot
from experiments.pcx_benchmark.published import ALGORITHMS
from experiments.pcx_benchmark.published import Algorithm as Name
from experiments.pcx_benchmark.statements import claims, times
from pcjax import training
from pcjax.training import evaluation

Net = Literal["mlp", "vgg5", "vgg7", "vgg9"]


@dataclass(frozen=True)
class Size:
    """How much is trained; None takes all images."""

    epochs: int
    seeds: int
    train_images: int | None
    test_images: int | None
    width: int
    batch_size: int = 128
    rate_factor: float = 1.0


@dataclass(frozen=True)
class Config(Options, Epochs, BatchSize):
    """Trains a net by every algorithm of the benchmark: test accuracies."""

    net: Net = "mlp"
    """Three hidden layers, or a VGG net."""
    algorithms: tuple[Name, ...] = ALGORITHMS
    """Which algorithms to train."""
    on_nonfinite: Literal["stop", "skip"] = "skip"
    """What happens to a training step that is not finite: it is left out and counted,
    or the run stops and says what went wrong."""


def measure(config: Config, size: Size, run: Run) -> dict[str, Any]:
    """Trains every algorithm over the seeds."""
    images = config.load()
    task = make_task(config.net, images, size)
    count = len(task.train.labels)
    batch_size = min(size.batch_size, count)
    length = Length(size.epochs, count // batch_size, batch_size, size.rate_factor)
    keys = jax.random.split(jax.random.key(config.seed), size.seeds)
    trained: dict[str, Any] = {}
    for name in config.algorithms:
        chosen = algorithm(name, config.net, config.dataset_name, length)
        own = task._replace(network=network_of(config.net, images, size, chosen))
        plan = Plan(
            epochs=size.epochs,
            hyper=constantly(chosen.hyper),
            extra=partial(_extra, chosen, own, batch_size),
            on_nonfinite=config.on_nonfinite,
        )
        found = train_methods(
            run, name, own, [chosen.method], chosen.settings, keys, plan
        )
        trained |= timeless(run, name, found)
    return {
        "net": config.net,
        "dataset": config.dataset_name,
        "train_images": [count, len(images.train.labels)],
        "test_images": [len(task.test.labels), len(images.test.labels)],
        "methods": trained,
    }


def make_task(net: Net, images: Dataset, size: Size) -> Task:
    """The data with what makes inputs of them; the network is each algorithm's own."""
    classes = images.num_classes
    train, test = (
        _large_enough(net, subset(split, count, classes))
        for split, count in (
            (images.train, size.train_images),
            (images.test, size.test_images),
        )
    )
    prepare = training.normalised(
        training.augmented(
            training.classification(classes), *augmentations(net, images)
        ),
        *channel_moments(train.images),
    )
    return Task(
        pcjax.mlp([1, 1]),
        pcjax.softmax,
        prepare,
        evaluation.classification_measures(pcjax.softmax),
        training.device_data(*train, classes),
        training.device_data(*test, classes),
    )


def _large_enough(net: Net, split: Split) -> Split:
    """Digits enlarged to 32 pixels, of which the pools of a VGG net leave some."""
    factor = 1 if net == "mlp" else max(1, 32 // split.images.shape[1])
    larger = split.images.repeat(factor, 1).repeat(factor, 2)
    return split._replace(images=larger)


def channel_moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every channel [C], with values up to 1.

    Of counts of the 256 values, so that no float is made of a pixel.
    """
    values = np.arange(256) / 255
    counts = [
        np.bincount(images[..., channel].ravel(), minlength=256) / images[..., 0].size
        for channel in range(images.shape[-1])
    ]
    means = np.array([values @ count for count in counts])
    squares = np.array([values**2 @ count for count in counts])
    return means, np.sqrt(squares - means**2)


def augmentations(net: Net, images: Dataset) -> tuple[training.Augmentation, ...]:
    """Those of the benchmark, for images in colour; Tiny ImageNet is cropped to 56."""
    side, channels = images.train.images.shape[2:]
    if net == "mlp" or channels == 1:
        return ()
    crop = training.random_crop(56, 56) if side == 64 else training.padded_crop(4)
    return training.random_flip, crop


def network_of(
    net: Net, images: Dataset, size: Size, chosen: Algorithm
) -> pcjax.Network:
    """The net with the activation of an algorithm."""
    pixels = images.train.images[0].size
    return _network(net, pixels, images.num_classes, size.width, chosen.activation)


@lru_cache(maxsize=16)  # what is the same is compiled for once
def _network(
    net: Net, pixels: int, classes: int, width: int, activation: Callable
) -> pcjax.Network:
    if net == "mlp":
        return pcjax.mlp([pixels, *[width] * 3, classes], activation)
    return pcjax.vgg(
        int(net.removeprefix("vgg")), classes, width=width, activation=activation
    )


def _extra(
    chosen: Algorithm, task: Task, batch_size: int, trainer: Trainer
) -> dict[str, Any]:
    """The cosine of every layer's gradient to backprop's, [L, runs], when trained."""
    recipe = chosen.method.rule(chosen.settings, chosen.hyper.step_size)
    if recipe.inference is None:
        return {}
    batch = jax.tree.map(lambda x: x[:batch_size], task.train)
    inputs, targets = task.prepare(*batch)
    last = trainer.records[-1].epoch - 1
    arguments = recipe._replace(epoch=last), task, trainer.params, inputs, targets
    found: dict[str, Any] = {"cosine": cosines(*arguments)}
    if chosen.method.name == "PC-rest":
        found["residual"] = residuals(*arguments)
    return found


def _cpu(config: Config) -> Size:
    """Minutes on two cores; the VGG nets are narrow, and take larger rates for it."""
    if config.net == "mlp":
        epochs = 20 if config.dataset_name == "digits" else 6
        return Size(epochs, 5, 6_000, 5_000, width=128, batch_size=32)
    return Size(4, 3, 2_000, 1_000, width=16, batch_size=40, rate_factor=4.0)


def _paper(config: Config) -> Size:
    return Size(50, 5, None, None, width=128)


def _smoke(config: Config) -> Size:
    width = 32 if config.net == "mlp" else 4
    return Size(2, 2, 320, 160, width=width, batch_size=32, rate_factor=4.0)


EXPERIMENT = Experiment(
    name="pcx_benchmark",
    paper="none: the benchmark of predictive coding networks",
    title="Test accuracy by algorithm",
    sizes={"smoke": _smoke, "cpu": _cpu, "paper": _paper},
    measure=measure,
    plot=plot,
    claims=claims,
    times=times,
    free=("algorithms",),
)
main = partial(execute, EXPERIMENT)
