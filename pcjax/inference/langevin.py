"""Sampling: Langevin dynamics of the hidden activities."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pcjax.checks import check_non_negative, check_real, check_single
from pcjax.inference.kernel import Method
from pcjax.inference.movers import make_mover


def langevin(
    num_steps: int,
    step_size: optax.ScalarOrSchedule,
    *,
    temperature: optax.ScalarOrSchedule = 1.0,
    momentum: float = 0.0,
) -> Method:
    """Langevin dynamics: samples of the hidden activities, `p(h) ~ exp(-F(h) / v)`.

    All of them move at once, every element with noise `xi` of variance 1 of its own,

        d_l <- m d_l - eps_t dF/dh_l + sqrt(2 eps_t (1 - m) v_t) xi,  h_l <- h_l + d_l

    With `gamma` as precisions and the temperature v = 1, samples are those of the
    posterior of a network of Gaussian latents. In a quadratic energy with the Hessian
    K, chains without momentum have the covariance `v (K - eps K^2 / 2)^-1`, which is
    that of the posterior for small steps; they are stable for `eps < 2 / lambda_max`.

    >>> import pcjax
    >>> network = pcjax.decoder([2, 5])
    >>> inputs = pcjax.no_inputs(3)
    >>> params = network.init(jax.random.key(0), inputs)
    >>> chains = pcjax.infer(network, langevin(100, 0.1), params, inputs,
    ...     jnp.ones((3, 5)), trace=lambda state: state.activities[1],
    ...     key=jax.random.key(1)).trace
    >>> chains.shape
    (101, 3, 2)

    Every example has a chain of its own by its own key; `trace` keeps them. A longer
    chain goes on from the last state by `hidden=`, with another `key=`. Without a key,
    the same call draws the same numbers, and examples that have an input and are equal
    in all draw the same, too.

    Args:
      num_steps: the number of iterations T >= 1, static.
      step_size: `eps_t`, a number >= 0, traced or not, or an optax schedule.
      temperature: `v_t`, likewise; 0 is descent.
      momentum: `m`, 0 <= m < 1.

    Returns:
      A method for `infer`, `value_and_grad` and `incremental`.

    Raises:
      ValueError: if T < 1, the step size or temperature is negative or infinite, or the
        momentum is not in [0, 1).
      TypeError: if one of them is not real.
    """
    make_mover("langevin", num_steps, step_size, None)
    if not callable(temperature):
        expected = "a number or a schedule"
        check_single("langevin", "temperature", temperature, expected)
        check_non_negative("langevin", "temperature", temperature)
    check_single("langevin", "momentum", momentum)
    check_real("langevin", "momentum", momentum)
    if not isinstance(momentum, jax.core.Tracer) and not 0 <= momentum < 1:
        raise ValueError(f"langevin: momentum must be in [0, 1), got {momentum}.")
    step = _Langevin(step_size, temperature, momentum)
    return Method(num_steps, _start, step, random=True)


def _start(hidden, keys):
    """The velocities, and the keys of the examples."""
    return jax.tree.map(jnp.zeros_like, hidden), keys


@dataclass(frozen=True)
class _Langevin:
    step_size: Any
    temperature: Any
    momentum: Any

    def __call__(self, t, state, gradient, carry):
        velocities, keys = carry
        eps, heat = (_at(x, t) for x in (self.step_size, self.temperature))
        scale = jnp.sqrt(2 * eps * (1 - self.momentum) * heat)
        now = jax.vmap(partial(jax.random.fold_in, data=t))(keys)
        updates = []
        for index, velocity in enumerate(velocities):
            slope = gradient(index + 1, state.errors)
            noise = _draw(now, index, velocity)
            eps_, m, scale_ = (
                jnp.asarray(x, velocity.dtype) for x in (eps, self.momentum, scale)
            )
            updates.append(m * velocity - eps_ * slope + scale_ * noise)
        return tuple(updates), (tuple(updates), keys)


def _at(value: Any, t: jax.Array) -> Any:
    """A number, or a schedule at iteration t."""
    return value(t) if callable(value) else value


def _draw(keys: jax.Array, layer: int, like: jax.Array) -> jax.Array:
    """Standard normal numbers for a layer, [B, ...], of every example's key."""

    def of_example(key: jax.Array) -> jax.Array:
        own = jax.random.fold_in(key, layer)
        return jax.random.normal(own, like.shape[1:], like.dtype)

    draw: Callable[[jax.Array], jax.Array] = jax.vmap(of_example)
    return draw(keys)
