"""Errors far below the rounding of the activities, against 50-digit decimals."""

import decimal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pcjax
from pcjax.numerics.changes import change_of, linear

decimal.getcontext().prec = 50
exp = {
    object: np.vectorize(lambda x: x.exp(), otypes=[object]),
    np.float64: np.exp,
}


def convert(array, number):
    """An array of Decimals, or of float64."""
    if number is object:
        return np.vectorize(lambda x: decimal.Decimal(float(x)), otypes=[object])(array)
    return np.asarray(array, np.float64)


def gradients(params, x, y, eps, num_steps, number):
    """Weight gradients of SeqIL with softmax in a ReLU net, in plain loops.

    `number` is object for decimals; nothing is counted in changes.
    """
    zero = convert(0.0, number)[()]
    weights = [convert(p["kernel"], number) for p in params]
    biases = [convert(p["bias"], number) for p in params]
    x, y, eps = (convert(a, number) for a in (x, y, eps))
    count = len(weights)

    def f(h, layer):
        return np.where(h > zero, h, zero * h) if layer else h

    def predict(layer, h):
        return np.dot(f(h, layer), weights[layer]) + biases[layer]

    def errors(h):
        logits = predict(count - 1, h[-1])
        weight = exp[number](logits - logits.max(1, keepdims=True))
        hidden = [h[i] - predict(i - 1, h[i - 1]) for i in range(1, count)]
        return [None, *hidden, y - weight / weight.sum(1, keepdims=True)]

    h = [x]
    for layer in range(count - 1):
        h.append(predict(layer, h[-1]))
    for _ in range(num_steps):
        e = errors(h)
        for i in range(count - 1, 0, -1):
            pulled = np.dot(e[i + 1], weights[i].T)
            move = eps * (np.where(h[i] > zero, pulled, zero * pulled) - e[i])
            h[i] = h[i] + move
            e[i] = e[i] + move
    e = errors(h)
    return [
        -np.dot(f(h[i], i).T, e[i + 1]) / convert(float(len(x)), number)
        for i in range(count)
    ]


def relative_errors(params, grads, expected):
    """By layer, of the kernels' gradients."""
    distances = []
    for grad, want in zip(grads, expected, strict=True):
        have = np.asarray(grad["kernel"], np.float64)
        number = object if want.dtype == object else np.float64
        difference = convert(have, number) - want
        size = float(sum(v * v for v in want.ravel())) ** 0.5
        distances.append(float(sum(v * v for v in difference.ravel())) ** 0.5 / size)
    return distances


def batch(sizes, scale=None):
    """A network with parameters in float32, and a batch of two."""
    rng = np.random.default_rng(0)
    network = pcjax.mlp(sizes)
    x = rng.uniform(size=(2, sizes[0])).astype(np.float32)
    params = network.init(jax.random.key(0), jnp.asarray(x))
    if scale is not None:
        params = [
            {
                "kernel": scale(*p["kernel"].shape, rng).astype(np.float32),
                "bias": 0 * p["bias"],
            }
            for p in params
        ]
    y = np.eye(sizes[-1], dtype=np.float32)[rng.integers(0, sizes[-1], 2)]
    return network, params, x, y


def he(rows, columns, rng):
    return rng.normal(size=(rows, columns)) * (2 / rows) ** 0.5


@pytest.mark.parametrize("eps", [0.05, 0.1])
@pytest.mark.parametrize("scale", [None, he], ids=["default", "He"])
def test_the_first_layers_of_twenty_learn(scale, eps):
    network, params, x, y = batch([12] * 20 + [5], scale)
    grad_fn = pcjax.value_and_grad(
        network, pcjax.sequential(3, eps), output=pcjax.softmax
    )
    _, grads = grad_fn(params, x, y)
    expected = gradients(params, x, y, float(np.float32(eps)), 3, object)
    assert max(relative_errors(params, grads, expected)) < 1e-5
    # Subtracting predictions, as a module of unknown inside must, loses them.
    layers = tuple(layer._replace(near=None) for layer in network.layers)
    grad_fn = pcjax.value_and_grad(
        pcjax.Network(layers), pcjax.sequential(3, eps), output=pcjax.softmax
    )
    assert relative_errors(params, grad_fn(params, x, y)[1], expected)[0] > 1e-3


@pytest.mark.parametrize(
    ("sizes", "num_steps", "eps"),
    [
        ([3072, 1024, 1024, 1024, 10], 3, 0.05),
        ([3072, 1024, 256, 20, 256, 1024, 10], 6, 0.035),
    ],
    ids=["MLP", "autoencoder's encoder and decoder"],
)
def test_the_papers_nets(sizes, num_steps, eps):
    network, params, x, y = batch(sizes)
    method = pcjax.sequential(num_steps, eps)
    grad_fn = pcjax.value_and_grad(network, method, output=pcjax.softmax)
    _, grads = grad_fn(params, x, y)
    # Six layers lose nothing in float64.
    expected = gradients(params, x, y, float(np.float32(eps)), num_steps, np.float64)
    assert max(relative_errors(params, grads, expected)) < 1e-5


