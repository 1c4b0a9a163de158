"""Layers made of flax modules, linen and nnx alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.errors
import flax.linen as nn
import jax

from pcjax.networks.network import Activation, Layer, Params, linear

if TYPE_CHECKING:
    from flax import nnx


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

    >>> from flax import nnx
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
    # Importing nnx takes longer than the rest of flax; most never ask for it.
    from pcjax.networks.nnx_modules import parts_of

    init, apply, name = parts_of(module)

    def checked(params: Params, *inputs: jax.Array) -> jax.Array:
        return _one_array(name, inputs[0], apply(params, *inputs))

    return Layer(init, checked, activation)


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
