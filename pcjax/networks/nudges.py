"""Clamps that nudge the output a little way from its prediction to the target.

The strength beta may be negative, which nudges away from the target, and traced, as a
schedule of the epoch is. `pcjax.nudged` and `pcjax.centred` make gradients with them.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pcjax.checks import check_real, check_single
from pcjax.networks.outputs import Clamp


def nudge(beta: Any) -> Clamp:
    """The output activity is the feed-forward output, moved towards the target.

    `h_L = u + beta (y - u)`. The outputs `u = sigma(p_L)` are those of the feed-forward
    pass and stay what they were as activities move. `beta = 1` is the full clamp.

    Args:
      beta: a number of either sign, possibly traced.

    Returns:
      A clamp.

    Raises:
      TypeError: if `beta` is not real.
      ValueError: if it is not finite or no single number.

    References:
      Pinchetti et al., 2024, "Benchmarking Predictive Coding Networks -- Made Simple".
    """
    check_beta("nudge", beta)
    return _Nudge(beta)


def free_nudge(beta: Any) -> Clamp:
    """The output activity that minimises `F + beta loss`: equilibrium propagation.

    With half the squared error as loss and a free output, that is between prediction
    and target, `h_L = (sigma(p_L) + beta y) / (1 + beta)`, and moves along with the
    prediction: `soft_clamp(1 / beta)`, of which beta may be negative. As beta goes to
    0, the gradient at equilibrium over beta goes to that of backprop.

    Args:
      beta: a number above -1, possibly traced.

    Returns:
      A clamp.

    Raises:
      TypeError: if `beta` is not real.
      ValueError: if it is not finite, no single number, or -1 or less.

    References:
      Scellier and Bengio, 2017, "Equilibrium Propagation"; Laborieux et al., 2021.
    """
    check_beta("free_nudge", beta)
    if is_known(beta) and np.asarray(beta) <= -1:
        raise ValueError(
            f"free_nudge: beta must be above -1, or the energy has no minimum; got "
            f"{beta}."
        )
    return _FreeNudge(beta)


def check_beta(function: str, beta: Any) -> None:
    """Refuses what is no single real number, and unless traced what is not finite."""
    check_single(function, "beta", beta)
    check_real(function, "beta", beta)
    if is_known(beta) and not np.isfinite(np.asarray(beta)):
        raise ValueError(f"{function}: beta must be finite, got {beta}.")


def is_known(beta: Any) -> bool:
    """Whether beta has a value; that is for NumPy to compare, also inside of a jit."""
    return not isinstance(beta, jax.core.Tracer)


@dataclass(frozen=True)
class _Nudge:
    beta: Any

    def __call__(
        self,
        targets: jax.Array,
        outputs: jax.Array,
        activity: jax.Array,
        first: jax.Array,
    ) -> jax.Array:
        del outputs, activity
        beta = jnp.asarray(self.beta, first.dtype)
        return (1 - beta) * first + beta * targets  # the target, if beta is 1


@dataclass(frozen=True)
class _FreeNudge:
    beta: Any

    def __call__(
        self, targets: jax.Array, outputs: jax.Array, activity: jax.Array
    ) -> jax.Array:
        del activity
        beta = jnp.asarray(self.beta, outputs.dtype)
        return (outputs + beta * targets) / (1 + beta)
