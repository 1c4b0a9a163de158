"""Trains an MLP with products in float32 and in bfloat16 and compares them.

python -m experiments.precision
python -m experiments.precision --dataset cifar10 --data-dir DIR --images 10000

Every precision starts from the same weights and sees the same batches. The gradients
of the networks that float32 trained are compared, too, matrix by matrix.
"""

import dataclasses
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

import pcjax
from experiments.common import data
from pcjax import training
from pcjax.learning.gradients import GradFn
from pcjax.training import evaluation


@dataclass(frozen=True)
class Config:
    """Trains an MLP with products in float32 and in bfloat16 and compares them."""

    dataset: str = "digits"
    """digits (built in), cifar10, svhn_cropped, mnist or fashion_mnist."""
    data_dir: Path | None = None
    """The folder of prepared TFDS data sets; digits needs none."""
    images: int | None = None
    """Training images, drawn at random; by default all."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Sizes of the hidden layers."""
    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 64
    """Examples a training iteration."""
    seeds: int = 2
    """Networks trained, each with its own initial weights and data order."""
    seed: int = 0
    """Decides all randomness."""
    bp_rate: float = 0.05
    """Learning rate of backprop, SGD."""
    mq_rate: float = 1e-4
    """Learning rate of MQ."""
    num_steps: int = 3
    """Inference iterations T."""
    step_size: float = 0.05
    """eps of eps_t = eps / (1 + t)."""
    out: Path = Path("out/precision")
    """Where summary.json and precision.png go."""


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


def main(config: Config) -> None:
    """Trains every rule in every precision, prints a table and writes the results."""
    if min(config.seeds, config.epochs, config.batch_size, config.num_steps) < 1:
        raise SystemExit(
            "--seeds, --epochs, --batch-size and --num-steps must be at least 1, got "
            f"{config.seeds}, {config.epochs}, {config.batch_size} and "
            f"{config.num_steps}."
        )
    try:
        images = data.load(config.dataset, config.data_dir)
        if config.images is not None:
            share = config.images / len(images.train.images)
            _, some = data.validation_split(images.train, share, config.seed)
            images = images._replace(train=some)
    except (ValueError, data.DatasetError) as error:
        raise SystemExit(str(error)) from error
    rows = []
    for rule in RULES:
        curves = {}
        for name in rule.precisions:
            Console().print(f"training {rule.name}, {name}")
            curves[name] = train(rule, PRECISIONS[name], images, config)
        trained = curves["float32"].params
        for name, curve in curves.items():
            rows.append(
                {
                    "rule": rule.name,
                    "precision": name,
                    "train_loss": curve.loss.tolist(),
                    "test_accuracy": curve.accuracy.tolist(),
                    "cosines": cosines(rule, name, trained, images, config),
                }
            )
    summary = provenance(config) | {"runs": rows}
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    plot(summary, config.out / "precision.png")
    print_table(summary)


def sizes(images: data.Dataset, config: Config) -> list[int]:
    """Of the input, the hidden layers and the output."""
    return [images.train.images[0].size, *config.hidden, images.num_classes]


def train(
    rule: Rule, make_network: Callable, images: data.Dataset, config: Config
) -> Curves:
    """Trains a network for every seed, one after the other."""
    network, tx = make_network(sizes(images, config)), rule.tx(config)
    classes = images.num_classes
    prepare = training.classification(classes)
    update = training.make_update(rule.grad_fn(network, config), tx)
    epoch = jax.jit(
        training.make_epoch(update, prepare, config.batch_size), donate_argnums=0
    )
    measure = evaluation.classification_measures(pcjax.softmax)
    evaluate = jax.jit(evaluation.make_evaluation(network, prepare, measure))
    train_set, test_set = (
        training.device_data(*split, classes) for split in (images.train, images.test)
    )
    inputs, _ = prepare(train_set.images[:1], train_set.labels[:1])
    losses, accuracies, params = [], [], []
    for key in jax.random.split(jax.random.key(config.seed), config.seeds):
        state = training.init_state(network, tx, key, inputs)
        for _ in range(config.epochs):
            state, metrics = epoch(state, train_set)
            losses.append(np.asarray(metrics.loss).mean())
            accuracies.append(float(evaluate(state.params, test_set).top1))
        params.append(state.params)
    shape = (config.seeds, config.epochs)
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
        images.train.images[: config.batch_size],
        images.train.labels[: config.batch_size],
        images.num_classes,
    )
    inputs, targets = prepare(first.images, first.labels)
    ours, reference = (
        jax.jit(rule.grad_fn(PRECISIONS[name](sizes(images, config)), config))
        for name in (precision, "float32")
    )
    network = float32(sizes(images, config))
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
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


def provenance(config: Config) -> dict:
    """How the result came about."""
    return {
        "command": shlex.join(["python", "-m", "experiments.precision", *sys.argv[1:]]),
        "config": json.loads(json.dumps(dataclasses.asdict(config), default=str)),
        "versions": {"pcjax": pcjax.__version__, "jax": jax.__version__},
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} host cores",
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def print_table(summary: dict) -> None:
    """Prints accuracies and the least cosine of any matrix's gradient."""
    table = Table(
        "rule",
        "products",
        "final test acc. % (seeds)",
        "mean",
        "training loss",
        "least cosine at first",
        "in the end",
        title=f"{summary['config']['dataset']}, {summary['config']['epochs']} epochs",
    )
    for row in summary["runs"]:
        final = 100 * np.array(row["test_accuracy"])[:, -1]
        table.add_row(
            row["rule"],
            row["precision"],
            " ".join(f"{value:.2f}" for value in final),
            f"{final.mean():.2f}",
            f"{np.array(row['train_loss'])[:, -1].mean():.4f}",
            *(f"{np.min(values):.4f}" for values in row["cosines"].values()),
        )
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)


def plot(summary: dict, path: Path) -> None:
    """Draws test accuracy against the epoch, and the gradients' angles to float32's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colors = {"float32": "#000000", "bfloat16": "#D55E00", "bfloat16, naive": "#56B4E9"}
    styles = {"BP": "--", "SeqIL-MQ": "-"}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for row in summary["runs"]:
        style = {"color": colors[row["precision"]], "ls": styles[row["rule"]]}
        label = f"{row['rule']}, {row['precision']}"
        accuracy = 100 * np.array(row["test_accuracy"])
        left.plot(
            range(1, accuracy.shape[1] + 1), accuracy.mean(0), label=label, **style
        )
        if row["precision"] != "float32":
            for marker, (when, values) in zip(
                "os", row["cosines"].items(), strict=True
            ):
                angles = np.degrees(np.arccos(np.clip(values, -1, 1))).mean(0)
                right.plot(angles, marker=marker, label=f"{label}, {when}", **style)
    left.set(xlabel="epoch", ylabel="test accuracy (%)")
    left.set_title(summary["config"]["dataset"])
    right.set(
        xlabel="weight matrix", ylabel="angle of the gradient to float32's (degrees)"
    )
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Config))
