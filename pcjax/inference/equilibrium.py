"""Inference run to equilibrium, and the exact equilibria of linear networks."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from pcjax.checks import check_non_negative, check_parts
from pcjax.energy import Weights, decay_weights, weigh
from pcjax.inference.kernel import Method, advance, begin
from pcjax.inference.kinks import at_kinks
from pcjax.inference.methods import check_start
from pcjax.inference.newton_cg import Local, NewtonCG, go_on
from pcjax.inference.origin import Origin, View
from pcjax.inference.slopes import activity_slopes, error_slopes
from pcjax.inference.state import InferenceState, Problem, state_energy
from pcjax.networks.network import Network, Params, check_batch, linear
from pcjax.networks.outputs import Clamp, Output, full_clamp, identity, soft_clamp
from pcjax.numerics.compiled import hashable, once_compiled


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
        first step of `barzilai_borwein`, and those of the fallback.
      kinks: bool [B], whether an example that has not converged rests at kinks, where
        no gradient vanishes; None if the method has a rate of its own, which says less.
    """

    state: InferenceState
    residual: jax.Array
    num_steps: jax.Array
    converged: jax.Array
    energy: jax.Array
    initial_energy: jax.Array
    passes: jax.Array
    kinks: jax.Array | None = None


def infer_to_equilibrium(
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
    tolerance: float = 1e-8,
    fallback: NewtonCG | None = None,
    hidden: Sequence[jax.Array] | None = None,
    key: jax.Array | None = None,
) -> Equilibrium:
    """Infers until each example's gradient of the energy has all but vanished.

    An example stops once `||dF/dh|| <= tolerance ||dF/dh||_0`, or when its gradient
    is no longer finite; the loop ends when all have stopped, or after
    `method.num_steps` iterations. With weights that are functions, F's gradient is
    the one inference follows: that with the weights held fixed.

    >>> import pcjax
    >>> network = pcjax.mlp([3, 4, 2])
    >>> params = network.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> rest = infer_to_equilibrium(network, pcjax.sequential(500, 0.5), params,
    ...     jnp.ones((5, 3)), jnp.ones((5, 2)), tolerance=1e-3)
    >>> bool(rest.converged.all())
    True

    Without a rate, `pcjax.error_based(100, pcjax.barzilai_borwein())` takes tens of
    iterations where those take thousands. The energy may end higher than it began:
    compare `energy` with `initial_energy`. Where a network has kinks, as with ReLU,
    equilibria sit on them: the residual stays while the energy rests, and `kinks` says
    so.

    Args:
      network: L layers, a chain or a graph.
      method: what moves the activities; its `num_steps` is the most iterations.
      params: the network's parameters.
      inputs: [B, ...] floats.
      targets: shaped like the logits, floats.
      output: see `infer`, as for the next three.
      clamp: see `infer`.
      gamma: see `free_energy`.
      decay: see `free_energy`.
      tolerance: the residual to stop at, >= 0, traced or not. It must be in reach of
        the dtype.
      fallback: `pcjax.newton_cg()` goes on with those that have not converged; None
        leaves them.
      hidden: see `infer`, as for the next.
      key: see `infer`.

    Returns:
      The last state of each example with its residual. Check `converged`.

    Raises:
      TypeError: if inputs, targets or parameters are not floats, or method, output or
        clamp is no such thing.
      ValueError: if the arguments do not fit the network, or `tolerance` is negative
        or infinite.
    """
    check_parts("infer_to_equilibrium", method=method, output=output, clamp=clamp)
    check_batch("infer_to_equilibrium", network, params, inputs, targets)
    check_non_negative("infer_to_equilibrium", "tolerance", tolerance)
    start = check_start("infer_to_equilibrium", network, params, inputs, hidden, key)
    weights = hashable(gamma), hashable(decay)
    problem = Problem(network, output, clamp, *weights, "infer_to_equilibrium")
    arrays = (tuple(params), inputs, targets, start, tolerance)
    return once_compiled(_to_equilibrium, (problem, method, fallback), arrays)


def _to_equilibrium(problem, method, fallback, *arrays):
    return come_to_rest(problem, method, fallback, *arrays).equilibrium


