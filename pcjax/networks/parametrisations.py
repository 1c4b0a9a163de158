"""How weights are drawn and scaled: a function of where a layer stands.

A parametrisation is `Place -> Scaling`. `standard` is the reference initialisation;
`mupc` keeps activities the same over width and depth, and `depth_mup` what a step of
Adam does to them, too.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pcjax.networks.near import Near
from pcjax.networks.network import Layer


class Place(NamedTuple):
    """Where a layer stands in its network.

    Attributes:
      layer: 0, ..., L-1.
      depth: L.
      skips: whether the hidden layers have skips around them.
    """

    layer: int
    depth: int
    skips: bool


class Scaling(NamedTuple):
    """What becomes of the weights of a layer.

    Attributes:
      draw: `(key, shape, dtype) -> kernel`.
      multiplier: `fan in -> a` of `p = a W f(h)`, the bias aside.
      bias: whether there is one.
    """

    draw: Callable[..., jax.Array]
    multiplier: Callable[[int], float]
    bias: bool


Parametrisation = Callable[[Place], Scaling | None]


def standard(place: Place) -> None:
    """The reference initialisation, U(-1/sqrt(fan in), 1/sqrt(fan in)), no scaling.

    Args:
      place: where the layer stands.

    Returns:
      None: the layer stays as it is.
    """
    del place


def mupc(place: Place) -> Scaling:
    """Depth-muP for predictive coding: weights N(0, 1), no biases, scaled predictions.

    With D and N the fan in, `a = 1/sqrt(D)` in the first layer, `1/sqrt(N L)` in hidden
    layers with skips (`1/sqrt(N)` without) and `1/N` in the output. The variance of
    activities is then the same over width and depth. What one step of Adam changes in
    the logits is not: in hidden layers it grows as `sqrt(N L)`; see `depth_mup`.

    Args:
      place: where the layer stands.

    Returns:
      How its weights are drawn and scaled.

    Reference: second-hand, Innocenti et al., muPC, 2025; Yang et al., Tensor programs
    VI, 2023.
    """
    return Scaling(jax.random.normal, partial(_multiplier, place), bias=False)


def depth_mup(place: Place) -> Scaling:
    """MuPC with hidden weights kept in units in which Adam needs no scaling.

    The same function of freshly drawn weights as `mupc`. Hidden weights are drawn from
    `N(0, 1/a^2)` and multiplied by `a^2`, with the `a` of `mupc`, so that a step of
    Adam, whose entries are of the size of the rate, changes a hidden prediction by
    `1/sqrt(N L)` of what it does there, and the logits alike at every width and depth.

    Args:
      place: where the layer stands.

    Returns:
      How its weights are drawn and scaled.
    """
    if place.layer in (0, place.depth - 1):
        return mupc(place)
    multiplier = partial(_multiplier, place)

    def draw(key, shape, dtype):
        a = multiplier(math.prod(shape[:-1]))
        return jax.random.normal(key, shape, dtype) / jnp.asarray(a, dtype)

    return Scaling(draw, lambda fan_in: multiplier(fan_in) ** 2, bias=False)


def _multiplier(place: Place, fan_in: int) -> float:
    if place.layer == place.depth - 1:
        return 1 / fan_in
    if place.layer and place.skips:
        return 1 / math.sqrt(fan_in * place.depth)
    return 1 / math.sqrt(fan_in)


def parametrised(layer: Layer, scaling: Scaling | None) -> Layer:
    """A `dense` or `conv` layer with its weights drawn and scaled another way.

    For nets of one's own, such as a residual convolutional one:

    >>> import pcjax
    >>> place = Place(layer=1, depth=4, skips=True)
    >>> inner = pcjax.conv(8, (3, 3), (1, 1), activation=jnp.tanh, padding=(1, 1))
    >>> block = pcjax.residual(parametrised(inner, mupc(place)))

    Args:
      layer: one of `pcjax.dense` or `pcjax.conv`.
      scaling: what a parametrisation makes of the layer's place; None leaves the layer
        as it is.

    Returns:
      A layer with the parameter `kernel`, and `bias` if the scaling has one.

    Raises:
      TypeError: if the layer is none of this library's, or (by `init`) has other
        parameters than a kernel and a bias.
    """
    if not isinstance(layer, Layer) or layer.near is None:
        raise TypeError(
            "parametrised: expected a layer of pcjax.dense or pcjax.conv, got "
            f"{layer!r}."
        )
    if scaling is None:
        return layer
    inner = layer.near

    def init(key, inputs):
        shapes = jax.eval_shape(layer.init, key, inputs)
        if not isinstance(shapes, dict) or set(shapes) != {"kernel", "bias"}:
            raise TypeError(
                "parametrised: expected a layer with a kernel and a bias, got one with "
                f"the parameters {shapes}."
            )
        kernel, bias = shapes["kernel"], shapes["bias"]
        params = {"kernel": scaling.draw(key, kernel.shape, kernel.dtype)}
        if scaling.bias:
            params["bias"] = jnp.zeros(bias.shape, bias.dtype)
        return params

    def scaled(params: Any) -> Any:
        kernel = params["kernel"]
        a = scaling.multiplier(math.prod(kernel.shape[:-1]))
        none = jnp.zeros(kernel.shape[-1], kernel.dtype)
        return {"kernel": a * kernel, "bias": params.get("bias", none)}

    def apply(params, inputs):
        return layer.apply(scaled(params), inputs)

    def start(params, inputs):
        return inner.start(scaled(params), inputs)

    def move(params, inputs, shifts, anchor, moved):
        return inner.move(scaled(params), inputs, shifts, anchor, moved)

    def follow(params, first, inputs, anchor):
        assert inner.follow is not None
        return inner.follow(scaled(params), scaled(first), inputs, anchor)

    near = Near(apply, start, move, follow if inner.follow else None)
    return Layer(init, apply, layer.activation, near)
