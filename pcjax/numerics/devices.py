"""What holds for arrays on several devices."""

from typing import Any

import jax


def varying_as(params: Any, state: Any) -> Any:
    """The state, of one kind per device under `jax.shard_map` if the parameters are.

    What a scan carries must be from the start what a step makes of it.

    Args:
      params: a tree of arrays.
      state: a tree of arrays.

    Returns:
      The state, varying over all axes of the mesh that any of the parameters does.
    """

    def axes(x):
        kind = jax.typeof(x)  # older versions of jax have the axes in itself
        kind = getattr(kind, "manual_axis_type", kind)
        return getattr(kind, "varying", getattr(kind, "vma", frozenset()))

    wanted = frozenset().union(*map(axes, jax.tree.leaves(params)))

    def cast(x):
        missing = tuple(wanted - axes(x))
        if not missing:
            return x
        lax: Any = jax.lax
        if hasattr(lax, "pcast"):
            return lax.pcast(x, missing, to="varying")
        return lax.pvary(x, missing)  # the same in older versions of jax

    return jax.tree.map(cast, state) if wanted else state
