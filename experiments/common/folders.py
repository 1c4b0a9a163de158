"""An output folder: finished parts are kept and found again, other runs are refused.

While an experiment runs, `parts/` holds a JSON file for each part that is finished, and
`checkpoints/` the networks in training. A part is of the run in whose folder it lies,
or was copied there from a run that differs in nothing but what is `free`, such as the
list of methods of which every one is a part.
"""

import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pcjax.checkpoints.locks import FolderLock

_NUMBERS = re.compile(r"\[(?:null|[-+.\deE,\s])*\]")  # lists that go on one line
_DECIDES = ("config", "size")  # of a header
_WHERE = ("versions", "device", "machine")  # it was measured


class UnfinishedError(Exception):
    """A part that is not finished, where only finished ones are asked for."""


class Run:
    """An output folder in use.

    Attributes:
      folder: where everything goes.
      header: what decides the results.
      seconds: what took how long, for run.json.
      elsewhere: parts that were measured with other versions or on another device.
      unfinished: what was asked for but is not finished; see `finished_only`.
    """

    def __init__(
        self,
        folder: Path,
        header: dict,
        *,
        free: Sequence[str] = (),
        finished_only: bool = False,
    ) -> None:
        """Nothing is written yet.

        Args:
          folder: where everything goes.
          header: what decides the results.
          free: fields of `header["config"]` that decide which parts there are, but not
            what is in any of them.
          finished_only: whether parts that are missing are not computed.
        """
        self.folder = folder
        self.header = header
        self.finished_only = finished_only
        self.seconds: dict[str, Any] = {}
        self.elsewhere: dict[str, str] = {}
        self.unfinished: list[str] = []
        self._used: set[str] = set()
        self._origins: list[dict] = []
        self._free = free

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` returns, from the folder if it was computed before.

        Args:
          name: of the part, fit for a file name.
          compute: makes the part, of numbers, arrays, lists and dicts.

        Returns:
          It, as JSON gives it back.

        Raises:
          UnfinishedError: if it is not there, and only finished parts are asked for.
          ValueError: if what is there is of a run of other settings.
        """
        path = self.folder / "parts" / f"{name}.json"
        header = thin(self.header, self._free)
        if not path.exists():
            if self.finished_only:
                raise UnfinishedError(f"{name} is not finished in {self.folder}.")
            started = time.perf_counter()
            value = plain(compute())
            self.seconds[name] = round(time.perf_counter() - started, 2)
            took = {"value": value, "seconds": self.seconds[name]}
            write_json(path, {**took, "header": header})
        saved = json.loads(path.read_text())
        if name not in self.seconds:
            print(
                f"{name}: finished before in {saved['seconds']:.0f} s, taken from "
                f"{path}",
                flush=True,
            )
            self._check(name, path, saved.get("header", {}), header)
        self._origins.append(_chosen(saved.get("header", {}), _WHERE))
        self.seconds.setdefault(name, saved["seconds"])
        self._used.add(name)
        return saved["value"]

    def _check(self, name: str, path: Path, there: dict, here: dict) -> None:
        """Refuses a part of other settings, and notes one of another machine."""
        if not there.get("size"):  # written before parts had headers
            return
        settings = _chosen(there, _DECIDES), _chosen(here, _DECIDES)
        if different := differences(*settings):
            raise ValueError(
                f"{path} is of a run of other settings ({'; '.join(different)})."
            )
        if different := differences(there, here):
            self.elsewhere[name] = "; ".join(different)

    def origin(self) -> dict:
        """The header's fields of where the parts were measured, if that is one place.

        That is another place than this where finished parts were brought from there.
        """
        first, *others = self._origins or [{}]
        return {} if any(other != first for other in others) else first

    def checkpoints(self, name: str) -> Path:
        """The folder for the state of a network in training."""
        return self.folder / "checkpoints" / name

    def weights(self, name: str) -> Path:
        """The folder for the trained weights of a method."""
        return self.folder / "weights" / name

    def open(self) -> bool:
        """Notes what is run here; returns whether an earlier run was interrupted."""
        path = self.folder / "parts" / "header.json"
        resumed = path.exists()
        if resumed:
            print(f"{self.folder}: going on with an interrupted run.", flush=True)
        write_json(path, self.header)
        return resumed

    def forget_if_empty(self) -> None:
        """Lets other settings have the folder if nothing was done with these.

        Those whose place was taken have it back.
        """
        parts, states = self.folder / "parts", self.folder / "checkpoints"
        done = [path for path in parts.glob("*.json") if path.stem != "header"]
        if not done and not any(states.glob("*/*")):
            for folder in (parts, states):
                shutil.rmtree(folder, ignore_errors=True)
            _put_back(self.folder)

    def close(self) -> None:
        """Removes parts and checkpoints, unless there are some that were not used.

        And the run whose place this one has taken.
        """
        shutil.rmtree(self.folder / "replaced", ignore_errors=True)
        names = {path.stem for path in (self.folder / "parts").glob("*.json")}
        left = names - self._used - {"header"}
        running = any((self.folder / "checkpoints").glob("*/*"))
        if not (left or running or self.unfinished):
            for folder in ("parts", "checkpoints"):
                shutil.rmtree(self.folder / folder, ignore_errors=True)


def finished(
    folder: Path, header: dict, free: Sequence[str] = (), anywhere: bool = False
) -> dict | None:
    """The results in the folder, if they are there.

    Args:
      folder: of the run.
      header: of the run that is asked for.
      free: see `Run`; a run that was interrupted, or whose parts are still there, goes
        on with other values of these.
      anywhere: whether it may have been measured elsewhere.

    Returns:
      results.json; None if there is none, or if there is more to do.

    Raises:
      ValueError: if the folder holds a run of other settings.
    """
    parts = folder / "parts" / "header.json"
    asked = _chosen(header, _DECIDES) if anywhere else header
    for path in (folder / "results.json", parts):
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        goes_on = parts.exists()
        sides = [found, header]
        if goes_on:
            sides = [thin(side, free) for side in sides]
        if anywhere:
            sides = [_chosen(side, _DECIDES) for side in sides]
        if different := differences(*sides):
            changes = "; ".join(different)
            raise ValueError(
                f"{folder} holds a run of other settings ({changes}). Name another "
                "folder with --out, or take its place with --replace."
            )
        whole = "results" in found and not found.get("unfinished")
        return found if whole and not differences(found, asked) else None
    return None


def set_aside(folder: Path) -> None:
    """Makes room for another run: what is there, but the figures, goes into replaced/.

    It is removed when the other run is finished, and put back if that ends before
    anything of it is (`Run.forget_if_empty`).
    """
    aside = folder / "replaced"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for name in ("results.json", "run.json", "parts", "checkpoints", "weights"):
        if (folder / name).exists():
            (folder / name).rename(aside / name)


def _put_back(folder: Path) -> None:
    aside = folder / "replaced"
    for path in aside.glob("*"):
        path.rename(folder / path.name)
    if aside.exists():
        aside.rmdir()


def _chosen(header: dict, names: Sequence[str]) -> dict:
    return {name: header[name] for name in names if name in header}


def thin(header: dict, free: Sequence[str]) -> dict:
    """The header without the fields of the configuration that are free."""
    found = _chosen(header, (*_DECIDES, *_WHERE))
    config = {k: v for k, v in found.get("config", {}).items() if k not in free}
    return found | {"config": config}


def differences(found: dict, header: dict, prefix: str = "") -> list[str]:
    """What another run's header says otherwise."""
    rows = []
    for key, asked in header.items():
        there = found.get(key)
        if isinstance(asked, dict) and isinstance(there, dict):
            rows += differences(there, asked, f"{prefix}{key}.")
        elif there != asked:
            rows.append(f"{prefix}{key} is {there} there, {asked} here")
    return rows


@contextmanager
def locked(folder: Path):
    """Keeps other processes out of the folder as long as this one lives."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FolderLock(folder)
    except BlockingIOError as error:
        raise ValueError(
            f"{folder}: {error}. Wait for it, or name another folder with --out."
        ) from None
    try:
        yield
    finally:
        lock.release()


def plain(value: Any) -> Any:
    """The value in JSON types; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def write_json(path: Path, value: Any) -> None:
    """Writes a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    text = json.dumps(value, indent=1, allow_nan=False)
    with temporary.open("w") as file:
        file.write(_NUMBERS.sub(lambda list_: " ".join(list_[0].split()), text) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
