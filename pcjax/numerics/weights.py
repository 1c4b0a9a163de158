"""Products with weights: numbers, one per example, or one per feature."""

import jax
import jax.numpy as jnp


def weigh(weight: jax.Array | float, values: jax.Array) -> jax.Array:
    """`weight * values`: a number, one per example [B], or one per feature.

    The latter as [1, ...] or [B, ...], where axes may be left out after the first: then
    it is one per channel.
    """
    if jnp.ndim(weight):
        batch, *features = jnp.shape(weight)
        left_out = (1,) * (values.ndim - 1 - len(features))
        weight = jnp.reshape(weight, (batch, *left_out, *features))
    return scaled(weight, values)


def is_zero(weight: jax.Array | float) -> bool:
    """Whether the weight is the number 0 at trace time, its term then absent."""
    return isinstance(weight, int | float) and weight == 0


def scaled(weight: jax.Array | float, values: jax.Array) -> jax.Array:
    """`weight * values`, as jax broadcasts them; 1 is left out."""
    if isinstance(weight, int | float) and weight == 1:
        return values
    return jnp.asarray(weight, values.dtype) * values
