"""Checks of the arguments, made at trace time at the public boundary."""

import inspect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_HINT = (
    " Scale images to floats first, and turn class labels into targets with "
    "jax.nn.one_hot."
)


def is_int(value: Any) -> bool:
    """Whether the value is an integer of Python or NumPy, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_count(function: str, name: str, value: Any) -> None:
    """Refuses what is no positive integer."""
    if not is_int(value) or value < 1:
        raise ValueError(f"{function}: {name} must be an int >= 1, got {value!r}.")


def check_single(
    function: str, name: str, value: Any, expected: str = "a single number"
) -> None:
    """Refuses an array where one number is due."""
    if np.ndim(value):
        raise ValueError(
            f"{function}: {name} must be {expected}, got an array of shape "
            f"{np.shape(value)}."
        )


_TRANSFORM = ("init", "update"), "an optax transform"
_CLAMP = ("__call__",), "a clamp, such as pcjax.full_clamp"
_PARTS = {
    "network": (("layers",), "a network, such as pcjax.mlp([784, 256, 10])"),
    "method": (
        ("num_steps", "init", "step"),
        "an inference method, such as pcjax.sequential(3, 0.05)",
    ),
    "output": (("link", "loss"), "an output, such as pcjax.softmax"),
    "clamp": _CLAMP,
    "learning_clamp": _CLAMP,
    "tx": _TRANSFORM,
    "optimizer": _TRANSFORM,
}


def check_parts(function: str, **parts: Any) -> None:
    """Refuses what cannot be the part of a training iteration that its name says."""
    for name, value in parts.items():
        attributes, expected = _PARTS[name]
        if not all(hasattr(value, attribute) for attribute in attributes):
            raise TypeError(f"{function}: {name} must be {expected}, got {value!r}.")
        if _PARTS[name] is _CLAMP and not _takes(value, 3):
            raise TypeError(
                f"{function}: {name} must be a function of (targets, outputs, "
                "activity), such as pcjax.full_clamp or pcjax.soft_clamp(0.01); got "
                f"{value!r}."
            )


def check_callable(function: str, name: str, value: Any) -> None:
    """Refuses what is no function, such as the name of one."""
    if not callable(value):
        raise TypeError(
            f"{function}: {name} must be a function, such as jax.numpy.tanh, got "
            f"{value!r}."
        )


def _takes(function: Any, count: int) -> bool:
    """Whether a function can be called with so many arguments, as far as it says."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    named = {name: 0 for name in ("t", "first") if name in signature.parameters}
    try:
        signature.bind(*range(count), **named)
    except TypeError:
        return False
    return True


def check_real(function: str, name: str, value: Any) -> None:
    """Refuses what does not consist of real numbers."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        dtype = np.asarray(value).dtype
    if not any(jnp.issubdtype(dtype, x) for x in (np.floating, np.integer, np.bool_)):
        raise TypeError(f"{function}: {name} must hold real numbers, got {value!r}.")


def check_non_negative(function: str, name: str, value: Any) -> None:
    """Refuses what is not real, and unless traced what is negative or not finite."""
    check_real(function, name, value)
    if isinstance(value, jax.core.Tracer):
        return
    array = np.asarray(value)
    if not np.all((array >= 0) & (array < np.inf)):
        raise ValueError(f"{function}: {name} must be >= 0 and finite, got {value}.")


def check_float(function: str, name: str, array: jax.Array) -> None:
    """Refuses what is no array of real floating-point numbers."""
    if not (hasattr(array, "dtype") and hasattr(array, "shape")):
        raise TypeError(
            f"{function}: {name} must be an array of floats, got a "
            f"{type(array).__name__}."
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"{function}: {name} must be floats, got {array.dtype} of shape "
            f"{array.shape}." + ("" if name.startswith("params") else _HINT)
        )


def check_sequence(function: str, name: str, value: Any) -> None:
    """Refuses what cannot hold an entry per layer."""
    if not isinstance(value, Sequence):
        raise TypeError(
            f"{function}: {name} must be a tuple or list, got a {type(value).__name__}."
        )
