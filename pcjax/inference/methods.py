"""Inference: moving the activities down the free energy (eq. 2).

A method is a number of iterations and an `(init, step)` pair; `infer` drives all
of them. Simultaneous and sequential inference differ in the error a layer receives
from above: the old one, or the one that the move just made of the layer above
leaves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pcjax.checks import check_count, check_float, check_parts, check_sequence
from pcjax.energy import Weights
from pcjax.inference.bb import BarzilaiBorwein, rateless
from pcjax.inference.kernel import Inference, Method, Start, run
from pcjax.inference.movers import Init, make_mover
from pcjax.inference.origin import Origin
from pcjax.inference.slopes import activity_slopes, error_slopes
from pcjax.inference.state import InferenceState, Problem
from pcjax.networks.network import Network, Params, check_batch, feedforward
from pcjax.networks.outputs import Clamp, Output, full_clamp, identity
from pcjax.numerics.compiled import hashable, once_compiled
from pcjax.numerics.kept import kept


def simultaneous(
    num_steps: int,
    step_size: optax.ScalarOrSchedule | BarzilaiBorwein | None = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """Standard inference: all layers move at once, given the same errors (Jacobi).

    An error travels down one layer an iteration. Arguments and errors are those of
    `sequential`; the step size may be `pcjax.barzilai_borwein()`, too.
    """
    if isinstance(step_size, BarzilaiBorwein) and optimizer is None:
        check_count("simultaneous", "num_steps", num_steps)
        return rateless(num_steps, step_size, activity_slopes, Origin.look)
    mover = make_mover("simultaneous", num_steps, step_size, optimizer)
    return Method(
        num_steps, Init(mover), _Simultaneous(mover), mover.delayed, mover.random
    )


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
    mover = make_mover("sequential", num_steps, step_size, optimizer)
    return Method(num_steps, Init(mover), _Sequential(mover), random=mover.random)


def error_based(
    num_steps: int,
    step_size: optax.ScalarOrSchedule | BarzilaiBorwein | None = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """Error-based inference (ePC): descends the free energy in the errors.

    The variables are `e_1, ..., e_{L-1}`, and the activities follow from them,
    `h_l = p_l(h_{l-1}) + e_l`, so that the output error reaches every layer at once and
    unattenuated. With `t_L = gamma_L e_L` and
    `t_l = J_l^T t_{l+1}`, an iteration moves all errors by minus
    `dE/de_l = gamma_l e_l - t_l`, in one sweep down and one up: the 2(L-1) products of
    any other iteration. Errors and activities are in one-to-one correspondence:
    energies, equilibria and weight gradients are the same. From feed-forward
    activities one iteration makes `e_l = -step delta_l`, the deltas of backprop, and
    few small ones stay close to that. In a linear network steps are stable below
    `2 / lambda_max(I + sum_l P_l P_l^T)`, `P_l = dp_L/dh_l`.

    Arguments and errors are those of `sequential`; the step size may be
    `pcjax.barzilai_borwein()`, too.
    """
    if isinstance(step_size, BarzilaiBorwein) and optimizer is None:
        check_count("error_based", "num_steps", num_steps)
        return rateless(num_steps, step_size, error_slopes, Origin.rebuild)
    mover = make_mover("error_based", num_steps, step_size, optimizer)
    step = _ErrorBased(mover)
    return Method(
        num_steps, Init(mover), step, random=mover.random, look=Origin.rebuild
    )


@dataclass(frozen=True)
class _Simultaneous:
    """Every activity by the old errors (Jacobi)."""

    mover: Any

    def __call__(self, t, state, gradient, opt_state):
        moves = []
        for index, h in enumerate(state.activities[1:-1]):
            slope, own = gradient(index + 1, state.errors), opt_state[index]
            moves.append(
                (None, own) if slope is None else self.mover.move(t, slope, own, h)
            )
        return tuple(d for d, _ in moves), tuple(s for _, s in moves)


@dataclass(frozen=True)
class _Sequential:
    """Activities from the last to the first, by what is left of the errors above."""

    mover: Any

    def __call__(self, t, state, gradient, opt_state):
        errors, moves = list(state.errors), []
        for index, h in reversed(list(enumerate(state.activities[1:-1]))):
            slope = gradient(index + 1, tuple(errors))
            moves.append(self.mover.move(t, slope, opt_state[index], h))
            errors[index] = kept(errors[index] + moves[-1][0])
        return tuple(d for d, _ in moves[::-1]), tuple(s for _, s in moves[::-1])


@dataclass(frozen=True)
class _ErrorBased:
    """Every error by the gradient of the energy with the errors as variables."""

    mover: Any

    def __call__(self, t, state, gradient, opt_state):
        moves = [
            self.mover.move(t, slope, own, error)
            for slope, own, error in zip(
                error_slopes(state, gradient), opt_state, state.errors[:-1], strict=True
            )
        ]
        return tuple(d for d, _ in moves), tuple(s for _, s in moves)


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
    hidden: Sequence[jax.Array] | None = None,
    key: jax.Array | None = None,
) -> Inference:
    """Runs inference from the feed-forward activities.

    Every example moves by its own free energy: its result does not depend on the
    batch it is in.

    Args:
      network: L layers, a chain or a graph.
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
      hidden: `(h_1, ..., h_{L-1})` to start from, each [B, ...], as those of an earlier
        inference; by default the feed-forward activities.
      key: a random key for methods that draw numbers, split between the examples; by
        default keys are made of the bits of the feed-forward activities, so that the
        same call draws the same, and equal examples draw alike: give one to chains of
        the same example, and where other devices or batches may round otherwise.

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
    start = check_start("infer", network, params, inputs, hidden, key)
    problem = Problem(network, output, clamp, hashable(gamma), hashable(decay))
    arrays = (tuple(params), inputs, targets, start)
    return once_compiled(_infer, (problem, method, trace), arrays)


def _infer(problem, method, trace, params, inputs, targets, start):
    return run(problem, method, params, inputs, targets, trace, start).inference


def check_start(function, network, params, inputs, hidden, key) -> Start:
    """Refuses hidden activities and keys that cannot be of the batch."""
    if hidden is not None:
        check_sequence(function, "hidden", hidden)
        shapes = jax.eval_shape(partial(feedforward, network), params, inputs)[:-1]
        expected = [shape.shape for shape in shapes]
        for index, h in enumerate(hidden):
            check_float(function, f"hidden[{index}]", h)
        if [h.shape for h in hidden] != expected:
            raise ValueError(
                f"{function}: hidden must hold the activities h_1 to h_(L-1) of shapes "
                f"{expected}, got {[h.shape for h in hidden]}."
            )
        hidden = tuple(hidden)
    if key is not None and not (
        hasattr(key, "dtype")
        and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        and key.shape == ()
    ):
        raise TypeError(
            f"{function}: key must be a single random key, as jax.random.key makes it; "
            f"got {key!r}."
        )
    return Start(hidden, key)
