"""Residual layers and nets, each block one layer."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax

from pcjax.checks import check_callable
from pcjax.networks.layers import dense
from pcjax.networks.near import Near, near_of, shifted
from pcjax.networks.network import Activation, Layer, Network, linear
from pcjax.networks.parametrisations import (
    Parametrisation,
    Place,
    parametrised,
    standard,
)
from pcjax.networks.sizes import are_sizes


def residual(layer: Layer) -> Layer:
    """A layer with a skip inside of its prediction: `p = h + g(theta, h)`.

    >>> import pcjax
    >>> block = residual(pcjax.dense(4, jax.nn.relu))

    Args:
      layer: one that reads a single activity and predicts its shape.

    Returns:
      A layer with the same parameters.

    Raises:
      TypeError: if it is no layer.
      ValueError: if it is a prior, or (by `init` or `apply`) if the shapes differ.
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"residual: expected a layer, got {layer!r}.")
    if layer.source:
        raise ValueError("residual: expected a layer that reads, got a prior.")
    inner = near_of(layer)

    def plus(prediction, inputs):
        if prediction.shape != inputs.shape:
            raise ValueError(
                f"residual: the layer predicts {prediction.shape} from {inputs.shape}; "
                "a skip needs equal shapes."
            )
        return prediction + inputs

    def apply(params, inputs):
        return plus(layer.apply(params, inputs), inputs)

    def start(params, inputs):
        prediction, anchor = inner.start(params, inputs)
        return plus(prediction, inputs), anchor

    def move(params, inputs, shifts, anchor, moved):
        prediction, change = inner.move(params, inputs, shifts, anchor, moved)
        (h,), (d,) = inputs, shifts
        return prediction + shifted(h, d), change if d is None else change + d

    near = Near(apply, start, move, inner.follow)
    return Layer(layer.init, apply, layer.activation, near)


def residual_mlp(
    sizes: Sequence[int],
    activation: Activation = jax.nn.relu,
    *,
    parametrisation: Parametrisation = standard,
    product_dtype: Any = None,
) -> Network:
    """A fully connected residual network: `p_{l+1} = h_l + a_l W_l f(h_l) + b_l`.

    The first layer has neither f nor skip, the last one no skip.

    >>> network = residual_mlp([784, *[128] * 30, 10])

    Args:
      sizes: of the input, the hidden layers, which are all equal, and the output.
      activation: `f` of the hidden layers.
      parametrisation: how weights are drawn and scaled, such as `pcjax.mupc`.
      product_dtype: see `dense`.

    Returns:
      A chain of `len(sizes) - 1` layers.

    Raises:
      TypeError: if `product_dtype` is no float dtype, or an argument no function.
      ValueError: if there are fewer than three sizes, one is no int >= 1, or the hidden
        ones differ.
    """
    if not are_sizes(sizes) or len(sizes) < 3 or len(set(sizes[1:-1])) > 1:
        raise ValueError(
            "residual_mlp: expected three or more positive sizes, the hidden ones all "
            f"equal, got {sizes!r}."
        )
    check_callable("residual_mlp", "activation", activation)
    check_callable("residual_mlp", "parametrisation", parametrisation)
    count, layers = len(sizes) - 1, []
    for index, (below, size) in enumerate(itertools.pairwise(sizes)):
        layer = dense(
            size,
            activation if index else linear,
            in_features=below,
            product_dtype=product_dtype,
        )
        layer = parametrised(layer, parametrisation(Place(index, count, True)))
        layers.append(residual(layer) if 0 < index < count - 1 else layer)
    return Network(layers)
