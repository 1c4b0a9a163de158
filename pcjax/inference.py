"""Inference: moving the activities down the free energy (eq. 2).

A method is a number of iterations and an `(init, step)` pair; `infer` drives all
of them with one `lax.scan`. In an iteration every prediction and Jacobian is
that of the activities at its start. Simultaneous and sequential inference differ
in the error a layer receives from above: the old one, or the one that the move
just made of the layer above leaves.

Work: the first prediction comes from the clamped input and is made once; the
forward pass serves as the predictions of the first iteration; every later
iteration makes L-1 predictions and L-1 vector-Jacobian products, and the final
predictions double as the forward half of the weight gradients. The scan starts at
the second iteration so that predictions and the residuals of their
vector-Jacobian products never cross an iteration.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pcjax.checks import check_batch, check_non_negative
from pcjax.energy import (
    Errors,
    Weights,
    decay_weights,
    energy_terms,
    error_weights,
    is_zero,
    weigh,
)
from pcjax.networks import Layer, Network, Params
from pcjax.outputs import Clamp, Output, full_clamp, identity

OptState = Any  # state of the optimizer that moves the activities
Pullback = Callable[[jax.Array], tuple[Any, ...]]


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


class Method(NamedTuple):
    """An inference method.

    Attributes:
      num_steps: the number of iterations T.
      init: `hidden activities (h_1, ..., h_{L-1}) -> optimizer state`.
      step: `(t, state, gradient, optimizer state) -> (updates, optimizer state)`:
        what to add to each hidden activity; `gradient(l, e)` is dF/dh_l [B, ...] if
        `e` stands for `e_{l+1}`.
    """

    num_steps: int
    init: Callable[[Sequence[jax.Array]], OptState]
    step: Callable[..., tuple[tuple[jax.Array, ...], OptState]]


class Inference(NamedTuple):
    """What `infer` returns.

    Attributes:
      initial: the state before the first iteration (feed-forward activities).
      state: the state after the last one.
      trace: whatever `trace` recorded, stacked [T+1, ...]; None without one.
    """

    initial: InferenceState
    state: InferenceState
    trace: Any


class Problem(NamedTuple):
    """The free energy to lower: everything but parameters and data."""

    network: Network
    output: Output
    clamp: Clamp
    gamma: Weights
    decay: Weights


class Run(NamedTuple):
    """An inference together with the pullbacks of its final predictions."""

    inference: Inference
    pullbacks: Sequence[Pullback]  # of p_{l+1} with respect to theta_l


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

    return Method(num_steps, init, step)


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
      ValueError: if T < 1, the step size is negative, or not exactly one of
        `step_size` and `optimizer` is given.
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
        raise ValueError(f"{function}: num_steps must be an int >= 1, got {num_steps}.")
    if (step_size is None) == (optimizer is None):
        raise ValueError(
            f"{function}: expected exactly one of step_size and optimizer, got "
            f"step_size={step_size} and optimizer={optimizer}."
        )
    if optimizer is not None:
        # One optimizer state per example, so that no example sees another.

        def init(hidden):
            return tuple(jax.vmap(optimizer.init)(h) for h in hidden)

        def move(t, slope, opt_state, h):
            del t
            return jax.vmap(optimizer.update)(slope, opt_state, h)

        return init, move

    if not callable(step_size):
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
      TypeError: if inputs or targets are not floats.
      ValueError: if parameters, inputs and targets do not fit the network, the
        batch is empty, or weights are negative.
    """
    check_batch("infer", network, params, inputs, targets)
    problem = Problem(network, output, clamp, gamma, decay)
    return run(problem, method, params, inputs, targets, trace).inference


