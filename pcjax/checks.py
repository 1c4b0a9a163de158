"""Checks of the arguments, made at trace time at the public boundary."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from pcjax.networks import Network, Params, check_float, check_inputs


def check_non_negative(function: str, name: str, value: Any) -> None:
    """Refuses negative and NaN entries, unless the value is traced."""
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
    check_float(function, "targets", targets)
    if inputs.shape[0] == 0:
        raise ValueError(
            f"{function}: inputs must hold at least one example, got shape "
            f"{inputs.shape}."
        )
    expected = _expected_params(network, inputs.shape, inputs.dtype)
    check_params(function, expected, params)
    shapes = jax.eval_shape(network.apply, params, inputs).shape
    if targets.shape != shapes:
        raise ValueError(
            f"{function}: targets have shape {targets.shape}, but the network's "
            f"outputs have shape {shapes}."
        )


def check_params(
    function: str, expected: Sequence[Params], params: Sequence[Params]
) -> None:
    """Refuses parameters whose trees or shapes are not those of the network."""
    if len(params) != len(expected):
        raise ValueError(
            f"{function}: the network has {len(expected)} layers, but params holds "
            f"{len(params)} entries."
        )
    for index, (want, have) in enumerate(zip(expected, params, strict=True)):
        want_shapes, have_shapes = (
            {
                jax.tree_util.keystr(path): tuple(leaf.shape)
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            }
            for tree in (want, have)
        )
        if want_shapes != have_shapes:
            raise ValueError(
                f"{function}: params of another network: layer {index} has parameters "
                f"{want_shapes}, but params[{index}] holds {have_shapes}."
            )


@lru_cache(maxsize=64)
def _expected_params(
    network: Network, shape: tuple[int, ...], dtype: Any
) -> tuple[Params, ...]:
    """The shapes `network.init` gives, worked out without computing anything."""
    inputs = jax.ShapeDtypeStruct(shape, dtype)
    return jax.eval_shape(lambda x: network.init(jax.random.key(0), x), inputs)
