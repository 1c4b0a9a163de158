"""Inference run to equilibrium, and the exact equilibria of linear networks."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from pcjax.checks import check_non_negative, check_parts
from pcjax.energy import Weights, decay_weights
from pcjax.inference.kernel import Method
from pcjax.inference.methods import check_start
from pcjax.inference.newton_cg import NewtonCG
from pcjax.inference.origin import Origin
from pcjax.inference.rest import Equilibrium, activity_norm, come_to_rest, report
from pcjax.inference.state import Problem, state_energy
from pcjax.networks.network import Network, Params, check_batch, linear
from pcjax.networks.outputs import Clamp, Output, full_clamp, identity, soft_clamp
from pcjax.numerics.compiled import hashable, once_compiled
from pcjax.numerics.weights import weigh


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

    An example stops once `||dF/dv|| <= tolerance ||dF/dv||_0`, v being what the method
    moves, hidden activities or errors, and 0 the feed-forward activities, or when its
    gradient is no longer finite; the loop ends when all have stopped, or after
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
      ValueError: if the arguments do not fit the network, `tolerance` is negative
        or infinite, or there is a fallback, which moves all, for a method that holds
        elements (`held`), or for weights that are functions.
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
        functions = layer.activations or (layer.activation,)
        if any(function is not linear for function in functions):
            raise ValueError(
                f"{name}: layer {index} has the activations {functions}; the "
                "closed form is of linear networks, such as mlp(sizes, "
                "activation=pcjax.networks.linear)."
            )
    if callable(gamma) or callable(decay):
        raise ValueError(f"{name}: gamma and decay must be numbers, not functions.")
    weights = hashable(gamma), hashable(decay)
    problem = Problem(network, identity, soft_clamp(clamp_gamma), *weights, name)
    arrays = (tuple(params), inputs, targets, clamp_gamma, tolerance)
    return once_compiled(_solve, (problem,), arrays)


def _solve(problem, params, inputs, targets, clamp_gamma, tolerance) -> Equilibrium:
    origin = Origin(problem, params, inputs, targets)
    initial = origin.look(origin.rest(), 0)
    scale = activity_norm(initial)
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
    norm = activity_norm(view)
    return report(view.state, norm, scale, counts, tolerance, *energies, counts)
