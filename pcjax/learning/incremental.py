"""Incremental predictive coding (iPC): the weights step at every iteration."""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from pcjax.checks import check_parts
from pcjax.energy import Weights
from pcjax.inference.kernel import Method, Start, advance, begin
from pcjax.inference.methods import check_start
from pcjax.inference.origin import Origin
from pcjax.inference.state import Problem, state_energy
from pcjax.learning.gradients import Info, Update, like_params, pulled_gradients
from pcjax.networks.network import Network, check_batch
from pcjax.networks.outputs import Clamp, Output, full_clamp, identity, losses_of
from pcjax.numerics.compiled import hashable, once_compiled
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
    T(3L-1) matrix products, as in the paper's Table 5 (with `product_dtype` of the
    layers (T-1)(L-1) more, for the steps of the weights). From feed-forward activities
    the first iteration changes the weights of the last layer only. Without
    `product_dtype`, errors below the rounding of activities are lost once weights move.

    Args:
      network: L layers, a chain or a graph.
      method: `simultaneous(...)` or `sequential(...)`.
      tx: an optax transform of the weight gradients; one that asks for the loss is
        given the mean free energy of the state as `value=`.
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
    problem = Problem(
        network, output, clamp, hashable(gamma), hashable(decay), "incremental"
    )

    def update(params, opt_state, inputs, targets, *, key=None):
        check_batch("incremental", network, params, inputs, targets)
        start = check_start("incremental", network, params, inputs, None, key)
        arrays = (params, opt_state, inputs, targets, start)
        return once_compiled(_update, (problem, method, tx), arrays)

    return update


def _update(problem, method, tx, params, opt_state, inputs, targets, start: Start):
    origin = Origin(problem, tuple(params), inputs, targets)
    look = partial(method.look, origin)

    def step(t, view, carry, params, opt_state):
        carry = advance(method, t, view, carry)
        grads = like_params(params, pulled_gradients(view))
        value = jnp.mean(state_energy(problem, view.state, t))
        return carry, *descend(tx, grads, opt_state, params, value=value)

    def iterate(carry, t):
        carry, _ = carry
        moved, params, _ = carry
        view = look(moved[0], t, params=tuple(params), of_params=True)
        return (step(t, view, *carry), state_energy(problem, view.state, t)), None

    zero = jnp.zeros((), jnp.int32)
    still = origin.everywhere._replace(moved=frozenset())
    moved = begin(origin, method, start)
    initial = look(moved[0], zero, still, of_params=True)
    initial_energy = state_energy(problem, initial.state, zero)
    carry = step(zero, initial, moved, params, opt_state)
    steps = jnp.arange(1, method.num_steps, dtype=jnp.int32)
    ((_, params, opt_state), energy), _ = jax.lax.scan(
        iterate, (carry, initial_energy), steps
    )
    loss = losses_of(problem.output, origin.logits, targets)
    info = Info(loss, origin.logits, initial_energy, energy)
    return params, opt_state, (jnp.mean(energy), info)