class Rest(NamedTuple):
    """An equilibrium together with its origin and the view of it."""

    equilibrium: Equilibrium
    origin: Origin
    final: View


def come_to_rest(
    problem, method, fallback, params, inputs, targets, start, tolerance, **asked
) -> Rest:
    """The kernel of `infer_to_equilibrium`; `asked` says what the last pulls are of."""
    origin = Origin(problem, params, inputs, targets)
    look = partial(method.look, origin)
    carry = begin(origin, method, start)
    initial = origin.look(origin.rest(), 0)
    scale = _norm(_slopes(initial))
    # Varies over a mesh of devices as all that the loop makes does.
    zeros = jnp.zeros_like(scale, jnp.int32)

    def unfinished(loop):
        t, _, active, _ = loop
        return jnp.any(active) & (t < method.num_steps)

    def iterate(loop):
        t, (shifts, opt_state), active, counts = loop
        view = look(shifts, t)
        norm = _norm(_slopes(view))
        active &= jnp.isfinite(norm) & (norm > tolerance * scale)
        moved, opt_state = advance(method, t, view, (shifts, opt_state))
        kept = jax.tree.map(
            lambda new, old: jnp.where(_column(active, new), new, old), moved, shifts
        )
        return t + 1, (kept, opt_state), active, counts + active.astype(counts.dtype)

    loop = (jnp.zeros((), jnp.int32), carry, zeros == 0, zeros)
    t, (shifts, _), _, counts = jax.lax.while_loop(unfinished, iterate, loop)
    passes, prepared = counts, method.prepare is not None
    passes = passes + 2 * prepared
    if (fallback is not None or prepared) and shifts:
        local = _local(origin, t, scale, tolerance)
        errors = look(shifts, t).state.errors[:-1]
        if fallback is not None:
            errors, more = go_on(fallback, local, errors, ~local.arrived(errors))
            look, shifts, passes = origin.rebuild, errors, passes + more
    view = look(shifts, t, **asked)
    slopes = view if not asked else look(shifts, t)
    energies = [state_energy(problem, x.state, s) for x, s in ((view, t), (initial, 0))]
    found = _report(
        view.state, _norm(_slopes(slopes)), scale, counts, tolerance, *energies, passes
    )
    if prepared and shifts:
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
        norm = _norm(_slopes(origin.rebuild(errors, t)))
        return ~(jnp.isfinite(norm) & (norm > tolerance * scale))

    def energy(errors):
        return state_energy(origin.problem, origin.rebuild(errors, t).state, t)

    return Local(energy, linearised, arrived)


def linear_equilibrium(
    network: Network,
    params: Sequence[Params],
    inputs: jax.Array,
    targets: jax.Array,
    *,
    gamma: Weights = 1.0,
    decay: Weights = 0.0,
    clamp_gamma: float = 0.0,
    tolerance: float = 1e-8,
) -> Equilibrium:
    """The exact equilibrium of a linear network with half squared error.

    Then all errors are affine in the hidden activities, `e = A h + c`, and the free
    energy is `e^T Gamma e / 2 + h^T D h / 2`, D holding the decays, so that it rests
    where `(A^T Gamma A + D) h = -A^T Gamma c`, which is solved directly. A soft clamp
    divides `gamma_L` by `1 + clamp_gamma` (eq. 3).

    >>> import pcjax
    >>> network = pcjax.mlp([3, 4, 2], activation=linear)
    >>> params = network.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> rest = linear_equilibrium(network, params, jnp.ones((5, 3)), jnp.ones((5, 2)),
    ...     tolerance=1e-4)
    >>> bool(rest.converged.all())
    True

    Args:
      network: L layers, each affine in what it reads.
      params: the network's parameters.
      inputs: [B, ...] floats.
      targets: shaped like the logits, floats.
      gamma: see `free_energy`; no function.
      decay: see `free_energy`; no function.
      clamp_gamma: the `gamma_L` of `soft_clamp`; 0 is the full clamp.
      tolerance: what `converged` is measured by.

    Returns:
      The state with its residual, which is large if a layer is not affine.

    Raises:
      TypeError: if inputs, targets or parameters are not floats.
      ValueError: if a layer has an activation function, a weight is a function, or
        the arguments do not fit the network.
    """
    name = "linear_equilibrium"
    check_batch(name, network, params, inputs, targets)
    check_non_negative(name, "clamp_gamma", clamp_gamma)
    for index, layer in enumerate(network.layers):
        if layer.activation is not linear:
            raise ValueError(
                f"{name}: layer {index} has the activation {layer.activation}; the "
                "closed form is of linear networks, such as mlp(sizes, "
                "activation=pcjax.networks.linear)."
            )
    if callable(gamma) or callable(decay):
        raise ValueError(f"{name}: gamma and decay must be numbers, not functions.")
    weights = hashable(gamma), hashable(decay)
    problem = Problem(network, identity, soft_clamp(clamp_gamma), *weights, name)
    return _solve(problem, tuple(params), inputs, targets, clamp_gamma, tolerance)


