"""The convolution of the conv layers, as the device computes it best."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp


def convolve(
    inputs: jax.Array, kernel: jax.Array, strides: tuple[int, int]
) -> jax.Array:
    """A convolution without padding.

    On a CPU it is one matrix product with the patches of the input, so that both of
    its gradients are matrix products, too. XLA's own gradient of a strided convolution
    falls back to plain loops there for some shapes: that of the paper's last
    convolution with respect to its input takes over a hundred times as long.

    Args:
      inputs: [B, H, W, C].
      kernel: [kh, kw, C, features].
      strides: vertical and horizontal.

    Returns:
      [B, (H - kh) // strides[0] + 1, (W - kw) // strides[1] + 1, features].
    """
    if jax.default_backend() == "cpu":
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
    """`convolve` as a product of patches [B H' W', kh kw C] with the kernel."""
    *window, channels, features = kernel.shape
    batch, *size, _ = inputs.shape
    steps = [(n - k) // s + 1 for n, k, s in zip(size, window, strides, strict=True)]
    patches = [
        jax.lax.slice(
            inputs,
            (0, row, column, 0),
            (
                batch,
                row + strides[0] * (steps[0] - 1) + 1,
                column + strides[1] * (steps[1] - 1) + 1,
                channels,
            ),
            (1, *strides, 1),
        )
        for row, column in itertools.product(*map(range, window))
    ]
    rows = jnp.concatenate(patches, axis=-1).reshape(batch * steps[0] * steps[1], -1)
    return (rows @ kernel.reshape(-1, features)).reshape(batch, *steps, features)
