"""Images changed at random on the device, as a part of `prepare`.

An augmentation is a function of a key and images. Without a key it is what evaluation
sees: no flip, and the middle of an image for a crop.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pcjax.checks import check_callable, check_count
from pcjax.training.data import Prepare, takes_key

# (key or None, images uint8 [B, H, W, C]) -> images [B, H', W', C]
Augmentation = Callable[[jax.Array | None, jax.Array], jax.Array]


def augmented(prepare: Prepare, *augmentations: Augmentation) -> Prepare:
    """Changes raw images at random before they are made inputs.

    `make_epoch` gives every batch a key of its own, which follows from the key of the
    state, the epoch and the iteration; `make_evaluation` gives none.

    >>> from pcjax.training import classification
    >>> prepare = augmented(classification(10), random_flip, padded_crop(4))
    >>> images = jnp.zeros((2, 32, 32, 3), jnp.uint8)
    >>> inputs, targets = prepare(images, jnp.array([3, 1]), key=jax.random.key(0))
    >>> inputs.shape, targets.shape
    ((2, 32, 32, 3), (2, 10))

    Args:
      prepare: makes inputs and targets of what the last augmentation returns.
      *augmentations: `(key or None, images) -> images`, one after the other, each with
        a key of its own.

    Returns:
      `prepare(images uint8 [B, H, W, C], labels [B], key=None)`.

    Raises:
      TypeError: if one is no function.
    """
    for function in (prepare, *augmentations):
        check_callable("augmented", "every argument", function)

    inner = takes_key(prepare)

    def prepare_augmented(images, labels, key=None):
        count = len(augmentations) + inner
        keys = [None] * count if key is None else jax.random.split(key, max(count, 1))
        for own, augment in zip(keys, augmentations, strict=False):
            images = augment(own, images)
        return prepare(images, labels, **({"key": keys[-1]} if inner else {}))

    return prepare_augmented


def normalised(prepare: Prepare, mean: Any, deviation: Any) -> Prepare:
    """Subtracts a mean from every channel of the inputs and divides by a deviation.

    Args:
      prepare: makes the inputs [B, H, W, C].
      mean: [C] numbers, on the scale of these inputs.
      deviation: [C] numbers > 0.

    Returns:
      The same function, with its inputs normalised.

    Raises:
      TypeError: if `prepare` is no function.
      ValueError: if the two are not of equal length, or a deviation is not positive.
    """
    check_callable("normalised", "prepare", prepare)
    shift, scale = (np.asarray(x, np.float64) for x in (mean, deviation))
    if shift.ndim != 1 or shift.shape != scale.shape or not np.all(scale > 0):
        raise ValueError(
            "normalised: expected as many deviations > 0 as means, one per channel, "
            f"got {mean} and {deviation}."
        )

    @wraps(prepare)  # whether it takes a key
    def prepare_normalised(images, labels, **key):
        inputs, targets = prepare(images, labels, **key)
        if inputs.shape[-1:] != shift.shape:
            raise ValueError(
                f"normalised: {len(shift)} means for inputs of shape {inputs.shape}."
            )
        along = (1,) * (inputs.ndim - 1) + (-1,)
        centre, width = (jnp.asarray(x, inputs.dtype) for x in (shift, scale))
        return (inputs - centre.reshape(along)) / width.reshape(along), targets

    return prepare_normalised


def random_flip(key: jax.Array | None, images: jax.Array) -> jax.Array:
    """Mirrors every image from left to right with probability 1/2.

    Args:
      key: a random key; None mirrors nothing.
      images: [B, H, W, C].

    Returns:
      [B, H, W, C], of the same dtype.
    """
    if key is None:
        return images
    flips = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(flips, images[:, :, ::-1], images)


def padded_crop(padding: int) -> Augmentation:
    """Moves every image by up to `padding` pixels, black pixels taking its place.

    That is, a crop of the image's own size out of the image in a black frame, every
    offset being equally likely.

    Args:
      padding: the width of the frame.

    Returns:
      An augmentation.

    Raises:
      ValueError: if `padding` is no int >= 1.
    """
    check_count("padded_crop", "padding", padding)

    def augment(key, images):
        if key is None:
            return images
        frame = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        return _crops(key, jnp.pad(images, frame), images.shape[1:3])

    return augment


def random_crop(height: int, width: int) -> Augmentation:
    """A part of every image, every offset being equally likely.

    Evaluation sees the middle.

    Args:
      height: of the part.
      width: of the part.

    Returns:
      An augmentation.

    Raises:
      ValueError: if a size is no int >= 1; by the augmentation, if the images are
        smaller.
    """
    for name, size in (("height", height), ("width", width)):
        check_count("random_crop", name, size)

    def augment(key, images):
        top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
        if min(top, left) < 0:
            raise ValueError(
                f"random_crop: images of shape {images.shape} hold no part of "
                f"{height} x {width}."
            )
        if key is None:
            return images[:, top : top + height, left : left + width]
        return _crops(key, images, (height, width))

    return augment


def _crops(key: jax.Array, images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """A part [H', W'] of every image, its offset drawn uniformly."""
    room = [
        whole - part + 1 for whole, part in zip(images.shape[1:3], size, strict=True)
    ]
    keys = jax.random.split(key)
    tops, lefts = (
        jax.random.randint(own, (len(images),), 0, count)
        for own, count in zip(keys, room, strict=True)
    )
    cut = partial(jax.lax.dynamic_slice, slice_sizes=(*size, images.shape[3]))
    return jax.vmap(lambda image, top, left: cut(image, (top, left, 0)))(
        images, tops, lefts
    )
