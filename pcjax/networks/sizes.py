"""Refusals of sizes of layers."""

from collections.abc import Iterable
from typing import Any

from pcjax.checks import is_int


def are_sizes(sizes: Any, least: int = 1) -> bool:
    """Whether all are integers, none of them below `least`."""
    return isinstance(sizes, Iterable) and all(is_int(n) and n >= least for n in sizes)


def check_pair(function: str, name: str, sizes: Any, *, least: int = 1) -> None:
    """Refuses what is not two integers, vertical and horizontal."""
    if not are_sizes(sizes, least) or len(sizes) != 2:
        raise ValueError(
            f"{function}: {name} must be two ints >= {least}, got {sizes!r}."
        )