FUNCTIONS = {
    "linear": linear,
    "relu": jax.nn.relu,
    "leaky relu": jax.nn.leaky_relu,
    "hard tanh": jax.nn.hard_tanh,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "user's": lambda x: jnp.sin(2 * x) + 0.1 * x,
    "user's with a kink": lambda x: jnp.maximum(x, 0.2 * x - 0.3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("size", [1e-12, 1e-7, 1e-4, 1e-2, 1.0])
def test_changes_of_functions_are_exact_relative_to_the_shift(name, size):
    function = FUNCTIONS[name]
    rng = np.random.default_rng(0)
    a = rng.normal(size=4000).astype(np.float32)
    d = (size * rng.normal(size=4000)).astype(np.float32)
    found = np.asarray(jax.jit(change_of(function))(a, d))
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else _x64():
        wide = jnp.asarray(a, jnp.float64), jnp.asarray(d, jnp.float64)
        # Below 1e-6 float64 loses digits, too: there the slope is the change.
        a64, d64 = wide
        difference = np.asarray(function(a64 + d64) - function(a64))
        slope = np.asarray(jax.jvp(function, (a64,), (d64,))[1])
    want = slope if size < 1e-6 else difference
    # Over a long way, and across a kink, the difference is what there is.
    rounding = 8 * np.finfo(np.float32).eps * (1 + np.abs(a))
    far = (np.abs(d) > 0.02) | (np.abs(difference - slope) > 0.1 * np.abs(slope))
    allowed = 8e-6 * np.abs(d) + np.where(far, rounding, 0)
    assert size >= 1e-2 or far.mean() < 0.05
    np.testing.assert_array_less(np.abs(found - want), allowed)


def _x64():
    return jax.experimental.enable_x64(True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_changes_are_differentiated_as_what_they_are(x64, name):
    function = FUNCTIONS[name]
    rng = np.random.default_rng(1)
    a, d, along, also = (jnp.asarray(rng.normal(size=50)) for _ in range(4))
    change = change_of(function)

    def plain(a, d):
        return function(a + d) - function(a)

    for mapped in (change, plain):
        assert mapped(a, d).dtype == jnp.float64
    have = jax.jvp(change, (a, d), (along, also))
    want = jax.jvp(plain, (a, d), (along, also))
    np.testing.assert_allclose(have[0], want[0], atol=1e-12)
    np.testing.assert_allclose(have[1], want[1], atol=1e-12)
    pulled = jax.vjp(change, a, d)[1](along), jax.vjp(plain, a, d)[1](along)
    np.testing.assert_allclose(*pulled, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_changes_over_a_long_way_are_the_difference(name, dtype):
    function = FUNCTIONS[name]
    sizes = np.array([0.13, 0.6, 1.7, 5.2, 9.4, 13.0, 31.0, 300.0])
    signed = np.concatenate([-sizes, sizes])
    pairs = np.meshgrid(signed, 1.1 * signed)
    a, d = (jnp.asarray(x.ravel(), dtype) for x in pairs)
    change = change_of(function)

    def both(a, d):
        found, pull = jax.vjp(change, a, d)
        return found, pull(jnp.ones_like(found))[1]

    found, slopes = jax.jit(both)(a, d)
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else _x64():
        a64, d64 = (jnp.asarray(np.asarray(x, np.float64)) for x in (a, d))
        want = np.asarray(function(a64 + d64) - function(a64))
        slope = np.asarray(jax.jvp(function, (a64 + d64,), (jnp.ones_like(a64),))[1])
    rounding = 16 * float(jnp.finfo(dtype).eps)
    reach = np.abs(np.asarray(a64)) + np.abs(np.asarray(d64))
    have = np.asarray(found, np.float64)
    np.testing.assert_array_less(np.abs(have - want), rounding * (1 + reach))
    have = np.asarray(slopes, np.float64)
    np.testing.assert_array_less(np.abs(have - slope), rounding * (1 + reach))


def test_a_function_that_cannot_be_hashed_has_a_change():
    class Scaled:
        __hash__ = None

        def __call__(self, x):
            return 2 * jnp.tanh(x)

    layer = pcjax.dense(3, Scaled())
    network = pcjax.Network((pcjax.dense(4), layer))
    x, y = jnp.ones((2, 4)), jnp.ones((2, 3))
    params = network.init(jax.random.key(0), x)
    grad_fn = pcjax.value_and_grad(network, pcjax.sequential(2, 0.1))
    named = pcjax.dense(3, partial(lambda x: 2 * jnp.tanh(x)))
    twin = pcjax.Network((network.layers[0], named))
    want = pcjax.value_and_grad(twin, pcjax.sequential(2, 0.1))(params, x, y)
    np.testing.assert_allclose(grad_fn(params, x, y)[0][0], want[0][0])
