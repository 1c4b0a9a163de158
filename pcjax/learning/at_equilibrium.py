"""Predictive coding's own gradient: that of the free energy at its equilibrium."""

import jax.numpy as jnp

from pcjax.checks import check_non_negative, check_parts
from pcjax.energy import Weights
from pcjax.inference.kernel import Method
from pcjax.inference.methods import check_start
from pcjax.inference.newton_cg import NewtonCG
from pcjax.inference.rest import come_to_rest
from pcjax.inference.state import Problem
from pcjax.learning.gradients import GradFn, Info, like_params, pulled_gradients
from pcjax.networks.network import Network, check_batch
from pcjax.networks.outputs import Clamp, Output, full_clamp, identity, losses_of
from pcjax.numerics.compiled import hashable, once_compiled

_NAME = "at_equilibrium.value_and_grad"


def value_and_grad(
    network: Network,
    method: Method,
    *,
    output: Output = identity,
    clamp: Clamp = full_clamp,
    gamma: Weights = 1.0,
    decay: Weights = 0.0,
    tolerance: float = 1e-3,
    fallback: NewtonCG | None = None,
) -> GradFn:
    """Local gradients at equilibrium, shaped like `pcjax.value_and_grad`.

    The batch goes on until every example has come to rest, for `method.num_steps`
    iterations at the most; where these were not enough, `info.equilibrium.converged`
    says so, and the gradient is that of where they led.

    >>> import jax, pcjax
    >>> network = pcjax.mlp([3, 4, 2])
    >>> params = network.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> method = pcjax.error_based(40, pcjax.barzilai_borwein())
    >>> grad_fn = value_and_grad(network, method)
    >>> (energy, info), grads = grad_fn(params, jnp.ones((5, 3)), jnp.ones((5, 2)))
    >>> bool(info.equilibrium.converged.all())
    True

    Args:
      network: L layers, a chain or a graph.
      method: what moves the activities; its `num_steps` is the most iterations.
      output: link and loss of the last layer.
      clamp: `full_clamp` or `soft_clamp(gamma_L)`.
      gamma: see `free_energy`.
      decay: see `free_energy`.
      tolerance: see `infer_to_equilibrium`, as for the next.
      fallback: what goes on with examples that have not converged.

    Returns:
      `grad_fn(params, inputs, targets, *, hidden=None, key=None) -> ((energy, info),
      grads)` as of `pcjax.value_and_grad`; `info.equilibrium` is the `Equilibrium`.

    Raises:
      TypeError: if network, method, output or clamp is no such thing.
      ValueError: if the tolerance is negative or infinite.
    """
    check_parts(_NAME, network=network, method=method, output=output, clamp=clamp)
    check_non_negative(_NAME, "tolerance", tolerance)
    weights = hashable(gamma), hashable(decay)
    problem = Problem(network, output, clamp, *weights, _NAME)

    def grad_fn(params, inputs, targets, *, hidden=None, key=None):
        check_batch(_NAME, network, params, inputs, targets)
        start = check_start(_NAME, network, params, inputs, hidden, key)
        arrays = (tuple(params), inputs, targets, start, tolerance)
        value, grads = once_compiled(
            _value_and_grad, (problem, method, fallback), arrays
        )
        return value, like_params(params, grads)

    return grad_fn


def _value_and_grad(
    problem, method, fallback, params, inputs, targets, start, tolerance
):
    rest, origin, final = come_to_rest(
        problem,
        method,
        fallback,
        params,
        inputs,
        targets,
        start,
        tolerance,
        of_params=True,
        of_shifts=False,
    )
    info = Info(
        loss=losses_of(problem.output, origin.logits, targets),
        logits=origin.logits,
        initial_energy=rest.initial_energy,
        energy=rest.energy,
        state=rest.state,
        equilibrium=rest,
    )
    return (jnp.mean(rest.energy), info), pulled_gradients(final)
