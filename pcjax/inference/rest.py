"""The loop that goes on until inference rests, and its report."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pcjax.inference.kernel import Method, advance, begin, moves_errors
from pcjax.inference.kinks import at_kinks
from pcjax.inference.newton_cg import Local, NewtonCG, Slope, go_on
from pcjax.inference.origin import Origin, View
from pcjax.inference.slopes import Slopes, activity_slopes, error_slopes, inner
from pcjax.inference.state import InferenceState, state_energy
from pcjax.networks.outputs import full_clamp


class Equilibrium(NamedTuple):
    """Where inference came to rest, or how far from rest it was given up.

    Attributes:
      state: activities, predictions and errors.
      residual: [B], the norm of the energy's gradient in what the method moves, all
        hidden activities or errors, relative to its value at the feed-forward
        activities (absolute where that is 0).
      num_steps: int32 [B], the iterations that moved the example.
      converged: bool [B], whether `residual <= tolerance`; False if not finite.
      energy: [B], the free energy at rest.
      initial_energy: [B], that of the feed-forward activities.
      passes: int32 [B], forward and backward sweeps: one an iteration, two more before
        the first of `barzilai_borwein`, and those of the fallback; not the last, which
        moves nothing, nor what tells `kinks` of a batch in which not all converged.
      kinks: bool [B], whether an example that has not converged stands at kinks: no
        gradient vanishes there, but no step down it gains what it promises, so that the
        energy rests, or goes on along a kink. None if the method has a rate of its own,
        which says less, or holds elements, or gamma or decay is a function.
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
    _check_fallback(problem.function, fallback, method, fixed)
    origin = Origin(problem, params, inputs, targets)
    look: Callable[..., View] = partial(method.look, origin)
    norm_of = error_norm if method.look is Origin.rebuild else activity_norm
    carry = begin(origin, method, start)
    initial = look(origin.rest(), 0)
    scale = norm_of(initial)

    def arrived(view):
        norm = norm_of(view)
        return ~(jnp.isfinite(norm) & (norm > tolerance * scale))

    # Varies over a mesh of devices as all that the loop makes does.
    zeros = jnp.zeros_like(scale, jnp.int32)

    def unfinished(loop):
        t, _, active, _ = loop
        return jnp.any(active) & (t < method.num_steps)

    def iterate(loop):
        t, (shifts, opt_state), active, counts = loop
        view = look(shifts, t)
        active &= ~arrived(view)
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
        local = _local(origin, t, arrived)
        errors = look(shifts, t).state.errors[:-1]
        if fallback is not None:
            errors, more = go_on(fallback, local, errors)
            look, shifts, passes = origin.rebuild, errors, passes + more
    view = look(shifts, t, **asked)
    norm = norm_of(look(shifts, t) if asked else view)
    energies = [state_energy(problem, x.state, s) for x, s in ((view, t), (initial, 0))]
    found = report(view.state, norm, scale, counts, tolerance, *energies, passes)
    if judged and shifts:
        left = ~found.converged
        kinks = jax.lax.cond(
            jnp.any(left), partial(at_kinks, local), lambda _: left, errors
        )
        found = found._replace(kinks=left & kinks)
    return Rest(found, origin, view)


def _check_fallback(function: str, fallback, method: Method, fixed: bool) -> None:
    """Refuses what is none, and what it cannot serve."""
    if fallback is None:
        return
    if not isinstance(fallback, NewtonCG):
        raise TypeError(
            f"{function}: fallback must be None or pcjax.newton_cg(), got {fallback!r}."
        )
    moves_errors(f"{function}: fallback", method)
    if not fixed:
        raise ValueError(
            f"{function}: fallback: expected gamma and decay that are no functions: "
            "with those, what inference follows is the gradient of no energy, which "
            "Newton steps could lower."
        )


def _local(origin: Origin, t, arrived) -> Local:
    """The energy around errors; `arrived(view)` says where no more is wanted."""

    def gradient(errors):
        view = origin.rebuild(errors, t)
        energy = state_energy(origin.problem, view.state, t)
        return error_slopes(view.state, view.gradient), (energy, arrived(view))

    def ahead(errors):
        slopes, (energy, _) = gradient(errors)
        return energy, slopes

    def linearised(errors):
        slopes, pull, (energy, near) = jax.vjp(gradient, tuple(errors), has_aux=True)
        return Slope(energy, slopes, lambda along: pull(tuple(along))[0], near)

    return Local(linearised, ahead, origin.problem.clamp is full_clamp)


def activity_norm(view: View) -> jax.Array:
    """`||dF/dh||` of each example, [B], in float32 at least."""
    return _norm(view, activity_slopes)


def error_norm(view: View) -> jax.Array:
    """`||dE/de||`, of the energy as a function of the errors."""
    return _norm(view, error_slopes)


def _norm(view: View, slopes_of: Slopes) -> jax.Array:
    slopes = slopes_of(view.state, view.gradient)
    # Of no hidden layers, zeros.
    slopes = slopes or (jnp.zeros_like(view.state.errors[-1]),)
    return jnp.sqrt(inner(slopes, slopes))


def _column(values: jax.Array, like: jax.Array) -> jax.Array:
    return values.reshape((-1,) + (1,) * (like.ndim - 1))


def report(state, norm, scale, counts, tolerance, *rest) -> Equilibrium:
    """The equilibrium of a state whose gradient has the norm, relative to the scale."""
    residual = norm / jnp.where(scale > 0, scale, 1)
    return Equilibrium(state, residual, counts, residual <= tolerance, *rest)
