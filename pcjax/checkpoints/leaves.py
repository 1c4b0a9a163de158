"""Pytrees of arrays as lists of NumPy arrays and back, with a description of each."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Leaf(NamedTuple):
    """What must agree for one leaf to take another's place.

    Attributes:
      path: where it is in its tree, as `jax.tree_util.keystr` writes it.
      shape: of an array of typed random keys, that of the array of keys.
      dtype: its name; `key<fry>` or the like for typed random keys.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str


def describe(tree: Any) -> list[Leaf]:
    """The leaves of a tree, in order.

    Args:
      tree: a pytree of jax or NumPy arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      One entry per leaf.

    Raises:
      TypeError: if a leaf is no array.
    """
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    for path, leaf in pairs:
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(
                f"checkpoints: leaf {jax.tree_util.keystr(path)} must be an array, "
                f"got {leaf!r}."
            )
    return [
        Leaf(jax.tree_util.keystr(path), tuple(leaf.shape), str(leaf.dtype))
        for path, leaf in pairs
    ]


def differences(held: list[Leaf], wanted: list[Leaf], most: int = 5) -> list[str]:
    """What tells two lists of leaves apart, in words; at most so many, and a count."""
    ours = {leaf.path: f"{leaf.dtype} {list(leaf.shape)}" for leaf in held}
    theirs = {leaf.path: f"{leaf.dtype} {list(leaf.shape)}" for leaf in wanted}
    found = [
        f"leaf {path} holds {ours.get(path, 'nothing')}, "
        f"expected {theirs.get(path, 'nothing')}"
        for path in ours | theirs
        if ours.get(path) != theirs.get(path)
    ]
    more = [f"and {len(found) - most} more"] if len(found) > most else []
    return found[:most] + more


def host_copies(tree: Any) -> list[np.ndarray]:
    """Copies of the leaves that nothing else refers to.

    Args:
      tree: a pytree of jax or NumPy arrays. Its jax arrays may be donated afterwards.

    Returns:
      C-ordered arrays in native byte order; of typed random keys, their uint32 data.

    Raises:
      ValueError: if an array is on devices of other processes.
    """
    leaves = jax.tree.leaves(tree)
    for leaf in leaves:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            raise ValueError(
                f"checkpoints: an array of shape {leaf.shape} is on devices of other "
                "processes; expected all of the state on those of this one."
            )
    bare = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in leaves]
    return [np.array(leaf, leaf.dtype.newbyteorder("="), order="C") for leaf in bare]


def like(template: Any, arrays: list[np.ndarray]) -> Any:
    """Puts what `host_copies` returned where a template has its leaves.

    Args:
      template: a pytree whose description is that of the tree that was copied.
      arrays: one per leaf; those of leaves without elements do not matter.

    Returns:
      A tree of NumPy arrays where the template has such, and otherwise of jax arrays
      with the template's sharding and weak type.

    Raises:
      ValueError: if jax cannot hold a dtype without `jax_enable_x64`.
    """
    leaves, structure = jax.tree.flatten(template)
    pairs = zip(leaves, arrays, strict=True)
    return jax.tree.unflatten(structure, [_like(*pair) for pair in pairs])


def _like(leaf: Any, array: np.ndarray) -> Any:
    if 0 in leaf.shape:
        bare = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        array = np.zeros(bare.shape, bare.dtype)
    if isinstance(leaf, np.ndarray | np.generic):
        array = array.astype(leaf.dtype, copy=False)
        return array if isinstance(leaf, np.ndarray) else array[()]
    value: Any = array
    if _is_key(leaf):
        value = jax.random.wrap_key_data(jnp.array(array), impl=_key_impl(leaf))
    elif getattr(leaf, "weak_type", False):
        value = jnp.zeros_like(leaf).at[...].set(array)
    # An array that was put nowhere is free to follow others, and stays so.
    here = leaf.sharding is None or leaf.sharding == jnp.zeros(()).sharding
    value = jnp.array(value) if here else jax.device_put(value, leaf.sharding)
    if value.dtype != leaf.dtype:
        raise ValueError(
            f"checkpoints: jax holds {leaf.dtype} only with jax_enable_x64, which is "
            "off; expected it to be on."
        )
    return value


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(leaf: Any) -> Any:
    """The generator of typed keys, of which only shape and dtype need be there."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
    return found[0]
