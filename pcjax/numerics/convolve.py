"""The convolution of the conv layers, as the device computes it best."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp


def convolve(
    inputs: jax.Array, kernel: jax.Array, strides: tuple[int, int]
) -> jax.Array:
    """A convolution without padding.

    On a CPU, and wherever filters stride, it is one matrix product with the patches
    of the input, so that both of its gradients are matrix products, too. XLA's own
    gradient of a strided convolution falls back to plain loops on CPUs for some shapes:
    that of the paper's last convolution with respect to its input takes over a hundred
    times as long. On GPUs convolutions of several networks at once become one by
    groups, which is several times as slow for the paper's nets. Filters that do not
    stride keep XLA's convolution there, as their patches would take too much memory.

    Args:
      inputs: [B, H, W, C].
      kernel: [kh, kw, C, features].
      strides: vertical and horizontal.

    Returns:
      [B, (H - kh) // strides[0] + 1, (W - kw) // strides[1] + 1, features].
    """
    if max(strides) > 1 or jax.default_backend() == "cpu":
        return by_product(inputs, kernel, strides)
    return by_xla(inputs, kernel, strides)


def by_xla(
    inputs: jax.Array, kernel: jax.Array, strides: tuple[int, int], dtype: Any = None
) -> jax.Array:
    """`convolve` as XLA's convolution; `dtype` is that of sums and result."""
    return jax.lax.conv_general_dilated(
        inputs,
        kernel,
        window_strides=strides,
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=dtype,
    )


def by_product(
    inputs: jax.Array, kernel: jax.Array, strides: tuple[int, int]
) -> jax.Array:
    """`convolve` as a product of patches [B H' W', kh kw C] with the kernel.

    Rows and columns are first dealt out by their remainder modulo the strides. A tap
    of the filters then sees a block without gaps, and the gradient with respect to the
    input sums blocks of that size, not of the whole image.
    """
    rows, columns, channels, features = kernel.shape
    down, right = strides
    height = (inputs.shape[1] - rows) // down + 1
    width = (inputs.shape[2] - columns) // right + 1
    dealt = {
        place: inputs[:, place[0] :: down, place[1] :: right]
        for place in itertools.product(
            range(min(down, rows)), range(min(right, columns))
        )
    }
    patches = []
    for row, column in itertools.product(range(rows), range(columns)):
        block = dealt[row % down, column % right]
        top, left = row // down, column // right
        patches.append(block[:, top : top + height, left : left + width])
    flat = jnp.concatenate(patches, axis=-1).reshape(-1, rows * columns * channels)
    outputs = flat @ kernel.reshape(-1, features)
    return outputs.reshape(inputs.shape[0], height, width, features)
