"""The problem that inference solves, and the state of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pcjax.energy import (
    Errors,
    Weights,
    decay_weights,
    energy_terms,
    error_weights,
)
from pcjax.networks.network import Network
from pcjax.networks.outputs import Clamp, Output


class InferenceState(NamedTuple):
    """Activities with the predictions and errors they give.

    Attributes:
      activities: `(h_0, ..., h_L)`, each [B, ...].
      predictions: `(p_1, ..., p_L)`, the last one being logits.
      errors: `(e_1, ..., e_L)`.
    """

    activities: tuple[jax.Array, ...]
    predictions: tuple[jax.Array, ...]
    errors: Errors


class Problem(NamedTuple):
    """The free energy to lower: everything but parameters and data."""

    network: Network
    output: Output
    clamp: Clamp
    gamma: Weights
    decay: Weights
    function: str = "infer"  # whom error texts name


def state_energy(
    problem: Problem, state: InferenceState, t: jax.Array | int | None = None
) -> jax.Array:
    """The free energy [B] of a state after t iterations, from what it already holds."""
    weights = (state.activities, state.errors, t, problem.function)
    terms = energy_terms(
        problem.network,
        *state,
        problem.output,
        error_weights(problem.gamma, *weights),
        decay_weights(problem.decay, *weights),
    )
    return jnp.sum(terms, axis=0)
