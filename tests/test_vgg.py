"""Convolutions with padding and pools as one layer, and the VGG nets made of them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from benchmarks import hlo
from pcjax.networks.pooling import Pool
from tests import problems
from tests.test_convolve import by_sums
from tests.test_counts import _learning
from tests.tiers import thorough

POOLS = {"max": pcjax.max_pool, "average": pcjax.average_pool}


def by_windows(images, window, function):
    """Pools written out, window by window."""
    rows, columns = (n // k for n, k in zip(images.shape[1:3], window, strict=True))
    found = np.empty((len(images), rows, columns, images.shape[3]), images.dtype)
    for i, j in np.ndindex(rows, columns):
        place = (slice(window[0] * i, window[0] * (i + 1)),)
        place += (slice(window[1] * j, window[1] * (j + 1)),)
        found[:, i, j] = function(images[:, place[0], place[1]], axis=(1, 2))
    return found


@pytest.mark.parametrize("name", POOLS)
def test_a_layer_is_a_convolution_with_activation_and_pool(x64, name):
    layer = pcjax.conv(
        3, (3, 2), (1, 2), activation=jnp.tanh, padding=(1, 2), pool=POOLS[name]((2, 3))
    )
    rng = np.random.default_rng(0)
    images, kernel = rng.normal(size=(2, 5, 9, 2)), rng.normal(size=(3, 2, 2, 3))
    bias = rng.normal(size=3)
    padded = np.pad(images, ((0, 0), (1, 1), (2, 2), (0, 0)))
    values = np.tanh(by_sums(padded, kernel, (1, 2)) + bias)  # [2, 5, 6, 3]
    want = by_windows(values, (2, 3), {"max": np.max, "average": np.mean}[name])
    found = jax.jit(layer.apply)({"kernel": kernel, "bias": bias}, images)
    np.testing.assert_allclose(found, want, rtol=1e-12)


def net_of(pool, activation):
    def layer(features, pool):
        return pcjax.conv(
            features, (3, 3), (1, 1), activation=activation, padding=(1, 1), pool=pool
        )

    return pcjax.Network((layer(3, pool), layer(4, pool), pcjax.dense(4)))


def plain_pool():
    """A user's own, whose change is a difference."""
    own = pcjax.average_pool().apply
    return Pool(own, lambda x, d: own(x + d) - own(x))


@pytest.mark.parametrize(
    ("pool", "activation"),
    [
        (pcjax.max_pool(), jax.nn.gelu),
        *thorough(
            [
                (pcjax.average_pool(), jnp.tanh),
                (plain_pool(), jax.nn.leaky_relu),
            ]
        ),
    ],
)
def test_inference_and_gradients_are_those_of_the_free_energy(x64, pool, activation):
    case = problems.make(net_of(pool, activation), (8, 8, 2), dtype=jnp.float64)
    method = pcjax.sequential(3, 0.1)
    learn = pcjax.value_and_grad(case.network, method, output=pcjax.softmax)
    (_, info), grads = jax.jit(learn)(*case[1:])

    def want(*_):
        moves = [lambda layer, slope, h: -0.1 * slope] * 3
        activities = problems.descend(case, "sequential", moves)
        return activities, pcjax.local_gradients(
            case.network, case.params, activities, output=pcjax.softmax
        )

    activities, expected = jax.jit(want)()
    problems.assert_trees_close(info.state.activities, activities, 1e-9, 1e-12)
    problems.assert_trees_close(grads, expected, 1e-9, 1e-12)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("size", [1e-10, 1e-5, 1.0])
def test_changes_of_pools_are_exact_relative_to_the_shift(name, size):
    pool, rng = POOLS[name](), np.random.default_rng(0)
    x = rng.normal(size=(4, 8, 8, 3)).astype(np.float32)
    d = (size * rng.normal(size=x.shape)).astype(np.float32)
    found = jax.jit(pool.change)(x, d)
    wide = x.astype(np.longdouble), d.astype(np.longdouble)
    function = {"max": np.max, "average": np.mean}[name]
    pooled = [by_windows(v, (2, 2), function) for v in (wide[0] + wide[1], wide[0])]
    np.testing.assert_allclose(
        np.asarray(found),
        np.float64(pooled[0] - pooled[1]),
        rtol=1e-5,
        atol=1e-6 * size,
    )


@pytest.mark.parametrize("kind", ["sequential", *thorough(["simultaneous"])])
def test_a_vgg_has_the_products_of_other_nets(kind):
    network, layers, num_steps = pcjax.vgg(5, 10, width=2), 5, 3
    inputs, targets = (
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 16, 16, 3), (2, 10))
    )
    params = jax.eval_shape(network.init, jax.random.key(0), inputs)
    update = _learning(network, problems.METHODS[kind](num_steps, 0.05))
    state = jax.eval_shape(optax.sgd(0.1).init, params)
    counts = hlo.count(jax.jit(update).lower(params, state, inputs, targets).compile())
    every = 2 * layers + 2 * num_steps * (layers - 1)
    if kind == "simultaneous":
        # Three iterations are one below the number of hidden activities.
        zero = sum(2 * (layers - 2 - t) for t in range(num_steps))
        assert counts.dots == every - zero
        return
    assert counts.dots == every
    # Multiply-adds of each layer; two products touch the first, 2 + 2T the others.
    sides, channels = (16, 8, 4, 2), (3, 2, 4, 8, 8)
    pairs = zip(sides, itertools.pairwise(channels), strict=True)
    products = [n * n * 9 * a * b for n, (a, b) in pairs]
    first, *others = [*products, 8 * 10]
    assert counts.flops == 2 * 2 * (2 * first + (2 + 2 * num_steps) * sum(others))


