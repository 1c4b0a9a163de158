"""Layers made of flax modules, linen and nnx alike."""

from collections.abc import Callable
from typing import Any

import flax.errors
import flax.linen as nn
import jax
from flax import nnx

from pcjax.networks.network import Activation, Layer, Params, linear


def from_linen(module: nn.Module, activation: Activation = linear) -> Layer:
    """Makes a layer of a stateless linen module.

    >>> layer = from_linen(nn.Dense(2))
    >>> params = layer.init(jax.random.key(0), jax.numpy.ones((1, 3)))
    >>> jax.tree.map(jax.numpy.shape, params)
    {'bias': (2,), 'kernel': (3, 2)}

    Args:
      module: any linen module called with one array [B, ...].
      activation: see `Layer.activation`; only needed with a decay term.

    Returns:
      A layer whose params are the module's `params` collection.

    Raises:
      ValueError: by `init` or `apply`, if the module keeps mutable variables
        (batch statistics) or asks for random keys when applied (dropout).
    """
    name = type(module).__name__

    def init(key: jax.Array, inputs: jax.Array) -> Params:
        variables = module.init(key, inputs)
        others = sorted(set(variables) - {"params"})
        if others:
            raise ValueError(
                f"from_linen: {name} keeps variables {others} besides its params, but "
                "a layer must be stateless."
            )
        params = variables.get("params", {})
        jax.eval_shape(apply, params, inputs)  # refuses random keys right here
        return params

    def apply(params: Params, inputs: jax.Array) -> jax.Array:
        try:
            outputs: Any = module.apply({"params": params}, inputs)
        except flax.errors.InvalidRngError as error:
            raise ValueError(
                f"from_linen: {name} asks for random keys when applied (dropout?), but "
                f"a layer must be deterministic: {error}"
            ) from error
        return outputs

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
      nested dict.

    Raises:
      ValueError: if the module holds variables of other types, such as batch
        statistics or the random keys of dropout.
    """
    if isinstance(module, nnx.Module):
        ready = module

        def build(key: jax.Array) -> nnx.Module:
            del key
            return ready
    else:
        factory = module

        def build(key: jax.Array) -> nnx.Module:
            return factory(nnx.Rngs(key))

    abstract = nnx.eval_shape(build, jax.random.key(0))
    parts: Any = nnx.split(abstract, nnx.Param, ...)
    graph, template, others = parts
    # Older versions of flax wrap a variable in a state that names its type.
    kinds = {
        getattr(leaf, "type", type(leaf)).__name__
        for _, leaf in nnx.to_flat_state(others)
    }
    if kinds:
        raise ValueError(
            f"from_nnx: {type(abstract).__name__} holds variables of type "
            f"{sorted(kinds)} besides nnx.Param, but a layer must be stateless and "
            "deterministic."
        )

    def init(key: jax.Array, inputs: jax.Array) -> Params:
        del inputs  # an nnx module knows its shapes
        return nnx.to_pure_dict(nnx.state(build(key), nnx.Param))

    def apply(params: Params, inputs: jax.Array) -> jax.Array:
        state: Any = jax.tree.map(lambda leaf: leaf, template)  # a copy to fill
        nnx.replace_by_pure_dict(state, params)
        merged: Any = nnx.merge(graph, state)
        return merged(inputs)

    return Layer(init, apply, activation)