def run(
    problem: Problem,
    method: Method,
    params: Sequence[Params],
    inputs: jax.Array,
    targets: jax.Array,
    trace: Callable[[InferenceState], Any] | None,
) -> Run:
    """The kernel behind `infer` and `value_and_grad`; checks nothing."""
    record = trace or (lambda state: None)
    bottom, *upper = zip(problem.network.layers, params, strict=True)

    first, pull_first = _linearize_params(*bottom, inputs)
    predictions, pullbacks = [first], []
    for layer, theta in upper:
        prediction, pull = jax.vjp(partial(layer.apply, theta), predictions[-1])
        predictions.append(prediction)
        pullbacks.append(pull)

    start = tuple(predictions[:-1])
    shifts = jax.tree.map(jnp.zeros_like, start)

    def see(shifts, predictions):
        return observe(problem, inputs, targets, start, shifts, predictions)

    def advance(t, state, pullbacks, shifts, opt_state):
        gradient = energy_gradient(problem, state, pullbacks)
        updates, opt_state = method.step(t, state, gradient, opt_state)
        return jax.tree.map(jnp.add, shifts, updates), opt_state

    initial = see(shifts, predictions)
    zero = jnp.zeros((), jnp.int32)
    carry = advance(zero, initial, pullbacks, shifts, method.init(start))

    def iterate(carry, t):
        shifts, opt_state = carry
        hidden = jax.tree.map(jnp.add, start, shifts)
        predictions, pullbacks = zip(
            (first, None),
            *(
                jax.vjp(partial(layer.apply, theta), h)
                for (layer, theta), h in zip(upper, hidden, strict=True)
            ),
            strict=True,
        )
        state = see(shifts, predictions)
        return advance(t, state, pullbacks[1:], shifts, opt_state), record(state)

    steps = jnp.arange(1, method.num_steps, dtype=jnp.int32)
    (shifts, _), rows = jax.lax.scan(iterate, carry, steps)

    hidden = jax.tree.map(jnp.add, start, shifts)
    predictions, pullbacks = zip(
        (first, pull_first),
        *(
            _linearize_params(layer, theta, h)
            for (layer, theta), h in zip(upper, hidden, strict=True)
        ),
        strict=True,
    )
    final = see(shifts, predictions)
    recorded = jax.tree.map(
        lambda start, middle, end: jnp.concatenate(
            [jnp.asarray(start)[None], middle, jnp.asarray(end)[None]]
        ),
        record(initial),
        rows,
        record(final),
    )
    return Run(Inference(initial, final, recorded), pullbacks)


def _linearize_params(
    layer: Layer, params: Params, activity: jax.Array
) -> tuple[jax.Array, Pullback]:
    """The prediction and its vector-Jacobian product with respect to the params."""
    return jax.vjp(lambda theta: layer.apply(theta, activity), params)


def observe(
    problem: Problem,
    inputs: jax.Array,
    targets: jax.Array,
    start: Sequence[jax.Array],
    shifts: Sequence[jax.Array],
    predictions: Sequence[jax.Array],
) -> InferenceState:
    """The state of the hidden activities `start + shifts`: clamps, takes the errors.

    Activities are carried as shifts from their feed-forward values `start`, and a
    hidden error is `shift - (prediction - start)`. It then survives even where it
    is far below the rounding of the activity, as it is in early layers.
    """
    hidden = jax.tree.map(jnp.add, tuple(start), tuple(shifts))
    below = hidden[-1] if hidden else inputs
    logits = predictions[-1]
    outputs = problem.clamp(targets, problem.output.link(logits), below)
    errors = [
        shift - (prediction - origin)
        for shift, prediction, origin in zip(shifts, predictions, start, strict=False)
    ]
    return InferenceState(
        activities=(inputs, *hidden, outputs),
        predictions=tuple(predictions),
        errors=(*errors, problem.output.error(logits, outputs)),
    )


def energy_gradient(
    problem: Problem, state: InferenceState, pullbacks: Sequence[Pullback]
) -> Callable[[int, jax.Array], jax.Array]:
    """`gradient(l, e) = gamma_l e_l + decay_l f'(h_l) f(h_l) - J_l^T gamma_{l+1} e`.

    That is minus the bracket of eq. 2 if `e` is `e_{l+1}`. `pullbacks[l-1]` is that
    of `p_{l+1}` with respect to `h_l`, for l = 1..L-1.
    """
    gammas = error_weights(problem.gamma, state.activities, state.errors)
    decays = decay_weights(problem.decay, state.activities, state.errors)

    def gradient(index: int, error_above: jax.Array) -> jax.Array:
        (pulled,) = pullbacks[index - 1](weigh(gammas[index], error_above))
        total = weigh(gammas[index - 1], state.errors[index - 1]) - pulled
        if not is_zero(decays[index - 1]):
            activation = problem.network.layers[index].activation
            values, pull = jax.vjp(activation, state.activities[index])
            total += weigh(decays[index - 1], pull(values)[0])
        return total

    return gradient


def state_energy(problem: Problem, state: InferenceState) -> jax.Array:
    """The free energy [B] of a state, from what it already holds."""
    terms = energy_terms(
        problem.network,
        *state,
        problem.output,
        error_weights(problem.gamma, state.activities, state.errors),
        decay_weights(problem.decay, state.activities, state.errors),
    )
    return jnp.sum(terms, axis=0)
