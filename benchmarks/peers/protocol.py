"""What a library's process and the benchmark say to each other: JSON, line by line.

Needs NumPy alone, because it runs in every library's environment. The benchmark
writes `{"build": [inference, num_steps, optimizer]}` or `{"step": index, "count":
n}`, the process answers with one line each, and ends when its input does.
"""

import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib import metadata
from itertools import pairwise
from typing import IO, Any, NamedTuple

import numpy as np

from benchmarks.peers import reference

NET_VARIABLE, WIDTH_VARIABLE = "PEERS_NET", "PEERS_WIDTH"
WIDTHS = {"mlp": 1024, "vgg5": 32}  # hidden units; channels of the first convolution
NET = os.environ.get(NET_VARIABLE, "mlp")
WIDTH = int(os.environ.get(WIDTH_VARIABLE) or WIDTHS[NET])
SIZES = (3072, *[WIDTH] * 3, 10)  # of the MLP
IMAGE = (32, 32, 3)
CHANNELS = (WIDTH, 2 * WIDTH, 4 * WIDTH, 4 * WIDTH)  # of VGG5, each with a pool
BATCH_SIZE = 64
STEP_SIZE = 0.1  # of inference
LEARNING_RATES = {"SGD": 0.1, "Adam": 1e-4}
CHECKED_STEPS = 30

Weights = reference.Weights


class Method(NamedTuple):
    """A way to train: what is inferred and how the weights move.

    Attributes:
      inference: `backprop`, `simultaneous`, `sequential` or `error-based`.
      num_steps: inference iterations; 0 for backprop.
      optimizer: `SGD` or `Adam`.
    """

    inference: str
    num_steps: int
    optimizer: str

    def __str__(self) -> str:
        kind = {
            "backprop": "BP",
            "simultaneous": "IL",
            "sequential": "SeqIL",
            "error-based": "ePC",
        }
        name = f"{kind[self.inference]}-{self.optimizer}"
        return f"{name} T={self.num_steps}" if self.num_steps else name


class Program(NamedTuple):
    """A training step that is ready to run on `batch()`.

    Attributes:
      run: makes that many training iterations and waits for the last.
      weights: the weights now, `[(W, b), ...]` of the shapes of `kernel_shapes()`
        and [out].
    """

    run: Callable[[int], None]
    weights: Callable[[], Weights]


class Library(NamedTuple):
    """What a library's process can do.

    Attributes:
      build: makes a `Program`; raises `UnsupportedError` for what the library has not.
      model: layout and loss, which the check needs to know.
      packages: whose versions matter.
      environment: what else the numbers depend on.
      nets: those it is written for.
    """

    build: Callable[[Method], Program]
    model: reference.Model
    packages: tuple[str, ...]
    environment: Callable[[], dict[str, Any]] = dict
    nets: tuple[str, ...] = ("mlp",)


class UnsupportedError(Exception):
    """The library does not offer this method."""


def kernel_shapes() -> list[tuple[int, ...]]:
    """Of every layer's weights: [in, out], or [3, 3, in, out] of a convolution."""
    if NET == "mlp":
        return list(pairwise(SIZES))
    convolutions = [(3, 3, *pair) for pair in pairwise((IMAGE[-1], *CHANNELS))]
    side = IMAGE[0] // 2 ** len(CHANNELS)
    return [*convolutions, (side * side * CHANNELS[-1], SIZES[-1])]


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Inputs in [0, 1) and one-hot targets [64, 10], both float32.

    Inputs are [64, 3072] for the MLP and [64, 32, 32, 3] for VGG5.
    """
    shape = SIZES[:1] if NET == "mlp" else IMAGE
    inputs = np.random.default_rng(0).random((BATCH_SIZE, *shape), dtype=np.float32)
    targets = np.eye(SIZES[-1], dtype=np.float32)[np.arange(BATCH_SIZE) % SIZES[-1]]
    return inputs, targets


def serve(library: Library) -> None:
    """Answers until the input ends."""
    # Whatever a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    programs: list[Program] = []
    _answer(answers, partial(_describe, library))
    for line in sys.stdin:
        request = json.loads(line)
        _answer(answers, partial(_do, library, programs, request))


def _answer(answers: IO[str], make: Callable[[], dict]) -> None:
    try:
        answer = make()
    except UnsupportedError as error:
        answer = {"unsupported": str(error)}
    except Exception as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answers)


def _describe(library: Library) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in library.packages},
        "layout": library.model.layout,
        "loss": library.model.loss,
        "environment": library.environment(),
    }


def _do(library: Library, programs: list[Program], request: dict) -> dict[str, Any]:
    if "build" in request:
        method = Method(*request["build"])
        if NET not in library.nets:
            raise UnsupportedError(f"{NET} is not written for it")
        started = time.perf_counter()
        program = library.build(method)
        built = time.perf_counter()
        checks = check(program, method, library.model)
        programs.append(program)
        return {
            "index": len(programs) - 1,
            "build_seconds": built - started,
            "checks": checks,
        }
    program, count = programs[request["step"]], request["count"]
    program.run(1)  # the caches hold another process's data
    started = time.perf_counter()
    program.run(count)
    return {"seconds": (time.perf_counter() - started) / count}


def check(program: Program, method: Method, model: reference.Model) -> dict[str, Any]:
    """Whether the program trains the network it claims to train.

    Returns:
      `changed`: per layer, whether one iteration moved the weights;
      `update_error`: how far that move is from the equations, the largest over the
      layers of `||difference|| / ||move||` with differences below the weights'
      float32 resolution left out (of SGD, whose move is the gradient);
      `loss`: of the weights before and after 30 iterations.
    """
    inputs, targets = batch()
    before = program.weights()
    shapes = [w.shape for w, _ in before]
    if shapes != kernel_shapes():
        raise ValueError(f"the network has layers {shapes}, not {kernel_shapes()}.")
    program.run(1)
    after = program.weights()
    error = None
    if method.optimizer == "SGD":
        gradients = reference.gradients(
            model,
            before,
            inputs,
            targets,
            method.inference,
            method.num_steps,
            STEP_SIZE,
        )
        error = max(
            _distance(w0, w1, -LEARNING_RATES["SGD"] * gradient)
            for (w0, _), (w1, _), (gradient, _) in zip(
                before, after, gradients, strict=True
            )
        )
    program.run(CHECKED_STEPS - 1)
    return {
        "changed": [
            bool(np.any(w0 != w1)) and bool(np.any(b0 != b1))
            for (w0, b0), (w1, b1) in zip(before, after, strict=True)
        ],
        "update_error": error,
        "loss": [
            float(reference.loss(model, weights, inputs, targets))
            for weights in (before, program.weights())
        ],
    }


def _distance(before: np.ndarray, after: np.ndarray, move: np.ndarray) -> float:
    """`||after - before - move|| / ||move||`, where float32 can tell them apart."""
    difference = after.astype(np.float64) - before - move
    difference[np.abs(difference) <= np.spacing(np.abs(before))] = 0
    return float(np.linalg.norm(difference) / np.linalg.norm(move))
