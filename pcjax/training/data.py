"""Data sets on the device, and what makes inputs and targets of their images."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pcjax.checks import check_count
from pcjax.numerics.widths import widest


class Data(NamedTuple):
    """A data set on the device, as `device_data` checks it and puts it there.

    Arrays of NumPy will do, too, where the set is not used often.

    Attributes:
      images: uint8 [N, ...].
      labels: int32 [N].
    """

    images: jax.Array
    labels: jax.Array


# (images uint8 [B, ...], labels [B]) -> (inputs [B, ...], targets [B, ...]), floats;
# one that draws numbers has an argument `key=None`, see `augmented`
Prepare = Callable[..., tuple[jax.Array, jax.Array]]


def device_data(images: np.ndarray, labels: np.ndarray, num_classes: int) -> Data:
    """Checks a data set and puts it on the device.

    Args:
      images: uint8 [N, ...].
      labels: integers [N] in [0, num_classes).
      num_classes: the number of classes.

    Returns:
      The images and int32 labels as device arrays.

    Raises:
      TypeError: if images are no array of uint8 or labels none of integers.
      ValueError: if the set is empty, the lengths differ, a label is out of range or
        `num_classes` is no int >= 1.
    """
    check_count("device_data", "num_classes", num_classes)
    kinds = [getattr(x, "dtype", type(x).__name__) for x in (images, labels)]
    if kinds[0] != np.uint8 or not np.issubdtype(
        getattr(labels, "dtype", object), np.integer
    ):
        raise TypeError(
            "device_data: expected uint8 images and integer labels, got "
            f"{kinds[0]} and {kinds[1]}."
        )
    if images.size == 0 or images.ndim == 0 or labels.shape != images.shape[:1]:
        raise ValueError(
            "device_data: expected one label for each of at least one image, got "
            f"images of shape {images.shape} and labels of shape {labels.shape}."
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"device_data: labels must lie in [0, {num_classes}), got values from "
            f"{labels.min()} to {labels.max()}."
        )
    return Data(jnp.asarray(images), jnp.asarray(labels, jnp.int32))


def classification(
    num_classes: int, *, low: float = 0.0, high: float = 1.0, dtype: Any = jnp.float32
) -> Prepare:
    """Scales images to [low, high] and makes one-hot targets of the labels.

    Args:
      num_classes: the number of classes; see `device_data` for the range of labels.
      low: what a black pixel (0) becomes.
      high: what a white pixel (255) becomes.
      dtype: of inputs and targets.

    Returns:
      `prepare(images uint8 [B, ...], labels [B]) -> (inputs [B, ...], targets [B,
      num_classes])`.
    """

    def prepare(images, labels):
        inputs = _scale(images, low, high, dtype)
        return inputs, jax.nn.one_hot(labels, num_classes, dtype=dtype)

    return prepare


def reconstruction(
    *, low: float = 0.005, high: float = 0.995, dtype: Any = jnp.float32
) -> Prepare:
    """Scales images to [low, high], flattens them and asks for them again.

    Args:
      low: what a black pixel (0) becomes.
      high: what a white pixel (255) becomes.
      dtype: of inputs and targets.

    Returns:
      `prepare(images uint8 [B, ...], labels [B]) -> (inputs [B, D], inputs)`.
    """

    def prepare(images, labels):
        del labels
        inputs = _scale(images.reshape(images.shape[0], -1), low, high, dtype)
        return inputs, inputs

    return prepare


def _scale(images, low, high, dtype):
    """Rounds to a narrow `dtype` once, at the end, so that `high` is met."""
    wide = widest(dtype)
    return (images.astype(wide) * ((high - low) / 255) + low).astype(dtype)


def rows(data: Data, index: jax.Array) -> Data:
    """The examples of the given numbers, all of which must exist."""

    def take(x):
        return jnp.asarray(x).at[index].get(mode="promise_in_bounds")

    return jax.tree.map(take, data)


def takes_key(prepare: Prepare) -> bool:
    """Whether a `prepare` draws numbers: has an argument `key`."""
    try:
        parameters = inspect.signature(prepare).parameters
    except (TypeError, ValueError):
        return False
    return "key" in parameters
