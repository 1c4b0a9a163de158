"""The paper's experiments: `python -m experiments.NAME --help`."""

import os
import signal
import sys
from typing import Any


def _stop(*_: Any) -> None:
    print("Interrupted before anything was done.", file=sys.stderr, flush=True)
    os._exit(130)  # an exception would be lost in the middle of an import


# While `python -m` looks for the module, this is its name: Ctrl-C during the seconds of
# importing ends with a line. `common.harness.cli` then takes Ctrl-C as usual again.
if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, _stop)
