"""Arrays in files that are whole or rejected: what was decoded once is read back.

A group of arrays is a .npy file each and a JSON record with their checksums and with
what they were made of. The record is written last. A group that was interrupted,
damaged, mixed from two writers or made of something else does not match its record,
so `read` does not return it and the caller makes it anew.
"""

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np

_FORMAT = 1


def read(
    folder: Path, group: str, fields: Sequence[str], source: Any
) -> dict[str, np.ndarray] | None:
    """The arrays of a group, or None unless every byte is as it was written.

    Args:
      folder: where the group was written.
      group: its name.
      fields: names of its arrays.
      source: what it is made of, in JSON types.
    """
    paths = {field: _path(folder, group, field) for field in fields}
    try:
        record = json.loads((folder / f"{group}.json").read_text())
        checksums = {}
        for field, path in paths.items():
            with path.open("rb") as file:
                checksums[field] = _checksum(file)
        if record != _record(source, checksums):
            return None
        return {field: np.load(path) for field, path in paths.items()}
    except (OSError, ValueError):
        return None


def write(
    folder: Path, group: str, arrays: Mapping[str, np.ndarray], source: Any
) -> None:
    """Writes the arrays of a group, and then the record that makes them valid.

    Raises:
      OSError: if the folder cannot be written, or is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checksums = {
        field: _replace(_path(folder, group, field), partial(np.save, arr=array))
        for field, array in arrays.items()
    }
    record = json.dumps(_record(source, checksums)).encode()
    _replace(folder / f"{group}.json", lambda file: file.write(record))


def _path(folder: Path, group: str, field: str) -> Path:
    return folder / f"{group}-{field}.npy"


def _record(source: Any, checksums: Mapping[str, str]) -> dict[str, Any]:
    return {"format": _FORMAT, "source": source, "sha256": checksums}


def _checksum(file: BufferedIOBase) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(path: Path, save: Callable[[BufferedIOBase], Any]) -> str:
    """Writes a file that appears whole or not at all; returns its checksum."""
    # Processes that write at once must not share a temporary file.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb+") as file:
            save(file)
            file.seek(0)
            checksum = _checksum(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return checksum
