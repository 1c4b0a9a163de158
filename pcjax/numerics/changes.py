"""The change `f(a + d) - f(a)` of a function, as exact as the shift d.

Subtracting two values of f leaves the rounding of the values, not of the change: in
float32 that is all there is once d is below 1e-7 of a, as shifts of early layers are.
What replaces the difference:

- of a function that is linear piece by piece, its slope times d where a and a + d are
  on the same piece, and the difference where they are not (then |d| is at least the
  distance of a from the kink, and nothing is lost);
- of tanh, its addition theorem, and of the tanh in GELU; the difference over a long way
  (then |d| > 1/2, and nothing is lost);
- of any other function, d times the mean slope between a and a + d, by the Gauss
  quadrature of two points, as long as that agrees with the difference up to the
  rounding of the latter; the difference itself where they disagree, as across a kink or
  over a long way. For smooth functions either is within 1e-6 of the change in float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Function = Callable[[jax.Array], jax.Array]
# (a, d) -> f(a + d) - f(a)
Change = Callable[[jax.Array, jax.Array], jax.Array]

_NODE = 0.5 / 3**0.5  # of the quadrature, from the middle


def linear(x: jax.Array) -> jax.Array:
    """The activation function of a layer that has none: returns `x`."""
    return x


def change_of(function: Function) -> Change:
    """The change of a function, in its best form.

    Args:
      function: differentiable almost everywhere, of one array.

    Returns:
      `(a, d) -> f(a + d) - f(a)`, differentiable with respect to both as what it is.
    """
    try:
        return _KNOWN.get(function) or _by_slopes(function)
    except TypeError:  # a function that cannot be hashed
        return _by_slopes(function)


def _of_linear(a: jax.Array, d: jax.Array) -> jax.Array:
    del a
    return d


def _of_relu(a: jax.Array, d: jax.Array) -> jax.Array:
    was, now = a > 0, a + d > 0
    zero = jnp.zeros_like(d)
    return jnp.where(now, jnp.where(was, d, a + d), jnp.where(was, -a, zero))


def _of_leaky_relu(a: jax.Array, d: jax.Array) -> jax.Array:
    same = (a > 0) == (a + d > 0)
    crossed = jax.nn.leaky_relu(a + d) - jax.nn.leaky_relu(a)
    return jnp.where(same, jnp.where(a > 0, d, 0.01 * d), crossed)


def _of_hard_tanh(a: jax.Array, d: jax.Array) -> jax.Array:
    before = jax.nn.hard_tanh(a)
    low, high = -1 - before, 1 - before
    moved = d + (a - before)
    return jnp.where(moved > high, high, jnp.where(moved < low, low, moved))


def _of_tanh(a: jax.Array, d: jax.Array) -> jax.Array:
    return _moved(jnp.tanh(a), jnp.tanh(a + d), jnp.tanh(d))


def _moved(before: jax.Array, after: jax.Array, step: jax.Array) -> jax.Array:
    """`after - before` of two values of tanh, by the addition theorem.

    From one flat end towards the other that comes to 0 / 0.
    """
    far = before * step < -0.5
    near = step * (1 - before**2) / jnp.where(far, 1, 1 + before * step)
    return jnp.where(far, after - before, near)


def _of_gelu(a: jax.Array, d: jax.Array) -> jax.Array:
    # gelu(x) = x (1 + tanh(u(x))) / 2, u(x) = c (x + k x^3)
    c, k = (2 / np.pi) ** 0.5, 0.044715
    before, after = (jnp.tanh(c * (x + k * x**3)) for x in (a, a + d))
    step = jnp.tanh(c * d * (1 + k * (3 * a * (a + d) + d**2)))
    moved = _moved(before, after, step)
    return 0.5 * (d * (1 + before + moved) + a * moved)


def _by_slopes(function: Function) -> Change:
    """The change of a function of which only values and slopes are known."""

    def value(a, d):
        def slope(place):
            return jax.jvp(function, (a + place * d,), (d,))[1]

        before, after = function(a), function(a + d)
        difference = after - before
        along = 0.5 * (slope(0.5 - _NODE) + slope(0.5 + _NODE))
        rounding = jnp.abs(before) + jnp.abs(after) + jnp.abs(a)
        close = 8 * jnp.finfo(difference.dtype).eps * rounding
        return jnp.where(jnp.abs(along - difference) <= close, along, difference)

    @jax.custom_jvp
    def change(a, d):
        return value(a, d)

    def differentiate(primals, tangents):
        a, d = primals
        along_a, along_d = tangents
        _, end = jax.jvp(function, (a + d,), (along_a + along_d,))
        _, start = jax.jvp(function, (a,), (along_a,))
        return value(a, d), end - start

    change.defjvp(differentiate)
    return change


_KNOWN: dict[Function, Change] = {
    linear: _of_linear,
    jax.nn.relu: _of_relu,
    jax.nn.leaky_relu: _of_leaky_relu,
    jax.nn.hard_tanh: _of_hard_tanh,
    jax.nn.gelu: _of_gelu,
    jnp.tanh: _of_tanh,
    jax.nn.tanh: _of_tanh,
}
