"""The largest curvature of the energy, and so the largest stable step."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from pcjax.checks import check_count, check_parts
from pcjax.energy import Weights
from pcjax.inference.kernel import Method, moves_errors
from pcjax.inference.origin import Origin
from pcjax.inference.slopes import activity_slopes, error_slopes, inner, per_example
from pcjax.inference.state import Problem
from pcjax.networks.network import Network, Params, check_batch
from pcjax.networks.outputs import Clamp, Output, full_clamp, identity
from pcjax.numerics.compiled import hashable, once_compiled
from pcjax.numerics.devices import varying_as


def largest_curvature(
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
    num_products: int = 8,
) -> jax.Array:
    """The largest eigenvalue of the energy's Hessian at the feed-forward activities.

    Plain descent is stable near there for steps below 2 over it. By Lanczos' method,
    from below, with a random start: few products tell it to some per cent.

    Args:
      network: L layers, a chain or a graph.
      method: says in which coordinates: `error_based(...)` in those of the errors, all
        others in those of the activities. Its step does not count.
      params: the network's parameters.
      inputs: [B, ...] floats.
      targets: shaped like the logits, floats.
      output: see `infer`, as for the next.
      clamp: a soft clamp follows the output, as inference sees it.
      gamma: see `free_energy`.
      decay: see `free_energy`.
      num_products: Hessian-vector products, about two passes each.

    Returns:
      [B]; 0 for networks without hidden layers.

    Raises:
      TypeError, ValueError: as `infer`, or if `num_products` is no int >= 1, the
        method holds elements (`held`), or gamma or decay is a function.
    """
    name = "largest_curvature"
    check_parts(name, network=network, method=method, output=output, clamp=clamp)
    check_batch(name, network, params, inputs, targets)
    check_count(name, "num_products", num_products)
    if callable(gamma) or callable(decay):
        raise ValueError(
            f"{name}: expected gamma and decay that are no functions: with those, what "
            "inference follows is the gradient of no energy, and has no Hessian."
        )
    problem = Problem(network, output, clamp, hashable(gamma), hashable(decay), name)
    parts = (problem, moves_errors(name, method), num_products)
    return once_compiled(_largest, parts, (tuple(params), inputs, targets))


def _largest(problem, of_errors, num_products, params, inputs, targets):
    origin = Origin(problem, params, inputs, targets)
    look = partial(origin.rebuild if of_errors else origin.look, t=0)
    slopes = error_slopes if of_errors else activity_slopes
    place = origin.rest()
    if not place:
        return jnp.zeros(inputs.shape[0])

    def gradient(place):
        view = look(place)
        return slopes(view.state, view.gradient)

    _, pull = jax.vjp(gradient, place)
    keys = jax.random.split(jax.random.key(0), len(place))
    start = [
        jax.random.normal(key, h.shape, h.dtype)
        for key, h in zip(keys, place, strict=True)
    ]
    return lanczos(lambda v: pull(v)[0], varying_as(place, start), num_products)


def lanczos(times, start, num_products) -> jax.Array:
    """The largest Ritz value of a symmetric operator for each example, [B]."""

    def unit(vector):
        size = jnp.sqrt(inner(vector, vector))
        inverse = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)
        return per_example(inverse, vector), size

    def iterate(carry, _):
        before, now, size = carry
        product = times(now)
        along = inner(product, now)
        rest = tuple(
            p - a - b
            for p, a, b in zip(
                product, per_example(along, now), per_example(size, before), strict=True
            )
        )
        after, size = unit(rest)
        return (now, after, size), (along, size)

    first, size = unit(tuple(start))
    carry = (jax.tree.map(jnp.zeros_like, first), first, 0 * size)
    _, (diagonal, beside) = jax.lax.scan(iterate, carry, None, length=num_products)
    diagonal, beside = diagonal.T, beside.T[:, :-1]  # [B, k], [B, k-1]
    # Where the vectors have ended, a value that cannot be the largest.
    ended = jnp.cumsum(beside == 0, axis=1) > 0
    diagonal = diagonal.at[:, 1:].set(
        jnp.where(ended, diagonal[:, :1], diagonal[:, 1:])
    )
    matrix = jax.vmap(lambda d, b: jnp.diag(d) + jnp.diag(b, 1) + jnp.diag(b, -1))(
        diagonal, beside
    )
    return jnp.linalg.eigvalsh(matrix)[:, -1]
