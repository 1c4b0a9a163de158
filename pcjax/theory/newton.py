"""The damped Newton step that implicit SGD is close to (Theorem 2)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from pcjax.checks import check_non_negative
from pcjax.numerics.devices import varying_as
from pcjax.theory.proximal import (
    LossFn,
    Step,
    check_positive,
    positive_or_nan,
    relative,
    scalar_loss,
)


def newton_step(
    loss_fn: LossFn,
    params: Any,
    beta: Any,
    *,
    tolerance: float = 1e-10,
    max_steps: int = 1000,
) -> Step:
    """The damped Newton step `-(I + beta H)^{-1} beta grad L(theta)` (Theorem 2).

    By conjugate gradients on Hessian-vector products. The residual is
    `||(I + beta H) update + beta grad L||`; it stays where `I + beta H` is not
    positive definite, which conjugate gradients need.

    >>> step = newton_step(lambda theta: theta**2 / 2, jnp.array(3.0), beta=0.5)
    >>> round(float(step.update), 5)  # a quadratic: the implicit step itself
    -1.0

    Args:
      loss_fn: `params -> []`.
      params: a tree of floats, all of one dtype.
      beta: a number > 0, traced or not; traced and not positive gives NaN.
      tolerance: the relative residual to stop at.
      max_steps: the most iterations.

    Returns:
      A `Step`. Check `converged`.

    Raises:
      ValueError: if beta is not positive or the loss is not a scalar.
    """
    name = "newton_step"
    check_positive(name, "beta", beta)
    check_non_negative(name, "tolerance", tolerance)
    loss_fn = scalar_loss(name, loss_fn)
    flat, unravel = ravel_pytree(params)
    beta = varying_as(flat, positive_or_nan(beta, flat.dtype))
    grad, hessian_vector = jax.linearize(jax.grad(lambda x: loss_fn(unravel(x))), flat)

    def damped(vector):
        return vector + beta * hessian_vector(vector)

    right = -beta * grad
    # Conjugate gradients watch a recursive residual; a tenth leaves room for drift.
    update, _ = jax.scipy.sparse.linalg.cg(
        damped, right, tol=tolerance / 10, maxiter=max_steps
    )
    update += 0 * beta  # NaN if beta is
    left_over = jnp.linalg.norm(damped(update) - right)
    residual = relative(left_over, jnp.linalg.norm(right))
    steps = jnp.full((), -1, jnp.int32)
    return Step(unravel(update), residual, residual <= tolerance, steps)
