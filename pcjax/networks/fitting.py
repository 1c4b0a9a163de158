"""Refusals of parameters, inputs and targets that do not fit a network."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from pcjax.checks import check_float, check_parts, check_sequence

Params = Any


def predict_shape(
    index: int, layer: Any, params: Params, below: Sequence[jax.Array]
) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a prediction; refuses what is no batch of one array."""
    shape = explain(index, below, jax.eval_shape, layer.apply, params, *below)
    if not isinstance(shape, jax.ShapeDtypeStruct):
        raise ValueError(
            f"network: layer {index} must predict one array, but its apply returned a "
            f"{type(shape).__name__}: {jax.tree.map(lambda x: x.shape, shape)}. Wrap "
            "it in a pcjax.Layer whose apply returns the activity alone."
        )
    if shape.shape[:1] != below[0].shape[:1]:
        raise ValueError(
            f"network: layer {index} must predict [B, ...] with the batch size "
            f"{below[0].shape[0]} of what it reads, but predicts shape {shape.shape}."
        )
    return shape


def check_inputs(function: str, network: Any, inputs: jax.Array) -> None:
    """Refuses a network of no layers and inputs that are no batch of floats."""
    check_parts(function, network=network)
    if not network.layers:
        raise ValueError(f"{function}: a network has at least one layer, got none.")
    if not all(network.layers[layer].tokens for layer in network.readers(0)):
        check_float(function, "inputs", inputs)
    elif not jnp.issubdtype(getattr(inputs, "dtype", bool), jnp.integer):
        raise TypeError(
            f"{function}: inputs must be integers, since the first layer reads tokens; "
            f"got {getattr(inputs, 'dtype', type(inputs).__name__)}."
        )
    if len(inputs.shape) < 2:
        raise ValueError(
            f"{function}: inputs must be a batch [B, ...], got shape {inputs.shape}."
        )
    if inputs.shape[0] == 0:
        raise ValueError(
            f"{function}: inputs must hold at least one example, got shape "
            f"{inputs.shape}."
        )


def check_params(
    function: str, network: Any, params: Sequence[Params], inputs: jax.Array
) -> None:
    """Refuses parameters whose trees, shapes or kinds are not those of the network."""
    given = network, tuple(inputs.shape), inputs.dtype
    try:
        expected = _expected_params(*given)
    except TypeError:  # a network that cannot be hashed
        expected = _expected_params.__wrapped__(*given)
    if len(params) != len(expected):
        raise ValueError(
            f"{function}: the network has {len(expected)} layers, but params holds "
            f"{len(params)} entries."
        )
    for index, (want, have) in enumerate(zip(expected, params, strict=True)):
        wanted, held = _shapes(want), _shapes(have)
        if wanted != held and _shapes(_unboxed(want)) != held:
            raise ValueError(
                f"{function}: params of another network: layer {index} has parameters "
                f"{wanted}, but params[{index}] holds {held}."
            )
        for path, leaf in jax.tree_util.tree_leaves_with_path(have):
            name = f"params[{index}]{jax.tree_util.keystr(path)}"
            check_float(function, name, leaf)


def _shapes(tree: Params) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): tuple(np.shape(leaf)) for path, leaf in leaves}


def _unboxed(tree: Params) -> Params:
    """Shapes without the boxes (`nn.Partitioned`) that layers of linen can spare."""
    return jax.eval_shape(meta.unbox, tree)


def check_batch(
    function: str,
    network: Any,
    params: Sequence[Params],
    inputs: jax.Array,
    targets: jax.Array,
) -> None:
    """Refuses a batch or parameters that do not belong to the network."""
    check_inputs(function, network, inputs)
    check_sequence(function, "params", params)
    check_float(function, "targets", targets)
    check_params(function, network, params, inputs)
    given = network, tuple(inputs.shape), inputs.dtype
    try:
        shape = _output_shape(*given)
    except TypeError:  # a network that cannot be hashed
        shape = jax.eval_shape(network.apply, params, inputs).shape
    if targets.shape != shape:
        raise ValueError(
            f"{function}: targets have shape {targets.shape}, but the network's "
            f"outputs have shape {shape}."
        )


@lru_cache(maxsize=64)
def _expected_params(
    network: Any, shape: tuple[int, ...], dtype: Any
) -> tuple[Params, ...]:
    """The shapes `network.init` gives, worked out without computing anything."""
    inputs = jax.ShapeDtypeStruct(shape, dtype)
    return jax.eval_shape(lambda x: network.init(jax.random.key(0), x), inputs)


@lru_cache(maxsize=64)
def _output_shape(network: Any, shape: tuple[int, ...], dtype: Any) -> tuple[int, ...]:
    """The shape of the outputs, by parameters as `network.init` makes them."""
    inputs = jax.ShapeDtypeStruct(shape, dtype)
    params = _expected_params(network, shape, dtype)
    return jax.eval_shape(network.apply, params, inputs).shape


def explain(index: int, below: Sequence[jax.Array], function: Callable, *args) -> Any:
    """Calls `function`; a failure names the layer and the shapes it was given."""
    try:
        return function(*args)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        shapes = " and ".join(str(tuple(h.shape)) for h in below)
        raise ValueError(
            f"network: layer {index} does not accept an activity of shape "
            f"{shapes} with its parameters: {error}"
        ) from error
