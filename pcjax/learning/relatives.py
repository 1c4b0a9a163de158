"""Relatives of predictive coding whose gradients are multiples of backprop's.

Each is inference by `pcjax.infer`'s kernel with weight gradients taken elsewhere, and
each has its exact oracle in the tests. `delta_l` is backprop's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp

from pcjax.checks import check_non_negative, check_parts, check_single
from pcjax.energy import Weights, error_weights
from pcjax.inference.kernel import Method, Run, run
from pcjax.inference.methods import check_start, simultaneous
from pcjax.inference.state import InferenceState, Problem, state_energy
from pcjax.learning.gradients import GradFn, Info, like_params, pulled_gradients
from pcjax.networks.network import Network, check_batch
from pcjax.networks.outputs import Clamp, Output, full_clamp, identity, losses_of
from pcjax.numerics.compiled import hashable, once_compiled

# `run of inference -> (e_1, ..., e_L)` that the weights learn from
Errors = Callable[[Run], tuple]


def forward_update(
    network: Network,
    method: Method,
    *,
    output: Output = identity,
    clamp: Clamp = full_clamp,
    gamma: Weights = 1.0,
    learning_gamma: Weights | None = None,
) -> GradFn:
    """Weight gradients at the feed-forward inputs of the layers ("forward update").

    Inference moves the activities to `h_l = h^0_l + d_l`, and the weights learn from
    `gamma_l/2 ||h_l - p_l(h^0_{l-1})||^2`, so that the error of a hidden layer is d_l;
    that of the output is the feed-forward one. After `sequential(1, s)` this is
    `s^(L-l)` times backprop in the layer that predicts `h_l`, and so backprop under MQ
    or Adam.

    Args:
      network: L layers, a chain or a graph.
      method: `sequential(...)`, `simultaneous(...)` or any other.
      output: link and loss of the last layer.
      clamp: `full_clamp` or `soft_clamp(gamma_L)`.
      gamma: see `free_energy`.
      learning_gamma: the gammas of the weights' energy; by default `gamma`.

    Returns:
      `grad_fn`, as of `pcjax.value_and_grad`, whose errors it raises.

    Raises:
      TypeError: if network, method, output or clamp is no such thing.

    Reference: second-hand, Qi et al., Training deep predictive coding networks, 2025.
    """
    check_parts("forward_update", network=network, method=method)
    check_parts("forward_update", output=output, clamp=clamp)
    weights = hashable(gamma), 0.0
    problem = Problem(network, output, clamp, *weights, "forward_update")
    learned = gamma if learning_gamma is None else learning_gamma
    return _grad_fn(problem, method, hashable(learned), _moves, None)


def z_il(network: Network, *, output: Output = identity) -> GradFn:
    """Zero-divergence inference learning (Z-IL): backprop by predictive coding.

    Simultaneous inference of L-1 iterations with step 1, where layer l learns at
    iteration L-l, the first at which it has an error, `-delta_l`, and what it reads
    has not moved yet. Equals backprop to rounding.

    Args:
      network: a chain of L layers.
      output: link and loss of the last layer.

    Returns:
      `grad_fn`, as of `pcjax.value_and_grad`, whose errors it raises.

    Raises:
      TypeError: if network or output is no such thing.
      ValueError: if the network is no chain.

    Reference: Song et al., Can the brain do backpropagation?, 2020.
    """
    check_parts("z_il", network=network, output=output)
    if not network.is_chain:
        raise ValueError(
            f"z_il: expected a chain, got layers that read {network.reads}."
        )
    problem = Problem(network, output, full_clamp, 1.0, 0.0, "z_il")
    method = simultaneous(max(1, len(network.layers) - 1), 1.0)
    return _grad_fn(problem, method, 1.0, _first_errors, _errors)


def spiking(alpha: Any = 0.0) -> Weights:
    """Precisions that let one error through at a time (a gamma).

    At iteration t the error `e_{L-t}` has the weight 1 and all others alpha. With
    `alpha = 0`, `simultaneous(L, eta)` and `forward_update(..., learning_gamma=1.0)`,
    hidden layers learn by `(1 - eta) eta^(L-l)` times backprop.

    Args:
      alpha: the weight of the others, >= 0.

    Returns:
      A function of `(activities, errors, t)` for `gamma`.

    Raises:
      ValueError: if alpha is negative, infinite or an array.
    """
    check_single("spiking", "alpha", alpha)
    check_non_negative("spiking", "alpha", alpha)
    return partial(_spike, alpha)


def decaying(rate: Any) -> Weights:
    """Precisions of hidden errors that decay, `gamma_l = exp(-rate t)` (a gamma).

    Early iterations hold the activities near their predictions while the output error
    comes down; later ones let them go.

    Args:
      rate: >= 0.

    Returns:
      A function of `(activities, errors, t)` for `gamma`; the output keeps 1.

    Raises:
      ValueError: if the rate is negative, infinite or an array.
    """
    check_single("decaying", "rate", rate)
    check_non_negative("decaying", "rate", rate)
    return partial(_decay, rate)


def _spike(alpha, activities, errors, t):
    del activities
    count = len(errors)
    return [jnp.where(t == count - layer, 1.0, alpha) for layer in range(1, count + 1)]


def _decay(rate, activities, errors, t):
    del activities
    return [jnp.exp(-rate * t)] * (len(errors) - 1)


def _moves(made: Run) -> tuple:
    """`d_l` of the hidden activities, and the feed-forward error of the output."""
    return (*made.final.shifts, made.inference.initial.errors[-1])


def _errors(state: InferenceState) -> tuple:
    return state.errors


def _first_errors(made: Run) -> tuple:
    """`e_l` after L-l iterations."""
    rows = made.inference.trace
    return tuple(row[len(rows) - index] for index, row in enumerate(rows, start=1))


def _grad_fn(problem, method, learned, errors, trace) -> GradFn:
    def grad_fn(params, inputs, targets, *, hidden=None, key=None):
        name, network = problem.function, problem.network
        check_batch(name, network, params, inputs, targets)
        start = check_start(name, network, params, inputs, hidden, key)
        parts = (problem, method, learned, errors, trace)
        arrays = (tuple(params), inputs, targets, start)
        value, grads = once_compiled(_at_start, parts, arrays)
        return value, like_params(params, grads)

    return grad_fn


def _at_start(problem, method, learned, errors, trace, params, inputs, targets, start):
    """Inference, and weight gradients at the feed-forward activities."""
    made = run(problem, method, params, inputs, targets, trace, start)
    origin, state, t = made.origin, made.inference.state, method.num_steps
    still = origin.everywhere._replace(moved=frozenset())
    view = origin.look(origin.rest(), t, still, of_params=True, of_shifts=False)
    found = errors(made)
    gammas = error_weights(learned, state.activities, found, t, problem.function)
    view = view._replace(state=view.state._replace(errors=found), gammas=gammas)
    energy = state_energy(problem, state, t)
    info = Info(
        loss=losses_of(problem.output, origin.logits, targets),
        logits=origin.logits,
        initial_energy=state_energy(problem, made.inference.initial, 0),
        energy=energy,
        state=state,
    )
    return (jnp.mean(energy), info), pulled_gradients(view)
