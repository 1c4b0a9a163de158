"""Checkpoints of training runs: asynchronous, atomic, checked to the bit.

Orbax writes and reads the arrays, each checkpoint in a folder named after its step
that appears by one atomic rename; `orbax.checkpoint.CheckpointManager` can read them
too. What Orbax leaves open is added here: typed random keys, a digest of every leaf
and of the record, refusal of another network's checkpoints, a lock on the folder.

This module is not imported by `import pcjax`, which need not pay for Orbax.
"""

import concurrent.futures
import hashlib
import json
import operator
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from pcjax.locks import FolderLock

_FORMAT = 1
# What Orbax's own names of unfinished folders have in common.
_UNFINISHED = "*.orbax-checkpoint-tmp*"


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written, or none that can be used."""


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was passed over."""


class Restored(NamedTuple):
    """What a checkpoint held.

    Attributes:
      step: the number it was saved under.
      state: a pytree like the template.
      record: the JSON saved with it.
      skipped: the newer checkpoints that are damaged, newest first, and why.
    """

    step: int
    state: Any
    record: Any
    skipped: tuple[str, ...]


class Checkpoints:
    """The last checkpoints of one training run, in a folder of their own.

    A context manager. Close it: a save that is still running when the interpreter
    exits may be lost. Only one `Checkpoints` at a time may use a folder.

    Example:
      ```
      with Checkpoints("runs/mlp", fingerprint=config) as checkpoints:
          restored = checkpoints.restore(state)
          if restored is not None:
              state, history = restored.state, restored.record
          for step in range(int(state.epoch), 30):
              state, metrics = epoch(state, data)  # may donate the old state
              history.append(float(metrics.loss.mean()))
              checkpoints.save(step + 1, state, history)
      ```

    Args:
      folder: made if it does not exist.
      keep: how many whole checkpoints to keep, at least 1.
      fingerprint: JSON, such as the configuration of the run; a checkpoint saved
        with another one is refused.

    Raises:
      CheckpointError: if the folder cannot be used or another `Checkpoints` uses it.
      TypeError: if the fingerprint is no JSON.
      ValueError: if `keep` is less than 1.
    """

    def __init__(
        self, folder: str | Path, *, keep: int = 2, fingerprint: Any = None
    ) -> None:
        if keep < 1:
            raise ValueError(f"Checkpoints: keep must be at least 1, got {keep}.")
        self._fingerprint = _as_json(fingerprint, "fingerprint")
        self._keep = keep
        self._folder = Path(folder).absolute()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self._folder)
        except OSError as error:
            raise CheckpointError(
                f"Checkpoints: cannot use the folder {self._folder}: {error}."
            ) from error
        self._damaged: set[int] = set()
        self._pending: tuple[int, concurrent.futures.Future[None]] | None = None
        # Orbax has an asynchronous mode of its own, but that takes the digests on
        # the calling thread and logs errors from its threads. One thread that saves
        # synchronously does neither, and also does the deletions.
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        self._closed = False
        self._remove_unfinished()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, step: int, state: Any, record: Any = None) -> None:
        """Copies the state to the host and lets a thread write it.

        Waits for the previous save if that still runs.

        Args:
          step: a number of at least 0, larger than those of all checkpoints there.
          state: a pytree of jax or NumPy arrays, typed random keys too; all of it
            must be on devices of this process. It may be donated afterwards.
          record: JSON; floats come back to the bit, tuples as lists.

        Raises:
          CheckpointError: if the previous save failed, in which case this state is
            not saved, or if a checkpoint of this step or a later one is there.
          TypeError: if a leaf is no array or the record is no JSON.
          ValueError: if the step is negative or an array is on other processes.
        """
        self.wait()
        step = operator.index(step)
        if step < 0:
            raise ValueError(f"save: step must be at least 0, got {step}.")
        newest = max(set(self._steps()) - self._damaged, default=-1)
        if step <= newest:
            raise CheckpointError(
                f"save: step {step} must be larger than {newest}, the newest "
                f"checkpoint in {self._folder}; restore it or use another folder."
            )
        record = _as_json(record, "record")
        leaves = _leaves(state)
        arrays = [_host_copy(path, leaf) for path, leaf in leaves]
        body = {"format": _FORMAT, "step": step, "leaves": _describe(leaves)}
        body |= {"fingerprint": self._fingerprint, "record": record}
        self._pending = step, self._thread.submit(self._write, step, arrays, body)

    def restore(self, template: Any) -> Restored | None:
        """Reads the newest checkpoint that is not damaged.

        Damaged ones are reported by a `CheckpointWarning`. They stay as they are
        until the next save, which renames them to `<step>.damaged`.

        Args:
          template: a pytree of arrays or `jax.ShapeDtypeStruct`s with the structure,
            shapes and dtypes of the state that was saved. NumPy leaves come back as
            NumPy arrays, others as jax arrays sharded like the template's.

        Returns:
          The checkpoint, or None if there is none at all.

        Raises:
          CheckpointError: if the newest good checkpoint is of another state or
            fingerprint, or if there are checkpoints and all are damaged.
        """
        self.wait()
        skipped: list[str] = []
        for step in sorted(self._steps(), reverse=True):
            try:
                body = _read_body(self._folder / str(step), step)
                leaves = self._checked(step, body, template)
                arrays = _read_arrays(self._folder / str(step), body["leaves"])
            except _DamagedError as error:
                skipped.append(f"step {step}: {error}")
                self._damaged.add(step)
                continue
            for reason in skipped:
                message = f"restore: passed over damaged checkpoint {reason}"
                warnings.warn(message, CheckpointWarning, stacklevel=2)
            values = [_like(*pair) for pair in zip(leaves, arrays, strict=True)]
            state = jax.tree.unflatten(jax.tree.structure(template), values)
            return Restored(step, state, json.loads(body["record"]), tuple(skipped))
        if skipped:
            # They must not make room for a run that starts anew.
            self._damaged.clear()
            raise CheckpointError(
                f"restore: no checkpoint in {self._folder} is whole: "
                + "; ".join(skipped)
            )
        return None

    def wait(self) -> None:
        """Waits until the last save is on the disk.

        Raises:
          CheckpointError: if it failed; the older checkpoints are still there.
        """
        if self._closed:
            raise CheckpointError(f"Checkpoints of {self._folder} are closed.")
        if self._pending is None:
            return
        step, future = self._pending
        error = future.exception()
        self._pending = None
        if error is not None:
            raise CheckpointError(
                f"save: step {step} was not saved in {self._folder}: {error}"
            ) from error

    def close(self) -> None:
        """Waits for the last save and gives the folder free; may be called twice.

        Raises:
          CheckpointError: if that save failed.
        """
        if self._closed:
            return
        try:
            self.wait()
        finally:
            self._closed = True
            self._thread.shutdown()
            self._lock.release()

    def _steps(self) -> list[int]:
        names = (path.name for path in self._folder.iterdir() if path.is_dir())
        return [int(name) for name in names if name.isdecimal()]

    def _remove_unfinished(self) -> None:
        for path in self._folder.glob(_UNFINISHED):
            shutil.rmtree(path, ignore_errors=True)

    def _write(self, step: int, arrays: list[np.ndarray], body: dict[str, Any]) -> None:
        """Runs on the thread."""
        for damaged in sorted(self._damaged):
            aside = self._folder / f"{damaged}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (self._folder / str(damaged)).rename(aside)
            self._damaged.remove(damaged)
        for leaf, array in zip(body["leaves"], arrays, strict=True):
            leaf["digest"] = _digest(array)
        text = json.dumps(body)
        manifest = {"body": text, "digest": _digest(text.encode())}
        items: dict[str, Any] = {"manifest": ocp.args.JsonSave(manifest)}
        stored = {str(i): array for i, array in enumerate(arrays) if array.size}
        if stored:
            items["state"] = ocp.args.PyTreeSave(stored)
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
                checkpointer.save(
                    self._folder / str(step), args=ocp.args.Composite(**items)
                )
        except BaseException:
            self._remove_unfinished()
            raise
        for old in sorted(self._steps())[: -self._keep]:
            # Renamed first: a name that is a number always means a whole checkpoint.
            going = self._folder / f"{old}.orbax-checkpoint-tmp-deleted"
            (self._folder / str(old)).rename(going)
            shutil.rmtree(going)

    def _checked(self, step: int, body: dict[str, Any], template: Any) -> list[Any]:
        """The template's leaves, if the checkpoint is of such a state."""
        held, wanted = body["fingerprint"], self._fingerprint
        name = f"restore: checkpoint {step} in {self._folder}"
        if held != wanted:
            raise CheckpointError(
                f"{name} is of another run: it has the fingerprint {held}, "
                f"expected {wanted}."
            )
        leaves = _leaves(template)
        differences = _differences(body["leaves"], _describe(leaves))
        if differences:
            raise CheckpointError(
                f"{name} is of another state: " + "; ".join(differences)
            )
        return [leaf for _, leaf in leaves]


