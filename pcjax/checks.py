"""Checks of the arguments, made at trace time at the public boundary."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pcjax.networks import (
    Network,
    Params,
    check_float,
    check_inputs,
    check_params,
    check_sequence,
)


def is_int(value: Any) -> bool:
    """Whether the value is an integer of Python or NumPy, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_count(function: str, name: str, value: Any) -> None:
    """Refuses what is no positive integer."""
    if not is_int(value) or value < 1:
        raise ValueError(f"{function}: {name} must be an int >= 1, got {value!r}.")


def check_transform(function: str, name: str, value: Any) -> None:
    """Refuses what is no optimizer."""
    if not (hasattr(value, "init") and hasattr(value, "update")):
        raise TypeError(
            f"{function}: {name} must be an optax transform, got {value!r}."
        )


def check_real(function: str, name: str, value: Any) -> None:
    """Refuses what does not consist of real numbers."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        dtype = np.asarray(value).dtype
    if not any(jnp.issubdtype(dtype, x) for x in (np.floating, np.integer, np.bool_)):
        raise TypeError(f"{function}: {name} must hold real numbers, got {value!r}.")


def check_non_negative(function: str, name: str, value: Any) -> None:
    """Refuses what is not real, and negative and NaN entries unless traced."""
    check_real(function, name, value)
    if isinstance(value, jax.core.Tracer):
        return
    array = np.asarray(value)
    if not np.all(array >= 0):
        raise ValueError(f"{function}: {name} must be >= 0, got {value}.")


def check_batch(
    function: str,
    network: Network,
    params: Sequence[Params],
    inputs: jax.Array,
    targets: jax.Array,
) -> None:
    """Refuses a batch or parameters that do not belong to the network."""
    check_inputs(function, network, inputs)
    check_sequence(function, "params", params)
    check_float(function, "targets", targets)
    check_params(function, network, params, inputs)
    shapes = jax.eval_shape(network.apply, params, inputs).shape
    if targets.shape != shapes:
        raise ValueError(
            f"{function}: targets have shape {targets.shape}, but the network's "
            f"outputs have shape {shapes}."
        )
