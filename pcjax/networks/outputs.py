"""Output links with their losses, and the ways to clamp the output activity."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pcjax.checks import check_non_negative, check_single
from pcjax.numerics.widths import widest

# (targets, outputs, activity) -> h_L; outputs = sigma(p_L), activity = h_{L-1}. If it
# has such arguments, also `t`, the iteration, and `first`, the feed-forward outputs.
Clamp = Callable[..., jax.Array]


class Output(NamedTuple):
    """A link sigma on the logits `p_L`, and the loss of the logits.

    Any loss will do, whatever the link:

    >>> def huber(logits, targets):
    ...     return jnp.sum(optax.huber_loss(logits, targets), axis=1)
    >>> output = Output(lambda logits: logits, huber)
    >>> output.error(jnp.array([[0.0, 9.0]]), jnp.array([[0.5, 0.0]]))
    Array([[ 0.5, -1. ]], dtype=float32)

    Attributes:
      link: `logits [B, ...] -> outputs [B, ...]`, what a soft clamp mixes with targets.
      loss: `(logits, targets) -> [B]`, summed over the features of an example.
      closed_error: None, or a closed form `(logits, targets) -> [B, ...]` of minus the
        gradient of the loss with respect to the logits.
    """

    link: Callable[[jax.Array], jax.Array]
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    closed_error: Callable[[jax.Array, jax.Array], jax.Array] | None = None

    def error(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """The output error `e_L`, minus the gradient of the loss, [B, ...]."""
        if self.closed_error is not None:
            return self.closed_error(logits, targets)
        losses, pull = jax.vjp(lambda x: self.loss(x, targets), logits)
        return -pull(jnp.ones_like(losses))[0]


def losses_of(output: Output, logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The loss of each example, [B], in float32 at least."""
    found = output.loss(*widened(logits, targets))
    if jnp.shape(found) != logits.shape[:1]:
        raise ValueError(
            "output: the loss must be one number for each of the "
            f"{len(logits)} examples, [{len(logits)}]; got shape {jnp.shape(found)}."
        )
    return found


def widened(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays in a dtype that holds all of them, float32 at least.

    Losses and energies of half-precision networks are sums that would overflow or
    round.
    """
    dtype = widest(*(array.dtype for array in arrays))
    return tuple(array.astype(dtype) for array in arrays)


def _sum_features(values: jax.Array) -> jax.Array:
    return jnp.sum(values, axis=range(1, values.ndim))


def _cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    # A class that is masked by a logit of -inf counts nothing without a target.
    terms = jnp.where(targets == 0, 0, targets * jax.nn.log_softmax(logits))
    return -_sum_features(terms)


def _binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return _sum_features(optax.sigmoid_binary_cross_entropy(logits, targets))


def _half_squared_error(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return _sum_features(0.5 * (targets - logits) ** 2)


def _residual(link: Callable) -> Callable:
    """`targets - link(logits)`, the error of a loss that matches its link."""
    return lambda logits, targets: targets - link(logits)


def _linear_link(logits: jax.Array) -> jax.Array:
    return logits


softmax = Output(jax.nn.softmax, _cross_entropy, _residual(jax.nn.softmax))
"""Classes: softmax over the last axis, cross-entropy; targets are distributions."""

sigmoid = Output(jax.nn.sigmoid, _binary_cross_entropy, _residual(jax.nn.sigmoid))
"""Images: sigmoid, binary cross-entropy; targets lie in [0, 1]."""

identity = Output(_linear_link, _half_squared_error, _residual(_linear_link))
"""Regression: no link, half the squared error."""


def full_clamp(
    targets: jax.Array, outputs: jax.Array, activity: jax.Array
) -> jax.Array:
    """The output activity is the target: `h_L = y`.

    Args:
      targets: [B, ...], `y`.
      outputs: [B, ...], `sigma(p_L)`; unused.
      activity: [B, ...], `h_{L-1}`; unused.

    Returns:
      `targets`.
    """
    del outputs, activity
    return targets


def soft_clamp(gamma: Any) -> Clamp:
    """The output activity lies between target and prediction (eq. 3).

    `h_L = (y + gamma sigma(p_L)) / (1 + gamma)`; `gamma = 0` is the full clamp.
    The authors train with 1/100. `soft_clamp(1 / beta)` is the nudging of equilibrium
    propagation, `free_nudge(beta)`.

    Args:
      gamma: a number >= 0, possibly traced.

    Returns:
      A clamp.

    Raises:
      TypeError: if `gamma` is not real.
      ValueError: if it is negative or no single number.
    """
    check_single("soft_clamp", "gamma", gamma)
    check_non_negative("soft_clamp", "gamma", gamma)

    return _SoftClamp(gamma)


@dataclass(frozen=True)
class _SoftClamp:
    gamma: Any

    def __call__(
        self, targets: jax.Array, outputs: jax.Array, activity: jax.Array
    ) -> jax.Array:
        del activity
        weight = jnp.asarray(self.gamma, outputs.dtype)
        return (targets + weight * outputs) / (1 + weight)
