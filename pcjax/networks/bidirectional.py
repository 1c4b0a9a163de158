"""Bidirectional predictive coding: two sets of weights, one energy."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pcjax.checks import check_callable
from pcjax.networks.layers import dense
from pcjax.networks.network import Activation, Layer, Network, Params, linear
from pcjax.networks.priors import prior
from pcjax.networks.sizes import are_sizes


def bidirectional(
    sizes: Sequence[int], activation: Activation = jax.nn.relu
) -> Network:
    """A network whose activities predict each other upwards and downwards.

    With `n = len(sizes) - 1` and activities `x_0, ..., x_n`,

        F = alpha_f/2 sum_{l=1}^n ||x_l - V_l f(x_{l-1}) - c_l||^2
          + alpha_b/2 sum_{l=0}^{n-1} ||x_l - W_l f(x_{l+1}) - b_l||^2

    where both ends are read as they are. As a graph: a prior of weight 0 below, so
    that `x_0` is the hidden activity `h_1`; the layers of an `mlp`, so that `x_l` is
    `h_{l+1}`; and on top a layer that reads all of them and predicts the errors
    downwards, whose target is 0. Pass `gamma=[0] + [alpha_f] * n + [alpha_b]`, the
    input `no_inputs(B)` and the targets `zeros([B, sum(sizes[:-1])])`. What is known of
    `x_0` and `x_n` is given by `hidden=` and kept there by `held`.

    `alpha_b = 0` with both ends held is `mlp(sizes)` with the targets clamped.

    Args:
      sizes: of `x_0, ..., x_n`.
      activation: `f`.

    Returns:
      A network of n + 2 layers. The parameters of the last one are n dense layers'.

    Raises:
      TypeError: if the activation is no function.
      ValueError: if there are fewer than two sizes, or one is no int >= 1.
    """
    if not are_sizes(sizes) or len(sizes) < 2:
        raise ValueError(
            f"bidirectional: expected two or more sizes >= 1, got {sizes!r}."
        )
    check_callable("bidirectional", "activation", activation)
    count = len(sizes) - 1
    functions = [linear, *[activation] * (count - 1), linear]
    upwards = [
        dense(above, f, in_features=below)
        for f, (below, above) in zip(functions, itertools.pairwise(sizes), strict=False)
    ]
    downwards = [
        dense(below, f, in_features=above)
        for f, (below, above) in zip(
            functions[1:], itertools.pairwise(sizes), strict=True
        )
    ]
    reads = (*((i,) for i in range(count + 1)), tuple(range(1, count + 2)))
    return Network((prior(sizes[0]), *upwards, _errors(downwards)), reads)


def _errors(layers: Sequence[Layer]) -> Layer:
    """Predicts `x_l - g_l(x_{l+1})` of all l, side by side, [B, n]."""

    def init(key: jax.Array, *activities: jax.Array) -> Params:
        keys = jax.random.split(key, len(layers))
        return tuple(
            layer.init(own, above)
            for layer, own, above in zip(layers, keys, activities[1:], strict=True)
        )

    def apply(params: Params, *activities: jax.Array) -> jax.Array:
        errors = [
            below - layer.apply(theta, above)
            for layer, theta, (below, above) in zip(
                layers, params, itertools.pairwise(activities), strict=True
            )
        ]
        return jnp.concatenate(errors, axis=1)

    return Layer(init, apply)
