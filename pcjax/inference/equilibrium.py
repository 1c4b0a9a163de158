"""Inference run to equilibrium, and the exact equilibria of linear networks."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pcjax.checks import check_non_negative, check_parts
from pcjax.energy import Weights, decay_weights, error_weights
from pcjax.inference.kernel import (
    InferenceState,
    Method,
    Problem,
    energy_gradient,
    observe,
    predict,
)
from pcjax.networks.network import Network, Params, check_batch, linear
from pcjax.networks.outputs import Clamp, Output, full_clamp, identity, soft_clamp


class Equilibrium(NamedTuple):
    """Where inference came to rest, or how far from rest it was given up.

    Attributes:
      state: activities, predictions and errors.
      residual: [B], `||dF/dh||` over all hidden activities, relative to its value at
        the feed-forward activities (absolute where that is 0).
      num_steps: int32 [B], the iterations that moved the example.
      converged: bool [B], whether `residual <= tolerance`; False if not finite.
    """

    state: InferenceState
    residual: jax.Array
    num_steps: jax.Array
    converged: jax.Array


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

    Args:
      network: a chain of L layers.
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
    problem = Problem(network, output, clamp, gamma, decay)
    start, look = _observer(problem, params, inputs, targets)
    shifts = jax.tree.map(jnp.zeros_like, start)
    scale = _norm(look(shifts)[2], inputs)

    def unfinished(carry):
        t, _, _, active, _ = carry
        return jnp.any(active) & (t < method.num_steps)

    def iterate(carry):
        t, shifts, opt_state, active, counts = carry
        state, gradient, slopes = look(shifts)
        norm = _norm(slopes, inputs)
        active &= jnp.isfinite(norm) & (norm > tolerance * scale)
        moves, opt_state = method.step(t, state, gradient, opt_state)
        shifts = jax.tree.map(
            lambda shift, move: jnp.where(_column(active, shift), shift + move, shift),
            shifts,
            tuple(moves),
        )
        return t + 1, shifts, opt_state, active, counts + active

    zero = jnp.zeros((), jnp.int32)
    counts = jnp.zeros(scale.shape, jnp.int32)
    active = jnp.ones(scale.shape, bool)
    carry = (zero, shifts, method.init(start), active, counts)
    _, shifts, _, _, counts = jax.lax.while_loop(unfinished, iterate, carry)
    state, _, slopes = look(shifts)
    return _report(state, _norm(slopes, inputs), scale, counts, tolerance)


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

    With `p_{l+1} = W_l h_l + b_l` the free energy is a quadratic, and `dF/dh = 0` is
    the block tridiagonal system, for l = 1..L-1,

    `(gamma_l + decay_l + gamma_{l+1} W_l^T W_l) h_l - gamma_l W_{l-1} h_{l-1}
    - gamma_{l+1} W_l^T h_{l+1} = gamma_l b_{l-1} - gamma_{l+1} W_l^T b_l`,

    solved directly. A soft clamp divides `gamma_L` by `1 + clamp_gamma` (eq. 3).

    >>> import pcjax
    >>> network = pcjax.mlp([3, 4, 2], activation=linear)
    >>> params = network.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> rest = linear_equilibrium(network, params, jnp.ones((5, 3)), jnp.ones((5, 2)),
    ...     tolerance=1e-4)
    >>> bool(rest.converged.all())
    True

    Args:
      network: a chain of L layers, each affine in its input.
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
    problem = Problem(network, identity, soft_clamp(clamp_gamma), gamma, decay)
    start, look = _observer(problem, params, inputs, targets)
    initial, _, slopes = look(jax.tree.map(jnp.zeros_like, start))
    scale = _norm(slopes, inputs)

    def per_example(weights):
        return jnp.stack([jnp.broadcast_to(w, scale.shape) for w in weights]).T

    gammas = per_example(error_weights(gamma, initial.activities, initial.errors))
    gammas = gammas.at[:, -1].divide(1 + clamp_gamma).astype(inputs.dtype)
    hidden = []
    if start:
        decays = decay_weights(decay, initial.activities, initial.errors)
        maps = [
            _affine(partial(layer.apply, theta), h[0])
            for layer, theta, h in zip(
                network.layers[1:], params[1:], start, strict=True
            )
        ]
        solve = jax.vmap(partial(_solve_chain, maps))
        solved = solve(gammas, per_example(decays), start[0], targets)
        hidden = [h.reshape(p.shape) for h, p in zip(solved, start, strict=True)]
    state, _, slopes = look(jax.tree.map(jnp.subtract, tuple(hidden), start))
    counts = jnp.zeros(scale.shape, jnp.int32)
    return _report(state, _norm(slopes, inputs), scale, counts, tolerance)


def _affine(apply: Callable, h: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`(W, b)` of `p = W h + b` on flattened activities of one example."""

    def predict(flat):
        return apply(flat.reshape(1, *h.shape)).ravel()

    zeros = jnp.zeros(h.size, h.dtype)
    return jax.jacrev(predict)(zeros), predict(zeros)


