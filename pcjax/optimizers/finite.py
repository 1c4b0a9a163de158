"""Optimizers that take no step on a gradient that is not finite.

`guard` wraps an optimizer; `pcjax.diagnosis` finds out what went wrong and where.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pcjax.checks import check_parts
from pcjax.numerics.devices import varying_as
from pcjax.numerics.reductions import on_one_cpu, sum_magnitudes
from pcjax.numerics.widths import widest

OnNonFinite = Literal["stop", "skip"]


class GuardState(NamedTuple):
    """The state of `guard`.

    Attributes:
      inner_state: that of the guarded optimizer.
      count: int32 [], the steps taken.
      refused: int32 [], the steps refused; with "stop" all after the first one too.
      first_refused: int32 [], the number of the first step whose gradient was not
        finite, counted from 0; -1 if there was none.
    """

    inner_state: Any
    count: jax.Array  # type: ignore[assignment]
    refused: jax.Array
    first_refused: jax.Array


class NonFiniteError(ArithmeticError):
    """A training step was refused because its gradient was not finite.

    Attributes:
      step: its number, counted from 0.
      found: what went non-finite first, a `pcjax.diagnosis.NonFinite`; None if that
        was not asked.
    """

    def __init__(self, message: str, step: int, found: Any = None) -> None:
        super().__init__(message)
        self.step = step
        self.found = found


class Guarded(optax.GradientTransformationExtraArgs):
    """A guarded optimizer: an optax transform that can also take the step itself.

    Attributes:
      step: `(gradients, state, params, **extra) -> (params, state)`, which is cheaper
        than `update` and then `optax.apply_updates`. `make_update` and `incremental`
        use it.
    """

    step: Callable[..., tuple[Any, GuardState]]


def guard(
    tx: optax.GradientTransformation, on_nonfinite: OnNonFinite = "stop"
) -> Guarded:
    """Refuses every step whose gradient is not finite.

    A refused step changes neither the weights nor the state of `tx`. Refused is what
    holds a NaN or an infinity, and what is so large (the magnitudes of an array add up
    to more than the root of the largest float, 1.8e19 in float32) that its square, as
    Adam takes it, would be infinite. A gradient is not finite if an error is not, or
    the activity below it.

    >>> tx = guard(optax.adam(1e-3))
    >>> params = {"w": jnp.ones(2)}
    >>> state = tx.init(params)
    >>> updates, state = tx.update({"w": jnp.array([jnp.nan, 1.0])}, state, params)
    >>> updates["w"].tolist(), int(state.first_refused)
    ([0.0, 0.0], 0)

    In a training iteration it costs one more read of the gradient
    (`python -m benchmarks.safety`). Derivatives through a step, such as that of a later
    loss by the learning rate, are those of the guarded optimizer where it was taken.

    Args:
      tx: the optimizer, such as `pcjax.mq(1e-3)`. Wrap it as a whole.
      on_nonfinite: "stop" refuses all later steps too, so that weights and optimizer
        state remain those before the failure, as `pcjax.diagnosis.diagnose` needs
        them; "skip" goes on with the next batch. `optax.apply_if_finite` skips as well,
        up to a number of failures in succession.

    Returns:
      A transform with a `GuardState`. Under `jax.vmap` every network has its own.

    Raises:
      TypeError: if `tx` is no optax transform.
      ValueError: if `on_nonfinite` is neither.
    """
    check_parts("guard", tx=tx)
    if on_nonfinite not in ("stop", "skip"):
        raise ValueError(
            f"guard: on_nonfinite must be 'stop' or 'skip', got {on_nonfinite!r}."
        )
    inner = optax.with_extra_args_support(tx)

    def init_fn(params):
        # Three arrays, as the state may be donated.
        count, refused, first = (jnp.array(n, jnp.int32) for n in (0, 0, -1))
        state = GuardState(inner.init(params), count, refused, first)
        # Whether a step is taken differs between devices, and with it all of the state.
        return varying_as(params, state)

    def judge(gradients, state):
        """Whether to take the step, and the state of the guard after it."""
        finite = jnp.all(jnp.array([fits(x) for x in jax.tree.leaves(gradients)]))
        fails_first = ~finite & (state.first_refused < 0)
        step = state.count + state.refused
        first = jnp.where(fails_first, step, state.first_refused)
        take = finite if on_nonfinite == "skip" else first < 0
        return take, state._replace(
            count=state.count + take.astype(jnp.int32),
            refused=state.refused + (~take).astype(jnp.int32),
            first_refused=first,
        )

    def update_fn(updates, state, params=None, **extra):
        take, after = judge(updates, state)
        new, inner_state = inner.update(updates, state.inner_state, params, **extra)
        new = _choose(take, new, jax.tree.map(jnp.zeros_like, new))
        inner_state = _choose(take, inner_state, state.inner_state)
        return new, after._replace(inner_state=inner_state)

    def step(gradients, state, params, **extra):
        take, after = judge(gradients, state)

        def descend(params, inner_state):
            updates, inner_state = inner.update(gradients, inner_state, params, **extra)
            return optax.apply_updates(params, updates), inner_state

        params, inner_state = _if(take, descend, params, state.inner_state)
        return params, after._replace(inner_state=inner_state)

    guarded = Guarded(init_fn, update_fn)
    guarded.step = step
    return guarded


def descend(
    tx: optax.GradientTransformation,
    gradients: Any,
    opt_state: Any,
    params: Any,
    **extra: Any,
) -> tuple[Any, Any]:
    """A step of any optimizer: `(params, opt_state)`.

    `extra` is for the `update` of those that ask for more, such as `value=` for
    `optax.contrib.reduce_on_plateau`; others do not see it.
    """
    if isinstance(tx, Guarded):
        return tx.step(gradients, opt_state, params, **extra)
    update = optax.with_extra_args_support(tx).update
    updates, opt_state = update(gradients, opt_state, params, **extra)
    return optax.apply_updates(params, updates), opt_state


def raise_if_refused(opt_state: Any, found: Any = None) -> None:
    """Raises if a guard refused a step; waits for the device.

    Args:
      opt_state: the state of a guarded optimizer, of one network or of several.
      found: what `pcjax.diagnosis.diagnose` found, for the message.

    Raises:
      NonFiniteError: with the number of the first step that was refused.
      ValueError: if the state holds none of a guard.
    """
    states = [
        leaf
        for leaf in jax.tree.leaves(
            opt_state, is_leaf=lambda x: isinstance(x, GuardState)
        )
        if isinstance(leaf, GuardState)
    ]
    if not states:
        raise ValueError(
            "raise_if_refused: the optimizer state holds no GuardState; wrap the "
            "optimizer with pcjax.finite.guard."
        )
    firsts = np.concatenate([np.ravel(state.first_refused) for state in states])
    if np.any(firsts >= 0):
        step = int(firsts[firsts >= 0].min())
        reason = f"{found}" if found else "its gradient was not finite"
        raise NonFiniteError(
            f"training step {step} was refused: {reason}. Nothing of it went into "
            "weights or optimizer state.",
            step,
            found,
        )


def fits(gradient: Any) -> jax.Array:
    """Whether an array is finite and its square is."""
    dtype = widest(jnp.result_type(gradient))
    return sum_magnitudes(gradient, dtype) <= np.sqrt(jnp.finfo(dtype).max)


def _if(take: jax.Array, function: Callable, *carry: Any) -> tuple[Any, ...]:
    """`function(*carry)` if `take`, else `carry`; differentiable."""
    if not on_one_cpu():
        return _choose(take, function(*carry), carry)
    # What the function has from elsewhere, gradients and hyper-parameters, has
    # derivatives too.
    pure, captured = jax.closure_convert(function, *carry)

    def conditional(take, captured, carry):
        return jax.lax.cond(
            take, lambda c: tuple(pure(*c, *captured)), lambda c: c, carry
        )

    # A loop of one round or none. XLA works in place there; a choice between the new
    # and the old of an array makes a copy of it (a CPU's Adam step takes twice as
    # long), and so does a conditional, which alone has a derivative in reverse. On a
    # GPU a loop would wait for the host.
    @jax.custom_jvp
    def loop(take, captured, carry):
        def once(state):
            _, *old = state
            return jnp.zeros_like(take), *pure(*old, *captured)

        _, *new = jax.lax.while_loop(lambda state: state[0], once, (take, *carry))
        return tuple(new)

    loop.defjvp(lambda primals, tangents: jax.jvp(conditional, primals, tangents))
    return loop(take, captured, carry)


def _choose(take: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(take, x, y), new, old)
