"""What `experiments.implicit_sgd` measures: updates of examples against each other."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import pcjax
from experiments.implicit_sgd.rules import Problem, Rule, relaxation, sequential
from pcjax.inference.equilibrium import infer_to_equilibrium
from pcjax.optimizers.normalised import squared_norms
from pcjax.theory.newton import newton_step
from pcjax.theory.proximal import compare, example_loss, proximal_step
from pcjax.theory.theorem1 import inference_step, limit_gap


def proximal_steps(network, params, inputs, targets, beta, max_steps, tolerance):
    """The true implicit step of every example, [N, ...]; beta is a number or [N]."""
    return _one_by_one(
        partial(_proximal, network, params, max_steps=max_steps, tolerance=tolerance),
        (inputs, targets, jnp.broadcast_to(jnp.asarray(beta), inputs.shape[:1])),
    )


def newton_steps(network, params, inputs, targets, beta, tolerance=1e-10):
    """The damped Newton step of every example; beta is a number or [N]."""
    return _one_by_one(
        partial(_newton, network, params, tolerance=tolerance),
        (inputs, targets, jnp.broadcast_to(jnp.asarray(beta), inputs.shape[:1])),
    )


def _one_by_one(function: Callable, examples: Any) -> Any:
    """Stacks `function(x [1, ...], y [1, ...], beta)` of the examples.

    A loop of the host, so that one compilation serves any number of examples.
    """
    count = len(examples[0])
    results = [
        function(*(part[i : i + 1] for part in examples[:2]), examples[2][i])
        for i in range(count)
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


@partial(jax.jit, static_argnums=0)
def _proximal(network, params, x, y, beta, *, max_steps, tolerance):
    return proximal_step(
        example_loss(network, x, y),
        params,
        beta,
        tolerance=tolerance,
        max_steps=max_steps,
        memory=10,
    )


@partial(jax.jit, static_argnums=0)
def _newton(network, params, x, y, beta, *, tolerance):
    return newton_step(
        example_loss(network, x, y), params, beta, tolerance=tolerance, max_steps=300
    )


@partial(jax.jit, static_argnames="network")
def nearest_kinks(network, params, inputs, updates):
    """After the update, the smallest |h_l| over hidden units of an example, [N]."""

    def nearest(example):
        x, update = example
        updated = jax.tree.map(jnp.add, params, update)
        hidden = pcjax.feedforward(network, updated, x[None])[:-1]
        return jnp.min(jnp.array([jnp.min(jnp.abs(h)) for h in hidden]))

    return jax.lax.map(nearest, (inputs, updates))


def norm(tree: Any) -> jax.Array:
    """The Euclidean norm of a tree."""
    return jnp.linalg.norm(ravel_pytree(tree)[0])


@partial(jax.jit, static_argnames="network")
def gradients(network, params, inputs, targets):
    """The gradient of every example's loss."""
    return jax.lax.map(
        lambda e: jax.grad(example_loss(network, e[0][None], e[1][None]))(params),
        (inputs, targets),
    )


@partial(jax.jit, static_argnames=("network", "iterations"))
def curvatures(network, params, inputs, targets, iterations=50):
    """The largest curvature |lambda| of every example's loss, by power iteration."""

    def largest(example):
        loss_fn = example_loss(network, *(part[None] for part in example))
        gradient, product = jax.linearize(jax.grad(loss_fn), params)

        def iterate(vector, _):
            image = product(vector)
            size = norm(image)
            return jax.tree.map(lambda v: v / size, image), size

        start = jax.tree.map(lambda g: g / norm(gradient), gradient)
        return jax.lax.scan(iterate, start, None, length=iterations)[1][-1]

    return jax.lax.map(largest, (inputs, targets))


class Rest(NamedTuple):
    """What a rule does to every example, [N, ...]."""

    activities: tuple[jax.Array, ...]
    update: Any
    residual: jax.Array
    gap: jax.Array  # ||h_hat_{L-1} - h_{L-1}^{(b+1)}||


