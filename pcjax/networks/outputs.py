"""Output links with their losses, and the ways to clamp the output activity."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pcjax.checks import check_non_negative

# (targets, outputs, activity) -> h_L; outputs = sigma(p_L), activity = h_{L-1}.
Clamp = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Output(NamedTuple):
    """A link sigma on the logits `p_L` and the loss whose gradient is linear in it.

    `error = targets - link(logits)` is minus the gradient of `loss` with respect
    to the logits.

    Attributes:
      link: `logits [B, ...] -> outputs [B, ...]`.
      loss: `(logits, targets) -> [B]`, summed over the features of an example.
    """

    link: Callable[[jax.Array], jax.Array]
    loss: Callable[[jax.Array, jax.Array], jax.Array]

    def error(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """The output error `e_L = targets - link(logits)`, [B, ...]."""
        return targets - self.link(logits)


def _sum_features(values: jax.Array) -> jax.Array:
    return jnp.sum(values, axis=range(1, values.ndim))


def _cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return _sum_features(-targets * jax.nn.log_softmax(logits))


def _binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return _sum_features(optax.sigmoid_binary_cross_entropy(logits, targets))


def _half_squared_error(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return _sum_features(0.5 * (targets - logits) ** 2)


softmax = Output(jax.nn.softmax, _cross_entropy)
"""Classes: softmax over the last axis, cross-entropy; targets are distributions."""

sigmoid = Output(jax.nn.sigmoid, _binary_cross_entropy)
"""Images: sigmoid, binary cross-entropy; targets lie in [0, 1]."""

identity = Output(lambda logits: logits, _half_squared_error)
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
    The authors train with 1/100.

    Args:
      gamma: a number >= 0, possibly traced.

    Returns:
      A clamp.

    Raises:
      TypeError: if `gamma` is not real.
      ValueError: if it is negative or no single number.
    """
    if np.ndim(gamma):
        raise ValueError(
            "soft_clamp: gamma must be a single number, got an array of shape "
            f"{np.shape(gamma)}."
        )
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
