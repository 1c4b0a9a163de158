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
from pcjax.inference.slopes import Arrays, inner, per_example, rise

_HALVINGS = 20


class NewtonCG(NamedTuple):
    """See `newton_cg`."""

    num_steps: int
    cg_steps: int


class Local(NamedTuple):
    """The energy around given errors.

    Attributes:
      energy: `errors -> [B]`, for its size alone: a clamp that gives way makes a
        gradient that is that of another energy.
      slopes: `errors -> gradient`.
      linearised: `errors -> (gradient, v -> H v)`.
      arrived: `errors -> bool [B]`: what needs no further step.
    """

    energy: Callable[[Arrays], jax.Array]
    slopes: Callable[[Arrays], Arrays]
    linearised: Callable[[Arrays], tuple[Arrays, Callable[[Arrays], Arrays]]]
    arrived: Callable[[Arrays], jax.Array]


def newton_cg(num_steps: int = 30, *, cg_steps: int = 60) -> NewtonCG:
    """The fallback of `infer_to_equilibrium`: truncated Newton steps in the errors.

    Solves `H d = -g` by conjugate gradients up to `min(1/10, ||g||/||g_0||)` of `||g||`
    or to a direction of negative curvature, and halves d until the energy falls by
    1e-4 of what the slope promises, as judged by the slopes at both ends. Across kinks
    (ReLU) that is not sure: compare `energy` with and without.

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


def go_on(
    rule: NewtonCG, local: Local, errors: Arrays, active: jax.Array
) -> tuple[Arrays, jax.Array]:
    """Newton steps of the active examples, `(errors, passes [B])`.

    A gradient counts as one pass, a Hessian-vector product as two and a trial of the
    line search as one.
    """
    first = inner(*2 * (local.linearised(errors)[0],))

    def unfinished(loop):
        k, _, active, _ = loop
        return jnp.any(active) & (k < rule.num_steps)

    def iterate(loop):
        k, errors, active, passes = loop
        slopes, times = local.linearised(errors)
        square = inner(slopes, slopes)
        part = jnp.minimum(0.1, jnp.sqrt(square / jnp.where(first > 0, first, 1)))
        direction, products = _solve(slopes, times, part, rule.cg_steps, active)
        scales, trials = _search(local, errors, slopes, direction, active)
        moved = per_example(scales, direction)
        errors = tuple(map(jnp.add, errors, moved))
        passes += jnp.where(active, 1 + 2 * products + trials, 0)
        active &= (scales > 0) & ~local.arrived(errors)
        return k + 1, errors, active, passes

    zero = jnp.zeros((), jnp.int32)
    _, errors, _, passes = jax.lax.while_loop(
        unfinished, iterate, (zero, errors, active, active.astype(jnp.int32))
    )
    return errors, passes


class _CG(NamedTuple):
    """Conjugate gradients: solution, residual, direction and bookkeeping, [B] each."""

    k: jax.Array
    found: Arrays
    rest: Arrays
    along: Arrays
    active: jax.Array
    products: jax.Array


def _solve(slopes, times, part, cg_steps, active) -> tuple[Arrays, jax.Array]:
    """`d` of `H d = -slopes` per example, and the number of products each took."""
    downhill = tuple(-slope for slope in slopes)
    goal = part**2 * inner(slopes, slopes)

    def unfinished(cg):
        return jnp.any(cg.active) & (cg.k < cg_steps)

    def iterate(cg):
        product = times(cg.along)
        curvature = inner(cg.along, product)
        square = inner(cg.rest, cg.rest)
        # Along negative curvature it stops where it is; the first time, downhill.
        convex = curvature > 0
        size = jnp.where(convex, square / jnp.where(convex, curvature, 1), 0)
        size = jnp.where(~convex & (cg.products == 0), 1, size)
        size = jnp.where(cg.active, size, 0)
        found = tuple(map(jnp.add, cg.found, per_example(size, cg.along)))
        rest = tuple(map(jnp.subtract, cg.rest, per_example(size, product)))
        left = inner(rest, rest)
        ratio = left / jnp.where(square > 0, square, 1)
        along = tuple(map(jnp.add, rest, per_example(ratio, cg.along)))
        products = cg.products + cg.active.astype(jnp.int32)
        active = cg.active & convex & (left > goal)
        return _CG(cg.k + 1, found, rest, along, active, products)

    zeros = tuple(map(jnp.zeros_like, slopes))
    none = jnp.zeros_like(active, jnp.int32)
    start = _CG(jnp.zeros((), jnp.int32), zeros, downhill, downhill, active, none)
    end = jax.lax.while_loop(unfinished, iterate, start)
    return end.found, end.products


def _search(local, errors, slopes, direction, active) -> tuple[jax.Array, jax.Array]:
    """The part of the direction that lowers each energy, 0 if none does; the trials."""
    slope = inner(slopes, direction)

    def good(scales):
        moves = per_example(scales, direction)
        after = local.slopes(tuple(map(jnp.add, errors, moves)))
        return rise(moves, slopes, after) <= 1e-4 * scales * slope

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
