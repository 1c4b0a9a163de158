"""The kernel of inference: the iterations, and what each of them computes.

In an iteration every prediction and Jacobian is that of the activities at its
start. Work: the first prediction comes from the clamped input and is made once; the
forward pass serves as the predictions of the first iteration; every later iteration
makes L-1 predictions and L-1 vector-Jacobian products, and the final predictions
double as the forward half of the weight gradients. Each stage begins with the
predictions, so that they and the residuals of their vector-Jacobian products never
cross an iteration. Simultaneous inference leaves out the products that are zero
because no error has reached their layer yet.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pcjax.energy import (
    Errors,
    Weights,
    decay_weights,
    energy_terms,
    error_weights,
    is_zero,
    weigh,
)
from pcjax.networks.network import Layer, Network, Params
from pcjax.networks.outputs import Clamp, Output
from pcjax.numerics.precision import Anchor

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
      delayed: whether a layer stands still as long as its gradient is zero, and an
        error takes an iteration to pass one; what is zero is then not computed.
        The optimizer state must then be `()` for every hidden layer.
    """

    num_steps: int
    init: Callable[[Sequence[jax.Array]], OptState]
    step: Callable[..., tuple[tuple[jax.Array, ...], OptState]]
    delayed: bool = False


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
    count = len(upper)  # hidden layers

    first, pull_first = _linearize_params(*bottom, inputs)
    forward: list[tuple[jax.Array, Any]] = [(first, None)]
    anchors: list[Anchor | None] = []
    for layer, theta in upper:
        prediction, pull, anchor = jax.vjp(
            partial(predict, layer, None, theta), forward[-1][0], has_aux=True
        )
        forward.append((prediction, pull))
        anchors.append(anchor)
    delayed = method.delayed and is_zero(problem.decay)
    still = max(0, count - method.num_steps) if delayed else 0  # layers, to the end
    anchors = [at_rest(anchor) for anchor in anchors[:still]] + anchors[still:]
    near = list(zip(upper, anchors, strict=True))
    start = tuple(prediction for prediction, _ in forward[:-1])

    def see(shifts, linearized):
        predictions = [prediction for prediction, _ in linearized]
        return observe(problem, inputs, targets, start, shifts, predictions)

    def iterate(stage, carry, t):
        shifts, opt_state = carry
        hidden = jax.tree.map(jnp.add, start, shifts)
        linearized = forward[: 1 + count - stage.moved] + [
            jax.vjp(partial(predict, layer, anchor, theta), h, has_aux=True)[:2]
            for ((layer, theta), anchor), h in list(zip(near, hidden, strict=True))[
                count - stage.moved :
            ]
        ]
        state = see(shifts, linearized)
        gradient = energy_gradient(problem, state, [pull for _, pull in linearized[1:]])
        # The layers that move are a network of their own above one that stands.
        low = count - stage.moving
        updates, opt_state = method.step(
            t,
            InferenceState(*(values[low:] for values in state)),
            lambda index, error: gradient(low + index, error),
            opt_state if low == 0 else opt_state[low:],
        )
        moved = jax.tree.map(jnp.add, shifts[low:], updates)
        if low:  # a delayed method keeps no state of its layers
            opt_state = ((),) * low + opt_state
        return (shifts[:low] + moved, opt_state), record(state)

    shifts = jax.tree.map(jnp.zeros_like, start)
    initial = see(shifts, forward)
    carry, rows = (shifts, method.init(start)), []
    for stage in _stages(method.num_steps, count, delayed):
        steps = jnp.arange(stage.start, stage.stop, dtype=jnp.int32)
        if len(steps) == 1:
            carry, row = iterate(stage, carry, steps[0])
            rows.append(jax.tree.map(lambda x: jnp.asarray(x)[None], row))
        else:
            carry, row = jax.lax.scan(partial(iterate, stage), carry, steps)
            rows.append(row)

    shifts, _ = carry
    hidden = jax.tree.map(jnp.add, start, shifts)
    predictions, pullbacks = zip(
        (first, pull_first),
        *(
            _linearize_params(layer, theta, h, anchor)
            for ((layer, theta), anchor), h in zip(near, hidden, strict=True)
        ),
        strict=True,
    )
    final = observe(problem, inputs, targets, start, shifts, predictions)
    rows.append(jax.tree.map(lambda x: jnp.asarray(x)[None], record(final)))
    recorded = jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)
    return Run(Inference(initial, final, recorded), pullbacks)


class _Stage(NamedTuple):
    """Iterations that do the same work, `start <= t < stop`.

    Attributes:
      moved: how many hidden layers, from the top, are away from their start.
      moving: how many of them have a non-zero gradient.
    """

    start: int
    stop: int
    moved: int
    moving: int


def _stages(num_steps: int, count: int, delayed: bool) -> Iterator[_Stage]:
    """Divides the iterations by the products that are not known to be zero.

    From feed-forward values, simultaneous inference moves one layer in the first
    iteration, two in the second and so on. Eight such iterations stand alone; from
    then on each stage reaches half as far again as the one before and makes the
    products of its last iteration throughout, so that the program grows no faster
    than the depth of the network.
    """
    if not delayed:
        yield _Stage(0, 1, 0, count)
        if num_steps > 1:
            yield _Stage(1, num_steps, count, count)
        return
    t = 0
    while t < num_steps:
        if t >= count:
            yield _Stage(t, num_steps, count, count)
            return
        stop = min(t + 1 if t < 8 else t + t // 2, num_steps, count)
        yield _Stage(t, stop, stop - 1, stop)
        t = stop


def predict(
    layer: Layer, anchor: Anchor | None, params: Params, inputs: jax.Array
) -> tuple[jax.Array, Anchor | None]:
    """`layer.apply`, or `layer.near` if there is one; and the anchor it goes by."""
    if layer.near is None:
        return layer.apply(params, inputs), None
    return layer.near(params, inputs, anchor)


def at_rest(anchor: Anchor | None) -> Anchor | None:
    """The anchor of a layer whose input never moves, which needs no new product."""
    return None if anchor is None else anchor._replace(inputs=None)


def _linearize_params(
    layer: Layer, params: Params, activity: jax.Array, anchor: Anchor | None = None
) -> tuple[jax.Array, Pullback]:
    """The prediction and its vector-Jacobian product with respect to the params."""
    prediction, pull, _ = jax.vjp(
        lambda theta: predict(layer, anchor, theta, activity), params, has_aux=True
    )
    return prediction, pull


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
