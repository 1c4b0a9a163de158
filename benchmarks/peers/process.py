"""A library's process, seen from the benchmark."""

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import last_error

_ROOT = Path(__file__).resolve().parents[2]


class ProcessError(Exception):
    """The process ended, failed or took too long; the message is the last error."""


def thread_settings() -> dict[str, str]:
    """The environment variables every process is given.

    Everything runs on the CPU, for the libraries' builds of PyPI do, with a thread for
    each core. Waiting threads must sleep: they would take the cores from the process
    whose turn it is.
    """
    return {
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        "OMP_WAIT_POLICY": "passive",
        "KMP_BLOCKTIME": "0",
    }


class Process:
    """Runs a program that speaks `protocol` and keeps book of its processor time.

    Attributes:
      description: the program's first answer.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        settings: Mapping[str, str],
        timeout: float = 600.0,
    ) -> None:
        self._timeout = timeout
        self._busy = [0.0, 0.0]
        self._started = (time.monotonic(), 0.0)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (see `close`)
        removed = ("PYTHONPATH", "PYTHONHOME", "XLA_FLAGS")
        inherited = {k: v for k, v in os.environ.items() if k not in removed}
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            bufsize=1,
            cwd=_ROOT,
            env={**inherited, **settings, "PYTHONNOUSERSITE": "1"},
        )
        try:
            self.description = self._read()
        except ProcessError:
            self.close()
            raise

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for the answer.

        Raises:
          ProcessError: if there is none, or it is an error.
        """
        wall, processor = time.monotonic(), self._processor_seconds()
        try:
            self._input.write(json.dumps(request) + "\n")
            self._input.flush()
        except OSError as error:
            raise ProcessError(self._complaint("it has ended")) from error
        answer = self._read()
        self._busy[0] += time.monotonic() - wall
        self._busy[1] += self._processor_seconds() - processor
        return answer

    def start_idle_count(self) -> None:
        """Counts the processor time between requests from now on."""
        self._busy = [0.0, 0.0]
        self._started = (time.monotonic(), self._processor_seconds())

    def idle_load(self) -> float:
        """How many cores it kept busy, on average, while it had nothing to do."""
        wall = time.monotonic() - self._started[0] - self._busy[0]
        processor = self._processor_seconds() - self._started[1] - self._busy[1]
        return max(processor, 0.0) / wall if wall > 0 else 0.0

    def close(self) -> None:
        """Ends the program; may be called again."""
        # What a dead process has not read cannot be flushed.
        with contextlib.suppress(OSError):
            self._input.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._errors.close()

    @property
    def _input(self):
        assert self._process.stdin is not None
        return self._process.stdin

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        timer = threading.Timer(self._timeout, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            expired = not timer.is_alive()
            timer.cancel()
        if not line:
            late = f"no answer within {self._timeout:.0f} s"
            raise ProcessError(late if expired else self._complaint("it has ended"))
        answer = json.loads(line)
        if "error" in answer:
            raise ProcessError(last_error(answer["error"]))
        return answer

    def _complaint(self, default: str) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        self._errors.seek(0)
        text = self._errors.read()
        return last_error(text) if text.strip() else default

    def _processor_seconds(self) -> float:
        """User and system time of all its threads; 0 where there is no /proc."""
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:
            return 0.0
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
