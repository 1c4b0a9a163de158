"""Times functions against each other on a machine whose speed drifts."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version

import jax
import numpy as np


def interleave(
    functions: Sequence[Callable[[], None]], rounds: int, warmup: int = 2
) -> np.ndarray:
    """Calls every function once a round, in turn.

    Args:
      functions: each does its work and waits for it.
      rounds: how many rounds are timed.
      warmup: how many go before them.

    Returns:
      Seconds, [functions, rounds]. Compare a column's entries: they are of the same
      moment.
    """
    seconds = np.zeros((len(functions), rounds))
    for index in range(-warmup, rounds):
        for row, function in enumerate(functions):
            started = time.perf_counter()
            function()
            if index >= 0:
                seconds[row, index] = time.perf_counter() - started
    return seconds


def ratios(seconds: np.ndarray, base: np.ndarray) -> tuple[float, float]:
    """Median of the ratios round by round, and the ratio of the minima."""
    return float(np.median(seconds / base)), float(seconds.min() / base.min())


def environment() -> dict:
    """What the numbers depend on besides the code."""
    device = jax.devices()[0]
    names = ("OMP_NUM_THREADS", "XLA_FLAGS", "JAX_PLATFORMS")
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": {name: os.environ.get(name) for name in names},
        "python": platform.python_version(),
        "versions": {
            name: version(name) for name in ("jax", "jaxlib", "optax", "flax", "numpy")
        },
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()
