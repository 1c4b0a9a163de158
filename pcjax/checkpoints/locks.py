"""A lock on a folder that dies with the process that holds it."""

import fcntl
import os
from pathlib import Path

_NAME = ".lock"


class FolderLock:
    """Holds `folder/.lock` until released; the file itself stays.

    The kernel keeps the lock for the open file, so that it ends when the process does,
    however that is, and a second lock is refused within one process too.

    Args:
      folder: must exist.

    Raises:
      BlockingIOError: if the folder is locked; the message says by which process.
      OSError: if the file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}".encode(), 0)
        except BlockingIOError:
            owner = os.pread(self._file, 20, 0).decode(errors="replace") or "unknown"
            os.close(self._file)
            raise BlockingIOError(f"process {owner} is using it already") from None
        except BaseException:
            os.close(self._file)
            raise

    def release(self) -> None:
        """Lets others have the folder."""
        os.close(self._file)
