"""Functions that compile once, however often they are called without `jax.jit`."""

import dataclasses
from collections.abc import Callable, Hashable, Iterable
from copy import copy
from functools import lru_cache, partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import jax
import numpy as np


def once_compiled(function: Callable, parts: tuple, arrays: tuple) -> Any:
    """`function(*parts, *arrays)`, compiled unless it is being traced already.

    Loops make a new program of every call outside of `jax.jit`. Here the program is
    kept for as long as the parts are equal, of the last 32 combinations of parts.
    Arrays among the parts are arguments of the program, as `arrays` are; what functions
    close over is taken for constant, as by `jax.jit`.

    Args:
      function: traceable, and the same object in every call.
      parts: what it is made of, Python objects; if they cannot be hashed, nothing is
        compiled here.
      arrays: pytrees of arrays.
    """
    held: list[Any] = []
    skeleton = _emptied(parts, held)
    values = (function, parts, *jax.tree.leaves(arrays))
    if _holds_traced(values):
        return function(*parts, *arrays)
    try:
        compiled = _compiled(function, skeleton)
    except TypeError:  # parts that cannot be hashed
        return function(*parts, *arrays)
    return compiled(held, *arrays)


@dataclasses.dataclass(frozen=True)
class _Hole:
    """The place of an array among the parts."""

    index: int


@lru_cache(maxsize=32)
def _compiled(function: Callable, skeleton: Hashable) -> Callable:
    return jax.jit(lambda held, *arrays: function(*_filled(skeleton, held), *arrays))


def _holds_traced(value: Any) -> bool:
    """Whether there are traced arrays in it, closed over by functions, too."""
    seen: set[int] = set()
    unseen = [value]
    while unseen:
        one = unseen.pop()
        if isinstance(one, jax.core.Tracer):
            return True
        if id(one) not in seen:
            seen.add(id(one))
            unseen += _inside(one)
    return False


def _inside(value: Any) -> Iterable[Any]:
    """What a value is made of, as far as it can be looked at."""
    if isinstance(value, tuple | list):
        return value
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, FunctionType):
        cells = value.__closure__ or ()
        return [getattr(cell, "cell_contents", None) for cell in cells]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, type | ModuleType):
        return ()
    return getattr(value, "__dict__", {}).values()


def _emptied(part: Any, held: list[Any]) -> Any:
    """The part with holes in the place of arrays, which are appended to `held`."""
    if isinstance(part, jax.Array | np.ndarray):
        held.append(part)
        return _Hole(len(held) - 1)
    return _mapped(part, lambda inner: _emptied(inner, held))


def _filled(part: Any, held: list[Any]) -> Any:
    """The part with its arrays."""
    if isinstance(part, _Hole):
        return held[part.index]
    return _mapped(part, lambda inner: _filled(inner, held))


def _mapped(part: Any, function: Callable[[Any], Any]) -> Any:
    """A tuple, a list or what a frozen dataclass holds, mapped; all else as it is.

    Lists become tuples, which can be hashed; what nothing changes is left alone.
    """
    if isinstance(part, tuple | list):
        inner = [function(value) for value in part]
        if isinstance(part, tuple) and all(map(_same, inner, part)):
            return part
        return part._make(inner) if hasattr(part, "_make") else tuple(inner)
    if not isinstance(part, type) and _is_frozen(part):
        names = [field.name for field in dataclasses.fields(part)]
        values = [getattr(part, name) for name in names]
        inner = [function(value) for value in values]
        if all(map(_same, inner, values)):
            return part
        part = copy(part)
        for name, value in zip(names, inner, strict=True):
            object.__setattr__(part, name, value)
    return part


def _is_frozen(value: Any) -> bool:
    options = getattr(value, "__dataclass_params__", None)
    return options is not None and options.frozen


def _same(one: Any, other: Any) -> bool:
    return one is other


def hashable(value: Any) -> Any:
    """A list of numbers as a tuple, which can be hashed; all else as it is."""
    return tuple(value) if isinstance(value, list) else value
