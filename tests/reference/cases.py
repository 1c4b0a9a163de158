"""Small problems with sizeable errors in every layer, so that no slip stays hidden."""

import itertools
from typing import NamedTuple

import numpy as np

from tests.reference import outputs
from tests.reference.layers import Conv, Dense, Relu, Residual, Tanh


class Problem(NamedTuple):
    """A network with a batch of inputs and targets."""

    layers: list
    output: object
    xs: np.ndarray  # [B, ...]
    targets: np.ndarray  # [B, ...]


def kernel(rng, shape, gain=1.0):
    """Weights that keep the size of what passes through them."""
    fan_in = np.prod(shape[:-1])
    return gain * rng.standard_normal(shape) / np.sqrt(fan_in)


def affine(rng, shape, gain=1.0):
    """A kernel and a bias that is not small."""
    bias = 0.3 * rng.standard_normal(shape[-1])
    return {"kernel": kernel(rng, shape, gain), "bias": bias}


def dense_net(rng, sizes=(6, 5, 7, 4, 3), f=Tanh):
    """Pre-activation layout, no f on the input layer."""
    layers = []
    for i, shape in enumerate(itertools.pairwise(sizes)):
        layers.append(Dense(affine(rng, shape, gain=1.5), f=f() if i else None))
    return layers, sizes[:1], sizes[-1]


def relu_net(rng):
    """Dense net with ReLU."""
    return dense_net(rng, sizes=(6, 9, 8, 9, 3), f=Relu)


def shallow_net(rng):
    """One weight layer: there is nothing to infer."""
    return dense_net(rng, sizes=(6, 3))


def deep_net(rng):
    """Enough layers for an error to travel for many iterations."""
    return dense_net(rng, sizes=(6, *[5] * 8, 3))


def conv_net(rng):
    """Post-activation layout with strides 2 and 1, one of them leaving a rim unread."""
    return (
        [
            Conv(affine(rng, (3, 2, 2, 4), gain=1.5), stride=2, post=Relu()),
            Conv(affine(rng, (2, 2, 4, 5), gain=1.5), stride=1, post=Relu()),
            Dense(affine(rng, (2 * 2 * 5, 6))),
            Dense(affine(rng, (6, 3)), f=Tanh()),
        ],
        (8, 6, 2),
        3,
    )


def residual_net(rng):
    """Two blocks with skip connections between dense layers."""

    def block(width, inner):
        return Residual(
            {
                "hidden": affine(rng, (width, inner), gain=1.2),
                "out": affine(rng, (inner, width), gain=1.2),
            }
        )

    layers = [Dense(affine(rng, (6, 5))), block(5, 7), block(5, 4)]
    return [*layers, Dense(affine(rng, (5, 3)), f=Relu())], (6,), 3


NETS = {
    "dense": dense_net,
    "relu": relu_net,
    "conv": conv_net,
    "residual": residual_net,
    "shallow": shallow_net,
    "deep": deep_net,
}
OUTPUTS = {
    "softmax": outputs.Softmax(),
    "sigmoid": outputs.Sigmoid(),
    "identity": outputs.Linear(),
}


def make_targets(rng, output_name, shape):
    """One-hot classes, pixel intensities, or real numbers."""
    if output_name == "softmax":
        return np.eye(shape[1])[rng.integers(shape[1], size=shape[0])]
    if output_name == "sigmoid":
        return rng.uniform(size=shape)
    return 2.0 * rng.standard_normal(shape)


def make_problem(net, output, batch_size=3, seed=0):
    """The problem of the given names."""
    rng = np.random.default_rng(seed)
    layers, in_shape, out_size = NETS[net](rng)
    xs = rng.standard_normal((batch_size, *in_shape))
    targets = make_targets(rng, output, (batch_size, out_size))
    return Problem(layers, OUTPUTS[output], xs, targets)


def perturbed_activities(problem, example, seed=1, scale=0.5):
    """Activities of one example away from feed-forward values in every hidden layer."""
    rng = np.random.default_rng(seed + example)
    activities = [problem.xs[example]]
    h = activities[0]
    for layer in problem.layers[:-1]:
        h = layer.forward(h)
        h = h + scale * rng.standard_normal(h.shape)
        activities.append(h)
    return [*activities, problem.targets[example]]
