"""Incremental predictive coding (iPC): the weights step at every iteration."""

import jax
import jax.numpy as jnp
import optax

from pcjax.checks import check_batch
from pcjax.energy import Weights
from pcjax.kernel import (
    Method,
    Problem,
    energy_gradient,
    observe,
    state_energy,
)
from pcjax.learning import Info, Update, pulled_gradients
from pcjax.networks import Network
from pcjax.outputs import Clamp, Output, full_clamp, identity


def incremental(
    network: Network,
    method: Method,
    tx: optax.GradientTransformation,
    *,
    output: Output = identity,
    clamp: Clamp = full_clamp,
    gamma: Weights = 1.0,
    decay: Weights = 0.0,
) -> Update:
    """A training iteration in which activities and weights move together.

    At each of the T iterations both step from the same state: the activities by
    `method`, the weights by `tx` on the local gradients (Salvatori et al., 2022).
    One linearisation serves both, so that T iterations of a dense chain cost
    T(3L-1) matrix products, as in the paper's Table 5. From feed-forward
    activities the first iteration changes the weights of the last layer only.

    Args:
      network: a chain of L layers.
      method: `simultaneous(...)` or `sequential(...)`.
      tx: an optax transform of the weight gradients.
      output: link and loss of the last layer.
      clamp: `full_clamp` or `soft_clamp(gamma_L)`.
      gamma: see `free_energy`.
      decay: see `free_energy`.

    Returns:
      `update(params, opt_state, inputs, targets) -> (params, opt_state, (energy,
      info))`. The energy is that of the state before the last iteration's steps; the
      others are as in `value_and_grad`, whose errors it raises.
    """
    problem = Problem(network, output, clamp, gamma, decay)

    def update(params, opt_state, inputs, targets):
        check_batch("incremental", network, params, inputs, targets)
        params = tuple(params)

        def advance(t, state, linearized, shifts, activity_state, params, opt_state):
            pullbacks = [pull for _, pull in linearized]
            pulls = [_part(pull, 1) for pull in pullbacks[1:]]
            gradient = energy_gradient(problem, state, pulls)
            moves, activity_state = method.step(t, state, gradient, activity_state)
            grads = pulled_gradients(problem, state, [_part(p, 0) for p in pullbacks])
            updates, opt_state = tx.update(grads, opt_state, params)
            return (
                jax.tree.map(jnp.add, shifts, moves),
                activity_state,
                optax.apply_updates(params, updates),
                opt_state,
            )

        activity, linearized = inputs, []
        for layer, theta in zip(network.layers, params, strict=True):
            activity, pull = jax.vjp(layer.apply, theta, activity)
            linearized.append((activity, pull))
        start = tuple(prediction for prediction, _ in linearized[:-1])
        shifts = jax.tree.map(jnp.zeros_like, start)

        def see(shifts, linearized):
            predictions = [prediction for prediction, _ in linearized]
            return observe(problem, inputs, targets, start, shifts, predictions)

        initial = see(shifts, linearized)
        zero = jnp.zeros((), jnp.int32)
        carry = advance(
            zero, initial, linearized, shifts, method.init(start), params, opt_state
        )
        initial_energy = state_energy(problem, initial)

        def iterate(carry, t):
            (shifts, activity_state, params, opt_state), _ = carry
            hidden = jax.tree.map(jnp.add, start, shifts)
            linearized = [
                jax.vjp(layer.apply, theta, h)
                for layer, theta, h in zip(
                    network.layers, params, (inputs, *hidden), strict=True
                )
            ]
            state = see(shifts, linearized)
            carry = advance(
                t, state, linearized, shifts, activity_state, params, opt_state
            )
            return (carry, state_energy(problem, state)), None

        steps = jnp.arange(1, method.num_steps, dtype=jnp.int32)
        ((_, _, params, opt_state), energy), _ = jax.lax.scan(
            iterate, (carry, initial_energy), steps
        )
        logits = initial.predictions[-1]
        loss = output.loss(logits, targets)
        info = Info(loss, logits, initial_energy, energy)
        return params, opt_state, (jnp.mean(energy), info)

    return update


def _part(pull, index):
    """The part of a pullback that belongs to argument `index` alone."""
    return lambda cotangent: (pull(cotangent)[index],)
