"""flax modules as layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcjax
from tests import problems

INPUTS = jax.random.normal(jax.random.key(9), (5, 6))


def test_linen_params_are_the_modules_own(x64):
    module = problems.LinenBlock()
    layer = pcjax.from_linen(module)
    params = layer.init(jax.random.key(1), INPUTS)
    variables = module.init(jax.random.key(1), INPUTS)
    problems.assert_trees_close(params, variables["params"])
    # x + W tanh(scale (x - mean) / sqrt(var + 1e-6) + shift) + b, in NumPy
    x = np.asarray(INPUTS, np.float64)
    normal = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    norm, inner = params["LayerNorm_0"], params["Dense_0"]
    hidden = np.tanh(normal * np.asarray(norm["scale"]) + np.asarray(norm["bias"]))
    expected = x + hidden @ np.asarray(inner["kernel"]) + np.asarray(inner["bias"])
    np.testing.assert_allclose(layer.apply(params, INPUTS), expected, atol=1e-5)


def test_nnx_params_are_plain_and_drawn_from_the_key(x64):
    layer = pcjax.from_nnx(lambda rngs: problems.NnxBlock(6, rngs))
    params = layer.init(jax.random.key(1), INPUTS)
    other = layer.init(jax.random.key(2), INPUTS)
    assert jax.tree.map(jnp.shape, params) == {
        "linear": {"bias": (6,), "kernel": (6, 6)}
    }
    kernel = np.asarray(params["linear"]["kernel"], np.float64)
    assert np.all(kernel != np.asarray(other["linear"]["kernel"]))
    biased = {"linear": {"bias": jnp.arange(6.0), "kernel": params["linear"]["kernel"]}}
    x = np.asarray(INPUTS, np.float64)
    expected = x + np.tanh(x) @ kernel + np.arange(6)
    np.testing.assert_allclose(layer.apply(biased, INPUTS), expected, atol=1e-5)


def test_nnx_module_given_ready_made_keeps_its_own_weights():
    module = nnx.Linear(6, 3, rngs=nnx.Rngs(4))
    layer = pcjax.from_nnx(module)
    params = layer.init(jax.random.key(0), INPUTS)
    np.testing.assert_array_equal(params["kernel"], module.kernel[...])
    problems.assert_trees_close(layer.apply(params, INPUTS), module(INPUTS))
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    problems.assert_trees_close(layer.apply(doubled, INPUTS), 2 * module(INPUTS))


def _linen_convnet():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.relu(nn.Conv(3, (3, 3), (2, 2), padding="VALID")(x))

    class Last(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(x.reshape(x.shape[0], -1))

    layers = pcjax.from_linen(Block()), pcjax.from_linen(Last())
    return layers, lambda theta: next(iter(theta.values()))


def _nnx_convnet():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.inner = nnx.Conv(2, 3, (3, 3), (2, 2), padding="VALID", rngs=rngs)

        def __call__(self, x):
            return nnx.relu(self.inner(x))

    class Last(nnx.Module):
        def __init__(self, rngs):
            self.inner = nnx.Linear(36, 4, rngs=rngs)

        def __call__(self, x):
            return self.inner(x.reshape(x.shape[0], -1))

    layers = pcjax.from_nnx(Block), pcjax.from_nnx(Last)
    return layers, lambda theta: theta["inner"]


@pytest.mark.parametrize("build", [_linen_convnet, _nnx_convnet])
def test_flax_layers_learn_like_the_built_in_ones(build):
    layers, inner = build()
    case = problems.make(pcjax.Network(layers), (9, 7, 2))
    twin = pcjax.convnet(4, features=(3,), kernel_sizes=(3,))
    grads, expected = (
        pcjax.value_and_grad(
            network, pcjax.sequential(3, 0.1), output=pcjax.softmax, decay=0.1
        )(params, case.inputs, case.targets)[1]
        for network, params in (
            (case.network, case.params),
            (twin, tuple(inner(theta) for theta in case.params)),
        )
    )
    problems.assert_trees_close(
        tuple(inner(theta) for theta in grads), expected, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_activation_of_a_module_enters_the_decay_term(kind):
    if kind == "linen":
        layer = pcjax.from_linen(nn.Dense(3), jnp.tanh)
    else:
        layer = pcjax.from_nnx(lambda rngs: nnx.Linear(6, 3, rngs=rngs), jnp.tanh)
    assert layer.activation is jnp.tanh


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.BatchNorm(use_running_average=False), r"BatchNorm keeps .*'batch_stats'"),
        (nn.Dropout(0.5, deterministic=False), "Dropout asks for random keys"),
        (nn.Sequential([nn.Dense(4), nn.BatchNorm(True)]), r"Sequential keeps .*batch"),
    ],
    ids=["batch_norm", "dropout", "nested"],
)
def test_linen_modules_with_state_or_keys_are_refused(module, message):
    layer = pcjax.from_linen(module)
    with pytest.raises(ValueError, match=f"from_linen: {message}"):
        layer.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, INPUTS)


def test_linen_dropout_is_refused_by_network_init():
    network = pcjax.Network((pcjax.from_linen(nn.Dropout(0.5, deterministic=False)),))
    with pytest.raises(ValueError, match="Dropout"):
        network.init(jax.random.key(0), INPUTS)


def test_linen_dropout_that_is_switched_off_is_a_layer():
    layer = pcjax.from_linen(nn.Dropout(0.5, deterministic=True))
    assert layer.init(jax.random.key(0), INPUTS) == {}
    np.testing.assert_array_equal(layer.apply({}, INPUTS), INPUTS)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda rngs: nnx.BatchNorm(6, rngs=rngs), r"BatchNorm holds .*BatchStat"),
        (lambda rngs: nnx.Dropout(0.5, rngs=rngs), r"Dropout holds .*Rng"),
        (nnx.BatchNorm(6, rngs=nnx.Rngs(0)), r"BatchNorm holds .*BatchStat"),
    ],
    ids=["batch_norm", "dropout", "ready_made"],
)
def test_nnx_modules_with_state_or_keys_are_refused(build, message):
    with pytest.raises(ValueError, match=f"from_nnx: {message}"):
        pcjax.from_nnx(build)
