"""Inference: moving the activities down the free energy (eq. 2).

A method is a number of iterations and an `(init, step)` pair; `infer` drives all
of them. Simultaneous and sequential inference differ in the error a layer receives
from above: the old one, or the one that the move just made of the layer above
leaves.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pcjax.checks import check_non_negative, check_parts
from pcjax.energy import Weights
from pcjax.inference.kernel import Inference, InferenceState, Method, Problem, run
from pcjax.networks.network import Network, Params, check_batch
from pcjax.networks.outputs import Clamp, Output, full_clamp, identity


def simultaneous(
    num_steps: int,
    step_size: optax.ScalarOrSchedule | None = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """Standard inference: all layers move at once, given the same errors (Jacobi).

    An error travels down one layer an iteration. Arguments and errors are those of
    `sequential`.
    """
    init, move = _mover("simultaneous", num_steps, step_size, optimizer)

    def step(t, state, gradient, opt_state):
        moves = []
        for index, h in enumerate(state.activities[1:-1]):
            slope = gradient(index + 1, state.errors[index + 1])
            moves.append(move(t, slope, opt_state[index], h))
        return tuple(d for d, _ in moves), tuple(s for _, s in moves)

    return Method(num_steps, init, step, delayed=optimizer is None)


def sequential(
    num_steps: int,
    step_size: optax.ScalarOrSchedule | None = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """Sequential inference (SeqIL): layers move from the last to the first.

    Each layer uses the error that the move just made above it has left
    (Gauss-Seidel), so that one iteration reaches every layer.

    >>> method = sequential(num_steps=3, step_size=0.05)

    Args:
      num_steps: the number of iterations T >= 1, static.
      step_size: `eps` of `h_l <- h_l - eps dF/dh_l` (eq. 2): a number >= 0, traced
        or not, or an optax schedule of the iteration t = 0..T-1.
      optimizer: an optax transform to move the activities instead, learning rate
        and sign included; applied to each example and layer on its own.

    Returns:
      A method for `infer`, `value_and_grad` and `incremental`.

    Raises:
      ValueError: if T < 1, the step size is negative or infinite, or not exactly one of
        `step_size` and `optimizer` is given.
      TypeError: if the step size is not real, or the optimizer is no transform.
    """
    init, move = _mover("sequential", num_steps, step_size, optimizer)

    def step(t, state, gradient, opt_state):
        moves = []
        error_above = state.errors[-1]
        for index, h in reversed(list(enumerate(state.activities[1:-1]))):
            slope = gradient(index + 1, error_above)
            moves.append(move(t, slope, opt_state[index], h))
            error_above = state.errors[index] + moves[-1][0]
        return tuple(d for d, _ in moves[::-1]), tuple(s for _, s in moves[::-1])

    return Method(num_steps, init, step)


def _mover(function, num_steps, step_size, optimizer):
    """`(init, move)` of one layer's activity, moved by a step size or a transform."""
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(
            f"{function}: num_steps must be an int >= 1, got {num_steps!r}."
        )
    if (step_size is None) == (optimizer is None):
        raise ValueError(
            f"{function}: expected exactly one of step_size and optimizer, got "
            f"step_size={step_size} and optimizer={optimizer}."
        )
    if optimizer is not None:
        check_parts(function, optimizer=optimizer)
        # One optimizer state per example, so that no example sees another.

        def init(hidden):
            return tuple(jax.vmap(optimizer.init)(h) for h in hidden)

        def move(t, slope, opt_state, h):
            del t
            return jax.vmap(optimizer.update)(slope, opt_state, h)

        return init, move

    if not callable(step_size):
        if np.ndim(step_size):
            raise ValueError(
                f"{function}: step_size must be a number or a schedule, got an array "
                f"of shape {np.shape(step_size)}."
            )
        check_non_negative(function, "step_size", step_size)

    def init_nothing(hidden):
        return ((),) * len(hidden)

    def descend(t, slope, opt_state, h):
        del h
        eps = step_size(t) if callable(step_size) else step_size
        return -jnp.asarray(eps, slope.dtype) * slope, opt_state

    return init_nothing, descend


def infer(
    network: Network,
    method: Method,
    params: Sequence[Params],
    inputs: jax.Array,
    targets: jax.Array,
    *,
    output: Output = identity,
    clamp: Clamp = full_clamp,
    gamma: Weights = 1.0,
    decay: Weights = 0.0,
    trace: Callable[[InferenceState], Any] | None = None,
) -> Inference:
    """Runs inference from the feed-forward activities.

    Every example moves by its own free energy: its result does not depend on the
    batch it is in.

    Args:
      network: a chain of L layers.
      method: `simultaneous(...)`, `sequential(...)` or a user's own.
      params: the network's parameters.
      inputs: [B, ...] floats, the clamped `h_0`.
      targets: shaped like the logits, floats.
      output: link and loss of the last layer.
      clamp: how targets and outputs make `h_L`, at the start and after every
        iteration.
      gamma: see `free_energy`; a function is called at every iteration.
      decay: see `free_energy`.
      trace: a function of an `InferenceState` whose result is recorded before the
        first and after every iteration, always at the same point of it.

    Returns:
      Initial and final state, and the trace.

    Raises:
      TypeError: if inputs, targets or parameters are not floats, weights not real, or
        network, method, output or clamp is no such thing.
      ValueError: if parameters, inputs and targets do not fit the network, the
        batch is empty, or weights are negative or infinite.
    """
    check_parts("infer", method=method, output=output, clamp=clamp)
    check_batch("infer", network, params, inputs, targets)
    problem = Problem(network, output, clamp, gamma, decay)
    return run(problem, method, params, inputs, targets, trace).inference
