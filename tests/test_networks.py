"""Layouts, shapes and initialisation of the built-in networks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pcjax
from tests import problems

PAPER_NETWORKS = {
    "mlp": (
        pcjax.mlp([3072, 1024, 1024, 1024, 10]),
        (32, 32, 3),
        [(3072, 1024), (1024, 1024), (1024, 1024), (1024, 10)],
        [(1024,), (1024,), (1024,), (10,)],
    ),
    "conv": (
        pcjax.convnet(10),
        (32, 32, 3),
        [(5, 5, 3, 64), (5, 5, 64, 128), (3, 3, 128, 256), (1024, 10)],
        [(14, 14, 64), (5, 5, 128), (2, 2, 256), (10,)],
    ),
    "tiny_imagenet": (
        pcjax.convnet(200, features=(32, 64, 128, 256), kernel_sizes=(5, 5, 5, 3)),
        (64, 64, 3),
        [(5, 5, 3, 32), (5, 5, 32, 64), (5, 5, 64, 128), (3, 3, 128, 256), (1024, 200)],
        [(30, 30, 32), (13, 13, 64), (5, 5, 128), (2, 2, 256), (200,)],
    ),
    "autoencoder": (
        pcjax.autoencoder(),
        (3072,),
        [(3072, 1024), (1024, 256), (256, 20), (20, 256), (256, 1024), (1024, 3072)],
        [(1024,), (256,), (20,), (256,), (1024,), (3072,)],
    ),
}


@pytest.mark.parametrize("name", PAPER_NETWORKS)
def test_papers_networks_have_their_shapes(name):
    network, input_shape, kernels, activities = PAPER_NETWORKS[name]
    inputs = jax.ShapeDtypeStruct((2, *input_shape), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), inputs)
    assert [theta["kernel"].shape for theta in params] == kernels
    assert [theta["bias"].shape for theta in params] == [k[-1:] for k in kernels]
    assert all(set(theta) == {"kernel", "bias"} for theta in params)
    predictions = jax.eval_shape(
        lambda p, x: pcjax.feedforward(network, p, x), params, inputs
    )
    assert [p.shape for p in predictions] == [(2, *shape) for shape in activities]


@pytest.mark.parametrize(
    ("layer", "input_shape", "fan_in"),
    [
        (pcjax.dense(300), (400,), 400),
        (pcjax.dense(300), (4, 10, 10), 400),
        (pcjax.conv(300, (5, 4)), (8, 8, 20), 400),
    ],
    ids=["dense", "dense_on_images", "conv"],
)
def test_initialisation_is_uniform_within_one_over_root_fan_in(
    layer, input_shape, fan_in
):
    params = layer.init(jax.random.key(3), jnp.ones((1, *input_shape)))
    bound = 1 / math.sqrt(fan_in)
    # The moments of U(-a, a): E x = 0, E x^2 = a^2/3, E x^4 = a^4/5.
    for values, tolerance in ((params["kernel"], 0.01), (params["bias"], 0.2)):
        scaled = np.asarray(values, np.float64).ravel() / bound
        assert 0.98 < np.abs(scaled).max() <= 1
        np.testing.assert_allclose(scaled.mean(), 0, atol=tolerance)
        np.testing.assert_allclose((scaled**2).mean(), 1 / 3, rtol=tolerance)
        np.testing.assert_allclose((scaled**4).mean(), 1 / 5, rtol=2 * tolerance)
    # The bias is no copy of a row of the kernel.
    rows = np.asarray(params["kernel"]).reshape(-1, 300)
    assert np.abs(rows @ np.asarray(params["bias"])).max() < 0.3 * 300 * bound**2


def test_every_layer_and_key_draws_its_own_weights():
    network, inputs = pcjax.mlp([4, 4, 4]), jnp.ones((1, 4))
    first = network.init(jax.random.key(0), inputs)
    again = network.init(jax.random.key(0), 7 * jnp.ones((3, 4)))
    other = network.init(jax.random.key(1), inputs)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.all(np.asarray(first[0]["kernel"]) != np.asarray(first[1]["kernel"]))
    assert np.all(np.asarray(first[0]["kernel"]) != np.asarray(other[0]["kernel"]))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
@pytest.mark.parametrize("name", ["relu", "conv"])
def test_parameters_and_predictions_have_the_dtype_of_the_inputs(x64, name, dtype):
    network, _, inputs, _ = problems.network_case(name, dtype=dtype)
    params = jax.eval_shape(network.init, jax.random.key(0), inputs)
    predictions = jax.eval_shape(network.apply, params, inputs)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((params, predictions))}
    assert dtypes == {jnp.dtype(dtype)}


def test_mlp_is_pre_activation_and_leaves_its_input_alone(x64):
    case = problems.dense_case((3, 4, 5, 2), jax.nn.relu, dtype=jnp.float64, seed=1)
    inputs = np.asarray(case.inputs)
    weights = [(np.asarray(p["kernel"]), np.asarray(p["bias"])) for p in case.params]
    p1 = inputs @ weights[0][0] + weights[0][1]
    p2 = np.maximum(p1, 0) @ weights[1][0] + weights[1][1]
    p3 = np.maximum(p2, 0) @ weights[2][0] + weights[2][1]
    assert max(x.min() for x in (inputs, p1, p2, p3)) < 0
    predictions = pcjax.feedforward(case.network, case.params, case.inputs)
    problems.assert_trees_close(predictions, (p1, p2, p3))
    problems.assert_trees_close(case.network.apply(case.params, case.inputs), p3)
    assert [layer.activation for layer in case.network.layers[1:]] == [jax.nn.relu] * 2
    np.testing.assert_array_equal(case.network.layers[0].activation(inputs), inputs)


def test_mlp_flattens_images_row_by_row(x64):
    case = problems.make(pcjax.mlp([24, 5]), (2, 4, 3), dtype=jnp.float64)
    kernel, bias = _weights(jax.tree.map(np.asarray, case.params[0]))
    expected = np.asarray(case.inputs).reshape(5, 24) @ kernel + bias
    problems.assert_trees_close(case.network.apply(case.params, case.inputs), expected)


def _stride_two(images, kernel, bias):
    """A stride-2 correlation without padding, by its definition."""
    height, width = kernel.shape[:2]
    rows = (images.shape[1] - height) // 2 + 1
    columns = (images.shape[2] - width) // 2 + 1
    result = np.empty((len(images), rows, columns, kernel.shape[3]))
    for i in range(rows):
        for j in range(columns):
            patch = images[:, 2 * i : 2 * i + height, 2 * j : 2 * j + width]
            result[:, i, j] = np.tensordot(patch, kernel, 3) + bias
    return result


def test_convnet_is_post_activation_with_a_linear_end(x64):
    network = pcjax.convnet(4, features=(3, 5), kernel_sizes=(5, 3))
    case = problems.make(network, (13, 11, 2), dtype=jnp.float64)
    theta = jax.tree.map(np.asarray, case.params)
    p1 = np.maximum(_stride_two(np.asarray(case.inputs), *_weights(theta[0])), 0)
    p2 = np.maximum(_stride_two(p1, *_weights(theta[1])), 0)
    kernel, bias = _weights(theta[2])
    p3 = p2.reshape(len(p2), -1) @ kernel + bias
    assert p1.min() == p2.min() == 0
    assert p3.min() < 0
    predictions = pcjax.feedforward(case.network, case.params, case.inputs)
    problems.assert_trees_close(predictions, (p1, p2, p3))


def _weights(theta):
    return theta["kernel"], theta["bias"]


def test_residual_block_is_one_layer(x64):
    case = problems.network_case("residual", dtype=jnp.float64)
    theta = jax.tree.map(np.asarray, case.params)
    p1, p2, *_ = pcjax.feedforward(case.network, case.params, case.inputs)
    kernel, bias = _weights(theta[1])
    expected = np.asarray(p1) + np.tanh(np.asarray(p1)) @ kernel + bias
    problems.assert_trees_close(p2, expected)


@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.gelu])
def test_autoencoder_is_an_mlp_back_to_its_input(activation):
    network = pcjax.autoencoder([6, 4, 2, 4, 6], activation)
    twin = pcjax.mlp([6, 4, 2, 4, 6], activation)
    case = problems.make(network, (6,))
    problems.assert_trees_close(
        network.apply(case.params, case.inputs), twin.apply(case.params, case.inputs)
    )
    assert [layer.activation for layer in network.layers[1:]] == [activation] * 3
