"""A step without a rate: Barzilai-Borwein, for each example on its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pcjax.checks import check_non_negative, check_single
from pcjax.inference.kernel import Method
from pcjax.inference.slopes import (
    Arrays,
    Slopes,
    curvature_along,
    inner,
    per_example,
)


class BBState(NamedTuple):
    """What the rule remembers of the last iteration.

    Attributes:
      moves: what was added to the variables then; zeros before the first iteration.
      slopes: the gradient then.
      step_size: [B].
    """

    moves: Arrays
    slopes: Arrays
    step_size: jax.Array


@dataclass(frozen=True)
class BarzilaiBorwein:
    """See `barzilai_borwein`."""

    smallest: float = 1e-4
    largest: float = 1.0

    def first(self, slopes: Arrays, product: Arrays) -> jax.Array:
        """`g.g / g.Hg` [B], or `||g|| / ||Hg||` where the curvature is not positive."""
        square, along = inner(slopes, slopes), inner(slopes, product)
        bound = jnp.sqrt(square / _or_one(inner(product, product)))
        step = jnp.where(along > 0, square / _or_one(along), bound)
        return jnp.clip(step, self.smallest, self.largest)

    def next(self, state: BBState, slopes: Arrays) -> jax.Array:
        """`<dv, dg> / <dg, dg>` [B] of the last move dv and what it changed, dg.

        `||dv|| / ||dg||` where the curvature is not positive: a step that were only cut
        there would stay short for as long as the way leads over such ground.
        """
        change = tuple(map(jnp.subtract, slopes, state.slopes))
        along, square = inner(state.moves, change), inner(change, change)
        length = inner(state.moves, state.moves)
        bound = jnp.sqrt(length / _or_one(square))
        step = jnp.where(along > 0, along / _or_one(square), bound)
        step = jnp.clip(step, self.smallest, self.largest)
        # At the start nothing has moved, though the gradient made again may round
        # otherwise.
        return jnp.where((length > 0) & (square > 0), step, state.step_size)


def barzilai_borwein(
    *, smallest: float = 1e-4, largest: float = 1.0
) -> BarzilaiBorwein:
    """A step size of `error_based` and `simultaneous` that needs no tuning.

    Of the last move `dv` of all layers of an example, and the change `dg` of its
    gradient, the step is `<dv, dg> / <dg, dg>`, or `||dv|| / ||dg||` where that is not
    positive; the first is `g.g / g.Hg` by one Hessian-vector product, which is about
    two passes. An iteration costs what it does with a fixed step. In a smooth network
    whose largest curvature is below `1 / smallest` the iterates go to an equilibrium as
    a rule, though not downhill in each iteration, and nothing guarantees it: see
    `Info.rising`, `infer_to_equilibrium` and `pcjax.largest_curvature`.

    >>> import pcjax
    >>> method = pcjax.error_based(20, barzilai_borwein())

    Args:
      smallest: the least step, > 0; lower where curvatures are higher.
      largest: the greatest step; 1 is the inverse of an error's own curvature where
        its gamma is 1.

    Returns:
      A step size for `pcjax.error_based` and `pcjax.simultaneous`; in sequential
      inference activities do not move by one gradient, so there it is refused.

    Raises:
      TypeError: if a bound is not real.
      ValueError: if the bounds are no positive numbers in their order.

    Reference: Barzilai and Borwein, Two-point step size gradient methods, 1988.
    """
    for name, value in (("smallest", smallest), ("largest", largest)):
        check_single("barzilai_borwein", name, value)
        check_non_negative("barzilai_borwein", name, value)
    if not 0 < smallest <= largest:
        raise ValueError(
            "barzilai_borwein: expected 0 < smallest <= largest, got "
            f"{smallest} and {largest}."
        )
    return BarzilaiBorwein(float(smallest), float(largest))


def rateless(
    num_steps: int, rule: BarzilaiBorwein, slopes: Slopes, look: Callable
) -> Method:
    """The method that moves what `look` takes by the rule, down the slopes."""
    return Method(
        num_steps, _init, _Step(rule, slopes), look=look, prepare=_Prepare(rule, slopes)
    )


def _init(hidden: Arrays) -> BBState:
    zeros = jax.tree.map(jnp.zeros_like, tuple(hidden))
    return BBState(zeros, zeros, inner(zeros, zeros) if zeros else jnp.zeros(()))


@dataclass(frozen=True)
class _Prepare:
    """The gradient at the start, and the first step size."""

    rule: BarzilaiBorwein
    slopes: Slopes

    def __call__(self, state, look, place):
        if not place:
            return state
        slopes, product = curvature_along(self.slopes, look, place)
        return BBState(state.moves, slopes, self.rule.first(slopes, product))


@dataclass(frozen=True)
class _Step:
    """All variables of an example by the same step."""

    rule: BarzilaiBorwein
    slopes: Slopes

    def __call__(self, t, state, gradient, opt_state):
        del t
        slopes = self.slopes(state, gradient)
        if not slopes:
            return (), opt_state
        step = self.rule.next(opt_state, slopes)
        moves = per_example(-step, slopes)
        return moves, BBState(moves, slopes, step)


def _or_one(values: jax.Array) -> jax.Array:
    """A divisor that is not 0."""
    return jnp.where(values > 0, values, 1)
