"""One checkpoint on the disk, written and read by Orbax, checked by digests.

A checkpoint is a folder with two Orbax items: `state`, the arrays under their numbers,
and `manifest`, a JSON text that describes them, with a digest of each and of itself.
Beside them are the digests of all files, so that Orbax is never given a damaged one to
parse. The folder has another name until it is whole.
"""

import contextlib
import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp

from pcjax.checkpoints.leaves import Leaf

# Part of every name of what is not whole; Orbax adds to it for its own purposes.
UNFINISHED = ".unfinished"
_DIGESTS = "digests.json"
# Orbax's calls on several threads of a process mix up their folders and event loops.
_ONE_AT_A_TIME = threading.Lock()
_FORMAT = 1


class DamagedError(Exception):
    """Why a checkpoint is not what was once written."""


class Content(NamedTuple):
    """What is in a checkpoint.

    Attributes:
      step: its number.
      fingerprint: JSON text that says of which run it is.
      record: JSON text.
      leaves: what the arrays are to the caller.
      arrays: one per leaf, C-ordered; where a leaf has no elements any array is as
        good, since Orbax stores none.
    """

    step: int
    fingerprint: str
    record: str
    leaves: list[Leaf]
    arrays: list[np.ndarray]


def write(folder: Path, content: Content) -> None:
    """Makes a checkpoint that appears as a whole or not at all.

    Args:
      folder: must not exist; its parent must.
      content: what to write.

    Raises:
      Exception: whatever Orbax raises, such as OSError or ValueError where a disk is
        full; then a folder with `UNFINISHED` in its name may be left.
    """
    text = json.dumps(
        content._asdict()
        | {"format": _FORMAT, "arrays": [_digest(array) for array in content.arrays]}
    )
    manifest = {"text": text, "digest": _digest(text)}
    items: dict[str, Any] = {"manifest": ocp.args.JsonSave(manifest)}
    stored = {str(i): array for i, array in enumerate(content.arrays) if array.size}
    if stored:
        items["state"] = ocp.args.PyTreeSave(stored)
    unfinished = folder.with_name(folder.name + UNFINISHED)
    with _checkpointer() as checkpointer:
        checkpointer.save(unfinished, args=ocp.args.Composite(**items))
    files = {
        path.relative_to(unfinished).as_posix(): _file_digest(path)
        for path in unfinished.rglob("*")
        if path.is_file()
    }
    (unfinished / _DIGESTS).write_text(json.dumps(files))
    unfinished.rename(folder)


def read(folder: Path) -> Content:
    """Reads a checkpoint and proves that it is what was written.

    Args:
      folder: what `write` made, under the same name.

    Returns:
      What was written.

    Raises:
      DamagedError: if it is anything else.
    """
    _check_files(folder)
    manifest = _read(folder, "manifest", ocp.args.JsonRestore())
    text = manifest.get("text") if isinstance(manifest, dict) else None
    if not isinstance(text, str) or manifest.get("digest") != _digest(text):
        raise DamagedError("its manifest does not match the digest")
    body = json.loads(text)
    # Only now are the fields known to be there.
    if body.pop("format") != _FORMAT:
        raise DamagedError("it was written by another version of this library")
    if str(body["step"]) != folder.name:
        raise DamagedError(f"it was written as step {body['step']}")
    leaves = [Leaf(path, tuple(shape), dtype) for path, shape, dtype in body["leaves"]]
    arrays = _read_arrays(folder, leaves)
    for leaf, array, digest in zip(leaves, arrays, body["arrays"], strict=True):
        if array.size and _digest(array) != digest:
            raise DamagedError(f"leaf {leaf.path} does not match its digest")
    return Content(**body | {"leaves": leaves, "arrays": arrays})


def _check_files(folder: Path) -> None:
    try:
        files = dict(json.loads((folder / _DIGESTS).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DamagedError(f"its {_DIGESTS} cannot be read: {error}") from error
    for name, digest in files.items():
        try:
            found = _file_digest(folder / name)
        except (OSError, ValueError) as error:
            raise DamagedError(f"its file {name} cannot be read: {error}") from error
        if found != digest:
            raise DamagedError(f"its file {name} does not match the digest")


def _read_arrays(folder: Path, leaves: list[Leaf]) -> list[np.ndarray]:
    names = [str(i) for i, leaf in enumerate(leaves) if 0 not in leaf.shape]
    stored: dict[str, np.ndarray] = {}
    if names:
        kind = ocp.RestoreArgs(restore_type=np.ndarray)
        args = ocp.args.PyTreeRestore(
            item=dict.fromkeys(names, 0), restore_args=dict.fromkeys(names, kind)
        )
        stored = _read(folder, "state", args)
    return [
        np.asarray(stored.get(str(i), np.zeros(0)), order="C")
        for i in range(len(leaves))
    ]


def _read(folder: Path, item: str, args: Any) -> Any:
    try:
        with _checkpointer() as checkpointer:
            composite = ocp.args.Composite(**{item: args})
            return checkpointer.restore(folder, args=composite)[item]
    except Exception as error:
        # A damaged file can fail in any way.
        raise DamagedError(f"its {item} cannot be read: {error!r}") from error


@contextlib.contextmanager
def _checkpointer() -> Iterator[Any]:
    """Orbax's, without its log: what fails is raised, not printed too."""

    def others(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(others)
    try:
        with (
            _ONE_AT_A_TIME,
            ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer,
        ):
            yield checkpointer
    finally:
        logger.removeFilter(others)


def _digest(data: Any) -> str:
    """Of text, or of the dtype, shape and bytes of a C-ordered array."""
    if isinstance(data, str):
        return hashlib.blake2b(data.encode(), digest_size=16).hexdigest()
    kind = f"{data.dtype.name} {data.shape} ".encode()
    # A view as bytes copies nothing, which `tobytes` would.
    found = hashlib.blake2b(kind, digest_size=16)
    found.update(data.reshape(-1).view(np.uint8))
    return found.hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
