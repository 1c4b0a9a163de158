"""Newton's method in the errors, for examples that gradient steps do not bring to rest.

Every example has its own conjugate gradients and its own line search; those that have
arrived stand still. It needs no more than what `Origin.rebuild` gives: Hessian-vector
products are the reverse mode of the gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pcjax.checks import check_count
from pcjax.inference.slopes import Arrays, inner, per_example, rise, stepped

_HALVINGS = 20


class NewtonCG(NamedTuple):
    """See `newton_cg`."""

    num_steps: int
    cg_steps: int


class Slope(NamedTuple):
    """The energy and its gradient at given errors, and what is around it.

    Attributes:
      energy: [B].
      slopes: the gradient.
      times: `v -> H v`.
      arrived: bool [B], what needs no further step.
    """

    energy: jax.Array
    slopes: Arrays
    times: Callable[[Arrays], Arrays]
    arrived: jax.Array


class Local(NamedTuple):
    """The energy around given errors.

    Attributes:
      linearised: `errors -> Slope`.
      ahead: `errors -> (energy [B], gradient)`.
      exact: whether the gradient is that of the energy. A clamp that gives way makes
        one of another energy, of which only the gradient is known.
    """

    linearised: Callable[[Arrays], Slope]
    ahead: Callable[[Arrays], tuple[jax.Array, Arrays]]
    exact: bool

    def climb(self, errors: Arrays, here: Slope, moves: Arrays) -> jax.Array:
        """By how much the energy rises from here by the moves, [B].

        Where the difference is lost in the rounding of the energies, or these are not
        what the gradient is of, by the slopes at both ends.
        """
        energy, after = self.ahead(tuple(map(jnp.add, errors, moves)))
        by_slopes = rise(moves, here.slopes, after)
        if not self.exact:
            return by_slopes
        difference = energy - here.energy
        rounding = 100 * jnp.finfo(energy.dtype).eps * jnp.abs(here.energy)
        return jnp.where(jnp.abs(difference) <= rounding, by_slopes, difference)


def newton_cg(num_steps: int = 30, *, cg_steps: int = 60) -> NewtonCG:
    """The fallback of `infer_to_equilibrium`: truncated Newton steps in the errors.

    Solves `H d = -g` by conjugate gradients up to `min(1/10, ||g||/||g_0||)` of `||g||`
    or to a direction of negative curvature, and halves d until the energy falls by
    1e-4 of what the slope promises. With a clamp that gives way, and below the rounding
    of the energy, the slopes at both ends are what judges.

    >>> fallback = newton_cg(20)

    Args:
      num_steps: the most steps.
      cg_steps: the most Hessian-vector products of a step.

    Returns:
      The `fallback` of `infer_to_equilibrium`.

    Raises:
      ValueError: if a number is no int >= 1.
    """
    check_count("newton_cg", "num_steps", num_steps)
    check_count("newton_cg", "cg_steps", cg_steps)
    return NewtonCG(num_steps, cg_steps)


def go_on(rule: NewtonCG, local: Local, errors: Arrays) -> tuple[Arrays, jax.Array]:
    """Newton steps of what has not arrived, `(errors, passes [B])`.

    A gradient counts as one pass, a Hessian-vector product as two and a trial of the
    line search as one.
    """
    start = local.linearised(errors)
    first = inner(start.slopes, start.slopes)

    def unfinished(loop):
        k, _, active, _ = loop
        return jnp.any(active) & (k < rule.num_steps)

    def iterate(loop):
        k, errors, active, passes = loop
        here = local.linearised(errors)
        active &= ~here.arrived
        square = inner(here.slopes, here.slopes)
        part = jnp.minimum(0.1, jnp.sqrt(square / jnp.where(first > 0, first, 1)))
        direction, products = _solve(here, part, rule.cg_steps, active)
        scales, trials = _search(local, errors, here, direction, active)
        errors = stepped(errors, scales, direction)
        passes += jnp.where(active, 1 + 2 * products + trials, 0)
        return k + 1, errors, active & (scales > 0), passes

    active = ~start.arrived
    loop = (jnp.zeros((), jnp.int32), errors, active, active.astype(jnp.int32))
    _, errors, _, passes = jax.lax.while_loop(unfinished, iterate, loop)
    return errors, passes


class _CG(NamedTuple):
    """Conjugate gradients: solution, residual, direction and bookkeeping, [B] each."""

    k: jax.Array
    found: Arrays
    rest: Arrays
    along: Arrays
    active: jax.Array
    products: jax.Array


def _solve(here, part, cg_steps, active) -> tuple[Arrays, jax.Array]:
    """`d` of `H d = -slopes` per example, and the number of products each took."""
    downhill = tuple(-slope for slope in here.slopes)
    goal = part**2 * inner(downhill, downhill)

    def unfinished(cg):
        return jnp.any(cg.active) & (cg.k < cg_steps)

    def iterate(cg):
        product = here.times(cg.along)
        curvature = inner(cg.along, product)
        square = inner(cg.rest, cg.rest)
        # Along negative curvature it stops where it is; the first time, downhill.
        convex = curvature > 0
        size = jnp.where(convex, square / jnp.where(convex, curvature, 1), 0)
        size = jnp.where(~convex & (cg.products == 0), 1, size)
        size = jnp.where(cg.active, size, 0)
        found = stepped(cg.found, size, cg.along)
        rest = stepped(cg.rest, -size, product)
        left = inner(rest, rest)
        ratio = left / jnp.where(square > 0, square, 1)
        along = tuple(map(jnp.add, rest, per_example(ratio, cg.along)))
        products = cg.products + cg.active.astype(jnp.int32)
        active = cg.active & convex & (left > goal)
        return _CG(cg.k + 1, found, rest, along, active, products)

    zeros = tuple(map(jnp.zeros_like, downhill))
    none = jnp.zeros_like(active, jnp.int32)
    start = _CG(jnp.zeros((), jnp.int32), zeros, downhill, downhill, active, none)
    end = jax.lax.while_loop(unfinished, iterate, start)
    return end.found, end.products


def _search(local, errors, here, direction, active) -> tuple[jax.Array, jax.Array]:
    """The part of the direction that lowers each energy, 0 if none does; the trials."""
    slope = inner(here.slopes, direction)

    def good(scales):
        climbed = local.climb(errors, here, per_example(scales, direction))
        return climbed <= 1e-4 * scales * slope

    def unfinished(loop):
        k, _, accepted, _ = loop
        return jnp.any(~accepted) & (k < _HALVINGS)

    def iterate(loop):
        k, scales, accepted, trials = loop
        trials += (~accepted).astype(trials.dtype)
        now = accepted | good(scales)
        return k + 1, jnp.where(now, scales, scales / 2), now, trials

    ones = jnp.ones_like(slope)
    start = (jnp.zeros((), jnp.int32), ones, ~active, jnp.zeros_like(active, jnp.int32))
    _, scales, accepted, trials = jax.lax.while_loop(unfinished, iterate, start)
    return jnp.where(accepted & active, scales, 0), trials
