"""Values that XLA stores once for all readers, or uses no earlier than others."""

import jax
import jax.numpy as jnp


def kept(x: jax.Array) -> jax.Array:
    """`x` to the bit, which XLA does not compute anew for each of its readers.

    In a sweep through skip connections each error is a number times a sum in which that
    of the layer above stands. XLA copies an operation of one array into all that read
    it, with all that is fused into it, so that the last of L errors would hold all L,
    and L layers cost L^2. It does not copy what has several operands; this has, since
    XLA does not take `x == x` for granted.

    >>> kept(jnp.array([1.0, jnp.nan, jnp.inf]))
    Array([ 1., nan, inf], dtype=float32)

    Args:
      x: [...], floats.
    """
    return jnp.where(x == x, x, jnp.nan)


def after(x: jax.Array, y: jax.Array) -> jax.Array:
    """`x` to the bit, for use once `y` is known; NaN where y is.

    Of what is known early XLA may make all that can be made of it, and hold that: the
    gradients of all weights, of errors that are known before the activities.

    >>> after(jnp.array([1.0, 2.0]), jnp.array([0.0, jnp.nan]))
    Array([ 1., nan], dtype=float32)

    Args:
      x: [...], floats.
      y: [...], the same shape.
    """
    return jnp.where(y == y, x, jnp.nan)
