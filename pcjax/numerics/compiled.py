"""Functions that compile once, however often they are called without `jax.jit`."""

from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from typing import Any

import jax


def once_compiled(function: Callable, parts: tuple, arrays: tuple) -> Any:
    """`function(*parts, *arrays)`, compiled unless it is being traced already.

    Loops make a new program of every call outside of `jax.jit`. Here the program is
    kept for as long as the parts are equal, of the last 32 combinations of parts.

    Args:
      function: a function of a module, traceable.
      parts: what it is made of, Python objects; if they cannot be hashed, or hold
        traced arrays, nothing is compiled here.
      arrays: pytrees of arrays.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arrays)):
        return function(*parts, *arrays)
    try:
        compiled = _compiled(function, parts)
    except TypeError:  # parts that cannot be hashed
        return function(*parts, *arrays)
    return compiled(*arrays)


@lru_cache(maxsize=32)
def _compiled(function: Callable, parts: tuple[Hashable, ...]) -> Callable:
    return jax.jit(partial(function, *parts))


def hashable(value: Any) -> Any:
    """A list of numbers as a tuple, which can be hashed; all else as it is."""
    return tuple(value) if isinstance(value, list) else value
