"""Incremental predictive coding (iPC): the weights step at every iteration."""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from pcjax.checks import check_parts
from pcjax.energy import Weights
from pcjax.inference.kernel import (
    Method,
    Problem,
    at_rest,
    energy_gradient,
    observe,
    predict,
    state_energy,
)
from pcjax.learning.gradients import Info, Update, pulled_gradients
from pcjax.networks.network import Network, check_batch
from pcjax.networks.outputs import Clamp, Output, full_clamp, identity
from pcjax.optimizers.finite import descend


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
    T(3L-1) matrix products, as in the paper's Table 5 (with rounded products,
    `pcjax.precision`, (T-1)(L-1) more for the steps of the weights). From feed-forward
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

    Raises:
      TypeError: if network, method, `tx`, output or clamp is no such thing.
    """
    check_parts("incremental", network=network, method=method, tx=tx)
    check_parts("incremental", output=output, clamp=clamp)
    problem = Problem(network, output, clamp, gamma, decay)

    def update(params, opt_state, inputs, targets):
        check_batch("incremental", network, params, inputs, targets)
        first = params = tuple(params)

        def advance(t, state, linearized, shifts, activity_state, params, opt_state):
            pullbacks = [pull for _, pull in linearized]
            pulls = [_part(pull, 1) for pull in pullbacks[1:]]
            gradient = energy_gradient(problem, state, pulls)
            moves, activity_state = method.step(t, state, gradient, activity_state)
            grads = pulled_gradients(problem, state, [_part(p, 0) for p in pullbacks])
            params, opt_state = descend(tx, grads, opt_state, params)
            shifts = jax.tree.map(jnp.add, shifts, moves)
            return shifts, activity_state, params, opt_state

        activity, linearized, anchors = inputs, [], []
        for layer, theta in zip(network.layers, params, strict=True):
            activity, pull, anchor = jax.vjp(
                partial(predict, layer, None), theta, activity, has_aux=True
            )
            linearized.append((activity, pull))
            anchors.append(anchor)
        start = tuple(prediction for prediction, _ in linearized[:-1])
        shifts = jax.tree.map(jnp.zeros_like, start)
        origin = (inputs, *start)
        anchors[0] = at_rest(anchors[0])

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
            moved = [
                _follow(*of_layer)
                for of_layer in zip(
                    network.layers, anchors, origin, first, params, strict=True
                )
            ]
            linearized = [
                jax.vjp(partial(predict, layer, anchor), theta, h, has_aux=True)[:2]
                for layer, anchor, theta, h in zip(
                    network.layers, moved, params, (inputs, *hidden), strict=True
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


def _follow(layer, anchor, inputs, old, new):
    """The anchor of the same inputs after the params have moved from old to new.

    The weights move by less than bfloat16 resolves of them, as the activities do, so
    their change is multiplied on its own.
    """
    if anchor is None:
        return None
    step = jax.tree.map(jnp.subtract, new, old)
    _, change = layer.near(step, inputs, None)
    return anchor._replace(outputs=anchor.outputs + change.outputs)


def _part(pull, index):
    """The part of a pullback that belongs to argument `index` alone."""
    return lambda cotangent: (pull(cotangent)[index],)
