"""Predictive coding by the augmented Lagrangian method (PC-ALM).

`e_l = 0` are constraints with multipliers `lambda_l`, and inference seeks the saddle of

    loss(p_L) + sum_{l=1}^{L-1} lambda_l . e_l + rho/2 ||e_l||^2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pcjax.checks import check_count, check_non_negative, check_parts, check_single
from pcjax.inference.origin import Origin
from pcjax.inference.slopes import Arrays, slope_of
from pcjax.inference.state import Problem, state_energy
from pcjax.learning.gradients import GradFn, Info, like_params, pulled_gradients
from pcjax.networks.network import Network, check_batch
from pcjax.networks.outputs import Output, full_clamp, identity, losses_of
from pcjax.numerics.compiled import once_compiled


class _Rule(NamedTuple):
    num_steps: int
    step_size: float
    rho: float
    alpha: float


def augmented_lagrangian(
    network: Network,
    num_steps: int,
    step_size: float,
    *,
    rho: float = 1.0,
    alpha: float = 1.0,
    output: Output = identity,
) -> GradFn:
    """Gradients of the augmented Lagrangian: backprop's in the limit of many steps.

    Of T iterations each moves all activities by a step down the Lagrangian, and then
    the multipliers, `lambda_l <- lambda_l + alpha e_l`. The weights learn from the
    activities so found and the multipliers before their last step. Since the
    multipliers can hold the equilibrium, errors vanish, `lambda_l -> -delta_l` and the
    gradients go to backprop's.

    Args:
      network: L layers, a chain or a graph.
      num_steps: T >= 1.
      step_size: of the activities, >= 0.
      rho: the weight of the squared errors, >= 0.
      alpha: the step of the multipliers, >= 0.
      output: link and loss of the last layer.

    Returns:
      `grad_fn(params, inputs, targets) -> ((energy, info), grads)` as of
      `pcjax.value_and_grad`, whose errors it raises; `info.trace` holds the multipliers
      `(lambda_1, ..., lambda_{L-1})` before their last step.

    Raises:
      TypeError: if network or output is no such thing, or a number not real.
      ValueError: if T < 1 or a number is negative, infinite or an array.
    """
    name = "augmented_lagrangian"
    check_parts(name, network=network, output=output)
    check_count(name, "num_steps", num_steps)
    for text, value in (("step_size", step_size), ("rho", rho), ("alpha", alpha)):
        check_single(name, text, value)
        check_non_negative(name, text, value)
    problem = Problem(network, output, full_clamp, 1.0, 0.0, name)
    rule = _Rule(num_steps, step_size, rho, alpha)

    def grad_fn(params, inputs, targets, *, key=None):
        del key
        check_batch(name, network, params, inputs, targets)
        arrays = (tuple(params), inputs, targets)
        value, grads = once_compiled(_value_and_grad, (problem, rule), arrays)
        return value, like_params(params, grads)

    return grad_fn


def _value_and_grad(problem, rule, params, inputs, targets):
    origin = Origin(problem, params, inputs, targets)
    count = len(origin.start)

    def pressed(view, multipliers: Arrays):
        """`rho e_l + lambda_l`, which takes the place of an error."""
        *hidden, last = view.state.errors
        pairs = zip(hidden, multipliers, strict=True)
        return (*(rule.rho * e + own for e, own in pairs), last)

    def iterate(carry, t):
        shifts, multipliers = carry
        view = origin.look(shifts, t)
        *errors, _ = view.state.errors
        pairs = zip(multipliers, errors, strict=True)
        multipliers = tuple(own + rule.alpha * e for own, e in pairs)
        force = pressed(view, multipliers)
        slopes = [
            slope_of(view.gradient, index, force) for index in range(1, count + 1)
        ]
        pairs = zip(shifts, slopes, strict=True)
        return (tuple(d - rule.step_size * g for d, g in pairs), multipliers), None

    steps = jnp.arange(rule.num_steps, dtype=jnp.int32)
    start = (origin.rest(), origin.rest())
    (shifts, multipliers), _ = jax.lax.scan(iterate, start, steps)
    t = rule.num_steps
    view = origin.look(shifts, t, of_params=True, of_shifts=False)
    force = pressed(view, multipliers)
    energy = state_energy(problem, view.state, t)
    loss = losses_of(problem.output, origin.logits, targets)
    info = Info(loss, origin.logits, loss, energy, multipliers, view.state)
    grads = pulled_gradients(view._replace(state=view.state._replace(errors=force)))
    return (jnp.mean(energy), info), grads
