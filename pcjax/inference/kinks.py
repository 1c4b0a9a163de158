"""Equilibria at kinks, where the energy rests but no gradient vanishes."""

import jax
import jax.numpy as jnp

from pcjax.inference.newton_cg import Local
from pcjax.inference.slopes import Arrays, inner, per_example


def at_kinks(local: Local, errors: Arrays) -> jax.Array:
    """Whether the energy rests though its gradient g does not vanish, bool [B].

    Between kinks the energy of a piecewise linear network with squared error is
    quadratic, and the step `s = g.g / g.Hg` along -g lowers it by `s g.g / 2`. It is
    at a kink if that is little beside the energy, though above its rounding, and
    neither that step nor a half, a quarter or an eighth of it gains a quarter of it.
    Where the energy is smooth but not quadratic, one of the shorter ones does.
    """
    here = local.linearised(errors)
    slopes, before = here.slopes, here.energy
    square, curvature = inner(slopes, slopes), inner(slopes, here.times(slopes))
    step = jnp.where(curvature > 0, square / jnp.where(curvature > 0, curvature, 1), 1)
    promised = 0.5 * step * square

    def gains(part):
        gained = -local.climb(errors, here, per_example(-part * step, slopes))
        return gained >= 0.25 * promised

    parts = jnp.array([1.0, 0.5, 0.25, 0.125], step.dtype)
    rounding = 100 * jnp.finfo(before.dtype).eps * before
    little = (rounding < promised) & (promised < _LITTLE * before)
    return little & ~jnp.any(jax.lax.map(gains, parts), axis=0)


_LITTLE = 0.1  # of the energy
