"""Which leaves of a tree make up a layer, and what the layers are called."""

import sys
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.core import meta
from jax.tree_util import SequenceKey

from pcjax.numerics.reductions import sum_magnitudes

KeyPath = tuple[Any, ...]
# Where a leaf sits in the tree -> the layer it belongs to.
GroupFn = Callable[[KeyPath], Hashable]
# Where a leaf sits in the tree -> whether its leading axis is one of layers.
StackedFn = Callable[[KeyPath], bool]


class Group(NamedTuple):
    """Leaves that belong together: a layer, or several in a stack.

    Attributes:
      key: what they have in common, as the group function says.
      members: their places among the leaves.
      size: the number of layers in the stack; None for a single layer.
    """

    key: Hashable
    members: list[int]
    size: int | None

    @property
    def name(self) -> str:
        """What the layer is called: `0`, `params/Dense_0`; a stack as a whole."""
        if isinstance(self.key, tuple):
            return jax.tree_util.keystr(self.key, simple=True, separator="/")
        return str(self.key)


class Layers(NamedTuple):
    """A tree, taken apart into layers.

    Attributes:
      leaves: of the tree.
      treedef: its structure.
      groups: in the order of their first leaves.
    """

    leaves: list[Any]
    treedef: jax.tree_util.PyTreeDef
    groups: list[Group]

    @property
    def names(self) -> tuple[str, ...]:
        """A name for every layer, `blocks/0`, `blocks/1` for those of a stack."""
        return tuple(
            name
            for group in self.groups
            for name in (
                [group.name]
                if group.size is None
                else [f"{group.name}/{index}" for index in range(group.size)]
            )
        )


def layer_names(
    params: Any, group_fn: GroupFn | None = None, stacked: StackedFn | None = None
) -> tuple[str, ...]:
    """The names of the layers that MQ sees, in the order of its `v`.

    >>> params = {"Dense_0": {"kernel": jnp.ones((3, 2))}, "scale": jnp.ones(2)}
    >>> layer_names({"params": params})
    ('params/Dense_0', 'params')

    Args:
      params: a tree of arrays, or of their shapes.
      group_fn: see `scale_by_mq`.
      stacked: see `scale_by_mq`.

    Returns:
      A name for each of the layers.

    Raises:
      TypeError, ValueError: as by the `init` of `scale_by_mq`.
    """
    return group(params, group_fn, stacked).names


def group(
    tree: Any, group_fn: GroupFn | None = None, stacked: StackedFn | None = None
) -> Layers:
    """Takes a tree apart into its layers; see `scale_by_mq`."""
    leaves, keys, sizes = [], [], []
    for path, container, leaf in _flatten(tree):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"scale_by_mq: the leaf at '{jax.tree_util.keystr(path)}' has dtype "
                f"{jnp.result_type(leaf)}; expected real floats. Exclude leaves that "
                "are not trained with optax.masked."
            )
        is_stacked = stacked is not None and stacked(path)
        if is_stacked and not jnp.shape(leaf):
            raise ValueError(
                f"scale_by_mq: the leaf at '{jax.tree_util.keystr(path)}' is a single "
                "number, so that it has no leading axis of layers; expected that "
                "`stacked` is true of stacked arrays alone."
            )
        leaves.append(leaf)
        keys.append(container if group_fn is None else group_fn(path))
        sizes.append(jnp.shape(leaf)[0] if is_stacked else None)
    members: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        members.setdefault(key, []).append(index)
    groups = []
    for key, indices in members.items():
        found = [sizes[index] for index in indices]
        groups.append(Group(key, indices, found[0]))
        if len(set(found)) > 1:
            raise ValueError(
                f"scale_by_mq: the arrays of the layer "
                f"{groups[-1].name or 'the whole tree'} have leading axes of layers of "
                f"sizes {found} (None: not stacked); expected equal ones. Tell them "
                "apart with `group_fn`."
            )
    return Layers(leaves, jax.tree.structure(tree), groups)


def _flatten(tree: Any) -> list[tuple[KeyPath, KeyPath, Any]]:
    """Every leaf with its path and the path of the default layer it belongs to."""
    found = []
    nodes, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_box)
    for path, node in nodes:
        for inner, leaf in jax.tree_util.tree_leaves_with_path(node):
            # The array in a box has the place of the box.
            outer = path if len(inner) < 2 else path + inner
            bare = len(outer) == 1 and isinstance(outer[0], SequenceKey)
            # A network's layer may be a bare array: then it has no container.
            found.append((path + inner, outer if bare else outer[:-1], leaf))
    return found


def _is_box(node: Any) -> bool:
    """Whether it is flax's box around an array: an nnx variable, linen's metadata.

    Only their class tells them: users have fields called `value`, too.
    """
    nnx = sys.modules.get("flax.nnx")  # without which there are no variables
    # In older versions of flax those of a tree are of another class, a name that
    # newer versions hand out with a warning, and only when asked for.
    names = ("Variable", "VariableState") if nnx else ()
    variables = [vars(nnx)[name] for name in names if name in vars(nnx)]
    return isinstance(node, (*variables, meta.AxisMetadata))


def mean_magnitudes(leaves: Sequence[Any], layer: Group, dtype: Any) -> jax.Array:
    """The mean magnitude of a layer's gradient, [1]; of each in a stack, [size]."""
    gradients = [leaves[member] for member in layer.members]
    entries = sum(jnp.size(gradient) for gradient in gradients)
    if layer.size is None:
        total = sum(sum_magnitudes(gradient, dtype) for gradient in gradients)
        return jnp.reshape(total / max(entries, 1), (1,))
    total = sum(
        jnp.sum(jnp.abs(gradient), axis=range(1, jnp.ndim(gradient)), dtype=dtype)
        for gradient in gradients
    )
    return jnp.asarray(total / max(entries // max(layer.size, 1), 1))
