"""The kernel of inference: the loop over iterations, and the methods it runs.

In an iteration every prediction and Jacobian is that of the activities at its start.
Work: the first prediction comes from the clamped input and is made once; the forward
pass serves as the predictions of the first iteration; every later iteration makes L-1
predictions and L-1 vector-Jacobian products, and the final predictions double as the
forward half of the weight gradients. Each stage begins with the predictions, so that
they and the residuals of their vector-Jacobian products never cross an iteration.
Simultaneous inference leaves out the products that are zero because no error has
reached their layer yet.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pcjax.inference.front import Front, fronts
from pcjax.inference.keys import example_keys
from pcjax.inference.origin import Origin, View
from pcjax.inference.state import InferenceState, Problem
from pcjax.networks.network import Params
from pcjax.numerics.weights import is_zero

OptState = Any  # state of what moves the activities
Trace = Callable[[InferenceState], Any]


class Method(NamedTuple):
    """An inference method.

    Attributes:
      num_steps: the number of iterations T.
      init: `hidden activities (h_1, ..., h_{L-1}) -> state of the method`.
      step: `(t, state, gradient, method's state) -> (updates, method's state)`: what to
        add to each hidden activity. `gradient(l, errors)` is dF/dh_l [B, ...] if the
        errors were `(e_1, ..., e_L)`, those of the state or what moves already made
        have left of them.
      delayed: whether an activity stands still as long as its gradient is zero, and an
        error takes an iteration to pass a layer; what is zero is then not computed, and
        `gradient` and the update of such an activity are None.
      look: `Origin.look`, if the updates are of the activities, or `Origin.rebuild`, if
        they are of the errors and activities follow from these.
      random: whether `init` is called with random keys, too: `(hidden, keys)`, one key
        per example, [B].
      prepare: None, or `(method's state, see, place) -> method's state`, called once at
        the place where inference starts; `see(place)` is the `View` of any place.
    """

    num_steps: int
    init: Callable[..., OptState]
    step: Callable[..., tuple[tuple[jax.Array | None, ...], OptState]]
    delayed: bool = False
    random: bool = False
    look: Callable[..., View] = Origin.look
    prepare: Callable[..., OptState] | None = None


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


class Start(NamedTuple):
    """What a batch may bring along besides inputs and targets.

    Attributes:
      hidden: `(h_1, ..., h_{L-1})` to start from; None is the feed-forward pass.
      key: a random key for methods that need one; None draws from the data.
    """

    hidden: tuple[jax.Array, ...] | None = None
    key: jax.Array | None = None


class Run(NamedTuple):
    """An inference together with its origin and the view of its last state."""

    inference: Inference
    origin: Origin
    final: View  # its pulls are of the params


def moves_errors(function: str, method: Method) -> bool:
    """Whether the errors are what a method moves; refuses one that holds elements.

    For what looks at all coordinates by itself, and would move what is held.
    """
    if method.look not in (Origin.look, Origin.rebuild):
        raise ValueError(
            f"{function}: expected a method that moves every hidden activity or error, "
            "got one that holds some of them (pcjax.held)."
        )
    return method.look is Origin.rebuild


def begin(
    origin: Origin, method: Method, start: Start
) -> tuple[tuple[jax.Array, ...], OptState]:
    """What the method moves, and its state, before the first iteration."""
    shifts, hidden = origin.rest(), origin.start
    if start.hidden is not None:
        hidden = tuple(start.hidden)
        shifts = jax.tree.map(jnp.subtract, hidden, origin.start)
        if method.look is Origin.rebuild:
            shifts = origin.look(shifts, 0).state.errors[:-1]
    random = method.random
    keys = (example_keys(start.key, origin, start.hidden),) if random else ()
    opt_state = method.init(hidden, *keys)
    if method.prepare is not None:
        see = partial(method.look, origin, t=0)
        opt_state = method.prepare(opt_state, see, shifts)
    return shifts, opt_state


def advance(
    method: Method, t: jax.Array, view: View, carry: tuple[Any, OptState]
) -> tuple[tuple[jax.Array, ...], OptState]:
    """One iteration of a method: new shifts and its new state."""
    shifts, opt_state = carry
    updates, opt_state = method.step(t, view.state, view.gradient, opt_state)
    expected = [shift.shape for shift in shifts]
    given = [None if u is None else jnp.shape(u) for u in updates]
    if len(given) != len(expected) or any(
        have not in (None, want) for have, want in zip(given, expected, strict=True)
    ):
        raise ValueError(
            "method: step must return an update for each of the hidden activities of "
            f"shapes {expected}, got shapes {given}."
        )
    moved = tuple(
        shift if update is None else shift + update
        for shift, update in zip(shifts, updates, strict=True)
    )
    return moved, opt_state


def run(
    problem: Problem,
    method: Method,
    params: Sequence[Params],
    inputs: jax.Array,
    targets: jax.Array,
    trace: Trace | None,
    start: Start = Start(),  # noqa: B008
) -> Run:
    """The kernel behind `infer` and `value_and_grad`; checks nothing."""
    record = trace or (lambda state: None)
    origin = Origin(problem, params, inputs, targets)
    carry = begin(origin, method, start)
    path = [origin.everywhere]
    if start.hidden is None:
        delayed = method.delayed and is_zero(problem.decay)
        path = fronts(problem.network) if delayed else [_at_start(origin)]
    look = partial(method.look, origin)
    initial = look(carry[0], jnp.int32(0), path[0] if path else None)

    def iterate(front, carry, t, view=None):
        view = view or look(carry[0], t, front)
        return advance(method, t, view, carry), record(view.state)

    rows = []
    for stage in _stages(method.num_steps, path, origin.everywhere):
        steps = jnp.arange(stage.start, stage.stop, dtype=jnp.int32)
        if len(steps) == 1:
            view = None if stage.start else initial
            carry, row = iterate(stage.front, carry, steps[0], view)
            rows.append(jax.tree.map(lambda x: jnp.asarray(x)[None], row))
        else:
            carry, row = jax.lax.scan(partial(iterate, stage.front), carry, steps)
            rows.append(row)
    end = method.num_steps
    front = path[end] if end < len(path) else origin.everywhere
    final = look(carry[0], jnp.int32(end), front, of_params=True, of_shifts=False)
    rows.append(jax.tree.map(lambda x: jnp.asarray(x)[None], record(final.state)))
    recorded = jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)
    return Run(Inference(initial.state, final.state, recorded), origin, final)


def _at_start(origin: Origin) -> Front:
    """Nothing has moved, but everything may."""
    return origin.everywhere._replace(moved=frozenset())


class _Stage(NamedTuple):
    """Iterations that do the same work, `start <= t < stop`."""

    start: int
    stop: int
    front: Front


def _stages(
    num_steps: int, path: Sequence[Front], everywhere: Front
) -> Iterator[_Stage]:
    """Divides the iterations by the products that are not known to be zero.

    `path` holds the fronts of the first iterations. Eight of them stand alone; from
    then on each stage reaches half as far again as the one before and makes the
    products of its last iteration throughout, so that the program grows no faster than
    the depth of the network.
    """
    t = 0
    while t < num_steps:
        if t >= len(path):
            yield _Stage(t, num_steps, everywhere)
            return
        stop = min(t + 1 if t < 8 else t + t // 2, num_steps, len(path))
        yield _Stage(t, stop, path[stop - 1])
        t = stop
