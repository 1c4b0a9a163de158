"""The loop that goes on until inference rests, and its report."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pcjax.inference.kernel import advance, begin, moves_errors
from pcjax.inference.kinks import at_kinks
from pcjax.inference.newton_cg import Local, NewtonCG, go_on
from pcjax.inference.origin import Origin, View
from pcjax.inference.slopes import activity_slopes, error_slopes, inner
from pcjax.inference.state import InferenceState, state_energy


class Equilibrium(NamedTuple):
    """Where inference came to rest, or how far from rest it was given up.

    Attributes:
      state: activities, predictions and errors.
      residual: [B], `||dF/dh||` over all hidden activities, relative to its value at
        the feed-forward activities (absolute where that is 0).
      num_steps: int32 [B], the iterations that moved the example.
      converged: bool [B], whether `residual <= tolerance`; False if not finite.
      energy: [B], the free energy at rest.
      initial_energy: [B], that of the feed-forward activities.
      passes: int32 [B], forward and backward sweeps: one an iteration, two for the
        first step of `barzilai_borwein`, and those of the fallback. To see whether an
        example has arrived takes half a pass more in each, if errors are what moves.
      kinks: bool [B], whether an example that has not converged rests at kinks, where
        no gradient vanishes; None if the method has a rate of its own, which says less,
        or holds elements, or gamma or decay is a function.
    """

    state: InferenceState
    residual: jax.Array
    num_steps: jax.Array
    converged: jax.Array
    energy: jax.Array
    initial_energy: jax.Array
    passes: jax.Array
    kinks: jax.Array | None = None


class Rest(NamedTuple):
    """An equilibrium together with its origin and the view of it."""

    equilibrium: Equilibrium
    origin: Origin
    final: View


def come_to_rest(
    problem, method, fallback, params, inputs, targets, start, tolerance, **asked
) -> Rest:
    """The kernel of `infer_to_equilibrium`; `asked` says what the last pulls are of."""
    fixed = not (callable(problem.gamma) or callable(problem.decay))
    if fallback is not None:
        if not isinstance(fallback, NewtonCG):
            raise TypeError(
                f"{problem.function}: fallback must be None or pcjax.newton_cg(), got "
                f"{fallback!r}."
            )
        moves_errors(f"{problem.function}: fallback", method)
        if not fixed:
            raise ValueError(
                f"{problem.function}: fallback: expected gamma and decay that are no "
                "functions: with those, what inference follows is the gradient of no "
                "energy, which Newton steps could lower."
            )
    origin = Origin(problem, params, inputs, targets)
    look: Callable[..., View] = partial(method.look, origin)
    carry = begin(origin, method, start)
    initial = origin.look(origin.rest(), 0)
    scale = norm_of(slopes_of(initial))
    # Varies over a mesh of devices as all that the loop makes does.
    zeros = jnp.zeros_like(scale, jnp.int32)

    def unfinished(loop):
        t, _, active, _ = loop
        return jnp.any(active) & (t < method.num_steps)

    def iterate(loop):
        t, (shifts, opt_state), active, counts = loop
        view = look(shifts, t)
        norm = norm_of(slopes_of(view))
        active &= jnp.isfinite(norm) & (norm > tolerance * scale)
        moved, opt_state = advance(method, t, view, (shifts, opt_state))
        kept = jax.tree.map(
            lambda new, old: jnp.where(_column(active, new), new, old), moved, shifts
        )
        return t + 1, (kept, opt_state), active, counts + active.astype(counts.dtype)

    loop = (jnp.zeros((), jnp.int32), carry, zeros == 0, zeros)
    t, (shifts, _), _, counts = jax.lax.while_loop(unfinished, iterate, loop)
    rateless = method.prepare is not None
    passes = counts + 2 * rateless
    # At what is held gradients do not vanish either, so that kinks cannot be told.
    judged = rateless and fixed and method.look in (Origin.look, Origin.rebuild)
    if (fallback is not None or judged) and shifts:
        local = _local(origin, t, scale, tolerance)
        errors = look(shifts, t).state.errors[:-1]
        if fallback is not None:
            errors, more = go_on(fallback, local, errors, ~local.arrived(errors))
            look, shifts, passes = origin.rebuild, errors, passes + more
    view = look(shifts, t, **asked)
    norm = norm_of(slopes_of(look(shifts, t) if asked else view))
    energies = [state_energy(problem, x.state, s) for x, s in ((view, t), (initial, 0))]
    found = report(view.state, norm, scale, counts, tolerance, *energies, passes)
    if judged and shifts:
        kinks = ~found.converged & at_kinks(local, errors)
        found = found._replace(kinks=kinks)
    return Rest(found, origin, view)


def _local(origin: Origin, t, scale, tolerance) -> Local:
    """The energy around errors, of which an example is to reach the tolerance."""

    def gradient(errors):
        view = origin.rebuild(errors, t)
        return error_slopes(view.state, view.gradient)

    def linearised(errors):
        slopes, pull = jax.vjp(gradient, tuple(errors))
        return slopes, lambda direction: pull(tuple(direction))[0]

    def arrived(errors):
        norm = norm_of(slopes_of(origin.rebuild(errors, t)))
        return ~(jnp.isfinite(norm) & (norm > tolerance * scale))

    def energy(errors):
        return state_energy(origin.problem, origin.rebuild(errors, t).state, t)

    return Local(energy, gradient, linearised, arrived)


def slopes_of(view: View) -> tuple[jax.Array, ...]:
    """dF/dh_l of all hidden activities; of none, zeros."""
    slopes = activity_slopes(view.state, view.gradient)
    return slopes or (jnp.zeros_like(view.state.errors[-1]),)


def norm_of(slopes: Sequence[jax.Array]) -> jax.Array:
    """`||dF/dh||` of each example, [B], in float32 at least."""
    return jnp.sqrt(inner(slopes, slopes))


def _column(values: jax.Array, like: jax.Array) -> jax.Array:
    return values.reshape((-1,) + (1,) * (like.ndim - 1))


def report(state, norm, scale, counts, tolerance, *rest) -> Equilibrium:
    """The equilibrium of a state whose gradient has the norm, relative to the scale."""
    residual = norm / jnp.where(scale > 0, scale, 1)
    return Equilibrium(state, residual, counts, residual <= tolerance, *rest)
