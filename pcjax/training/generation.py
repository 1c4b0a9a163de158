"""What makes targets of images for networks that have no input."""

from typing import Any

import jax.numpy as jnp

from pcjax.training.data import Prepare, reconstruction


def generation(
    *, low: float = 0.0, high: float = 1.0, dtype: Any = jnp.float32
) -> Prepare:
    """No inputs, and flattened images as targets, for a `pcjax.decoder`.

    Args:
      low: what a black pixel (0) becomes.
      high: what a white pixel (255) becomes.
      dtype: of inputs and targets.

    Returns:
      `prepare(images uint8 [B, ...], labels [B]) -> (inputs [B, 0], targets [B, D])`.
    """
    scaled = reconstruction(low=low, high=high, dtype=dtype)

    def prepare(images, labels):
        targets, _ = scaled(images, labels)
        return targets[:, :0], targets

    return prepare
