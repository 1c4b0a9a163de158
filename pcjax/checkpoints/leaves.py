"""Pytrees of arrays as lists of NumPy arrays and back, with a description of each.

A number of Python is kept as an array [] of its widest type, described by its own name.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Leaf(NamedTuple):
    """What must agree for one leaf to take another's place.

    Attributes:
      path: where it is in its tree, as `jax.tree_util.keystr` writes it.
      shape: of an array of typed random keys, that of the array of keys.
      dtype: its name; `key<fry>` or the like for typed random keys, `bool of Python`
        or the like for numbers of Python.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str


# The arrays that numbers of Python become, and those whose numbers they stand for.
_NUMBERS: dict[type, tuple[Any, Any]] = {
    bool: (np.bool_, np.bool_),
    int: (np.int64, np.integer),
    float: (np.float64, jnp.floating),
    complex: (np.complex128, np.complexfloating),
}


def _python(kind: type) -> str:
    return f"{kind.__name__} of Python"


def describe(tree: Any) -> list[Leaf]:
    """The leaves of a tree, in order.

    Args:
      tree: a pytree of jax or NumPy arrays, `jax.ShapeDtypeStruct`s or numbers.

    Returns:
      One entry per leaf.

    Raises:
      TypeError: if a leaf is none of these.
    """
    return [_describe(*pair) for pair in jax.tree_util.tree_leaves_with_path(tree)]


def _describe(key_path: Any, leaf: Any) -> Leaf:
    path = jax.tree_util.keystr(key_path)
    if type(leaf) in _NUMBERS:
        return Leaf(path, (), _python(type(leaf)))
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        raise TypeError(
            f"checkpoints: leaf {path} must be an array or a number, got {leaf!r}."
        )
    return Leaf(path, tuple(leaf.shape), str(leaf.dtype))


def select(template: Any, held: list[Leaf]) -> tuple[Any, list[Leaf], list[int]]:
    """Fits a template to what is held, where it leaves anything open.

    Args:
      template: as for `describe`. A number of Python stands for an array [] of its
        kind, too; an Ellipsis for whatever is held in its place.
      held: the leaves of the whole.

    Returns:
      The template, its numbers replaced by the arrays that are held; its leaves but
      for each Ellipsis; and which of `held` are not in the place of one.

    Raises:
      TypeError: if a leaf is nothing of that.
    """
    kinds = {leaf.path: leaf for leaf in held}
    open_at = []

    def fit(key_path, leaf):
        path = jax.tree_util.keystr(key_path)
        if leaf is ...:
            open_at.append(path)
        elif type(leaf) in _NUMBERS:
            return _as_held(leaf, kinds.get(path))
        return leaf

    fitted = jax.tree_util.tree_map_with_path(fit, template)
    closed = jax.tree.map(lambda leaf: None if leaf is ... else leaf, fitted)
    below = tuple(path + sign for path in open_at for sign in ".[")
    chosen = [
        index
        for index, leaf in enumerate(held)
        if leaf.path not in open_at and not leaf.path.startswith(below)
    ]
    return fitted, describe(closed), chosen


def _as_held(number: Any, leaf: Leaf | None) -> Any:
    if leaf is None or leaf.shape or leaf.dtype == _python(type(number)):
        return number
    try:
        dtype = jnp.dtype(leaf.dtype)
    except TypeError:  # a random key, or another number of Python
        return number
    fits = jnp.issubdtype(dtype, _NUMBERS[type(number)][1])
    return jax.ShapeDtypeStruct((), dtype) if fits else number


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
      tree: a pytree of jax or NumPy arrays and numbers. Its jax arrays may be donated
        afterwards.

    Returns:
      C-ordered arrays in native byte order; of typed random keys, their uint32 data.

    Raises:
      ValueError: if an array is on devices of other processes, or an int of Python has
        more than 64 bits.
    """
    leaves = jax.tree.leaves(tree)
    for leaf in leaves:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            raise ValueError(
                f"checkpoints: an array of shape {leaf.shape} is on devices of other "
                "processes; expected all of the state on those of this one."
            )
    return [_host_copy(leaf) for leaf in leaves]


def _host_copy(leaf: Any) -> np.ndarray:
    if type(leaf) in _NUMBERS:
        try:
            return np.array(leaf, _NUMBERS[type(leaf)][0])
        except OverflowError:
            raise ValueError(
                f"checkpoints: an int of Python must have at most 64 bits, got {leaf}."
            ) from None
    bare = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return np.array(bare, bare.dtype.newbyteorder("="), order="C")


def like(template: Any, arrays: list[np.ndarray]) -> Any:
    """Puts what `host_copies` returned where a template has its leaves.

    Args:
      template: a pytree whose description is that of the tree that was copied, but for
        what an Ellipsis stands for.
      arrays: one per leaf that is no Ellipsis; those without elements do not matter.

    Returns:
      A tree of NumPy arrays, numbers and Ellipses where the template has such, and
      otherwise of jax arrays with the template's sharding and weak type.

    Raises:
      ValueError: if jax cannot hold a dtype without `jax_enable_x64`.
    """
    leaves, structure = jax.tree.flatten(template)
    places = [index for index, leaf in enumerate(leaves) if leaf is not ...]
    for index, array in zip(places, arrays, strict=True):
        leaves[index] = _like(leaves[index], array)
    return jax.tree.unflatten(structure, leaves)


def _like(leaf: Any, array: np.ndarray) -> Any:
    if type(leaf) in _NUMBERS:
        return array.item()
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
