"""Checkpoints of training runs: asynchronous, atomic, checked to the bit.

Orbax writes and reads the arrays, each checkpoint in a folder named after its step
that appears by one atomic rename; `orbax.checkpoint.CheckpointManager` can read them
too. What Orbax leaves open is added here: typed random keys, digests of every leaf,
record and file, refusal of another network's checkpoints, a lock on the folder.

This module is not imported by `import pcjax`, which need not pay for Orbax.
"""

import concurrent.futures
import json
import operator
import re
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple, Self

from pcjax.checkpoints import leaves, storage
from pcjax.checkpoints.locks import FolderLock


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
    exits may be lost. Only one `Checkpoints` at a time may use a folder, also to read.
    The disk needs room for one checkpoint more than are kept.

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
      folder: made if it does not exist; `~` is the user's home.
      keep: how many whole checkpoints to keep, at least 1.
      fingerprint: JSON, such as the configuration of the run; a checkpoint saved
        with another one is refused.

    Raises:
      CheckpointError: if the folder cannot be used or another `Checkpoints` uses it.
      TypeError: if the fingerprint is no JSON.
      ValueError: if `keep` is less than 1 or the folder is a URL.
    """

    def __init__(
        self, folder: str | Path, *, keep: int = 2, fingerprint: Any = None
    ) -> None:
        if keep < 1:
            raise ValueError(f"Checkpoints: keep must be at least 1, got {keep}.")
        self._fingerprint = _as_json(fingerprint, "fingerprint")
        self._keep = keep
        self._folder, self._lock = _open(folder)
        self._damaged: set[int] = set()
        self._pending: tuple[int, concurrent.futures.Future[None]] | None = None
        # Orbax can save asynchronously itself, but needs the digests beforehand, makes
        # folders on the calling thread and logs errors from threads of its own. One
        # thread here does everything but the copy and keeps the error for the caller.
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
          state: a pytree of jax or NumPy arrays, typed random keys too, and of numbers
            of Python; all of it must be on devices of this process. It may be donated
            afterwards.
          record: JSON; floats come back to the bit, tuples as lists.

        Raises:
          CheckpointError: if the previous save failed, in which case this state is
            not saved, or if a checkpoint of this step or a later one is there.
          TypeError: if a leaf is no array and no number, or the record is no JSON.
          ValueError: if the step is negative, an array is on other processes or an int
            of Python has more than 64 bits.
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
        content = storage.Content(
            step=step,
            fingerprint=self._fingerprint,
            record=_as_json(record, "record"),
            leaves=leaves.describe(state),
            arrays=leaves.host_copies(state),
        )
        self._pending = step, self._thread.submit(self._write, content)

    def restore(self, template: Any) -> Restored | None:
        """Reads the newest checkpoint that is not damaged.

        Damaged ones are reported by a `CheckpointWarning`. They stay as they are
        until the next save, which renames them to `<step>.damaged`.

        An Ellipsis leaves out what was saved in its place. The weights alone of a run,
        whatever its optimizer:

        ```
        params = jax.eval_shape(network.init, key, inputs)
        template = training.TrainState(params, ..., ..., ...)
        params = checkpoints.restore(template).state.params
        ```

        Args:
          template: a pytree of arrays or `jax.ShapeDtypeStruct`s with the structure,
            shapes and dtypes of the state that was saved. NumPy leaves come back as
            NumPy arrays, others as jax arrays sharded like the template's. A number of
            Python stands for such a number and for any array [] of its kind, and what
            was saved comes back. Each Ellipsis comes back as it is.

        Returns:
          The checkpoint, or None if there is none at all.

        Raises:
          CheckpointError: if the previous save failed, if the newest good checkpoint
            is of another state or fingerprint, or if there are checkpoints and all
            are damaged.
          TypeError: if a leaf of the template is nothing of that.
          ValueError: if it needs `jax_enable_x64`, which is off.
        """
        self.wait()
        content, skipped = self._newest()
        if content is None:
            return None
        for reason in skipped:
            message = f"restore: passed over a damaged checkpoint: {reason}."
            warnings.warn(message, CheckpointWarning, stacklevel=2)
        name = f"restore: checkpoint {content.step} in {self._folder}"
        if content.fingerprint != self._fingerprint:
            raise CheckpointError(
                f"{name} is of another run: it has the fingerprint "
                f"{content.fingerprint}, expected {self._fingerprint}."
            )
        template, wanted, chosen = leaves.select(template, content.leaves)
        held = [content.leaves[index] for index in chosen]
        found = leaves.differences(held, wanted)
        if found:
            raise CheckpointError(f"{name} is of another state: {'; '.join(found)}.")
        state = leaves.like(template, [content.arrays[index] for index in chosen])
        return Restored(content.step, state, json.loads(content.record), skipped)

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

    def _newest(self) -> tuple[storage.Content | None, tuple[str, ...]]:
        """The newest whole checkpoint and why the newer ones are none."""
        skipped: dict[int, str] = {}
        for step in sorted(self._steps(), reverse=True):
            try:
                content = storage.read(self._folder / str(step))
            except storage.DamagedError as error:
                skipped[step] = f"step {step}: {error}"
                continue
            self._damaged = set(skipped)
            return content, tuple(skipped.values())
        if skipped:
            raise CheckpointError(
                f"restore: no checkpoint in {self._folder} is whole: "
                f"{'; '.join(skipped.values())}."
            )
        return None, ()

    def _steps(self) -> list[int]:
        try:
            names = [path.name for path in self._folder.iterdir() if path.is_dir()]
        except OSError as error:
            raise CheckpointError(
                f"Checkpoints: cannot read the folder {self._folder}: {error}."
            ) from error
        return [int(name) for name in names if name.isascii() and name.isdecimal()]

    def _write(self, content: storage.Content) -> None:
        """Runs on the thread."""
        for step in sorted(self._damaged):
            aside = self._folder / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (self._folder / str(step)).rename(aside)
            self._damaged.remove(step)
        try:
            storage.write(self._folder / str(content.step), content)
            for old in sorted(self._steps())[: -self._keep]:
                # A folder that is named by a number alone is always whole.
                path = self._folder / str(old)
                path.rename(f"{path}{storage.UNFINISHED}-deleted")
        finally:
            self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        for path in self._folder.glob(f"*{storage.UNFINISHED}*"):
            shutil.rmtree(path, ignore_errors=True)


def _open(folder: str | Path) -> tuple[Path, FolderLock]:
    """Makes a folder, if it is not there, and locks it."""
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:/", str(folder)):
        raise ValueError(
            f"Checkpoints: folder must be a path of this machine's files, got "
            f"{folder}; mount the bucket, or copy the folder when the run has ended."
        )
    path = Path(folder)
    try:
        path = path.expanduser().absolute()
        path.mkdir(parents=True, exist_ok=True)
        return path, FolderLock(path)
    except (OSError, RuntimeError) as error:  # the latter for users without a home
        raise CheckpointError(
            f"Checkpoints: cannot use the folder {path}: {error}."
        ) from error


def _as_json(value: Any, what: str) -> str:
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise TypeError(f"Checkpoints: the {what} is no JSON: {error}.") from error