def _solve_chain(
    maps: Sequence[tuple[jax.Array, jax.Array]],
    gammas: jax.Array,
    decays: jax.Array,
    first: jax.Array,
    target: jax.Array,
) -> list[jax.Array]:
    """The hidden activities of one example: the system of `linear_equilibrium`.

    `maps[l-1]` is `(W_l, b_l)`, l = 1..L-1; `first` is the prediction `p_1`.
    """
    sizes = [weights.shape[1] for weights, _ in maps]
    blocks = [[jnp.zeros((n, m), first.dtype) for m in sizes] for n in sizes]
    right = [jnp.zeros(n, first.dtype) for n in sizes]
    right[0] += gammas[0] * first.ravel()
    for i, (weights, bias) in enumerate(maps):
        above = gammas[i + 1]
        blocks[i][i] += (gammas[i] + decays[i]) * jnp.eye(sizes[i], dtype=first.dtype)
        blocks[i][i] += above * weights.T @ weights
        right[i] -= above * weights.T @ bias
        if i + 1 < len(sizes):
            blocks[i][i + 1] -= above * weights.T
            blocks[i + 1][i] -= above * weights
            right[i + 1] += above * bias
        else:
            right[i] += above * weights.T @ target.ravel()
    solution = jnp.linalg.solve(jnp.block(blocks), jnp.concatenate(right))
    return jnp.split(solution, [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)])


def _observer(problem, params, inputs, targets):
    """Feed-forward hidden activities, and a view of the state shifted from them.

    `look(shifts)` is `(state, gradient, slopes)`, the slopes being dF/dh_l.
    """
    (bottom, theta), *upper = zip(problem.network.layers, params, strict=True)
    first = bottom.apply(theta, inputs)
    start: tuple[jax.Array, ...] = ()
    anchors = []
    activity = first
    for layer, theta in upper:
        start = (*start, activity)
        activity, anchor = predict(layer, None, theta, activity)
        anchors.append(anchor)

    def look(shifts):
        predictions, pullbacks = [first], []
        hidden = jax.tree.map(jnp.add, start, tuple(shifts))
        for (layer, theta), anchor, h in zip(upper, anchors, hidden, strict=True):
            prediction, pull, _ = jax.vjp(
                partial(predict, layer, anchor, theta), h, has_aux=True
            )
            predictions.append(prediction)
            pullbacks.append(pull)
        state = observe(problem, inputs, targets, start, shifts, predictions)
        gradient = energy_gradient(problem, state, pullbacks)
        slopes = [gradient(i + 1, state.errors[i + 1]) for i in range(len(start))]
        return state, gradient, slopes

    return start, look


def _norm(slopes: Sequence[jax.Array], inputs: jax.Array) -> jax.Array:
    """`||dF/dh||` of each example, [B]."""
    total = jnp.zeros(inputs.shape[:1], inputs.dtype)
    for slope in slopes:
        total += jnp.sum(slope**2, axis=range(1, slope.ndim))
    return jnp.sqrt(total)


def _column(values: jax.Array, like: jax.Array) -> jax.Array:
    return values.reshape((-1,) + (1,) * (like.ndim - 1))


def _report(state, norm, scale, counts, tolerance) -> Equilibrium:
    residual = norm / jnp.where(scale > 0, scale, 1)
    return Equilibrium(state, residual, counts, residual <= tolerance)
