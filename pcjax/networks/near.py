"""How inference evaluates layers: by changes since the feed-forward pass."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Anchor = Any  # what a layer keeps of its feed-forward pass, see `Near`


class Near(NamedTuple):
    """How inference evaluates a layer near the feed-forward pass: by changes.

    What inference needs is the change of a prediction, `g(h + d) - g(h)`, of shifts d
    that may be far below the rounding of h. A layer without a `Near` is evaluated twice
    and subtracted, which loses what is below the rounding of its prediction.

    Attributes:
      apply: the `apply` of the layer that this belongs to; a layer whose `apply` was
        replaced by another is evaluated by that.
      start: `(params, *inputs) -> (prediction, anchor)`: `apply`, and whatever of it
        `move` needs again, a pytree.
      move: `(params, inputs, shifts, anchor, moved) -> (prediction, change)`, where
        inputs and shifts are tuples of arrays [B, ...] (None is the shift of the
        clamped input) and `moved` one of bools: of an input whose bool is False the
        shift is known to be zero. `change` is
        `g(inputs + shifts) - g(inputs)`. Of the prediction only the derivatives with
        respect to params and shifts are used.
      follow: None, or `(params, first params, inputs, anchor) -> anchor`: the anchor of
        the same inputs after the params have moved, so that `change` still counts from
        the first prediction. Without it a layer whose params move is evaluated anew.
    """

    apply: Callable[..., jax.Array]
    start: Callable[..., tuple[jax.Array, Anchor]]
    move: Callable[..., tuple[jax.Array, jax.Array]]
    follow: Callable[..., Anchor] | None = None


def near_of(layer: Any) -> Near:
    """The layer's `near`, or one that evaluates it anew and subtracts."""
    if layer.near is not None and layer.near.apply is layer.apply:
        return layer.near

    def start(params, *inputs):
        prediction = layer.apply(params, *inputs)
        return prediction, prediction

    def move(params, inputs, shifts, anchor, moved):
        if not any(moved):
            return layer.apply(params, *inputs), jnp.zeros_like(anchor)
        prediction = layer.apply(params, *map(shifted, inputs, shifts))
        return prediction, changed(prediction, anchor)

    return Near(layer.apply, start, move)


def changed(prediction: jax.Array, first: jax.Array) -> jax.Array:
    """`prediction - first`; 0 where both are infinite, as masked logits are."""
    same = (prediction == first) & ~jnp.isfinite(first)
    return jnp.where(same, 0, prediction - first)


def shifted(h: jax.Array, shift: jax.Array | None) -> jax.Array:
    """An activity moved by its shift; the clamped input has none."""
    return h if shift is None else h + shift
