"""Sums over whole arrays, as fast as memory allows."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def sum_magnitudes(array: Any, dtype: Any) -> jax.Array:
    """Returns the sum of `|array|`, accumulated in `dtype`; NaN if an entry is.

    Its derivative is that of `jnp.abs`: the sign of the entries, 1 where they are 0.
    """
    array = jnp.asarray(array, dtype)
    if array.size < 2**14 or array.size % 8 or not on_one_cpu():
        return jnp.sum(jnp.abs(array))
    return _sum_side_by_side(array)


@jax.custom_jvp
def _sum_side_by_side(array: jax.Array) -> jax.Array:
    # XLA's CPU code stores |array| before it adds, and adds the entries of a row one
    # after the other. It does neither if the magnitudes are taken inside the sum,
    # and if there are sums enough side by side: for all cores, times a few vectors.
    lanes, length = math.gcd(array.size, 32), array.shape[-1]
    rows = array.size // length
    if length % (8 * lanes):  # rows too short to be worth sums of their own
        rows = math.gcd(array.size // lanes, 256)
    sums = lax.reduce(  # of two or more entries each: one alone would keep its sign
        array.reshape(rows, -1, lanes),
        np.zeros((), array.dtype),
        lambda x, y: lax.abs(x) + lax.abs(y),
        (1,),
    )
    return jnp.sum(sums)


# jax would take the derivative of every addition of the sum.
@_sum_side_by_side.defjvp
def _sum_of_signed(primals, tangents):
    (array,), (tangent,) = primals, tangents
    return _sum_side_by_side(array), jnp.sum(jnp.where(array >= 0, tangent, -tangent))


def on_one_cpu() -> bool:
    """Whether programs run on a single CPU device.

    Several devices could not add up their partial sums of magnitudes that way, and a
    GPU has no need of it.
    """
    return jax.default_backend() == "cpu" and jax.device_count() == 1
