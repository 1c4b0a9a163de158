"""What each example's own weight update does, without a copy of the weights.

A dense layer learns from one example by the outer product of an error and an activity
(eq. 4): with `phi_l = (f(h_l), 1)`, the 1 being what the bias multiplies,

    delta theta_l = alpha_l e_{l+1} phi_l^T
    ||delta theta_l||^2 = alpha_l^2 ||e_{l+1}||^2 ||phi_l||^2

and the feed-forward activities after it, `h'_0 = x`, are those of the old weights plus
a multiple of the error, layer by layer:

    h'_{l+1} = W_l f(h'_l) + b_l + alpha_l (phi_l . phi'_l) e_{l+1}

So the loss after the update costs as much as the forward pass of a batch. The gammas
of eq. 1 are 1 here; others go into the step sizes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pcjax.inference.state import InferenceState
from pcjax.networks.network import Network, Params
from pcjax.numerics.weights import weigh
from pcjax.optimizers.normalised import normalised_step_size, squared_norms

# The step sizes alpha_0..alpha_{L-1} at a state, numbers or [B] each.
StepRule = Callable[[InferenceState], Sequence[jax.Array | float]]


class OwnUpdates(NamedTuple):
    """What is left of a network when each example has updated it for itself.

    Attributes:
      logits: [B, n], of every example after its own update.
      squared_norms: [L, B], `||delta theta_l||^2` of weights and bias together.
    """

    logits: jax.Array
    squared_norms: jax.Array


def own_updates(
    network: Network,
    params: Sequence[Params],
    state: InferenceState,
    steps: Sequence[jax.Array | float],
) -> OwnUpdates:
    """Updates the weights by every example of a state on its own.

    Args:
      network: a chain of L dense layers, as `pcjax.mlp` makes it.
      params: their parameters.
      state: activities, predictions and errors of B examples.
      steps: the L step sizes alpha_l, a number or [B] each.

    Returns:
      Logits and squared norms.

    Raises:
      ValueError: if a layer is not dense, or the steps are not L.
    """
    _check(network, params, steps)
    norms = squared_norms(network, state.activities)  # ||phi_l||^2
    squares = []
    activity = state.activities[0]
    for index, (layer, theta) in enumerate(zip(network.layers, params, strict=True)):
        error = state.errors[index]
        step = jnp.asarray(steps[index], error.dtype)
        # The input is clamped, so that the first product is there already.
        old = layer.apply(theta, activity) if index else state.predictions[0]
        phi = _flat(layer.activation(state.activities[index]))
        overlap = 1 + jnp.sum(phi * _flat(layer.activation(activity)), axis=1)
        activity = old + weigh(step * overlap, error)
        squares.append(step**2 * jnp.sum(error**2, axis=1) * norms[index])
    return OwnUpdates(activity, jnp.stack(squares))


def optimizer_steps(
    tx: optax.GradientTransformation, opt_state: Any, params: Sequence[Params]
) -> StepRule:
    """The step sizes of an optimizer that multiplies a layer's gradient by a number.

    That is what SGD and MQ do: MQ's `alpha_l / (v_l + r) + alpha_min`, with the v_l of
    its state (eq. 7). The number is read off the update of a gradient of ones.
    """
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), opt_state, params)
    steps = [-update["bias"][0] for update in updates]
    return lambda state: steps


def normalised_steps(network: Network) -> StepRule:
    """The step sizes `1 / ||phi_l||^2`, each example's own."""

    def rule(state: InferenceState) -> list[jax.Array]:
        return [
            normalised_step_size(norm)
            for norm in squared_norms(network, state.activities)
        ]

    return rule


def _flat(values: jax.Array) -> jax.Array:
    return values.reshape(len(values), -1)


def _check(network: Network, params: Sequence[Params], steps: Sequence[Any]) -> None:
    count = len(network.layers)
    if len(steps) != count or len(params) != count:
        raise ValueError(
            f"own_updates: a network of {count} layers has {count} params and steps, "
            f"got {len(params)} and {len(steps)}."
        )
    for index, theta in enumerate(params):
        dense = isinstance(theta, dict) and set(theta) == {"kernel", "bias"}
        if not dense or jnp.ndim(theta["kernel"]) != 2:
            raise ValueError(
                "own_updates: expected dense layers, whose params are a kernel [in, "
                f"out] and a bias [out], but those of layer {index} are "
                f"{jax.tree.map(jnp.shape, theta)}."
            )