def _solve(problem, params, inputs, targets, clamp_gamma, tolerance) -> Equilibrium:
    origin = Origin(problem, params, inputs, targets)
    initial = origin.look(origin.rest(), 0)
    scale = _norm(_slopes(initial))
    activities, _, errors = initial.state
    decays = decay_weights(problem.decay, activities, errors, function=problem.function)

    def per_entry(weights, arrays):
        """A weight for every entry of the arrays of an example, [B, n]."""
        columns = [
            weigh(weight, jnp.ones_like(array)).reshape(len(scale), -1)
            for weight, array in zip(weights, arrays, strict=True)
        ]
        return jnp.concatenate(columns, axis=1).astype(inputs.dtype)

    *gammas, last = initial.gammas
    last = jnp.asarray(last) / (1 + clamp_gamma)
    strengths = per_entry([*gammas, last], [*origin.start, origin.logits])
    plain = problem._replace(gamma=1.0, decay=0.0)  # the errors alone count
    shifts = origin.rest()
    if shifts:

        def solve(theta, x, y, gamma, decay):
            own = Origin(plain, theta, x[None], y[None])
            flat, shape = ravel_pytree([d.reshape(d.shape[1:]) for d in own.rest()])

            def errors(flat):
                moved = [d[None] for d in shape(flat)]
                state = own.look(moved, 0).state
                below = state.errors[:-1]
                return ravel_pytree((below, y[None] - state.predictions[-1]))[0]

            rate, at_rest = jax.jacrev(errors)(flat), errors(flat)
            start = ravel_pytree(own.start)[0]
            matrix = rate.T @ (gamma[:, None] * rate) + jnp.diag(decay)
            right = -rate.T @ (gamma * at_rest) - decay * start
            return tuple(shape(jnp.linalg.solve(matrix, right)))

        solved = jax.vmap(solve, in_axes=(None, 0, 0, 0, 0))
        decay = per_entry(decays, origin.start)
        shifts = solved(params, inputs, targets, strengths, decay)
    view = origin.look(shifts, 0)
    counts = jnp.zeros_like(scale, jnp.int32)
    energies = [state_energy(problem, x.state, 0) for x in (view, initial)]
    norm = _norm(_slopes(view))
    return _report(view.state, norm, scale, counts, tolerance, *energies, counts)


def _slopes(view: View) -> tuple[jax.Array, ...]:
    """dF/dh_l of all hidden activities; of none, zeros."""
    slopes = activity_slopes(view.state, view.gradient)
    return slopes or (jnp.zeros_like(view.state.errors[-1]),)


def _norm(slopes: Sequence[jax.Array]) -> jax.Array:
    """`||dF/dh||` of each example, [B]."""
    squares = [jnp.sum(slope**2, axis=range(1, slope.ndim)) for slope in slopes]
    return jnp.sqrt(sum(squares[1:], squares[0]))


def _column(values: jax.Array, like: jax.Array) -> jax.Array:
    return values.reshape((-1,) + (1,) * (like.ndim - 1))


def _report(state, norm, scale, counts, tolerance, *rest) -> Equilibrium:
    residual = norm / jnp.where(scale > 0, scale, 1)
    return Equilibrium(state, residual, counts, residual <= tolerance, *rest)
