"""Gradients of nudged outputs: of one sign, and the mean of both."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pcjax.checks import check_callable
from pcjax.learning.gradients import GradFn
from pcjax.networks.nudges import check_beta, is_known, nudge
from pcjax.networks.outputs import Clamp
from pcjax.numerics.compiled import once_compiled

Rule = Callable[..., GradFn]  # called with `clamp=`


def nudged(rule: Rule, beta: Any, *, clamp: Callable[[Any], Clamp] = nudge) -> GradFn:
    """The gradient of the nudged free energy, over beta.

    Positive nudging, or negative with `beta < 0`. In `nudge(1)` it is that of the full
    clamp.

    >>> from functools import partial
    >>> import pcjax
    >>> network = pcjax.mlp([3, 4, 2])
    >>> params = network.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> rule = partial(pcjax.value_and_grad, network, pcjax.sequential(3, 0.05))
    >>> grad_fn = nudged(rule, -0.2)
    >>> (energy, info), grads = grad_fn(params, jnp.ones((5, 3)), jnp.ones((5, 2)))
    >>> energy.shape
    ()

    Args:
      rule: `(*, clamp) -> grad_fn`, such as `pcjax.value_and_grad` with all but its
        clamp.
      beta: the strength, a number other than 0, possibly traced: a schedule of the
        epoch compiles once.
      clamp: what clamps by the strength: `pcjax.nudge` or `pcjax.free_nudge`.

    Returns:
      A `grad_fn` like any other. Energies and `info` are those of the nudged network,
      and only the gradient is over beta.

    Raises:
      TypeError: if the rule takes no clamp or `beta` is not real.
      ValueError: if `beta` is 0, not finite or no single number.
    """
    _check("nudged", rule, beta, clamp)

    def grad_fn(params, inputs, targets, **start):
        value, grads = rule(clamp=clamp(beta))(params, inputs, targets, **start)
        return value, jax.tree.map(lambda g: g / jnp.asarray(beta, g.dtype), grads)

    return grad_fn


def centred(rule: Rule, beta: Any, *, clamp: Callable[[Any], Clamp] = nudge) -> GradFn:
    """The mean of the gradients nudged by +beta and by -beta, `(g(b) - g(-b)) / 2b`.

    At the equilibrium of a linear network it is the limit of small nudges for every
    beta, where one sign alone is off by a multiple of beta; in other networks it is off
    by O(beta^2). Both signs are inferred side by side, after one forward pass.

    Args:
      rule: see `nudged`, as for the others.
      beta: see `nudged`.
      clamp: see `nudged`.

    Returns:
      A `grad_fn` like any other. Energies are the means of both signs, in `info` those
      of the sign that rises where one does (`Info.rising`); its trace and state have a
      leading axis of the signs, (+beta, -beta).

    Raises:
      TypeError, ValueError: as `nudged`.
    """
    _check("centred", rule, beta, clamp)

    def run(beta, params, inputs, targets, start):
        def of_sign(signed):
            return nudged(rule, signed, clamp=clamp)(params, inputs, targets, **start)

        signs = jnp.stack([jnp.asarray(beta), -jnp.asarray(beta)])
        ((energy, info), grads) = jax.vmap(of_sign)(signs)
        rising = info.rising
        info = info._replace(
            loss=info.loss[0],  # the feed-forward pass is the same
            logits=info.logits[0],
            initial_energy=_mean_unless(rising, info.initial_energy),
            energy=_mean_unless(rising, info.energy),
        )
        grads = jax.tree.map(lambda g: jnp.mean(g, axis=0), grads)
        return (jnp.mean(energy), info), grads

    def grad_fn(params, inputs, targets, **start):
        return once_compiled(run, (beta,), (params, inputs, targets, start))

    return grad_fn


def _mean_unless(rising: jax.Array, energies: jax.Array) -> jax.Array:
    """The mean of both signs [2, B], or that of the first that rises, [B]."""
    first = jnp.where(rising[0], energies[0], energies[1])
    return jnp.where(rising.any(axis=0), first, jnp.mean(energies, axis=0))


def _check(function: str, rule: Rule, beta: Any, clamp: Callable) -> None:
    check_callable(function, "clamp", clamp)
    check_beta(function, beta)
    if is_known(beta) and np.asarray(beta) == 0:
        raise ValueError(f"{function}: beta must not be 0, the gradient is over it.")
    try:
        inspect.signature(rule).bind(clamp=nudge)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{function}: rule must make a grad_fn of a clamp alone, such as "
            "functools.partial(pcjax.value_and_grad, network, method); got "
            f"{rule!r}: {error}."
        ) from error
