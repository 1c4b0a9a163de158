"""Pooling of images, as a part of the convolution below it.

A pool is no layer of its own: it has no weights, and an activity between convolution
and pool would only delay errors. So it knows its own change, as a layer does (`Near`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pcjax.networks.sizes import check_pair


class Pool(NamedTuple):
    """What is put on the images [B, H, W, C] that a convolution predicts.

    Attributes:
      apply: `x -> pooled [B, H', W', C]`.
      change: `(x, d) -> apply(x + d) - apply(x)`, without subtracting the two where d
        may be far below the rounding of x.
    """

    apply: Callable[[jax.Array], jax.Array]
    change: Callable[[jax.Array, jax.Array], jax.Array]


def max_pool(window: tuple[int, int] = (2, 2)) -> Pool:
    """The largest entry of every window; the windows do not overlap.

    Rows and columns that fill no window are left out. Of equal entries each has its
    share of the derivative.

    Args:
      window: height and width.

    Returns:
      A pool for `pcjax.conv`.

    Raises:
      ValueError: if `window` is not two ints >= 1.
    """
    check_pair("max_pool", "window", window)

    def apply(x):
        return jnp.max(_windows(x, window), axis=(2, 4))

    def change(x, d):
        # x less its maximum is exactly 0 where that is, and exact wherever it is near.
        own = _windows(x, window)
        below = own - jnp.max(own, axis=(2, 4), keepdims=True)
        return jnp.max(below + _windows(d, window), axis=(2, 4))

    return Pool(apply, change)


def average_pool(window: tuple[int, int] = (2, 2)) -> Pool:
    """The mean of every window; the windows do not overlap.

    Args:
      window: height and width.

    Returns:
      A pool for `pcjax.conv`.

    Raises:
      ValueError: if `window` is not two ints >= 1.
    """
    check_pair("average_pool", "window", window)

    def apply(x):
        return jnp.mean(_windows(x, window), axis=(2, 4))

    def change(x, d):
        del x
        return apply(d)

    return Pool(apply, change)


def _windows(x: jax.Array, window: tuple[int, int]) -> jax.Array:
    """[B, H', rows, W', columns, C]."""
    (rows, columns), (batch, height, width, channels) = window, x.shape
    down, right = height // rows, width // columns
    whole = x[:, : down * rows, : right * columns]
    return whole.reshape(batch, down, rows, right, columns, channels)