def test_shapes_and_sizes_of_the_vgg_nets():
    # Side of the images after every convolution, and its channels.
    want = {
        5: ((16, 128), (8, 256), (4, 512), (2, 512)),
        7: ((16, 128), (16, 128), (8, 256), (6, 256), (3, 512), (1, 512)),
        9: (
            *((16, 128), (16, 128), (8, 256), (8, 256)),
            *((4, 512), (4, 512), (2, 512), (2, 512)),
        ),
    }
    for depth, shapes in want.items():
        network = pcjax.vgg(depth, 10)
        images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
        params = jax.eval_shape(network.init, jax.random.key(0), images)
        activities = jax.eval_shape(
            lambda p, x, n=network: pcjax.feedforward(n, p, x), params, images
        )
        found = [h.shape for h in activities]
        assert found == [*((2, n, n, c) for n, c in shapes), (2, 10)]
        channels = [3, *(c for _, c in shapes)]
        assert [p["kernel"].shape for p in params[:-1]] == [
            (3, 3, a, b) for a, b in itertools.pairwise(channels)
        ]
    grey = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    network = pcjax.vgg(5, 10, width=4, pool=pcjax.average_pool())
    jax.eval_shape(network.init, jax.random.key(0), grey)


def test_initialisations_are_arguments():
    orthogonal = jax.nn.initializers.orthogonal()
    he = jax.nn.initializers.he_normal()
    images = jnp.ones((1, 8, 8, 16))
    init = pcjax.conv(32, (3, 3), kernel_init=orthogonal).init
    params = jax.jit(init)(jax.random.key(0), images)
    flat = np.asarray(params["kernel"]).reshape(-1, 32)
    np.testing.assert_allclose(flat.T @ flat, np.eye(32), atol=1e-5)
    np.testing.assert_array_equal(params["bias"], np.zeros(32))
    for network, fan_in in (
        (pcjax.mlp([1024, 64], kernel_init=he), 1024),
        (pcjax.vgg(5, 64, width=64, kernel_init=he), 27),
    ):
        shape = (1, 1024) if fan_in == 1024 else (1, 16, 16, 3)
        init = jax.jit(network.layers[0].init)
        kernel = np.asarray(init(jax.random.key(1), jnp.ones(shape))["kernel"])
        deviation = np.std(kernel) * np.sqrt(fan_in / 2)
        assert deviation == pytest.approx(1, abs=5 / np.sqrt(2 * kernel.size))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: pcjax.max_pool((2,)), ValueError, "max_pool: window must be two ints"),
        (lambda: pcjax.average_pool((0, 2)), ValueError, "average_pool: window"),
        (
            lambda: pcjax.conv(3, (3, 3), padding=(-1, 0)),
            ValueError,
            "conv: padding must be two ints >= 0",
        ),
        (lambda: pcjax.conv(3, (3, 3), pool=jnp.max), TypeError, "must be a Pool"),
        (
            lambda: pcjax.conv(3, (3, 3), kernel_init="he"),
            TypeError,
            "kernel_init must be a function",
        ),
        (lambda: pcjax.vgg(6, 10), ValueError, r"depth must be one of \[5, 7, 9\]"),
        (lambda: pcjax.vgg(5, 10, width=0), ValueError, "vgg: width"),
    ],
)
def test_what_is_no_layer_is_refused(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_images_too_small_for_filters_and_padding_are_refused():
    layer = pcjax.conv(3, (5, 5), padding=(1, 1))
    with pytest.raises(ValueError, match="do not fit"):
        layer.init(jax.random.key(0), jnp.ones((1, 2, 3, 1)))


def test_a_vgg_ends_its_convolutions_in_the_pool_that_is_given():
    layer = pcjax.vgg(5, 3, width=2, pool=pcjax.average_pool()).layers[0]
    case = problems.make(pcjax.Network((layer,)), (16, 16, 3), batch=2)
    [theta], images = case.params, case.inputs
    plain = pcjax.conv(2, (3, 3), (1, 1), activation=jax.nn.gelu, padding=(1, 1))
    want = by_windows(np.asarray(jax.jit(plain.apply)(theta, images)), (2, 2), np.mean)
    found = jax.jit(layer.apply)(theta, images)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_the_last_layer_of_a_vgg_has_the_options_of_the_others():
    zeros = jax.nn.initializers.zeros
    images = jnp.ones((1, 16, 16, 3))
    network = pcjax.vgg(5, 3, width=2, kernel_init=zeros)
    params = jax.jit(network.init)(jax.random.key(0), images)
    assert all(not np.any(theta["kernel"]) for theta in params)
    rough = pcjax.vgg(5, 3, width=2, product_dtype=jnp.bfloat16).layers[-1]
    case = problems.make(pcjax.Network((rough,)), (8,), batch=2)
    [last], features = case.params, case.inputs
    found = rough.apply(last, features)
    exact = pcjax.dense(3).apply(last, features)
    assert 1e-4 < np.abs(found - exact).max() < 0.1
