"""Layers for graphs: sums of layers that read an activity each, and skips."""

import jax
import jax.numpy as jnp

from pcjax.networks.near import Near, near_of, shifted
from pcjax.networks.network import Layer, linear


def add(*layers: Layer) -> Layer:
    """A layer of a graph: the sum of layers, each of which reads one activity.

    `p = sum_k g_k(theta_k, h_k)`. A residual block whose skip is an edge of its own:

    >>> import pcjax
    >>> block = add(pcjax.dense(4, jax.nn.relu), skip())
    >>> network = pcjax.Network(
    ...     (pcjax.dense(4), pcjax.dense(4, jax.nn.relu), block),
    ...     reads=((0,), (1,), (2, 1)),
    ... )

    Args:
      *layers: one for each activity read, in the order of `Network.reads`; all predict
        the same shape.

    Returns:
      A layer whose parameters are a tuple of theirs. Its `activations` are theirs, so
      that the decay of an activity is by that of the layer that reads it.

    Raises:
      TypeError: if one is no layer.
      ValueError: if there is none, one is a prior, or (by `init` or `apply`) as many
        activities are not read, or the predictions differ in shape.
    """
    for index, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(f"add: expected layers, got {layer!r} at {index}.")
        if layer.source:
            raise ValueError(
                f"add: layer {index} is a prior, which reads nothing; expected layers "
                "that read one activity each."
            )
    if not layers:
        raise ValueError("add: expected one layer or more, got none.")

    def each(inputs):
        if len(inputs) != len(layers):
            raise ValueError(
                f"add: {len(layers)} layers read one activity each, but "
                f"{len(inputs)} were given."
            )
        return zip(layers, inputs, strict=True)

    def total(parts):
        first, *others = parts
        for part in others:
            if part.shape != first.shape:
                raise ValueError(
                    "add: all layers must predict the same shape, got "
                    f"{[part.shape for part in parts]}."
                )
            first = first + part
        return first

    def init(key, *inputs):
        keys = jax.random.split(key, len(layers))
        return tuple(
            layer.init(k, h) for k, (layer, h) in zip(keys, each(inputs), strict=True)
        )

    def apply(params, *inputs):
        return total(
            [
                layer.apply(theta, h)
                for theta, (layer, h) in zip(params, each(inputs), strict=True)
            ]
        )

    near = _near_sum(layers, apply, each, total)
    functions = tuple(layer.activation for layer in layers)
    several = functions if len(layers) > 1 else None
    return Layer(init, apply, functions[0], near, activations=several)


def _near_sum(layers, apply, each, total) -> Near:
    """`Near` of a sum: the sum of the changes of its parts."""
    parts = [near_of(layer) for layer in layers]

    def start(params, *inputs):
        pairs = [
            part.start(theta, h)
            for part, theta, (_, h) in zip(parts, params, each(inputs), strict=True)
        ]
        return total([p for p, _ in pairs]), tuple(anchor for _, anchor in pairs)

    def move(params, inputs, shifts, anchor, moved):
        pairs = [
            part.move(theta, (h,), (d,), kept, (goes,))
            for part, theta, h, d, kept, goes in zip(
                parts, params, inputs, shifts, anchor, moved, strict=True
            )
        ]
        return total([p for p, _ in pairs]), total([change for _, change in pairs])

    def follow(params, first, inputs, anchor):
        return tuple(
            part.follow and part.follow(theta, old, (h,), kept)
            for part, theta, old, h, kept in zip(
                parts, params, first, inputs, anchor, strict=True
            )
        )

    can_follow = all(part.follow for part in parts)
    return Near(apply, start, move, follow if can_follow else None)


def skip() -> Layer:
    """The layer that hands its input on, without parameters: `p = h`.

    Returns:
      A layer for `add`.
    """

    def start(params, inputs):
        del params
        return inputs, None

    def move(params, inputs, shifts, anchor, moved):
        del params, anchor, moved
        (h,), (d,) = inputs, shifts
        return shifted(h, d), jnp.zeros_like(h) if d is None else d

    def follow(params, first, inputs, anchor):
        del params, first, inputs
        return anchor

    def apply(params, inputs):
        del params
        return inputs

    near = Near(apply, start, move, follow)
    return Layer(lambda key, inputs: {}, apply, linear, near)
