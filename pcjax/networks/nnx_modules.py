"""nnx modules, taken apart into functions; imported when first asked for."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from pcjax.networks.network import Params


def parts_of(
    module: nnx.Module | Callable[[nnx.Rngs], nnx.Module],
) -> tuple[Callable[..., Params], Callable[..., Any], str]:
    """`init`, `apply` and a name of what `pcjax.from_nnx` is given; see there."""
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

    def apply(params: Params, *inputs: jax.Array) -> Any:
        state: Any = jax.tree.map(lambda leaf: leaf, template)  # a copy to fill
        nnx.replace_by_pure_dict(state, params)
        merged: Any = nnx.merge(graph, state, constants)
        return merged(*inputs)

    return init, apply, name


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
