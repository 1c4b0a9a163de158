"""Layers made of flax modules, linen and nnx alike."""

from collections.abc import Callable
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import numpy as np
from flax import nnx

from pcjax.networks.network import Activation, Layer, Params, linear


def from_linen(module: nn.Module, activation: Activation = linear) -> Layer:
    """Makes a layer of a stateless linen module.

    >>> layer = from_linen(nn.Dense(2))
    >>> params = layer.init(jax.random.key(0), jax.numpy.ones((1, 3)))
    >>> jax.tree.map(jax.numpy.shape, params)
    {'bias': (2,), 'kernel': (3, 2)}

    Args:
      module: any linen module called with one array [B, ...], or in a graph with one
        for each activity that the layer reads.
      activation: see `Layer.activation`; only needed with a decay term.

    Returns:
      A layer whose params are the module's `params` collection, in boxes
      (`nn.Partitioned`) where the module puts them; `apply` takes them without, too.

    Raises:
      ValueError: by `init` or `apply`, if the module keeps mutable variables
        (batch statistics), asks for random keys when applied (dropout), or returns
        anything but one array [B, ...] (a recurrent cell).
    """
    name = type(module).__name__

    def init(key: jax.Array, *inputs: jax.Array) -> Params:
        variables = module.init(key, *inputs)
        others = sorted(set(variables) - {"params"})
        if others:
            raise ValueError(
                f"from_linen: {name} keeps variables {others} besides its params, but "
                "a layer must be stateless."
            )
        params = variables.get("params", {})
        jax.eval_shape(apply, params, *inputs)  # refuses random keys right here
        return params

    def apply(params: Params, *inputs: jax.Array) -> jax.Array:
        try:
            outputs: Any = module.apply({"params": params}, *inputs)
        except flax.errors.InvalidRngError as error:
            raise ValueError(
                f"from_linen: {name} asks for random keys when applied (dropout?), but "
                f"a layer must be deterministic: {error}"
            ) from error
        return _one_array(f"from_linen: {name}", inputs[0], outputs)

    return Layer(init, apply, activation)


def from_nnx(
    module: nnx.Module | Callable[[nnx.Rngs], nnx.Module],
    activation: Activation = linear,
) -> Layer:
    """Makes a layer of a stateless nnx module, through `nnx.split`.

    >>> layer = from_nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
    >>> params = layer.init(jax.random.key(0), jax.numpy.ones((1, 3)))
    >>> jax.tree.map(jax.numpy.shape, params)
    {'bias': (2,), 'kernel': (3, 2)}

    Args:
      module: a function of `nnx.Rngs` that builds the module, called by `init`;
        or a module, whose own parameters `init` then returns, whatever the key.
      activation: see `Layer.activation`; only needed with a decay term.

    Returns:
      A layer whose params are the module's `nnx.Param` variables as a plain
      nested dict. Plain arrays among its attributes are constants.

    Raises:
      ValueError: if the module holds variables of other types, such as batch
        statistics or the random keys of dropout, or draws a constant array by its key;
        by `apply`, if it returns anything but one array [B, ...].
    """
    if isinstance(module, nnx.Module):
        whole = module
        name = _check_stateless(whole)

        def build(key: jax.Array) -> nnx.Module:
            del key
            return whole
    else:
        factory = module

        def build(key: jax.Array) -> nnx.Module:
            return factory(nnx.Rngs(key))

        name, whole = _built(build)

    parts: Any = nnx.split(whole, nnx.Param, ...)
    graph, filled, constants = parts
    # Shapes alone, so that no parameters are kept alive.
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), filled)

    def init(key: jax.Array, *inputs: jax.Array) -> Params:
        del inputs  # an nnx module knows its shapes
        return nnx.to_pure_dict(nnx.state(build(key), nnx.Param))

    def apply(params: Params, *inputs: jax.Array) -> jax.Array:
        state: Any = jax.tree.map(lambda leaf: leaf, template)  # a copy to fill
        nnx.replace_by_pure_dict(state, params)
        merged: Any = nnx.merge(graph, state, constants)
        return _one_array(name, inputs[0], merged(*inputs))

    return Layer(init, apply, activation)


def _one_array(name: str, inputs: jax.Array, outputs: Any) -> jax.Array:
    """Refuses what a module returns unless it can be a prediction."""
    if not (hasattr(outputs, "shape") and hasattr(outputs, "dtype")):
        raise ValueError(
            f"{name} returns a {type(outputs).__name__}, but a layer must return one "
            "array [B, ...]."
        )
    if outputs.shape[:1] != inputs.shape[:1]:
        raise ValueError(
            f"{name} returns shape {outputs.shape} for {inputs.shape}, but a layer "
            "must return [B, ...], a prediction for each of the B examples."
        )
    return outputs


def _check_stateless(module: nnx.Module) -> str:
    """Refuses variables that are no `nnx.Param`; returns a name for errors."""
    name = f"from_nnx: {type(module).__name__}"
    parts: Any = nnx.split(module, nnx.Param, ...)
    # Older versions of flax wrap a variable in a state that names its type.
    kinds = {
        ".".join(map(str, path)): getattr(leaf, "type", type(leaf)).__name__
        for path, leaf in nnx.to_flat_state(parts[-1])
        if not _is_plain(leaf)
    }
    if kinds:
        raise ValueError(
            f"{name} holds variables of type {sorted(set(kinds.values()))} besides "
            f"nnx.Param ({', '.join(kinds)}), but a layer must be stateless and "
            "deterministic."
        )
    return name


def _is_plain(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def _constants(module: nnx.Module) -> dict[str, Any]:
    """The plain arrays that a module holds, by the names of their attributes."""
    # Not by `nnx.split`, which keeps those that are traced in the graph.
    return {
        ".".join(map(str, path)): leaf
        for path, leaf in nnx.iter_graph(module)
        if _is_plain(leaf)
    }


def _built(build: Callable[[jax.Array], nnx.Module]) -> tuple[str, nnx.Module]:
    """A name for errors and the module: of shapes alone, unless it holds constants.

    The values of constants are not in its params, so that they must not depend on the
    key.
    """
    names = []

    def look(key):
        module = build(key)
        names.append(_check_stateless(module))
        return _constants(module)

    key = jax.random.key(0)
    if not jax.eval_shape(look, key):
        return names[0], nnx.eval_shape(build, key)
    with jax.ensure_compile_time_eval():
        module, other = build(key), build(jax.random.key(1))
        others = _constants(other)
        drawn = [
            attribute
            for attribute, array in _constants(module).items()
            if not np.array_equal(array, others[attribute])
        ]
    if drawn:
        raise ValueError(
            f"{names[0]} draws the arrays {drawn} by its random keys, but keeps them "
            "as constants; expected nnx.Param, or arrays drawn beforehand."
        )
    return names[0], module
