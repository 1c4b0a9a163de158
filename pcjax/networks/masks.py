"""Data of which some elements are missing, of each example its own.

A missing value is a NaN among the targets: it goes with its example through batches,
epochs and devices as any other value, and every clamp hands it on. `observed` marks
what is missing, and an output that is `masked` counts nothing of it.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from pcjax.checks import check_float, check_parts, is_int
from pcjax.networks.outputs import Output, identity, softmax


def observed(targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Targets of which only what the mask shows is known: the others become NaN.

    To be used with an output that is `masked`.

    >>> observed(jnp.array([[1.0, 2.0]]), jnp.array([[True, False]]))
    Array([[ 1., nan]], dtype=float32)

    Args:
      targets: [B, ...] floats. What is under the mask has no influence.
      mask: bool [B, ...], True where the value is observed.

    Returns:
      The targets, NaN where the mask is False.

    Raises:
      TypeError: if targets are no floats, or the mask is not of bools.
      ValueError: if the shapes differ.
    """
    check_float("observed", "targets", targets)
    check_mask("observed", "mask", mask, targets.shape)
    return jnp.where(mask, targets, jnp.asarray(jnp.nan, targets.dtype))


def masked(output: Output = identity, *, axes: int = 0) -> Output:
    """An output for targets some of which are missing (NaN).

    They are left out of the sum that the loss is, and their errors are 0. So they
    enter neither energy nor gradients, and inference is that of the marginal: with half
    the squared error, a free value would rest at its prediction, at no cost.
    The prediction is what completes the data; the clamped activity stays NaN there.

    >>> import pcjax
    >>> output = masked(pcjax.identity)
    >>> known = observed(jnp.array([[3.0, 9.0]]), jnp.array([[True, False]]))
    >>> output.loss(jnp.zeros((1, 2)), known), output.error(jnp.zeros((1, 2)), known)
    (Array([4.5], dtype=float32), Array([[3., 0.]], dtype=float32))

    Args:
      output: link and loss. The loss must be a sum over what can be missing.
      axes: how many of the last axes are one observation: 0 if every element is
        (pixels), 1 for `softmax`, whose classes are missing together.

    Returns:
      An output. Values that are not finite for another reason are taken for missing if
      they are NaN.

    Raises:
      TypeError: if it is no output.
      ValueError: if `axes` is no int >= 0, or 0 for `softmax`; by what runs it, if
        targets have fewer axes than that besides the batch.
    """
    check_parts("masked", output=output)
    if not is_int(axes) or axes < 0:
        raise ValueError(f"masked: axes must be an int >= 0, got {axes!r}.")
    if output == softmax and not axes:
        raise ValueError(
            "masked: the classes of softmax are one observation, expected axes=1; got "
            "axes=0."
        )
    error = _Error(output, axes)
    return Output(output.link, _Loss(output, axes), error)


def check_mask(function: str, name: str, mask: jax.Array, shape: tuple) -> None:
    """Refuses what is no array of bools of the shape."""
    if not hasattr(mask, "dtype") or mask.dtype != jnp.bool_:
        raise TypeError(
            f"{function}: {name} must be an array of bools, got "
            f"{getattr(mask, 'dtype', type(mask).__name__)}."
        )
    if mask.shape != tuple(shape):
        raise ValueError(
            f"{function}: {name} must have the shape {tuple(shape)} of what it masks, "
            f"got {mask.shape}."
        )


@dataclass(frozen=True)
class _Loss:
    """The loss of what is seen, observation by observation."""

    output: Output
    axes: int

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        seen, *filled = _fill(logits, targets, self.axes)
        # Every observation as an example of its own, with one feature at least.
        features = math.prod(logits.shape[logits.ndim - self.axes :])
        losses = self.output.loss(*(x.reshape(-1, features) for x in filled))
        alone = seen.any(axis=range(seen.ndim - self.axes, seen.ndim))
        losses = jnp.where(alone, losses.reshape(alone.shape), 0)
        return jnp.sum(losses, axis=range(1, losses.ndim))


@dataclass(frozen=True)
class _Error:
    """The output error, 0 where nothing is seen."""

    output: Output
    axes: int

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        seen, *filled = _fill(logits, targets, self.axes)
        return jnp.where(seen, self.output.error(*filled), 0)


def _fill(
    logits: jax.Array, targets: jax.Array, axes: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`(seen, logits, targets)`, with zeros where an observation is missing."""
    if axes >= targets.ndim:
        raise ValueError(
            f"masked: axes must be at most {targets.ndim - 1} for targets of shape "
            f"{targets.shape}, got {axes}."
        )
    missing = jnp.isnan(targets).any(
        axis=range(targets.ndim - axes, targets.ndim), keepdims=True
    )
    seen = jnp.broadcast_to(~missing, targets.shape)
    return seen, jnp.where(seen, logits, 0), jnp.where(seen, targets, 0)
