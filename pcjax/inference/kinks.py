"""Equilibria at kinks, where the energy rests but no gradient vanishes."""

import jax
import jax.numpy as jnp

from pcjax.inference.newton_cg import Local
from pcjax.inference.slopes import Arrays, inner, per_example


def at_kinks(local: Local, errors: Arrays) -> jax.Array:
    """Whether the energy rests though its gradient g does not vanish, bool [B].

    Between kinks the energy of a piecewise linear network with squared error is
    quadratic, and the step `s = g.g / g.Hg` along -g lowers it by `s g.g / 2`. It is
    at a kink if that is little beside the energy, though above its rounding, and the
    step gains less than half of it.
    """
    here = local.linearised(errors)
    slopes, before = here.slopes, here.energy
    square, curvature = inner(slopes, slopes), inner(slopes, here.times(slopes))
    step = jnp.where(curvature > 0, square / jnp.where(curvature > 0, curvature, 1), 1)
    promised = 0.5 * step * square
    gained = -local.climb(errors, here, per_example(-step, slopes))
    rounding = 100 * jnp.finfo(before.dtype).eps * before
    return (
        (rounding < promised)
        & (promised < _LITTLE * before)
        & ~(gained >= 0.5 * promised)
    )


_LITTLE = 0.1  # of the energy
