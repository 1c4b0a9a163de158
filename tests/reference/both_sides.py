"""Each choice twice: as the library is given it, and as the oracle is."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import pcjax
from tests.reference import inference, outputs
from tests.reference.layers import Conv, Dense, Relu, Residual, Tanh

EPS = 0.2  # step size of the activities
BATCH = 3

OUTPUTS = {
    "softmax": pcjax.softmax,
    "sigmoid": pcjax.sigmoid,
    "identity": pcjax.identity,
}
METHODS = {
    "simultaneous": (pcjax.simultaneous, inference.simultaneous),
    "sequential": (pcjax.sequential, inference.sequential),
}


def own_clamp():
    """A soft clamp whose gamma_L depends on the activity below, as in Theorem 1."""

    def batched(targets, predictions, activity):
        gamma = jnp.mean(activity**2, axis=1, keepdims=True)
        return (targets + gamma * predictions) / (1 + gamma)

    def single(target, prediction, activity):
        return outputs.soft_clamp(np.mean(activity**2))(target, prediction, activity)

    return batched, single


CLAMPS = {
    "full": (pcjax.full_clamp, outputs.full_clamp),
    "soft": (pcjax.soft_clamp(0.5), outputs.soft_clamp(0.5)),
    "own": own_clamp(),
}


def numbers(shape, low, high, seed):
    """Weights that differ from each other."""
    return np.random.default_rng(seed).uniform(low, high, shape)


def same_for_all(weights):
    """The same weights for every example."""
    return weights, [weights] * BATCH


def one_per_example(weights):
    """[layers, B] for the library, a column of it for each example."""
    return weights, list(weights.T)


def mean_square(h):
    """Per example, [B]."""
    return jnp.mean(jnp.reshape(h, (h.shape[0], -1)) ** 2, axis=1)


def gamma_of_the_state(last):
    """gamma_l = 1 / (1 + mean h_{l-1}^2) + mean e_{l+1}^2 for the hidden layers."""

    def batched(activities, errors):
        below = [1 / (1 + mean_square(activities[i])) for i in range(last - 1)]
        above = [mean_square(errors[i]) for i in range(1, last)]
        return jnp.stack([a + b for a, b in zip(below, above, strict=True)])

    def single(activities, errors):
        return [
            1 / (1 + np.mean(activities[i] ** 2)) + np.mean(errors[i + 1] ** 2)
            for i in range(last - 1)
        ]

    return batched, [single] * BATCH


def decay_of_the_state():
    """decay_l = mean e_{l+1}^2 / (1 + mean h_l^2) for the hidden layers."""

    def batched(activities, errors):
        return jnp.stack(
            [
                mean_square(e) / (1 + mean_square(h))
                for e, h in zip(errors[1:], activities[1:-1], strict=True)
            ]
        )

    def single(activities, errors):
        return [
            np.mean(e**2) / (1 + np.mean(h**2))
            for e, h in zip(errors[1:], activities[1:-1], strict=True)
        ]

    return batched, [single] * BATCH


def make_gamma(name, last):
    """Weights of the errors of a net with `last` layers."""
    return {
        "one": lambda: same_for_all(1.0),
        "number": lambda: same_for_all(0.6),
        "hidden": lambda: same_for_all(list(numbers(last - 1, 0.4, 1.6, 1))),
        "all": lambda: same_for_all(list(numbers(last, 0.4, 1.6, 2))),
        "hidden_example": lambda: one_per_example(
            numbers((last - 1, BATCH), 0.4, 1.6, 3)
        ),
        "all_example": lambda: one_per_example(numbers((last, BATCH), 0.4, 1.6, 4)),
        "state": lambda: gamma_of_the_state(last),
    }[name]()


def make_decay(name, last):
    """Weights of the decay of a net with `last` layers."""
    return {
        "zero": lambda: same_for_all(0.0),
        "number": lambda: same_for_all(0.3),
        "hidden": lambda: same_for_all(list(numbers(last - 1, 0.2, 0.8, 5))),
        "example": lambda: one_per_example(numbers((last - 1, BATCH), 0.2, 0.8, 6)),
        "state": lambda: decay_of_the_state(),
    }[name]()


def make_step_size(name):
    """One function serves both sides."""
    return {
        "constant": EPS,
        "large": 4 * EPS,  # so that the last layers a deep net reaches move enough
        "schedule": lambda t: EPS / (1 + t),
    }[name]


class Config(NamedTuple):
    """Names of all that varies."""

    net: str = "dense"
    output: str = "softmax"
    method: str = "sequential"
    clamp: str = "soft"
    gamma: str = "one"
    decay: str = "zero"
    step_size: str = "constant"
    num_steps: int = 3


class Setting(NamedTuple):
    """What a configuration stands for, on one of the two sides."""

    method: object  # the library's constructor, the oracle's sweep
    clamp: object
    gamma: object  # the oracle's: a list, one per example
    decay: object  # the oracle's: a list, one per example
    step_size: object


def settings(config, last):
    """For the library and for the oracle."""
    step_size = make_step_size(config.step_size)
    return tuple(
        Setting(*choices, step_size)
        for choices in zip(
            METHODS[config.method],
            CLAMPS[config.clamp],
            make_gamma(config.gamma, last),
            make_decay(config.decay, last),
            strict=True,
        )
    )


def residual_block(layer):
    """The oracle's `Residual` as a user of the library would write it."""

    def init(key, inputs):
        return jax.tree.map(lambda a: jnp.asarray(a, inputs.dtype), layer.params)

    def affine(params, h):
        return h @ params["kernel"] + params["bias"][None]

    def apply(params, h):
        return h + affine(params["out"], jnp.tanh(affine(params["hidden"], h)))

    return pcjax.Layer(init, apply)


def to_layer(layer):
    """The library's counterpart of one of the oracle's layers."""
    if isinstance(layer, Residual):
        return residual_block(layer)
    *_, out = layer.params["kernel"].shape
    functions = {Relu: jax.nn.relu, Tanh: jnp.tanh}
    if isinstance(layer, Conv):
        strides = (layer.stride, layer.stride)
        activation = functions[type(layer.post)]
        kernel_size = layer.params["kernel"].shape[:2]
        return pcjax.conv(out, kernel_size, strides, activation=activation)
    assert isinstance(layer, Dense)
    return pcjax.dense(out, functions[type(layer.f)]) if layer.f else pcjax.dense(out)


def to_library(problem, dtype=np.float64):
    """Network, parameters, inputs and targets of a problem."""
    network = pcjax.Network(tuple(to_layer(layer) for layer in problem.layers))
    arrays = (tuple(i.params for i in problem.layers), problem.xs, problem.targets)
    return network, *jax.tree.map(lambda a: jnp.asarray(a, dtype), arrays)
