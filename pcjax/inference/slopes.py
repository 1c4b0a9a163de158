"""The gradient of the energy in activities and in errors, and what is made of it."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from pcjax.inference.origin import Gradient, View
from pcjax.inference.state import InferenceState
from pcjax.networks.outputs import widened
from pcjax.numerics.kept import kept
from pcjax.numerics.weights import weigh

Arrays = tuple[jax.Array, ...]  # one of every hidden activity or error, [B, ...]
Slopes = Callable[[InferenceState, Gradient], Arrays]


def slope_of(gradient: Gradient, index: int, errors: Arrays) -> jax.Array:
    """`gradient(index, errors)` where everything may move."""
    slope = gradient(index, errors)
    assert slope is not None, "this activity is known to stand still"
    return slope


def activity_slopes(state: InferenceState, gradient: Gradient) -> Arrays:
    """`dF/dh_l` of every hidden activity."""
    hidden = range(1, len(state.errors))
    return tuple(slope_of(gradient, index, state.errors) for index in hidden)


def error_slopes(state: InferenceState, gradient: Gradient) -> Arrays:
    """`dE/de_l = gamma_l e_l - t_l` of every hidden error, in one sweep down.

    `t_L = gamma_L e_L`, and `-t_l` is the bracket of eq. 2 for an error of 0 at layer l
    and weighted ones of `t_{l+1}, ..., t_L` above.
    """
    weighted = map(weigh, gradient.gammas, state.errors)
    *own, above = weighted
    pulled, slopes = [*map(jnp.zeros_like, own), above], []
    plain = gradient._replace(gammas=(1.0,) * len(pulled))
    for index in reversed(range(len(own))):
        pulled[index] = kept(-slope_of(plain, index + 1, tuple(pulled)))
        slopes.append(own[index] - pulled[index])
    return tuple(slopes[::-1])


def curvature_along(
    slopes: Slopes,
    look: Callable[[Arrays], View],
    place: Arrays,
    direction: Arrays | None = None,
) -> tuple[Arrays, Arrays]:
    """The gradient g at a place and the Hessian times a direction, `(g, H d)`.

    By reverse mode, which rounded products have, too; H is symmetric. Costs a pass for
    the gradient and two for the product.

    Args:
      slopes: the gradient of what `look` sees.
      look: the view of a place.
      place: shifts or errors.
      direction: d; None is g itself.
    """

    def gradient(place):
        view = look(place)
        return slopes(view.state, view.gradient)

    found, pull = jax.vjp(gradient, tuple(place))
    return found, pull(tuple(found if direction is None else direction))[0]


def inner(left: Sequence[jax.Array], right: Sequence[jax.Array]) -> jax.Array:
    """`<left, right>` of each example over all layers, [B], in float32 at least."""
    parts = []
    for one, other in zip(left, right, strict=True):
        one, other = widened(one, other)
        parts.append(jnp.sum(one * other, axis=range(1, one.ndim)))
    return sum(parts[1:], parts[0])


def rise(moves: Arrays, before: Arrays, after: Arrays) -> jax.Array:
    """By how much the energy rose in a move, [B], of the gradients at both ends.

    By the trapezoidal rule: it keeps digits that a difference of energies loses, and
    needs no energy, only the gradient that inference follows.
    """
    return 0.5 * inner(moves, tuple(map(jnp.add, before, after)))


def per_example(scales: jax.Array, arrays: Sequence[jax.Array]) -> Arrays:
    """The arrays, each example times its own number [B], in their dtypes."""
    return tuple(weigh(scales.astype(array.dtype), array) for array in arrays)


def stepped(arrays: Arrays, scales: jax.Array, directions: Arrays) -> Arrays:
    """`arrays + scales * directions` per example; where a scale is 0, the arrays.

    A direction that is no number then does no harm.
    """
    moves = per_example(scales, directions)
    return tuple(
        jnp.where(weigh(scales, jnp.ones_like(array)) == 0, array, array + move)
        for array, move in zip(arrays, moves, strict=True)
    )
