"""Dtypes that sums are made in."""

from typing import Any

import jax.numpy as jnp


def widest(*dtypes: Any) -> jnp.dtype:
    """The float dtype that holds all of these, float32 at least.

    Sums of half-precision numbers overflow or round. Not by `jnp.promote_types`, which
    refuses in strict promotion.
    """
    floats = [d for d in map(jnp.dtype, dtypes) if jnp.issubdtype(d, jnp.floating)]
    return max([jnp.dtype(jnp.float32), *floats], key=lambda d: jnp.finfo(d).bits)
