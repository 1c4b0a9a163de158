"""Makes the virtual environments the libraries run in."""

import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers.libraries import Environment

_STAMP = "installed.json"


class InstallError(Exception):
    """An environment could not be made; the message is the last error."""


def install(
    environment: Environment,
    folder: Path,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Makes an environment, unless it is there already.

    Args:
      environment: what goes into it.
      folder: where it goes.
      report: called with what is being done.

    Returns:
      Its Python.

    Raises:
      InstallError: if it cannot be made here.
    """
    if sys.version_info < environment.python:
        needed = ".".join(map(str, environment.python))
        raise InstallError(f"needs Python {needed} or newer")
    python = folder.absolute() / "bin" / "python"
    stamp = folder / _STAMP
    content = json.dumps(environment.installs)
    if stamp.exists() and stamp.read_text() == content:
        return python
    try:
        venv.create(folder, clear=True, with_pip=True)
        for arguments in environment.installs:
            report(f"pip install {' '.join(arguments)}")
            _pip(python, *arguments)
    except subprocess.CalledProcessError as error:
        raise InstallError(last_error(error.stderr or "")) from error
    except OSError as error:
        raise InstallError(last_error(str(error))) from error
    stamp.write_text(content)
    return python


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )


def last_error(text: str) -> str:
    """The last line of a program's complaints that names an error, without paths."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [
        line for line in lines if re.match(r"(ERROR|[\w.]*(Error|Exception))\b", line)
    ]
    line = (named or lines or ["no reason given"])[-1]
    line = re.sub(r"^ERROR: ", "", line)
    line = re.sub(r"\b(https?|file|git\+\w+)://\S+", "(address)", line)
    return re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+([\w.+-]*)", r"\1", line)[:300]
