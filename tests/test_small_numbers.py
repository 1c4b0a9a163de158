"""Errors far below the rounding of the activities, against 50-digit decimals."""

import decimal
from functools import cache, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pcjax
from pcjax.networks.near import near_of
from pcjax.numerics.changes import change_of, linear
from tests import problems
from tests.tiers import thorough

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
        size = float(np.sum(want * want)) ** 0.5
        distances.append(float(np.sum(difference * difference)) ** 0.5 / size)
    return distances


def batch(sizes, scale):
    """Parameters in float32, and a batch of two."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(2, sizes[0]))
    params = [scale(*pair, rng) for pair in pairwise(sizes)]
    y = np.eye(sizes[-1])[rng.integers(0, sizes[-1], 2)]
    return jax.tree.map(np.float32, (params, x, y))


def default(rows, columns, rng):
    """As `dense` draws them."""
    bound = rows**-0.5
    shapes = {"kernel": (rows, columns), "bias": (columns,)}
    return {name: rng.uniform(-bound, bound, shape) for name, shape in shapes.items()}


def he(rows, columns, rng):
    kernel = rng.normal(size=(rows, columns)) * (2 / rows) ** 0.5
    return {"kernel": kernel, "bias": np.zeros(columns)}


DEEP = [12] * 20 + [5]


@cache
def of_twenty(near):
    """The gradient function of all cases, `(eps, params, x, y)`, compiled."""
    network = pcjax.mlp(DEEP)
    if not near:
        layers = tuple(layer._replace(near=None) for layer in network.layers)
        network = pcjax.Network(layers)

    def grads(eps, *batch):
        method = pcjax.sequential(3, eps)
        return pcjax.value_and_grad(network, method, output=pcjax.softmax)(*batch)[1]

    return jax.jit(grads)


@pytest.mark.parametrize(
    ("scale", "eps"),
    [(default, 0.05), (he, 0.1), *thorough([(default, 0.1), (he, 0.05)])],
)
def test_the_first_layers_of_twenty_learn(scale, eps):
    params, x, y = batch(DEEP, scale)
    eps = np.float32(eps)
    expected = gradients(params, x, y, float(eps), 3, object)
    grads = of_twenty(near=True)(eps, params, x, y)
    assert max(relative_errors(params, grads, expected)) < 1e-5
    # Subtracting predictions, as a module of unknown inside must, loses them.
    grads = of_twenty(near=False)(eps, params, x, y)
    assert relative_errors(params, grads, expected)[0] > 1e-3


@pytest.mark.parametrize(
    ("sizes", "num_steps", "eps"),
    [
        pytest.param([3072, 1024, 1024, 1024, 10], 3, 0.05, id="MLP"),
        *thorough(
            [
                pytest.param(
                    [3072, 1024, 256, 20, 256, 1024, 10],
                    6,
                    0.035,
                    id="autoencoder's encoder and decoder",
                )
            ]
        ),
    ],
)
def test_the_papers_nets(sizes, num_steps, eps):
    params, x, y = batch(sizes, default)
    method = pcjax.sequential(num_steps, eps)
    grad_fn = pcjax.value_and_grad(pcjax.mlp(sizes), method, output=pcjax.softmax)
    _, grads = jax.jit(grad_fn)(params, x, y)
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
# Smooth ones of which only values and slopes are known, as of the user's.
SMOOTH = ("sigmoid", "silu", "softplus")
NAMES = [*(name for name in FUNCTIONS if name not in SMOOTH), *thorough(SMOOTH)]
COUNT = 4096  # of all shifts, so that the tests below share programs


@cache
def changed(name):
    """`(a, d) -> f(a + d) - f(a)` and its slope in d, compiled."""
    change = change_of(FUNCTIONS[name])

    def both(a, d):
        found, pull = jax.vjp(change, a, d)
        return found, pull(jnp.ones_like(found))[1]

    return jax.jit(both)


@cache
def plain(name):
    """The difference, the slope at a times d, and the slope at a + d, compiled."""
    function = FUNCTIONS[name]

    def all_three(a, d):
        start, along = jax.jvp(function, (a,), (d,))
        end, slope = jax.jvp(function, (a + d,), (jnp.ones_like(a),))
        return end - start, along, slope

    return jax.jit(all_three)


def in_float64(name, a, d):
    """What `plain` gives in float64, as NumPy arrays."""
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else _x64():
        wide = np.asarray(a, np.float64), np.asarray(d, np.float64)
        return [np.asarray(x) for x in plain(name)(*wide)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e-12, 1e-7, 1e-4, 1e-2, 1.0])
def test_changes_of_functions_are_exact_relative_to_the_shift(name, size):
    rng = np.random.default_rng(0)
    a = rng.normal(size=COUNT).astype(np.float32)
    d = (size * rng.normal(size=COUNT)).astype(np.float32)
    a[:60] = np.repeat([0, 1, -1], 20)  # at the kinks themselves
    found = np.asarray(changed(name)(a, d)[0])
    # Below 1e-6 float64 loses digits, too: there the slope is the change.
    difference, slope, _ = in_float64(name, a, d)
    want = slope if size < 1e-6 else difference
    # Over a long way, and across a kink, the difference is what there is.
    rounding = 8 * np.finfo(np.float32).eps * (1 + np.abs(a))
    far = (np.abs(d) > 0.02) | (np.abs(difference - slope) > 0.1 * np.abs(slope))
    allowed = 8e-6 * np.abs(d) + np.where(far, rounding, 0)
    assert size >= 1e-2 or far.mean() < 0.05
    np.testing.assert_array_less(np.abs(found - want), allowed)


def _x64():
    return jax.experimental.enable_x64(True)


@pytest.mark.parametrize("name", NAMES)
def test_changes_are_differentiated_as_what_they_are(x64, name):
    function = FUNCTIONS[name]
    rng = np.random.default_rng(1)
    arrays = tuple(rng.normal(size=50) for _ in range(4))
    change = change_of(function)

    def difference(a, d):
        return function(a + d) - function(a)

    def derivatives(mapped, a, d, along, also):
        pushed = jax.jvp(mapped, (a, d), (along, also))
        return *pushed, *jax.vjp(mapped, a, d)[1](along)

    have, want = jax.jit(
        lambda *a: [derivatives(mapped, *a) for mapped in (change, difference)]
    )(*arrays)
    for one, other in zip(have, want, strict=True):
        assert one.dtype == other.dtype == jnp.float64
        np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_changes_over_a_long_way_are_the_difference(name, dtype):
    sizes = np.array([0.13, 0.6, 1.7, 5.2, 9.4, 13.0, 31.0, 300.0])
    signed = np.concatenate([-sizes, sizes])
    pairs = np.meshgrid(signed, 1.1 * signed)
    a, d = (np.resize(x, COUNT).astype(dtype) for x in pairs)
    found, slopes = changed(name)(a, d)
    want, _, slope = in_float64(name, a, d)
    rounding = 16 * float(jnp.finfo(dtype).eps)
    reach = np.abs(np.float64(a)) + np.abs(np.float64(d))
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
    batch = problems.make(network, (4,))[1:]
    named = pcjax.dense(3, partial(lambda x: 2 * jnp.tanh(x)))
    twin = pcjax.Network((network.layers[0], named))
    have, want = (
        jax.jit(pcjax.value_and_grad(net, pcjax.sequential(2, 0.1)))(*batch)
        for net in (network, twin)
    )
    np.testing.assert_allclose(have[0][0], want[0][0])


@pytest.mark.parametrize(
    "layer",
    [
        pcjax.dense(4),
        pcjax.conv(2, (2, 2), (1, 1)),
        pcjax.add(pcjax.dense(4), pcjax.skip()),
        pcjax.skip(),
        pcjax.residual(pcjax.dense(4)),
        *pcjax.mlp([3, 4, 2], parametrisation=pcjax.mupc).layers,
        *pcjax.vgg(5, 3, width=2).layers,
    ],
)
def test_layers_of_this_library_are_evaluated_by_changes(layer):
    """A `near` of another `apply` would be passed over, and small shifts lost."""
    assert near_of(layer) is layer.near is not None
