"""Small networks with data, and inference as a plain loop over `jax.grad`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
from flax import nnx

import pcjax
from pcjax.networks.network import Layer, Network

_compiled: list[str] = []


def _note(event: str, seconds: float, **_) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled.append(event)


jax.monitoring.register_event_duration_secs_listener(_note)


@contextmanager
def compilations(expected: int) -> Iterator[None]:
    """Fails unless XLA compiles as many programs as expected inside the block."""
    before = len(_compiled)
    yield
    assert len(_compiled) - before == expected


def shard_map(function, *, check_vma=True, **options):
    """`jax.shard_map`, which the oldest versions of JAX keep elsewhere."""
    if hasattr(jax, "shard_map"):
        return jax.shard_map(function, check_vma=check_vma, **options)
    from jax.experimental.shard_map import shard_map as older

    return older(function, check_rep=False, **options)


METHODS = {"simultaneous": pcjax.simultaneous, "sequential": pcjax.sequential}
OUTPUTS = {
    "softmax": pcjax.softmax,
    "sigmoid": pcjax.sigmoid,
    "identity": pcjax.identity,
}


class Case(NamedTuple):
    """A network with parameters and a batch."""

    network: pcjax.Network
    params: tuple
    inputs: jax.Array
    targets: jax.Array


def make(network, input_shape, *, batch=5, dtype=jnp.float32, seed=0):
    """Random numbers of both signs; targets are distributions, which suit any output.

    Everything is drawn by NumPy, which is much faster than compiling `network.init`.
    """
    rng = np.random.default_rng(seed)
    inputs = jnp.asarray(rng.normal(size=(batch, *input_shape)), dtype)
    shapes = jax.eval_shape(network.init, jax.random.key(0), inputs)

    def draw(leaf):
        scale = np.sqrt(max(1, np.prod(leaf.shape[:-1])))
        return jnp.asarray(rng.normal(size=leaf.shape) / scale, leaf.dtype)

    params = jax.tree.map(draw, shapes)
    logits = jax.eval_shape(network.apply, params, inputs)
    classes = np.ones(logits.shape[-1])
    targets = jnp.asarray(rng.dirichlet(classes, logits.shape[:-1]), dtype)
    return Case(network, params, inputs, targets)


def dense_case(sizes=(6, 7, 8, 5, 4), activation=jnp.tanh, **kwargs):
    """A fully connected network of L = len(sizes) - 1 layers."""
    return make(pcjax.mlp(sizes, activation), sizes[:1], **kwargs)


def residual(activation=jnp.tanh):
    """`x + W f(x) + b` as one layer, as a user would write it."""

    def apply(params, inputs):
        return inputs + inner(inputs.shape[1]).apply(params, inputs)

    def inner(features):
        return pcjax.dense(features, activation)

    def init(key, inputs):
        return inner(inputs.shape[1]).init(key, inputs)

    return Layer(init, apply, activation)


class LinenBlock(nn.Module):
    """A residual block with a normalisation, in linen."""

    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(x.shape[-1], param_dtype=x.dtype)(
            nn.tanh(nn.LayerNorm(param_dtype=x.dtype)(x))
        )


class NnxBlock(nnx.Module):
    """A residual block in nnx."""

    def __init__(self, features, rngs, dtype=jnp.float32):
        self.linear = nnx.Linear(features, features, rngs=rngs, param_dtype=dtype)

    def __call__(self, x):
        return x + self.linear(nnx.tanh(x))


def network_case(name, **kwargs):
    """A network of every kind of layer: tanh, relu, conv, residual, linen or nnx."""
    dtype = kwargs.get("dtype", jnp.float32)
    ends = (pcjax.dense(6), pcjax.dense(4, jnp.tanh))

    def around(*blocks):
        return make(Network((ends[0], *blocks, ends[1])), (5,), **kwargs)

    if name == "tanh":
        return dense_case(**kwargs)
    if name == "relu":
        return dense_case(activation=jax.nn.relu, **kwargs)
    if name == "conv":
        network = pcjax.convnet(4, features=(3, 5), kernel_sizes=(3, 3))
        return make(network, (11, 9, 2), **kwargs)
    if name == "residual":
        return around(residual(), residual())
    if name == "linen":
        return around(pcjax.from_linen(LinenBlock()))
    assert name == "nnx"
    return around(pcjax.from_nnx(lambda rngs: NnxBlock(6, rngs, dtype)))


def clamped(case, hidden, output, clamp):
    """`(h_0, ..., h_L)` of the hidden activities, the output clamped."""
    below = (case.inputs, *hidden)[-1]
    logits = case.network.layers[-1].apply(case.params[-1], below)
    outputs = clamp(case.targets, output.link(logits), below)
    return (case.inputs, *hidden, outputs)


def iterate(
    case,
    kind,
    hidden,
    move,
    output=pcjax.identity,
    clamp=pcjax.full_clamp,
    gamma=1.0,
    decay=0.0,
):
    """One inference iteration by differentiating `free_energy`, layer by layer.

    `move(l, slope, h)` is what to add to `h_l`, whose energy gradient is `slope`.
    """
    activities = clamped(case, hidden, output, clamp)
    errors = pcjax.prediction_errors(
        case.network, case.params, activities, output=output
    )
    # Weights stay what they are at the start of an iteration.
    gamma, decay = (
        weight(activities, errors) if callable(weight) else weight
        for weight in (gamma, decay)
    )
    moved = list(activities)
    for layer in range(len(hidden), 0, -1):
        above = moved if kind == "sequential" else activities

        def energy(h, layer=layer, above=above):
            mixed = (*activities[:layer], h, *above[layer + 1 :])
            return jnp.sum(
                pcjax.free_energy(
                    case.network,
                    case.params,
                    mixed,
                    output=output,
                    gamma=gamma,
                    decay=decay,
                )
            )

        h = activities[layer]
        moved[layer] = h + move(layer, jax.grad(energy)(h), h)
    return tuple(moved[1:-1])


def descend(case, kind, moves, output=pcjax.softmax, clamp=pcjax.full_clamp, **weights):
    """The activities after one iteration for every `move` in `moves`."""
    hidden = pcjax.feedforward(case.network, case.params, case.inputs)[:-1]
    for move in moves:
        hidden = iterate(case, kind, hidden, move, output, clamp, **weights)
    return clamped(case, hidden, output, clamp)


def assert_trees_close(actual, expected, rtol=1e-12, atol=1e-14):
    """Same structure, same dtypes, close values."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for have, want in zip(
        jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
    ):
        assert have.dtype == want.dtype
        np.testing.assert_allclose(
            np.asarray(have, np.float64),
            np.asarray(want, np.float64),
            rtol=rtol,
            atol=atol,
        )


def angle(one, other):
    """The angle between two trees in radians, exact for small ones too."""
    u, v = (
        np.concatenate(
            [np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(t)]
        )
        for t in (one, other)
    )
    u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
    return 2 * np.arcsin(min(1.0, np.linalg.norm(u - v) / 2))
