"""Training on several devices: where the arrays lie, and nothing else.

Sharding is no code path of its own. The compiled program follows the placement of
its arguments, so the same `grad_fn`, optimizer and `training.make_epoch` serve on one
device and on many. A mesh has up to three axes, and every array is split by them:

    seeds   networks trained side by side: the leading axis of a stacked `TrainState`
    batch   the examples of a batch: data parallelism
    model   the features of wide layers: weights, gradients and optimizer state

`make_mesh` makes such a mesh. One of `jax.make_mesh`, whose axes newer versions
make explicit, serves as well, but for a `seeds` axis. What is split over no axis is
replicated. Inference moves every example by its own energy, so over `batch` it needs no
communication, whatever the number of iterations; the mean gradient is all that has to
be added up.
"""

import importlib
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pcjax.checks import is_int
from pcjax.training.data import Data, Prepare

SEEDS, BATCH, MODEL = "seeds", "batch", "model"

# Shape of an array of one network -> the mesh axis (or None) of each of its axes.
Split = Callable[[tuple[int, ...]], PartitionSpec]


def make_mesh(
    batch: int | None = None,
    *,
    seeds: int | None = None,
    model: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Arranges devices along the axes `seeds`, `batch` and `model`.

    >>> make_mesh(seeds=1, devices=jax.devices()[:1]).axis_names
    ('seeds', 'batch')

    Args:
      batch: over how many devices a batch is split; None takes all that are left.
      seeds: over how many devices the networks of a stacked state are split. None
        leaves the axis out: states are then those of a single network.
      model: over how many devices wide layers are split. None leaves the axis out.
      devices: by default all devices of all processes.

    Returns:
      A mesh for `jax.sharding.NamedSharding`, `seeds` outermost and `model` innermost:
      on CPUs and GPUs the devices keep their order, process by process.

    Raises:
      ValueError: if the sizes are not ints, or not those of the number of devices.
    """
    for name, n in ((BATCH, batch), (SEEDS, seeds), (MODEL, model)):
        if n is not None and not is_int(n):
            raise ValueError(f"make_mesh: {name} must be an int >= 1, got {n!r}.")
    devices = jax.devices() if devices is None else list(devices)
    others = (seeds or 1) * (model or 1)
    size = len(devices) // others if batch is None else batch
    sizes = {SEEDS: seeds, BATCH: size, MODEL: model}
    axes = {name: n for name, n in sizes.items() if n is not None}
    if any(n < 1 for n in axes.values()) or size * others != len(devices):
        raise ValueError(
            f"make_mesh: {len(devices)} devices cannot be arranged as "
            + " x ".join(f"{name} = {n}" for name, n in axes.items())
            + "; the product must be the number of devices."
        )
    kinds = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(
        tuple(axes.values()), tuple(axes), devices=devices, axis_types=kinds
    )


def replicated(shape: tuple[int, ...]) -> PartitionSpec:
    """A `Split` that keeps every weight on every device: plain data parallelism."""
    del shape
    return PartitionSpec()


def split_features(min_features: int) -> Split:
    """A `Split` of wide layers: arrays [..., features] by their last axis.

    It serves kernels [in, features] and [h, w, in, features], biases [features] and
    whatever an optimizer keeps in their shapes.

    >>> [tuple(split_features(512)(shape)) for shape in ((3072, 1024), (1024, 10))]
    [(None, 'model'), ()]

    Args:
      min_features: layers with fewer features are replicated.

    Returns:
      A function for `state_shardings` and `place_state`, of a mesh with a `model` axis.
    """

    def split(shape):
        if not shape or shape[-1] < min_features:
            return PartitionSpec()
        return PartitionSpec(*(None,) * (len(shape) - 1), MODEL)

    return split


def state_shardings(mesh: Mesh, state: Any, split: Split = replicated) -> Any:
    """The shardings of a `TrainState`, or of any tree of weights and their statistics.

    Args:
      mesh: what `make_mesh` returns. If it has a `seeds` axis, the state must be a
        stacked one: every array [seeds, ...], as `jax.vmap` over keys makes it.
      state: a tree of arrays, or of their shapes as of `jax.eval_shape`.
      split: the mesh axes of an array of one network, of its shape.

    Returns:
      A tree like `state` of `jax.sharding.NamedSharding`s, for `jax.device_put`, and
      for `out_shardings`, so that an epoch returns the state as it got it.

    Raises:
      ValueError: if an axis of an array cannot be divided by that of the mesh, or if
        the mesh has an explicit `seeds` axis.
    """
    lead = (SEEDS,) if SEEDS in mesh.axis_names else ()
    if lead and _is_explicit(mesh, SEEDS):
        raise ValueError(
            "state_shardings: the mesh has an explicit axis 'seeds', over which "
            "jax.vmap cannot tell how to split the examples that it gathers; expected "
            "automatic ones, of pcjax.sharding.make_mesh or of jax.make_mesh(..., "
            "axis_types=(jax.sharding.AxisType.Auto,) * number_of_axes)."
        )

    def sharding(path, leaf):
        name = f"the state's {jax.tree_util.keystr(path)}"
        if len(leaf.shape) < len(lead):
            raise ValueError(
                f"state_shardings: {name} is a scalar, but the mesh has a seeds axis; "
                "expected a stacked state, every array [seeds, ...]."
            )
        spec = PartitionSpec(*lead, *split(leaf.shape[len(lead) :]))
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis is not None:
                _check_divisible("state_shardings", name, size, mesh, axis)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, state)


def place_state(mesh: Mesh, state: Any, split: Split = replicated) -> Any:
    """Puts a `TrainState`, or any tree of weights and statistics, onto the mesh.

    Args:
      mesh: what `make_mesh` returns.
      state: a tree of arrays. Every process must hold the same values.
      split: see `state_shardings`, whose errors it raises.

    Returns:
      A copy, which may be donated while `state` stays as it is.
    """
    return _place(state, state_shardings(mesh, state, split))


def place_data(mesh: Mesh, data: Data) -> Data:
    """Puts a data set onto every device of the mesh, for `training.make_epoch`.

    An epoch draws its batches from the whole set. Replicated, each device gathers its
    own examples and nothing is communicated; CIFAR-10 as uint8 takes 154 MB of each.
    A set too large for that can be split by `jax.device_put` with a sharding of
    one's own: the same epoch then fetches every batch by an all-reduce of its raw
    examples.

    Args:
      mesh: what `make_mesh` returns.
      data: the whole set. Every process must hold the same.

    Returns:
      The set, replicated.
    """
    return _place(data, NamedSharding(mesh, PartitionSpec()))


def place_batch(mesh: Mesh, batch: Any) -> Any:
    """Puts a batch onto the mesh, for a training step written by hand.

    Args:
      mesh: what `make_mesh` returns.
      batch: a tree of arrays [B, ...], such as `(inputs, targets)`. Of several
        processes, each gives the examples for its own devices, all equally many.

    Returns:
      The whole batch, split over the `batch` axis.

    Raises:
      ValueError: if an array has no axis of examples, or they cannot be divided among
        the devices.
    """
    sharding = NamedSharding(mesh, PartitionSpec(BATCH))

    def place(x):
        if not np.ndim(x):
            raise ValueError(
                f"place_batch: expected arrays [B, ...], got the scalar {x!r}."
            )
        own = mesh.local_mesh  # the devices of this process
        _check_divisible("place_batch", "a batch", len(x), own, BATCH)
        return jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(place, batch)


def split_batches(mesh: Mesh, prepare: Prepare) -> Prepare:
    """Makes `make_epoch` and `make_evaluation` split every batch.

    Without it nothing tells the compiler to: the epoch would be computed as a whole on
    each device.

    Args:
      mesh: what `make_mesh` returns.
      prepare: makes inputs and targets of a batch of raw data.

    Returns:
      The same function, with its results split over the `batch` axis. It raises
      ValueError if the examples cannot be divided among the devices.
    """
    sharding = NamedSharding(mesh, PartitionSpec(BATCH))

    @wraps(prepare)  # whether it takes a key
    def prepare_split(images, labels, **key):
        _check_divisible("split_batches", "a batch", len(images), mesh, BATCH)
        split = jax.lax.with_sharding_constraint
        if _is_explicit(mesh, BATCH):  # a part of the type, which no hint can change
            split = _reshard()
        return split(prepare(images, labels, **key), sharding)

    return prepare_split


def _place(tree: Any, shardings: Any) -> Any:
    leaves = jax.tree.leaves(shardings)
    if all(sharding.is_fully_addressable for sharding in leaves):
        # What is placed may be donated, and device_put shares buffers.
        return jax.device_put(jax.tree.map(jnp.copy, tree), shardings)
    # Devices of other processes are reached by a program that all of them run.
    return jax.jit(lambda values: values, out_shardings=shardings)(tree)


def _reshard() -> Callable[..., Any]:
    if hasattr(jax.sharding, "reshard"):
        return jax.sharding.reshard
    # Older versions of jax keep it elsewhere.
    return importlib.import_module("jax.experimental.shard").reshard


def _is_explicit(mesh: Mesh, axis: str) -> bool:
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return types[axis] == AxisType.Explicit


def _check_divisible(
    function: str, what: str, size: int, mesh: Mesh, axis: str
) -> None:
    """Refuses what cannot be split evenly, and axes that the mesh lacks."""
    if axis not in mesh.axis_names:
        raise ValueError(
            f"{function}: {what} is to be split over '{axis}', but the mesh has the "
            f"axes {mesh.axis_names}."
        )
    count = mesh.shape[axis]
    if size % count:
        raise ValueError(
            f"{function}: {what} holds {size} entries on the axis that is split over "
            f"the {count} devices of '{axis}'; expected a multiple of {count}."
        )
