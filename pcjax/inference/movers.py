"""What moves one activity: a step size or an optax transform.

Movers, and methods made of them, are equal if they are made of equal parts, so that
what was compiled for one serves the other.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from pcjax.checks import check_non_negative, check_parts, check_single
from pcjax.inference.keys import holds_keys, with_keys


@dataclass(frozen=True)
class Descent:
    """Moves an activity by a step size down its slope."""

    step_size: Any

    delayed: ClassVar[bool] = True
    random: ClassVar[bool] = False

    def init(self, hidden):
        """No state."""
        return ((),) * len(hidden)

    def move(self, t, slope, opt_state, h):
        """`-eps_t slope`."""
        del h
        eps = self.step_size(t) if callable(self.step_size) else self.step_size
        return -jnp.asarray(eps, slope.dtype) * slope, opt_state


@dataclass(frozen=True)
class Transform:
    """Moves an activity by an optax transform, each example by its own state."""

    optimizer: optax.GradientTransformation
    random: bool

    delayed: ClassVar[bool] = False

    def init(self, hidden, keys=None):
        """A state of every hidden activity, for each example."""
        if not self.random:
            return tuple(_along(h, jax.vmap(self.optimizer.init)(h)) for h in hidden)

        def of_example(h, key, layer):
            return with_keys(self.optimizer.init(h), jax.random.fold_in(key, layer))

        return tuple(
            jax.vmap(partial(of_example, layer=layer))(h, keys)
            for layer, h in enumerate(hidden)
        )

    def move(self, t, slope, opt_state, h):
        """The transform's update of the slope."""
        del t
        return jax.vmap(self.optimizer.update)(slope, opt_state, h)


def _along(h: jax.Array, state: Any) -> Any:
    """The state of a batch, over the devices that hold the activities of the batch.

    Counters start from constants, which belong to no device and to all.
    """
    zeros = jnp.sum(jnp.zeros_like(h), axis=range(1, h.ndim))

    def place(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.number):
            return leaf
        column = zeros.reshape(-1, *(1,) * (leaf.ndim - 1))
        return leaf + column.astype(leaf.dtype)

    return jax.tree.map(place, state)


@dataclass(frozen=True)
class Init:
    """The state of what moves the activities, before the first iteration."""

    mover: Any

    def __call__(self, hidden, *keys):
        """What the mover keeps of the hidden activities."""
        return self.mover.init(hidden, *keys)


def make_mover(function, num_steps, step_size, optimizer):
    """What moves one activity: a step size or a transform."""
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(
            f"{function}: num_steps must be an int >= 1, got {num_steps!r}."
        )
    if (step_size is None) == (optimizer is None):
        raise ValueError(
            f"{function}: expected exactly one of step_size and optimizer, got "
            f"step_size={step_size} and optimizer={optimizer}."
        )
    if optimizer is not None:
        check_parts(function, optimizer=optimizer)
        one = jax.ShapeDtypeStruct((1,), jnp.float32)
        return Transform(optimizer, holds_keys(jax.eval_shape(optimizer.init, one)))
    if not callable(step_size):
        check_single(function, "step_size", step_size, "a number or a schedule")
        check_non_negative(function, "step_size", step_size)
    return Descent(step_size)
