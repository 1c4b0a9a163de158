"""The compiled training iteration holds the products of SPEC's formula, no more."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from benchmarks import hlo
from pcjax import training
from pcjax.numerics import convolve, precision
from tests.tiers import thorough

METHODS = {"simultaneous": pcjax.simultaneous, "sequential": pcjax.sequential}


def _lower(network, inputs, targets, update, tx):
    params = jax.eval_shape(network.init, jax.random.key(0), inputs)
    step = jax.jit(update, donate_argnums=(0, 1))
    return step.lower(params, jax.eval_shape(tx.init, params), inputs, targets)


def _compile(*parts):
    return _lower(*parts).compile()


def _learning(network, method, **options):
    grad_fn = pcjax.value_and_grad(
        network, method, output=pcjax.softmax, clamp=pcjax.soft_clamp(0.01), **options
    )
    return training.make_update(grad_fn, optax.sgd(0.1))


SIZES = [48, 40, 36, 44, 10]


@functools.cache
def _products(name, num_steps, product_dtype=None, **options):
    network = pcjax.mlp(SIZES, product_dtype=product_dtype)
    arrays = np.ones((16, 48), np.float32), np.ones((16, 10), np.float32) / 10
    update = _learning(network, METHODS[name](num_steps, 0.05), **options)
    return hlo.count(_compile(network, *arrays, update, optax.sgd(0.1)))


@functools.cache
def _incremental_products(num_steps, product_dtype=None):
    network, tx = pcjax.mlp(SIZES, product_dtype=product_dtype), optax.sgd(0.1)
    arrays = np.ones((16, 48), np.float32), np.ones((16, 10), np.float32) / 10
    update = pcjax.incremental(
        network, pcjax.simultaneous(num_steps, 0.05), tx, output=pcjax.softmax
    )
    return hlo.count(_compile(network, *arrays, update, tx)).dots


@pytest.mark.parametrize("num_steps", [3, *thorough([1, 6])])
def test_sequential_inference_has_2L_plus_2T_L_minus_1_products(num_steps):
    layers = len(SIZES) - 1
    counts = _products("sequential", num_steps)
    assert counts.dots == 2 * layers + 2 * num_steps * (layers - 1)
    first, *others = (a * b for a, b in itertools.pairwise(SIZES))
    # Two products touch the first matrix, 2 + 2T each of the others.
    products = 2 * first + (2 + 2 * num_steps) * sum(others)
    assert counts.flops == 2 * 16 * products


@pytest.mark.parametrize("num_steps", [5, *thorough([15])])
def test_simultaneous_inference_leaves_out_the_products_that_are_zero(num_steps):
    layers = len(SIZES) - 1
    every = 2 * layers + 2 * num_steps * (layers - 1)
    # A decay moves every layer at once, so that none is zero.
    assert _products("simultaneous", num_steps, decay=0.1).dots == every
    # In iteration t = 0, 1, ... there are L-2-t products of either kind below the
    # front: in all (L-1)(L-2).
    assert _products("simultaneous", num_steps).dots == every - (layers - 1) * (
        layers - 2
    )


@pytest.mark.parametrize("layers", [10, *thorough([2, 6])])
def test_none_of_the_zero_products_is_left_up_to_ten_layers(layers):
    network = pcjax.mlp([24] * layers + [10])
    arrays = jnp.ones((4, 24)), jnp.ones((4, 10)) / 10
    update = _learning(network, pcjax.simultaneous(12, 0.05))
    counts = hlo.count(_compile(network, *arrays, update, optax.sgd(0.1)))
    every = 2 * layers + 2 * 12 * (layers - 1)
    assert counts.dots == every - (layers - 1) * (layers - 2)


def _uniform(name, layers, num_steps):
    """The lowered iteration of a network of layers of one size."""
    network = pcjax.mlp([8] * layers + [10])
    arrays = np.ones((4, 8), np.float32), np.ones((4, 10), np.float32) / 10
    update = _learning(network, METHODS[name](num_steps, 0.05))
    return _lower(network, *arrays, update, optax.sgd(0.1))


def _check_executed(name, layers, num_steps, compiled):
    executed = hlo.count(compiled).dots
    every = 2 * layers + 2 * num_steps * (layers - 1)
    zero = (layers - 1) * (layers - 2) if name == "simultaneous" else 0
    assert executed - (every - zero) <= 0.2 * zero  # in stages, most are left out


@pytest.mark.parametrize("name", ["simultaneous", *thorough(["sequential"])])
def test_programs_grow_neither_with_T_nor_faster_than_the_depth(name):
    runs = ((4, 10), (4, 100), (12, 30), (36, 80))
    lowered = [_uniform(name, *sizes) for sizes in runs]
    few, long, short, deep = (
        program.as_text().count("stablehlo.dot_general") for program in lowered
    )
    assert long == few > 0
    assert deep < 3.3 * short
    _check_executed(name, 12, 30, lowered[2].compile())


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", METHODS)
def test_compiled_programs_grow_neither_with_T_nor_faster_than_the_depth(name):
    runs = ((16, 40), (16, 400), (48, 100))
    compiled = [_uniform(name, *sizes).compile() for sizes in runs]
    short, long, deep = (program.as_text().count(" dot(") for program in compiled)
    assert long == short
    assert deep < 3.3 * short
    _check_executed(name, 48, 100, compiled[-1])


def _work(name, layers):
    """Instructions of the compiled gradient of a residual net, those in fusions too."""
    method = {
        "sequential": pcjax.sequential(1, 0.1),
        "error_based": pcjax.error_based(1, 0.1),
        "without a rate": pcjax.error_based(4, pcjax.barzilai_borwein()),
    }[name]
    network = pcjax.residual_mlp([8] * layers + [4], jnp.tanh)
    grad_fn = pcjax.value_and_grad(network, method, output=pcjax.softmax)
    arrays = jnp.ones((4, 8)), jnp.ones((4, 4)) / 4
    params = jax.eval_shape(network.init, jax.random.key(0), arrays[0])
    compiled = jax.jit(lambda *args: grad_fn(*args)[1]).lower(params, *arrays).compile()
    return sum(" = " in line for line in compiled.as_text().splitlines())


@pytest.mark.parametrize(
    "name", ["sequential", "error_based", *thorough(["without a rate"])]
)
def test_no_sweep_through_skips_is_computed_anew_for_every_layer(name):
    few, some, many = (_work(name, layers) for layers in (4, 8, 16))
    assert many - some < 2.3 * (some - few)


def test_simultaneous_inference_with_few_iterations():
    # 2L, a pull in the first iteration, two pulls and a new prediction in the
    # second; the final prediction of one layer, already among the 2L, stays old.
    assert _products("simultaneous", 1).dots == 2 * 4 + 2
    assert _products("simultaneous", 2).dots == 2 * 4 + 1 + 1 + 2 + 2


def test_backprop_has_3L_minus_1_products():
    network = pcjax.mlp(SIZES)
    grad_fn = pcjax.backprop.value_and_grad(network, output=pcjax.softmax)
    update = training.make_update(grad_fn, optax.sgd(0.1))
    arrays = jnp.ones((16, 48)), jnp.ones((16, 10)) / 10
    assert hlo.count(_compile(network, *arrays, update, optax.sgd(0.1))).dots == 11


@pytest.mark.parametrize("num_steps", [4, *thorough([3])])
def test_incremental_has_T_3L_minus_1_products(num_steps):
    assert _incremental_products(num_steps) == num_steps * 11


@pytest.mark.parametrize(
    ("num_steps", "name"),
    [
        (3, "sequential"),
        (1, "simultaneous"),
        *thorough([(1, "sequential"), (3, "simultaneous")]),
    ],
)
def test_conv_net_has_the_corresponding_products(name, num_steps, monkeypatch):
    def count():
        network = pcjax.convnet(10, features=(6, 7, 8), kernel_sizes=(3, 3, 2))
        inputs, targets = jnp.ones((4, 19, 19, 3)), jnp.ones((4, 10)) / 10
        update = _learning(network, METHODS[name](num_steps, 0.05), decay=0.1)
        return hlo.count(_compile(network, inputs, targets, update, optax.sgd(0.1)))

    # Three convolutional layers and a dense one: the same formula. On a CPU all are
    # matrix products.
    counts = count()
    assert counts.convolutions == 0
    assert counts.dots == 2 * 4 + 2 * num_steps * 3
    # The first layer has one prediction and one weight gradient.
    monkeypatch.setattr(precision, "convolve", convolve.by_xla)
    counts = count()
    assert counts.convolutions == 2 + 2 * (2 + 2 * num_steps)
    assert counts.dots == 2 + 2 * num_steps


@pytest.mark.parametrize(
    ("num_steps", "name"),
    [
        (3, "sequential"),
        (2, "simultaneous"),
        *thorough(
            [
                *((t, "sequential") for t in (1, 2, 6)),
                *((t, "simultaneous") for t in (1, 6)),
            ]
        ),
    ],
)
def test_products_of_bfloat16_are_as_many_and_as_large(num_steps, name):
    assert _products(name, num_steps, jnp.bfloat16) == _products(name, num_steps)


def test_convolutions_of_bfloat16_are_as_many():
    inputs, targets = jnp.ones((4, 19, 19, 3)), jnp.ones((4, 10)) / 10
    options = {"features": (6, 7, 8), "kernel_sizes": (3, 3, 2)}
    counts = []
    for dtype in (None, jnp.bfloat16):
        network = pcjax.convnet(10, **options, product_dtype=dtype)
        update = _learning(network, pcjax.sequential(2, 0.05))
        counts.append(
            hlo.count(_compile(network, inputs, targets, update, optax.sgd(0.1)))
        )
    plain, rounded = counts
    # On a CPU the plain ones are matrix products.
    assert rounded.dots + rounded.convolutions == plain.dots


@pytest.mark.parametrize("num_steps", [4, *thorough([1])])
def test_incremental_has_L_minus_1_more_products_of_bfloat16_an_iteration(num_steps):
    plain = _incremental_products(num_steps)
    rounded = _incremental_products(num_steps, jnp.bfloat16)
    # From the second iteration on, the changes of the weights are multiplied on their
    # own, by all layers; the first has no other product, as its input never changes.
    assert rounded - plain == (num_steps - 1) * (len(SIZES) - 2)
