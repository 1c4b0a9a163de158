"""The compiled training iteration holds the products of SPEC's formula, no more."""

import itertools

import jax
import jax.numpy as jnp
import optax
import pytest

import pcjax
from benchmarks import hlo
from pcjax import training
from pcjax.numerics import convolve, precision

METHODS = {"simultaneous": pcjax.simultaneous, "sequential": pcjax.sequential}


def _compile(network, inputs, targets, update, tx):
    params = network.init(jax.random.key(0), inputs)
    step = jax.jit(update, donate_argnums=(0, 1))
    return step.lower(params, tx.init(params), inputs, targets).compile()


def _learning(network, method, **options):
    grad_fn = pcjax.value_and_grad(
        network, method, output=pcjax.softmax, clamp=pcjax.soft_clamp(0.01), **options
    )
    return training.make_update(grad_fn, optax.sgd(0.1))


SIZES = [48, 40, 36, 44, 10]


def _products(method, product_dtype=None, **options):
    network = pcjax.mlp(SIZES, product_dtype=product_dtype)
    arrays = jnp.ones((16, 48)), jnp.ones((16, 10)) / 10
    update = _learning(network, method, **options)
    return hlo.count(_compile(network, *arrays, update, optax.sgd(0.1)))


@pytest.mark.parametrize("num_steps", [1, 3, 6])
def test_sequential_inference_has_2L_plus_2T_L_minus_1_products(num_steps):
    layers = len(SIZES) - 1
    counts = _products(pcjax.sequential(num_steps, 0.05))
    assert counts.dots == 2 * layers + 2 * num_steps * (layers - 1)
    first, *others = (a * b for a, b in itertools.pairwise(SIZES))
    # Two products touch the first matrix, 2 + 2T each of the others.
    products = 2 * first + (2 + 2 * num_steps) * sum(others)
    assert counts.flops == 2 * 16 * products


@pytest.mark.parametrize("num_steps", [5, 15])
def test_simultaneous_inference_leaves_out_the_products_that_are_zero(num_steps):
    layers = len(SIZES) - 1
    every = 2 * layers + 2 * num_steps * (layers - 1)
    # A decay moves every layer at once, so that none is zero.
    method = pcjax.simultaneous(num_steps, 0.05)
    assert _products(method, decay=0.1).dots == every
    # In iteration t = 0, 1, ... there are L-2-t products of either kind below the
    # front: in all (L-1)(L-2).
    assert _products(method).dots == every - (layers - 1) * (layers - 2)


@pytest.mark.parametrize("layers", [2, 6, 10])
def test_none_of_the_zero_products_is_left_up_to_ten_layers(layers):
    network = pcjax.mlp([24] * layers + [10])
    arrays = jnp.ones((4, 24)), jnp.ones((4, 10)) / 10
    update = _learning(network, pcjax.simultaneous(12, 0.05))
    counts = hlo.count(_compile(network, *arrays, update, optax.sgd(0.1)))
    every = 2 * layers + 2 * 12 * (layers - 1)
    assert counts.dots == every - (layers - 1) * (layers - 2)


@pytest.mark.parametrize("name", METHODS)
def test_programs_grow_neither_with_T_nor_faster_than_the_depth(name):
    def products(layers, num_steps):
        """Products that the program's text holds, and those that it executes."""
        network = pcjax.mlp([8] * layers + [10])
        arrays = jnp.ones((4, 8)), jnp.ones((4, 10)) / 10
        update = _learning(network, METHODS[name](num_steps, 0.05))
        compiled = _compile(network, *arrays, update, optax.sgd(0.1))
        return compiled.as_text().count(" dot("), hlo.count(compiled).dots

    (short, _), (long, _), (deep, executed) = (
        products(16, 40),
        products(16, 400),
        products(48, 100),
    )
    assert long == short
    assert deep < 3.3 * short
    every = 2 * 48 + 2 * 100 * 47
    zero = 47 * 46 if name == "simultaneous" else 0
    assert executed - (every - zero) <= 0.2 * zero  # in stages, most are left out


def test_simultaneous_inference_with_few_iterations():
    # 2L, a pull in the first iteration, two pulls and a new prediction in the
    # second; the final prediction of one layer, already among the 2L, stays old.
    assert _products(pcjax.simultaneous(1, 0.05)).dots == 2 * 4 + 2
    assert _products(pcjax.simultaneous(2, 0.05)).dots == 2 * 4 + 1 + 1 + 2 + 2


def test_backprop_has_3L_minus_1_products():
    network = pcjax.mlp(SIZES)
    grad_fn = pcjax.backprop.value_and_grad(network, output=pcjax.softmax)
    update = training.make_update(grad_fn, optax.sgd(0.1))
    arrays = jnp.ones((16, 48)), jnp.ones((16, 10)) / 10
    assert hlo.count(_compile(network, *arrays, update, optax.sgd(0.1))).dots == 11


@pytest.mark.parametrize("num_steps", [3, 4])
def test_incremental_has_T_3L_minus_1_products(num_steps):
    network = pcjax.mlp(SIZES)
    tx = optax.sgd(0.1)
    update = pcjax.incremental(
        network, pcjax.simultaneous(num_steps, 0.05), tx, output=pcjax.softmax
    )
    arrays = jnp.ones((16, 48)), jnp.ones((16, 10)) / 10
    dots = hlo.count(_compile(network, *arrays, update, tx)).dots
    assert dots == num_steps * 11


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("num_steps", [1, 3])
def test_conv_net_has_the_corresponding_products(name, num_steps, monkeypatch):
    def count():
        network = pcjax.convnet(10, features=(6, 7, 8), kernel_sizes=(5, 5, 3))
        inputs, targets = jnp.ones((4, 32, 32, 3)), jnp.ones((4, 10)) / 10
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


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("num_steps", [1, 2, 6])
def test_products_of_bfloat16_are_as_many_and_as_large(name, num_steps):
    method = METHODS[name](num_steps, 0.05)
    assert _products(method, jnp.bfloat16) == _products(method)


def test_convolutions_of_bfloat16_are_as_many():
    inputs, targets = jnp.ones((4, 32, 32, 3)), jnp.ones((4, 10)) / 10
    counts = []
    for dtype in (None, jnp.bfloat16):
        network = pcjax.convnet(10, features=(6, 7, 8), product_dtype=dtype)
        update = _learning(network, pcjax.sequential(3, 0.05))
        counts.append(
            hlo.count(_compile(network, inputs, targets, update, optax.sgd(0.1)))
        )
    plain, rounded = counts
    # On a CPU the plain ones are matrix products.
    assert rounded.dots + rounded.convolutions == plain.dots


@pytest.mark.parametrize("num_steps", [1, 4])
def test_incremental_has_L_minus_1_more_products_of_bfloat16_an_iteration(num_steps):
    tx = optax.sgd(0.1)
    arrays = jnp.ones((16, 48)), jnp.ones((16, 10)) / 10
    dots = []
    for dtype in (None, jnp.bfloat16):
        network = pcjax.mlp(SIZES, product_dtype=dtype)
        update = pcjax.incremental(
            network, pcjax.simultaneous(num_steps, 0.05), tx, output=pcjax.softmax
        )
        dots.append(hlo.count(_compile(network, *arrays, update, tx)).dots)
    # From the second iteration on, the changes of the weights are multiplied on their
    # own, by all layers; the first has no other product, as its input never changes.
    assert dots[1] - dots[0] == (num_steps - 1) * (len(SIZES) - 2)
