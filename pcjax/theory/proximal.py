"""The proximal objective and its minimiser, the step of implicit SGD.

`theta' = argmin Prox_beta` solves `theta' = theta - beta grad L(theta')` (eqs. 5, 6):
one step of implicit SGD. Everything here is about a `loss_fn(params) -> []`, of
whatever network, parameters and data, and `update = theta' - theta`:

    loss_fn = example_loss(network, inputs, targets)
    step = proximal_step(loss_fn, params, beta=1.0)
    similarity, distance = compare(my_update, step.update)

A step that was not found says so in `converged` and `residual`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from pcjax.checks import check_non_negative
from pcjax.networks.network import Network, Params, check_batch
from pcjax.networks.outputs import Output, identity, widened
from pcjax.numerics.devices import varying_as

LossFn = Callable[[Any], jax.Array]


class Step(NamedTuple):
    """A change of the parameters, with how well it solves the equation it should.

    Attributes:
      update: `theta' - theta`, a tree like the parameters.
      residual: [], the norm of what the equation leaves over (see the function that
        made the step), relative to `||beta grad L(theta)||`, absolute where that is 0.
      converged: bool [], whether `residual <= tolerance`; False if it is not finite.
      num_steps: int32 [], the iterations of the solver, -1 if it does not tell.
    """

    update: Any
    residual: jax.Array
    converged: jax.Array
    num_steps: jax.Array


class Comparison(NamedTuple):
    """How like each other two updates are; see `compare`."""

    cosine: jax.Array
    distance: jax.Array


def proximal_objective(
    loss_fn: LossFn, params: Any, update: Any, beta: Any
) -> jax.Array:
    """`Prox_beta(theta') = L(theta') + ||update||^2 / (2 beta)` (eq. 6).

    >>> loss_fn = lambda theta: theta**2 / 2
    >>> float(proximal_objective(loss_fn, jnp.array(3.0), jnp.array(-1.0), beta=0.5))
    3.0

    Args:
      loss_fn: `params -> []`.
      params: a tree of floats, theta.
      update: a tree like `params`.
      beta: a number > 0, traced or not.

    Returns:
      [].

    Raises:
      ValueError: if beta is not positive, `update` is not like `params`, or the loss
        is not a scalar.
    """
    name = "proximal_objective"
    check_positive(name, "beta", beta)
    _check_like(name, params, update)
    flat, _ = ravel_pytree(update)
    updated = jax.tree.map(jnp.add, params, update)
    return scalar_loss(name, loss_fn)(updated) + jnp.vdot(flat, flat) / (2 * beta)


def proximal_step(
    loss_fn: LossFn,
    params: Any,
    beta: Any,
    *,
    tolerance: float = 1e-8,
    max_steps: int = 1000,
    memory: int = 20,
) -> Step:
    """A step of implicit SGD: `theta' = theta - beta grad L(theta')` (eqs. 5, 6).

    Minimises `beta Prox_beta` from `theta' = theta` by optax's L-BFGS; no Hessian is
    formed. The residual is `||theta' - theta + beta grad L(theta')||`. Where L has
    kinks (ReLU), a minimiser often lies on one; the equation then has no solution
    there and the residual stays. Under `jax.shard_map` optax's line search asks for
    `check_vma=False`.

    >>> step = proximal_step(lambda theta: theta**2 / 2, jnp.array(3.0), beta=0.5)
    >>> round(float(step.update), 5)  # 3 / (1 + 0.5) - 3
    -1.0

    Args:
      loss_fn: `params -> []`.
      params: a tree of floats, all of one dtype.
      beta: a number > 0, traced or not; traced and not positive gives NaN.
      tolerance: the relative residual to stop at; 1e-8 takes float64.
      max_steps: the most iterations.
      memory: how many past steps L-BFGS keeps.

    Returns:
      A `Step`. Check `converged`.

    Raises:
      ValueError: if beta is not positive or the loss is not a scalar.
    """
    name = "proximal_step"
    check_positive(name, "beta", beta)
    check_non_negative(name, "tolerance", tolerance)
    loss_fn = scalar_loss(name, loss_fn)
    flat, unravel = ravel_pytree(params)
    beta = positive_or_nan(beta, flat.dtype)
    start, start_grad = jax.value_and_grad(lambda x: loss_fn(unravel(x)))(flat)
    scale = beta * jnp.linalg.norm(start_grad)

    def objective(update):  # as a difference, which keeps small decreases in sight
        change = loss_fn(unravel(flat + update)) - start
        return beta * change + 0.5 * jnp.vdot(update, update)

    solver = optax.lbfgs(
        memory_size=memory,
        linesearch=optax.scale_by_zoom_linesearch(
            max_linesearch_steps=30, initial_guess_strategy="one"
        ),
    )
    value_and_grad = optax.value_and_grad_from_state(objective)

    def unsolved(carry):
        _, _, residual, steps = carry
        return (steps < max_steps) & jnp.isfinite(residual) & (residual > tolerance)

    def improve(carry):
        update, state, _, steps = carry
        value, grad = value_and_grad(update, state=state)
        move, state = solver.update(
            grad, state, update, value=value, grad=grad, value_fn=objective
        )
        slope = optax.tree_utils.tree_get(state, "grad")
        residual = relative(jnp.linalg.norm(slope), scale)
        return update + move, state, residual, steps + 1

    update = jnp.zeros_like(flat)
    residual = relative(scale, scale)
    carry = (update, solver.init(update), residual, jnp.zeros((), jnp.int32))
    update, _, _, steps = jax.lax.while_loop(unsolved, improve, carry)
    update += 0 * beta  # NaN if beta is
    value, slope = jax.value_and_grad(objective)(update)
    residual = relative(jnp.linalg.norm(slope), scale) + 0 * value  # NaN shows
    return Step(unravel(update), residual, residual <= tolerance, steps)


def mean_over_examples(
    step: Callable[[LossFn, Any], Step],
    network: Network,
    params: Sequence[Params],
    inputs: jax.Array,
    targets: jax.Array,
    *,
    output: Output = identity,
) -> Step:
    """The mean of the examples' own steps (eq. 27, right-hand side).

    `mean_over_examples(partial(proximal_step, beta=1.0), network, ...)` is what
    inference learning approximates on a mini-batch: one proximal problem for each
    example, not one for the batch. Examples are solved one after the other.

    Args:
      step: `(loss_fn, params) -> Step`.
      network: a chain of L layers.
      params: their parameters.
      inputs: [B, ...] floats.
      targets: shaped like the logits, floats.
      output: link and loss of the last layer.

    Returns:
      A `Step` whose update is the mean; residual, converged and num_steps are [B].

    Raises:
      TypeError: if inputs or targets are not floats.
      ValueError: if the arguments do not fit the network.
    """
    check_batch("mean_over_examples", network, params, inputs, targets)
    count = inputs.shape[0]

    def add(total, example):
        x, y = (part[None] for part in example)
        found = step(partial(_mean_loss, network, output, x, y), tuple(params))
        return jax.tree.map(lambda a, b: a + b / count, total, found.update), found[1:]

    zeros = jax.tree.map(jnp.zeros_like, tuple(params))
    zeros = varying_as((params, inputs, targets), zeros)
    update, reports = jax.lax.scan(add, zeros, (inputs, targets))
    return Step(update, *reports)


def example_loss(
    network: Network,
    inputs: jax.Array,
    targets: jax.Array,
    *,
    output: Output = identity,
) -> LossFn:
    """The loss of one example as a function of the parameters.

    Args:
      network: a chain of L layers.
      inputs: [1, ...] floats.
      targets: shaped like the logits, [1, ...].
      output: link and loss of the last layer.

    Returns:
      `loss_fn(params) -> []`.

    Raises:
      ValueError: if there is not exactly one example.
    """
    if inputs.shape[:1] != (1,) or targets.shape[:1] != (1,):
        raise ValueError(
            "example_loss: expected one example, [1, ...], got inputs of shape "
            f"{inputs.shape} and targets of shape {targets.shape}. See batch_loss for "
            "the mean loss, mean_over_examples for the mean of steps."
        )
    return partial(_mean_loss, network, output, inputs, targets)


def batch_loss(
    network: Network,
    inputs: jax.Array,
    targets: jax.Array,
    *,
    output: Output = identity,
) -> LossFn:
    """`example_loss` for a batch [B, ...]: the mean loss of its examples."""
    return partial(_mean_loss, network, output, inputs, targets)


def compare(update: Any, reference: Any) -> Comparison:
    """Cosine, and `||update - reference|| / ||reference||`, of trees, each [].

    NaN where a norm that is divided by is 0.

    Raises:
      ValueError: if the trees differ in structure or shapes.
    """
    _check_like("compare", reference, update)
    a, b = (
        ravel_pytree(jax.tree.map(lambda x: widened(x)[0], tree))[0]
        for tree in (update, reference)
    )
    norm = jnp.linalg.norm(b)
    cosine = jnp.vdot(a, b) / (jnp.linalg.norm(a) * norm)
    return Comparison(cosine, jnp.linalg.norm(a - b) / norm)


def _mean_loss(network, output, inputs, targets, params):
    check_batch("loss_fn", network, params, inputs, targets)
    return jnp.mean(output.loss(network.apply(params, inputs), targets))


def scalar_loss(function: str, loss_fn: LossFn) -> LossFn:
    """The loss function, refused where it is called if it gives no scalar."""

    def checked(params):
        loss = loss_fn(params)
        if jnp.shape(loss) != ():
            raise ValueError(
                f"{function}: loss_fn must return a scalar, got shape "
                f"{jnp.shape(loss)}. Average over the batch (batch_loss), or take one "
                "example (example_loss, mean_over_examples)."
            )
        return loss

    return checked


def check_positive(function: str, name: str, value: Any) -> None:
    """Refuses anything but numbers > 0, unless the value is traced."""
    check_non_negative(function, name, value)
    if not isinstance(value, jax.core.Tracer) and not np.all(np.asarray(value) > 0):
        raise ValueError(f"{function}: {name} must be > 0, got {value}.")


def positive_or_nan(beta: Any, dtype: Any) -> jax.Array:
    """Beta as an array, NaN if it is traced and not positive."""
    beta = jnp.asarray(beta, dtype)
    return jnp.where(beta > 0, beta, jnp.nan)


def relative(norm: jax.Array, scale: jax.Array) -> jax.Array:
    """`norm / scale`, or the norm itself where the scale is 0."""
    return norm / jnp.where(scale == 0, 1, scale)


def _check_like(function: str, params: Any, update: Any) -> None:
    shapes, others = (jax.tree.map(jnp.shape, tree) for tree in (params, update))
    if shapes != others:
        raise ValueError(
            f"{function}: the update has shapes {others}, the parameters {shapes}."
        )
