"""Hyper-parameters of optimizers: numbers for all layers, or one for each."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pcjax.optimizers.grouping import Layers

Number = float | jax.Array  # possibly traced
# A number, one value per layer in the order of `jax.tree.leaves`, or by name.
PerLayer = Number | Sequence[Number] | Mapping[str, Any]
# These, or a schedule of the iteration b that returns them; in a mapping, too.
LearningRate = PerLayer | Callable[[jax.Array], Any]


def per_layer(name: str, value: Any, layers: Layers, dtype: Any) -> jax.Array:
    """The values [num_layers] of a hyper-parameter.

    Raises:
      ValueError: if they are not one for all or one for each of the layers.
    """
    count = len(layers.names)
    if isinstance(value, Mapping):
        return _by_name(name, value, layers, dtype)
    _check_width(name, value)
    array = jnp.asarray(value, dtype)
    if array.shape not in ((), (count,)):
        raise ValueError(
            f"scale_by_mq: {name} has shape {array.shape}; expected a single number or "
            f"shape ({count},), one value for each of the layers {_listed(layers)}."
        )
    return jnp.broadcast_to(array, (count,))


def _by_name(
    name: str, values: Mapping[str, Any], layers: Layers, dtype: Any
) -> jax.Array:
    """The values of a mapping from the names of all layers, or of whole stacks."""
    known = {group.name for group in layers.groups}
    missing, unknown = known - set(values), set(values) - known
    if missing or unknown:
        raise ValueError(
            f"scale_by_mq: {name} names the layers {sorted(map(str, values))}; "
            f"expected exactly {sorted(known)}"
            + (f", without {sorted(map(str, unknown))}" if unknown else "")
            + (f", and {sorted(missing)} besides" if missing else "")
            + ". Layers are called as pcjax.optimizers.layer_names says."
        )
    rows = []
    for group in layers.groups:
        _check_width(name, values[group.name])
        value = jnp.asarray(values[group.name], dtype)
        count = 1 if group.size is None else group.size
        if value.shape not in ((), (group.size,)):
            expected = "" if group.size is None else f" or shape ({count},)"
            raise ValueError(
                f"scale_by_mq: {name} of the layer {group.name} has shape "
                f"{value.shape}; expected a single number{expected}."
            )
        rows.append(jnp.broadcast_to(value, (count,)))
    return jnp.concatenate(rows)


def at(count: jax.Array, value: Any) -> Any:
    """The value of a schedule, or of a mapping that holds some, at an iteration."""
    if isinstance(value, Mapping):
        return {name: at(count, entry) for name, entry in value.items()}
    return value(count) if callable(value) else value


def _listed(layers: Layers) -> str:
    """The layers' names for messages."""
    return ", ".join(name or "the whole tree" for name in layers.names) or "(none)"


def check_layers(layers: Layers, v: jax.Array) -> None:
    """Refuses gradients of other layers than `init` was given."""
    count = len(layers.names)
    if v.shape == (count,):
        return
    hint = (
        " No leaf is left of the gradients: nnx.Optimizer drops what its filter `wrt` "
        "does not pass, so give it gradients as nnx.grad returns them, with respect to "
        "the variables that `wrt` names."
        if not count
        else ""
    )
    raise ValueError(
        f"scale_by_mq: gradients of {count} layers {_listed(layers)}, but the state "
        f"was made by init for {v.size} layers (v has shape {v.shape}); expected the "
        f"tree that init was given.{hint}"
    )


def check_number(
    name: str, value: Any, expected: str, is_valid: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Refuses what is no single number, or not as `expected`."""
    several = isinstance(value, Sequence | Mapping) and not isinstance(value, str)
    if several or np.ndim(value) > 0:
        raise ValueError(
            f"scale_by_mq: {name} must be a single number, got {value}; only "
            "learning_rate and start may hold one value per layer."
        )
    check_range(name, value, expected, is_valid)


def check_range(
    name: str, value: Any, expected: str, is_valid: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Refuses entries that are no numbers or not as `expected`; traced ones pass."""
    if isinstance(value, Mapping):
        for layer, entry in value.items():
            if not callable(entry):
                check_range(f"{name} of the layer {layer}", entry, expected, is_valid)
        return
    _check_width(name, value)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
        return
    array = np.asarray(value)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (np.floating, np.integer)):
        raise TypeError(f"scale_by_mq: {name} must be a number, got {value!r}.")
    if not np.all(is_valid(array)):
        raise ValueError(f"scale_by_mq: {name} must be {expected}, got {value}.")


def is_non_negative(x: np.ndarray) -> np.ndarray:
    """Entrywise, and not infinite."""
    return (x >= 0) & (x < np.inf)


def is_positive(x: np.ndarray) -> np.ndarray:
    """Entrywise, and not infinite."""
    return (x > 0) & (x < np.inf)


def _check_width(name: str, value: Any) -> None:
    """Refuses numbers of half precision, in which rho = .999 would be 1."""
    for leaf in jax.tree.leaves(value):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            continue
        if jnp.finfo(dtype).bits < 32:
            raise TypeError(
                f"scale_by_mq: {name} is of dtype {dtype}, which rounds numbers such "
                "as .999; expected one of 32 bits or more, or a Python number. "
                "optax.inject_hyperparams takes the dtype of the parameters, unless it "
                "is given hyperparam_dtype=jnp.float32 or, from optax 0.2.8 on, arrays "
                "of float32."
            )


class KeepsNumbers(inspect.Signature):
    """A signature whose numbers are arrays of single precision or more once bound.

    `optax.inject_hyperparams` binds the arguments of a factory. It stores Python
    numbers in the dtype of the parameters, but arrays of a dtype of their own as they
    are; and likewise what a schedule returns. Before 0.2.8 it casts arrays, too: then
    `check_range` refuses what is left of the numbers.
    """

    def bind(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        """Binds arguments, those left at their defaults included."""
        bound = super().bind(*args, **kwargs)
        for name, parameter in self.parameters.items():
            value = bound.arguments.get(name, parameter.default)
            if isinstance(value, float):
                bound.arguments[name] = _strong(value)
            elif name in _NUMBERS and callable(value) and not hasattr(value, "init"):
                bound.arguments[name] = _then(_strong, value)
        return bound


_NUMBERS = ("learning_rate", "decay", "min_step", "eps")


def _strong(value: Any) -> jax.Array:
    """An array whose dtype does not give way to others."""
    return jnp.asarray(value, jnp.result_type(value))


def _then(second: Callable, first: Callable) -> Callable:
    return lambda *arguments: second(first(*arguments))
