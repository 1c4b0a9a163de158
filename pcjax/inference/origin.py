"""The one linearisation of a network, which all drivers of inference share.

An `Origin` stands at the feed-forward activities. Activities are given as shifts from
there, and `look` answers with the predictions, errors and gradients of the shifted
activities, everything being counted in changes: a hidden error is

    e_l = d_l - (p_l(h + d) - p_l(h)),

the shift less the change of the prediction, both of which keep their digits however
small they are beside the activity (see `pcjax.networks.Near`).

Work. The forward pass serves as the predictions of what has not moved. A prediction is
made again only if an activity that it comes from has moved, and no vector-Jacobian
product is made with respect to the clamped input.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pcjax.energy import (
    Errors,
    check_output_weight,
    decay_weights,
    error_weights,
)
from pcjax.inference.front import Front
from pcjax.inference.state import InferenceState, Problem
from pcjax.networks.near import changed, near_of, shifted
from pcjax.networks.network import Network, Params
from pcjax.networks.outputs import widened
from pcjax.numerics.devices import varying_as
from pcjax.numerics.hooks import call_at
from pcjax.numerics.kept import after, kept
from pcjax.numerics.weights import is_zero, weigh

# g [B, ...] -> (cotangents of the params or None, of the shifts of what a layer reads,
# None where not asked for)
Pull = Callable[[jax.Array], tuple[Any, tuple[Any, ...]]]


class Gradient(NamedTuple):
    """`(l, errors) -> dF/dh_l` at a view; see `View`.

    Attributes:
      network: the network.
      state: its state.
      gammas: the weights of the errors, L numbers or [B].
      decays: those of the activities.
      pulls: of every layer, what pulls a cotangent of its prediction back.
      front: what is known to be zero.
    """

    network: Network
    state: InferenceState
    gammas: Sequence[jax.Array | float]
    decays: Sequence[jax.Array | float]
    pulls: Sequence[Pull]
    front: Front

    def __call__(self, index: int, errors: Errors) -> jax.Array | None:
        """Minus the bracket of eq. 2, for a network that may be a graph.

        `gamma_i e_i + decay_i f'(h_i) f(h_i) - sum_l J_{l,i}^T gamma_{l+1} e_{l+1}`
        over the layers l that read activity i.
        """
        if index not in self.front.moving:
            return None
        total = weigh(self.gammas[index - 1], errors[index - 1])
        for layer in self.network.readers(index):
            if layer + 1 in self.front.live:
                _, pulled = self.pulls[layer](weigh(self.gammas[layer], errors[layer]))
                total -= kept(pulled[self.network.reads[layer].index(index)])
        if not is_zero(self.decays[index - 1]):
            activation = self.network.activation(index)
            values, pull = jax.vjp(activation, self.state.activities[index])
            total += weigh(self.decays[index - 1], pull(values)[0])
        return total


class View(NamedTuple):
    """A network at shifted activities.

    Attributes:
      state: activities, predictions and errors.
      gammas: the weights of the errors there, L numbers or [B].
      gradient: `(l, errors) -> dF/dh_l` [B, ...], l = 1..L-1, if the errors were
        `(e_1, ..., e_L)`; None if it is known to be zero.
      pulls: of every layer, what pulls a cotangent of its prediction back.
      shifts: of the hidden activities, exact where they are below their rounding.
    """

    state: InferenceState
    gammas: Sequence[jax.Array | float]
    gradient: Gradient
    pulls: Sequence[Pull]
    shifts: tuple[jax.Array, ...]


class Origin:
    """A problem at its feed-forward activities.

    Attributes:
      start: the hidden activities `(h_1, ..., h_{L-1})` there.
      logits: `p_L` there.
      everywhere: the front at which every hidden activity has moved.
      data: inputs and targets.
    """

    def __init__(
        self,
        problem: Problem,
        params: Sequence[Params],
        inputs: jax.Array,
        targets: jax.Array,
    ) -> None:
        """Makes the forward pass."""
        self.problem, self._first = problem, tuple(params)
        inputs = varying_as(targets, inputs)  # which may be made of nothing
        self._inputs, self._targets = self.data = inputs, targets
        network = problem.network
        self._reads = network.reads
        self._nears = [near_of(layer) for layer in network.layers]
        activities, self._anchors, self._pulls = [inputs], [], []
        for near, theta, read in zip(self._nears, params, self._reads, strict=True):
            below = [activities[i] for i in read]
            prediction, pull, anchor = _vjp_start(near, theta, read, below, False)
            activities.append(prediction)
            self._anchors.append(anchor)
            self._pulls.append(pull)
        _, *start, self.logits = activities
        self.start = tuple(start)
        hidden = frozenset(range(1, len(network.layers)))
        self.everywhere = Front(hidden, hidden | {len(network.layers)}, hidden)

    def rest(self) -> tuple[jax.Array, ...]:
        """Shifts of zero."""
        return jax.tree.map(jnp.zeros_like, self.start)

    def look(
        self,
        shifts: Sequence[jax.Array],
        t: jax.Array | int,
        front: Front | None = None,
        *,
        params: Sequence[Params] | None = None,
        of_params: bool = False,
        of_shifts: bool = True,
    ) -> View:
        """The network at `start + shifts`.

        Args:
          shifts: of the hidden activities, each [B, ...].
          t: the number of iterations made so far, for weights and clamps that use it.
          front: what is known to be zero; by default nothing.
          params: others than those of the forward pass.
          of_params: whether the pulls give cotangents of the params.
          of_shifts: whether they give those of the shifts, which `gradient` needs.
        """
        return self._look(list(shifts), None, t, front, params, of_params, of_shifts)

    def rebuild(
        self,
        errors: Sequence[jax.Array],
        t: jax.Array | int,
        front: Front | None = None,
        *,
        params: Sequence[Params] | None = None,
        of_params: bool = False,
        of_shifts: bool = True,
    ) -> View:
        """The network whose hidden errors are given, from the input upwards.

        `h_l = p_l(h_i for i read) + e_l`. Arguments are those of `look`, with the
        errors `(e_1, ..., e_{L-1})` in the place of the shifts.
        """
        return self._look([], list(errors), t, front, params, of_params, of_shifts)

    def _look(self, shifts, errors, t, front, params, of_params, of_shifts) -> View:
        """The view of shifts, or of errors of which the shifts are made here."""
        front = front or self.everywhere
        predictions, changes, pulls = [], [], []
        for index in range(len(self._nears)):
            prediction, change, pull = self._move(
                index, shifts, front, params, of_params, of_shifts
            )
            predictions.append(prediction)
            changes.append(change)
            pulls.append(pull)
            if errors is not None and index < len(errors):
                own = errors[index]
                shifts.append(own if change is None else own + change)
                if change is not None:
                    errors[index] = after(own, change)
        if errors is None:
            errors = [
                shift if change is None else shift - change
                for shift, change in zip(shifts, changes[:-1], strict=True)
            ]
        state = self._observe(shifts, errors, predictions, t)
        problem = self.problem
        gammas, decays = (
            weights(value, state.activities, state.errors, t, problem.function)
            for weights, value in (
                (error_weights, problem.gamma),
                (decay_weights, problem.decay),
            )
        )
        check_output_weight(problem.function, gammas[-1], problem.output)
        gradient = Gradient(problem.network, state, gammas, decays, pulls, front)
        return View(state, gammas, gradient, pulls, tuple(shifts))

    def _move(self, index, shifts, front, params, of_params, of_shifts):
        """`(prediction, its change or None, pull)` of a layer."""
        near, read = self._nears[index], self._reads[index]
        origin = (self._inputs, *self.start)
        below = tuple(origin[i] for i in read)
        moved = tuple(i in front.moved for i in read)
        first = (*self.start, self.logits)[index]
        theta = self._first[index] if params is None else params[index]
        if params is None and not any(moved):
            pull = self._pulls[index]
            if of_params:  # XLA finds the prediction among those of the forward pass
                kept = read if of_shifts else (0,) * len(read)
                _, pull, _ = _vjp_start(near, theta, kept, below, True)
            return first, None, pull
        moves = tuple(shifts[i - 1] if i else None for i in read)
        anchor = self._anchors[index]
        if params is not None and near.follow is not None:
            anchor = near.follow(theta, self._first[index], below, anchor)
        anew = params is not None and near.follow is None

        def predict(theta, moves):
            if not anew:
                return near.move(theta, below, moves, anchor, moved)
            layer = self.problem.network.layers[index]
            prediction = layer.apply(theta, *map(shifted, below, moves))
            return prediction, changed(prediction, first)

        asked = tuple(bool(i) and of_shifts for i in read)
        pull, change = _vjp(predict, theta, moves, of_params, asked)[1:]
        return first + change, change, pull

    def _observe(self, shifts, errors, predictions, t) -> InferenceState:
        """The state of shifts, hidden errors and predictions: clamps the output."""
        problem = self.problem
        hidden = jax.tree.map(jnp.add, self.start, tuple(shifts))
        below = (self._inputs, *hidden)[problem.network.reads[-1][0]]
        first, logits, targets = widened(self.logits, predictions[-1], self._targets)
        link = problem.output.link
        outputs = call_at(
            "clamp", problem.clamp, t, targets, link(logits), below, first=link(first)
        )
        return InferenceState(
            activities=(self._inputs, *hidden, outputs),
            predictions=tuple(predictions),
            errors=(*errors, problem.output.error(*widened(logits, outputs))),
        )


def _vjp_start(near, theta, read: Sequence[int], below, learned: bool):
    """The forward pass of a layer: `(prediction, pull, anchor)`.

    The pull is one of what is no clamped input (0) among `read`, and if `learned` of
    the params.
    """
    asked = tuple(bool(i) for i in read)
    return _vjp(
        lambda theta, below: near.start(theta, *below), theta, below, learned, asked
    )


def _vjp(function, theta, arrays, of_params: bool, asked: Sequence[bool]):
    """`function(theta, arrays) -> (prediction, aux)` with a pull of what is asked for.

    Returns:
      `(prediction, pull, aux)`.
    """
    free = (
        theta if of_params else None,
        tuple(
            array if wanted else None
            for array, wanted in zip(arrays, asked, strict=True)
        ),
    )

    def call(free):
        theta_, arrays_ = free
        both = zip(arrays, arrays_, strict=True)
        return function(
            theta_ if of_params else theta,
            tuple(own if new is None else new for own, new in both),
        )

    prediction, pull, aux = jax.vjp(call, free, has_aux=True)
    return prediction, lambda g: pull(g.astype(prediction.dtype))[0], aux
