"""What the strategies of good and bad inputs share."""

import itertools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax

import pcjax
from pcjax.networks.network import Network

METHODS = (pcjax.sequential, pcjax.simultaneous)
OUTPUTS = (pcjax.softmax, pcjax.sigmoid, pcjax.identity)
SGD = optax.sgd(0.1)
KEY = jax.random.key(0)


class Fault(NamedTuple):
    """A call that must be refused.

    Attributes:
      call: takes no arguments.
      kind: of the documented error.
      message: a pattern that its message has.
    """

    call: Callable[[], Any]
    kind: type[Exception]
    message: str


class Problem(NamedTuple):
    """A random network with a batch, all of it good."""

    sizes: tuple[int, ...]
    network: Network
    params: tuple
    inputs: np.ndarray
    targets: np.ndarray
    activities: tuple


def make_problem(sizes, batch, seed=0, dtype=np.float32):
    """Numbers of both signs; targets are distributions, which suit any output."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    params = tuple(
        {"kernel": normal(n, m) / dtype(np.sqrt(n)), "bias": normal(m)}
        for n, m in itertools.pairwise(sizes)
    )
    inputs = normal(batch, sizes[0])
    targets = rng.dirichlet(np.ones(sizes[-1]), batch).astype(dtype)
    hidden = (normal(batch, n) for n in sizes[1:-1])
    return Problem(
        tuple(sizes),
        pcjax.mlp(sizes, jnp.tanh),
        params,
        inputs,
        targets,
        (inputs, *hidden, targets),
    )


@st.composite
def problems(draw, max_width=8):
    sizes = draw(st.lists(st.integers(1, max_width), min_size=2, max_size=5))
    return make_problem(sizes, draw(st.integers(1, 5)), draw(st.integers(0, 9)))


def other_than(good, low=1, high=9):
    return st.integers(low, high).filter(lambda n: n != good)


def replaced(values, index, value):
    return tuple(value if i == index else x for i, x in enumerate(values))


def shape_pattern(array):
    return re.escape(f"shape {array.shape}")


NOT_FLOATS = (np.int32, np.uint8, np.int8, np.bool_, np.complex64)
NO_ARRAYS = (None, "images", 1.0, [[1.0, 2.0]], {})
NO_COUNTS = st.one_of(
    st.integers(-5, 0),
    st.floats(allow_nan=True),
    st.booleans(),
    st.sampled_from([None, "3", [3], 2j]),
)
NEGATIVE = (
    st.floats(max_value=-1e-6)
    | st.integers(-9, -1)
    | st.sampled_from([float("nan"), float("inf")])
)
NOT_REAL = st.sampled_from([None, "0.1", 1j, {}, object()])


def got(value):
    return re.escape(f"got {value!r}")


@st.composite
def methods(draw):
    build = draw(st.sampled_from(METHODS))
    return build(draw(st.integers(1, 4)), draw(st.floats(0, 0.5)))