class _DamagedError(Exception):
    """Why a checkpoint cannot be used."""


def _as_json(value: Any, what: str) -> str:
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise TypeError(f"Checkpoints: the {what} is no JSON: {error}.") from error


def _digest(data: Any) -> str:
    view = data.reshape(-1).view(np.uint8) if isinstance(data, np.ndarray) else data
    return hashlib.blake2b(view, digest_size=16).hexdigest()


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves and their paths."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [(jax.tree_util.keystr(path), leaf) for path, leaf in pairs]
    for path, leaf in leaves:
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(
                f"Checkpoints: leaf {path} must be an array, got {type(leaf).__name__}."
            )
    return leaves


def _describe(leaves: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"path": path, "shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for path, leaf in leaves
    ]


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _host_copy(path: str, leaf: Any) -> np.ndarray:
    """The leaf's own bytes, which nobody else can change, in C order."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise ValueError(f"save: leaf {path} is on devices of other processes.")
    return np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf, order="C")


def _differences(held: list[dict], wanted: list[dict], most: int = 5) -> list[str]:
    """What tells two lists of leaves apart, in words."""

    def texts(leaves):
        return {leaf["path"]: f"{leaf['dtype']} {leaf['shape']}" for leaf in leaves}

    ours, theirs = texts(held), texts(wanted)
    found = [
        f"leaf {path} holds {ours.get(path, 'nothing')}, "
        f"expected {theirs.get(path, 'nothing')}"
        for path in ours | theirs
        if ours.get(path) != theirs.get(path)
    ]
    more = [f"and {len(found) - most} more"] if len(found) > most else []
    return found[:most] + more


def _read(folder: Path, item: str, args: Any) -> Any:
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(
                folder, args=ocp.args.Composite(**{item: args})
            )[item]
    except Exception as error:
        # A damaged file may fail in any way.
        raise _DamagedError(f"{item} cannot be read: {error}") from error


def _read_body(folder: Path, step: int) -> dict[str, Any]:
    manifest = _read(folder, "manifest", ocp.args.JsonRestore())
    text = manifest.get("body") if isinstance(manifest, dict) else None
    if not isinstance(text, str) or manifest.get("digest") != _digest(text.encode()):
        raise _DamagedError("the manifest does not match its digest")
    body = json.loads(text)
    if body["format"] != _FORMAT:
        raise CheckpointError(
            f"restore: {folder} has format {body['format']}, expected {_FORMAT}."
        )
    if body["step"] != step:
        raise _DamagedError(f"it was saved as step {body['step']}")
    return body


def _read_arrays(folder: Path, leaves: list[dict[str, Any]]) -> list[np.ndarray]:
    stored = {str(i) for i, leaf in enumerate(leaves) if 0 not in leaf["shape"]}
    kind = ocp.RestoreArgs(restore_type=np.ndarray)
    arrays: dict[str, np.ndarray] = {}
    if stored:
        args = ocp.args.PyTreeRestore(
            item=dict.fromkeys(stored, 0), restore_args=dict.fromkeys(stored, kind)
        )
        arrays = _read(folder, "state", args)
    for i, leaf in enumerate(leaves):
        array = arrays.setdefault(str(i), np.zeros(0))
        if _digest(np.ascontiguousarray(array)) != leaf["digest"]:
            raise _DamagedError(f"leaf {leaf['path']} does not match its digest")
    return [arrays[str(i)] for i in range(len(leaves))]


def _like(leaf: Any, array: np.ndarray) -> Any:
    """The array as the kind of leaf the template has, where the template has it."""
    if 0 in leaf.shape:
        # Orbax stores no empty arrays.
        bare = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        array = np.zeros(bare.shape, bare.dtype)
    if isinstance(leaf, np.ndarray | np.generic):
        return array if isinstance(leaf, np.ndarray) else array[()]
    value = jnp.array(array)
    if getattr(leaf, "weak_type", False):
        # Promotes as it did.
        value = jnp.zeros_like(leaf).at[...].set(value)
    if _is_key(leaf):
        value = jax.random.wrap_key_data(value, impl=_key_impl(leaf))
    if value.dtype != leaf.dtype:
        raise CheckpointError(
            f"restore: jax made {value.dtype} of {leaf.dtype}; is jax_enable_x64 on?"
        )
    # Put nowhere, an array is free to follow others, as it was when first made.
    here = leaf.sharding is None or leaf.sharding == value.sharding
    return value if here else jax.device_put(value, leaf.sharding)


def _key_impl(leaf: Any) -> Any:
    """The generator of a typed key, of which only the type need be there."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
    return found[0]
