"""Trains an MLP with products in float32 and in bfloat16 and compares them.

python -m experiments.precision
python -m experiments.precision --dataset cifar10 --data-dir DIR --images 10000

Every precision starts from the same weights and sees the same batches. The gradients
of the networks that float32 trained are compared, too, matrix by matrix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import pcjax
from experiments.common import data
from experiments.common.harness import (
    Experiment,
    Options,
    Run,
    execute,
)
from experiments.common.live import Parts
from experiments.common.options import BatchSize, Epochs, refuse_non_positive
from experiments.precision.shown import claims, plot
from pcjax import training
from pcjax.learning.gradients import GradFn
from pcjax.training import evaluation

BATCH = 64


@dataclass(frozen=True)
class Size:
    """How much is trained; None stands for all training images."""

    seeds: int = 5
    epochs: int = 110
    images: int | None = None


@dataclass(frozen=True)
class Config(Options, Epochs, BatchSize):
    """Trains an MLP with products in float32 and in bfloat16 and compares them."""

    images: int | None = None
    """Training images, drawn at random; by default what the preset says."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Sizes of the hidden layers."""
    bp_rate: float = 0.05
    """Learning rate of backprop, SGD."""
    mq_rate: float = 1e-4
    """Learning rate of MQ."""
    num_steps: int = 3
    """Inference iterations T."""
    step_size: float = 0.05
    """eps of eps_t = eps / (1 + t)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("images", "bp_rate", "mq_rate", "num_steps", "step_size"):
            refuse_non_positive(name, getattr(self, name))

    @property
    def examples(self) -> int:
        """Of a training iteration."""
        return self.batch_size or BATCH


def float32(sizes: Sequence[int]) -> pcjax.Network:
    """No rounding."""
    return pcjax.mlp(sizes)


def bfloat16(sizes: Sequence[int]) -> pcjax.Network:
    """Rounded operands; inference multiplies changes."""
    return pcjax.mlp(sizes, product_dtype=jnp.bfloat16)


def bfloat16_naive(sizes: Sequence[int]) -> pcjax.Network:
    """Rounded operands; inference multiplies whole activities."""
    layers = bfloat16(sizes).layers
    return pcjax.Network(tuple(layer._replace(near=None) for layer in layers))


PRECISIONS: dict[str, Callable[[Sequence[int]], pcjax.Network]] = {
    "float32": float32,
    "bfloat16": bfloat16,
    "bfloat16, naive": bfloat16_naive,
}


class Rule(NamedTuple):
    """A name, how gradients are made, what makes steps of them, and precisions."""

    name: str
    grad_fn: Callable[[pcjax.Network, Config], GradFn]
    tx: Callable[[Config], Any]
    precisions: tuple[str, ...]


def backprop(network: pcjax.Network, config: Config) -> GradFn:
    """The gradient of the loss."""
    del config
    return pcjax.backprop.value_and_grad(network, output=pcjax.softmax)


def sequential(network: pcjax.Network, config: Config) -> GradFn:
    """Inference learning with sequential inference."""
    method = pcjax.sequential(config.num_steps, lambda t: config.step_size / (1 + t))
    return pcjax.value_and_grad(
        network, method, output=pcjax.softmax, clamp=pcjax.soft_clamp(0.01)
    )


RULES = (
    Rule(
        "BP",
        backprop,
        lambda config: optax.sgd(config.bp_rate),
        ("float32", "bfloat16"),  # backprop predicts only once
    ),
    Rule(
        "SeqIL-MQ",
        sequential,
        lambda config: pcjax.mq(config.mq_rate),
        tuple(PRECISIONS),
    ),
)


class Curves(NamedTuple):
    """What training one rule in one precision gave.

    Attributes:
      loss: [seeds, epochs], mean loss of the training batches.
      accuracy: [seeds, epochs], of the test set, with the network that was trained.
      params: of every seed, after training.
    """

    loss: np.ndarray
    accuracy: np.ndarray
    params: list[Any]


def measure(config: Config, size: Size, run: Run) -> dict[str, Any]:
    """A part for every rule: training in every precision, and gradients."""
    images = config.load()
    count = config.images or size.images
    if count is not None:
        share = count / len(images.train.images)
        _, some = data.validation_split(images.train, share, config.seed)
        images = images._replace(train=some)
    rows: list[dict[str, Any]] = []
    with Parts(run, len(RULES)) as parts:
        for rule in RULES:
            compute = partial(measure_rule, rule, images, config, size)
            rows += parts.part(rule.name, compute)
    return {"dataset": config.dataset_name, "runs": rows}


def measure_rule(
    rule: Rule, images: data.Dataset, config: Config, size: Size
) -> list[dict[str, Any]]:
    """A row for every precision of a rule."""
    curves = {
        name: train(rule, PRECISIONS[name], images, config, size)
        for name in rule.precisions
    }
    trained = curves["float32"].params
    return [
        {
            "rule": rule.name,
            "precision": name,
            "train_loss": curve.loss,
            "test_accuracy": curve.accuracy,
            "cosines": cosines(rule, name, trained, images, config),
        }
        for name, curve in curves.items()
    ]


def sizes(images: data.Dataset, config: Config) -> list[int]:
    """Of the input, the hidden layers and the output."""
    return [images.train.images[0].size, *config.hidden, images.num_classes]


def train(
    rule: Rule,
    make_network: Callable,
    images: data.Dataset,
    config: Config,
    size: Size,
) -> Curves:
    """Trains a network for every seed, one after the other."""
    network, tx = make_network(sizes(images, config)), rule.tx(config)
    classes = images.num_classes
    prepare = training.classification(classes)
    update = training.make_update(rule.grad_fn(network, config), tx)
    epoch = jax.jit(
        training.make_epoch(update, prepare, config.examples), donate_argnums=0
    )
    measure = evaluation.classification_measures(pcjax.softmax)
    evaluate = jax.jit(evaluation.make_evaluation(network, prepare, measure))
    train_set, test_set = (
        training.device_data(*split, classes) for split in (images.train, images.test)
    )
    inputs, _ = prepare(train_set.images[:1], train_set.labels[:1])
    losses, accuracies, params = [], [], []
    for key in jax.random.split(jax.random.key(config.seed), size.seeds):
        state = training.init_state(network, tx, key, inputs)
        for _ in range(size.epochs):
            state, metrics = epoch(state, train_set)
            losses.append(np.asarray(metrics.loss).mean())
            accuracies.append(float(evaluate(state.params, test_set).top1))
        params.append(state.params)
    shape = (size.seeds, size.epochs)
    return Curves(
        np.array(losses, float).reshape(shape),
        np.array(accuracies, float).reshape(shape),
        params,
    )


def cosines(
    rule: Rule, precision: str, trained: list, images: data.Dataset, config: Config
) -> dict[str, list[list[float]]]:
    """Of every matrix's gradient to float32's, [seeds, L], at first and in the end.

    The gradients are those of one batch of the first training images.
    """
    prepare = training.classification(images.num_classes)
    first = training.device_data(
        images.train.images[: config.examples],
        images.train.labels[: config.examples],
        images.num_classes,
    )
    inputs, targets = prepare(first.images, first.labels)
    ours, reference = (
        jax.jit(rule.grad_fn(PRECISIONS[name](sizes(images, config)), config))
        for name in (precision, "float32")
    )
    network = float32(sizes(images, config))
    keys = jax.random.split(jax.random.key(config.seed), len(trained))
    start = [
        training.init_state(network, rule.tx(config), key, inputs).params
        for key in keys
    ]

    def compare(params):
        (_, one), (_, other) = (f(params, inputs, targets) for f in (ours, reference))
        return [
            _cosine(a["kernel"], b["kernel"]) for a, b in zip(one, other, strict=True)
        ]

    return {
        "before training": [compare(params) for params in start],
        "after training": [compare(params) for params in trained],
    }


def _cosine(one: jax.Array, other: jax.Array) -> float:
    u, v = (np.asarray(x, np.float64).ravel() for x in (one, other))
    return float(u @ v / (np.linalg.norm(u) * np.linalg.norm(v)))


EXPERIMENT = Experiment(
    name="precision",
    paper="beyond the paper",
    title="Products in bfloat16 and in float32",
    sizes={
        "smoke": Size(seeds=2, epochs=10),
        "cpu": Size(seeds=2, epochs=10, images=10_000),
        "paper": Size(),
    },
    measure=measure,
    plot=plot,
    claims=claims,
)
main = partial(execute, EXPERIMENT)
