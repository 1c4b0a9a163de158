"""The benchmark's algorithms, as methods of the experiments' trainer."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import pcjax
from experiments.common.methods import Hyper, Method, Recipe, select
from experiments.common.settings import Settings, settings
from experiments.pcx_benchmark.published import Configuration, configuration

# How an algorithm nudges, and the sign of its beta; 0 stands for one sign per epoch.
_NUDGES: dict[str, tuple[Callable, int]] = {
    "PN": (pcjax.nudged, 1),
    "NN": (pcjax.nudged, -1),
    "CN-sign": (pcjax.nudged, 0),
    "CN": (pcjax.centred, 1),
}
_CROSS_ENTROPY = ("BP-CE", "CE", "ePC", "PC-rest")  # the others: squared error


class Length(NamedTuple):
    """How long an algorithm trains.

    Attributes:
      epochs: passes over the data.
      steps: training iterations an epoch.
      batch_size: examples an iteration.
      rate_factor: what the published learning rates of the weights are multiplied by.
    """

    epochs: int
    steps: int
    batch_size: int
    rate_factor: float = 1.0


class Algorithm(NamedTuple):
    """All of an algorithm but network and data.

    Attributes:
      method: how it learns.
      settings: its batch size, and of SeqIL the rest.
      hyper: its rates.
      activation: of the hidden layers.
    """

    method: Method
    settings: Settings
    hyper: Hyper
    activation: Callable[[jax.Array], jax.Array]


def algorithm(name: str, net: str, dataset: str, length: Length) -> Algorithm:
    """An algorithm of the benchmark, or of the paper on sequential inference."""
    if name.startswith("SeqIL"):
        return _sequential(name, net, dataset, length)
    chosen = configuration(net, name)
    method = Method(
        name,
        lambda settings, step: recipe(name, chosen, step, length.epochs),
        lambda rate, settings: _adamw(name, rate, chosen, length),
        lambda settings: chosen.step,
    )
    rates = {name: chosen.rate * length.rate_factor}
    return Algorithm(
        method,
        Settings(rates, batch_size=length.batch_size, epochs=length.epochs),
        Hyper(rates[name], chosen.step),
        getattr(jax.nn, chosen.activation),
    )


def _sequential(name: str, net: str, dataset: str, length: Length) -> Algorithm:
    """SeqIL with the settings of its paper, those of CIFAR-10 where it has none."""
    kind = "mlp" if net == "mlp" else "conv"
    try:
        found = settings(kind, dataset)  # type: ignore[arg-type]
    except ValueError:
        found = settings(kind, "cifar10")  # type: ignore[arg-type]
    found = dataclasses.replace(
        found, batch_size=length.batch_size, epochs=length.epochs
    )
    (method,) = select([name])
    return Algorithm(method, found, method.hyper(found), jax.nn.relu)


def recipe(
    name: str, chosen: Configuration, step: jax.Array | float, epochs: int
) -> Recipe:
    """How an algorithm makes gradients."""
    output = pcjax.softmax if name in _CROSS_ENTROPY else pcjax.identity
    if name.startswith("BP"):
        return Recipe(None, output=output)
    if name == "ePC":
        return Recipe(pcjax.error_based(chosen.num_steps, step), output=output)
    if name == "PC-rest":
        rateless = pcjax.error_based(chosen.num_steps, pcjax.barzilai_borwein())
        return Recipe(rateless, output=output)
    mover = optax.sgd(step, chosen.momentum or None)
    inference = pcjax.simultaneous(chosen.num_steps, optimizer=mover)
    if name == "iPC":
        return Recipe(inference, weights_move=True, output=output)
    if name not in _NUDGES:
        return Recipe(inference, output=output)
    make, schedule = _NUDGES[name][0], betas(name, chosen, epochs)

    def nudge(rule: Any, epoch: Any):
        return make(rule, jnp.asarray(schedule, jnp.float32)[epoch])

    return Recipe(inference, output=output, nudge=nudge)


def betas(name: str, chosen: Configuration, epochs: int) -> np.ndarray:
    """Beta of every epoch, [epochs]: it grows up to 1, the full clamp."""
    sizes = np.minimum(1, chosen.beta + chosen.increment * np.arange(epochs))
    sign = _NUDGES[name][1]
    if sign:
        return sign * sizes
    return np.random.default_rng(0).choice([-1, 1], epochs) * sizes


def _adamw(
    name: str, rate: jax.Array | float, chosen: Configuration, length: Length
) -> optax.GradientTransformation:
    """AdamW by the benchmark's schedule; iPC makes T steps of it an iteration."""
    count = length.epochs * length.steps
    if name == "iPC":
        count *= chosen.num_steps
    tx = optax.adamw(
        lambda step: rate * _schedule(count)(step), weight_decay=chosen.weight_decay
    )
    if name == "ePC":  # its hidden gradients are about `T step` times backprop's
        return optax.chain(optax.scale(1 / (chosen.num_steps * chosen.step)), tx)
    return tx


def _schedule(count: int) -> optax.Schedule:
    """From 1 to 1.1 over the first tenth, then by a cosine to .1."""
    warm = max(1, round(0.1 * count))
    return optax.warmup_cosine_decay_schedule(1.0, 1.1, warm, max(count, warm + 1), 0.1)