def apply_rule(problem: Problem, rule: Rule, beta: Any, max_steps: int) -> Rest:
    """Infers for all examples and makes every example's own update."""
    return _apply_rule(rule, max_steps, *_split(problem), jnp.asarray(beta))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _apply_rule(rule, max_steps, network, tx, rest_of_problem, beta):
    problem = Problem(network, tx, *rest_of_problem)
    where = rule.inference(problem, beta)
    arguments = (problem.params, problem.inputs, problem.targets)
    if rule.num_steps is None:
        method = relaxation(max_steps, where.get("gamma", 1.0))
        rest = infer_to_equilibrium(
            network, method, *arguments, **where, tolerance=1e-10
        )
        state, residual = rest.state, rest.residual
    else:
        state = pcjax.infer(network, sequential(), *arguments, **where).state
        residual = jnp.full(problem.inputs.shape[:1], jnp.nan)
    update, gap = _updates(problem, rule, state.activities, beta)
    return Rest(state.activities, update, residual, gap)


def _split(problem: Problem) -> tuple[Any, Any, tuple[Any, ...]]:
    """What is static and what is traced."""
    network, tx, *rest = problem
    return network, tx, tuple(rest)


def _updates(problem, rule, activities, beta):
    def one(activities):
        activities = tuple(h[None] for h in activities)
        update = rule.step(problem, activities, beta)
        return update, limit_gap(problem.network, problem.params, update, activities)

    return jax.vmap(one)(activities)


def apply_static(
    problem: Problem, weights: Callable, alphas: Any, beta: Any, max_steps: int
) -> Rest:
    """`apply_rule` with every example's own static step sizes, L arrays [N]."""
    network, _, rest = _split(problem)
    return _apply_static(weights, max_steps, network, rest, alphas, jnp.asarray(beta))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _apply_static(weights, max_steps, network, rest_of_problem, alphas, beta):
    params, _, inputs, targets = rest_of_problem

    def one(x, y, alphas):
        where = weights(network, alphas, beta)
        rest = infer_to_equilibrium(
            network,
            relaxation(max_steps, where.gamma),
            params,
            x[None],
            y[None],
            tolerance=1e-10,
            **where._asdict(),
        )
        activities = rest.state.activities
        update = inference_step(network, params, activities, alphas)
        gap = limit_gap(network, params, update, activities)
        return Rest(activities, update, rest.residual[0], gap)

    return jax.vmap(one)(inputs, targets, alphas)


def follow(
    problem: Problem, rule: Rule, beta: Any, reference: Any, num_steps: int
) -> Any:
    """Comparison with the reference update after 0, 1, ... iterations, [T+1, N]."""
    network, tx, rest = _split(problem)
    return _follow(rule, num_steps, network, tx, rest, jnp.asarray(beta), reference)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _follow(rule, num_steps, network, tx, rest_of_problem, beta, reference):
    problem = Problem(network, tx, *rest_of_problem)
    where = rule.inference(problem, beta)
    if rule.num_steps is None:
        method = relaxation(num_steps, where.get("gamma", 1.0))
    else:
        method = sequential()
    trace = pcjax.infer(
        network,
        method,
        problem.params,
        problem.inputs,
        problem.targets,
        trace=lambda state: state.activities,
        **where,
    ).trace

    def row(activities):
        update, _ = _updates(problem, rule, activities, beta)
        return jax.vmap(compare)(update, reference)

    return jax.lax.map(row, trace)


def static_step_sizes(problem: Problem, activities: Any) -> list[jax.Array]:
    """`1 / ||f(h_l)||^2` of each example as numbers [N] that no longer change."""
    return [1 / norm for norm in squared_norms(problem.network, activities)]


def summary(values: Any, valid: Any = None) -> dict[str, Any]:
    """Median and quartiles over the last axis (examples), those not valid left out."""
    values = np.asarray(values, float)
    if valid is not None:
        values = np.where(np.asarray(valid), values, np.nan)
    kept = np.isfinite(values)
    quartiles = np.full((3, *values.shape[:-1]), np.nan)
    some = kept.any(-1)
    if some.any():
        chosen = np.where(kept, values, np.nan)[some]
        quartiles[:, some] = np.nanquantile(chosen, [0.5, 0.25, 0.75], axis=-1)
    return {
        "median": _plain_numbers(quartiles[0]),
        "lower": _plain_numbers(quartiles[1]),
        "upper": _plain_numbers(quartiles[2]),
        "count": kept.sum(-1).tolist(),
    }


def _plain_numbers(values: np.ndarray) -> Any:
    """Nested lists with None for what is not finite, as JSON needs it."""
    if values.ndim:
        return [_plain_numbers(value) for value in values]
    return float(f"{values:.6g}") if np.isfinite(values) else None
