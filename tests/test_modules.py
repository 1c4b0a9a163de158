"""flax modules as layers."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

import pcjax
from tests import problems
from tests.tiers import thorough

INPUTS = jnp.asarray(np.random.default_rng(9).normal(size=(5, 6)), jnp.float32)


def test_linen_params_are_the_modules_own(x64):
    module = problems.LinenBlock()
    layer = pcjax.from_linen(module)
    params, variables = jax.jit(
        lambda key: (layer.init(key, INPUTS), module.init(key, INPUTS))
    )(jax.random.key(1))
    problems.assert_trees_close(params, variables["params"])
    # x + W tanh(scale (x - mean) / sqrt(var + 1e-6) + shift) + b, in NumPy
    x = np.asarray(INPUTS, np.float64)
    normal = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    norm, inner = params["LayerNorm_0"], params["Dense_0"]
    hidden = np.tanh(normal * np.asarray(norm["scale"]) + np.asarray(norm["bias"]))
    expected = x + hidden @ np.asarray(inner["kernel"]) + np.asarray(inner["bias"])
    found = jax.jit(layer.apply)(params, INPUTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)


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
        jax.jit(
            pcjax.value_and_grad(
                network, pcjax.sequential(3, 0.1), output=pcjax.softmax, decay=0.1
            )
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
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    with pytest.raises(ValueError, match=f"from_linen: {message}"):
        jax.eval_shape(layer.init, keys, INPUTS)


def test_linen_dropout_is_refused_by_network_init():
    network = pcjax.Network((pcjax.from_linen(nn.Dropout(0.5, deterministic=False)),))
    with pytest.raises(ValueError, match="Dropout"):
        jax.eval_shape(network.init, jax.random.key(0), INPUTS)


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


# Constant arrays, and what is no single array


# Plain lists in older versions of flax.
SUBMODULES = getattr(nnx, "List", list)


class Encoded(nnx.Module):
    """Adds a constant that `make` makes of the random keys."""

    def __init__(self, make, rngs):
        self.inner = SUBMODULES([nnx.Linear(6, 5, rngs=rngs)])
        self.positions = make(rngs)

    def __call__(self, x):
        return self.inner[0](x + jnp.asarray(self.positions)[None])


CONSTANT = np.linspace(0, 1, 6, dtype=np.float32)


@pytest.mark.parametrize(
    ("make", "ready"),
    [
        (jnp.asarray, False),
        (np.array, True),
        *thorough([(jnp.asarray, True), (np.array, False)]),
    ],
    ids=["jax-False", "numpy-True", "jax-True", "numpy-False"],
)
def test_nnx_constants_are_kept_and_are_no_params(make, ready):
    module = Encoded(lambda rngs: make(CONSTANT), nnx.Rngs(3))
    layer = pcjax.from_nnx(
        module
        if ready
        else lambda rngs: Encoded(lambda rngs: make(CONSTANT) + 0.0, rngs)
    )
    params = layer.init(jax.random.key(0), INPUTS)
    assert [x.shape for x in jax.tree.leaves(params)] == [(5,), (6, 5)]
    inner = jax.tree.map(np.asarray, params["inner"][0])
    expected = (np.asarray(INPUTS) + CONSTANT) @ inner["kernel"] + inner["bias"]
    np.testing.assert_allclose(layer.apply(params, INPUTS), expected, atol=1e-5)
    other = layer.init(jax.random.key(1), INPUTS)["inner"][0]["kernel"]
    assert np.array_equal(other, inner["kernel"]) == ready


def test_nnx_constants_drawn_by_the_key_are_refused():
    def make(rngs):
        return jax.random.normal(rngs.params(), (6,))

    with pytest.raises(ValueError, match=r"from_nnx: Encoded draws .*'positions'"):
        pcjax.from_nnx(lambda rngs: Encoded(make, rngs))


def test_nnx_variables_that_are_no_params_are_named():
    with pytest.raises(ValueError, match=r"type \['Variable'\] .*\(positions\)"):
        pcjax.from_nnx(Encoded(lambda rngs: nnx.Variable(CONSTANT), nnx.Rngs(0)))


def test_linen_constants_are_kept():
    class Scaled(nn.Module):
        scale: jax.Array

        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x * self.scale[None])

    layer = pcjax.from_linen(Scaled(jnp.asarray(CONSTANT)))
    params = layer.init(jax.random.key(0), INPUTS)
    expected = (np.asarray(INPUTS) * CONSTANT) @ params["Dense_0"]["kernel"]
    np.testing.assert_allclose(layer.apply(params, INPUTS), expected, atol=1e-5)


class Returns(nn.Module):
    """Returns what a function makes of a prediction."""

    function: object

    @nn.compact
    def __call__(self, x):
        return self.function(nn.Dense(4)(x))


class NnxReturns(nnx.Module):
    def __init__(self, function, rngs):
        self.inner, self.function = nnx.Linear(6, 4, rngs=rngs), function

    def __call__(self, x):
        return self.function(self.inner(x))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda p: (p, p), "returns a tuple, but a layer must return one array"),
        (lambda p: {"p": p}, "returns a dict, but a layer"),
        (lambda p: p.sum(0), r"returns shape \(4,\) for \(5, 6\), but a layer"),
        (lambda p: p.sum(), r"returns shape \(\) for"),
        (lambda p: p.T, r"returns shape \(4, 5\) for \(5, 6\)"),
    ],
    ids=["tuple", "dict", "sum", "scalar", "transposed"],
)
@pytest.mark.parametrize("kind", ["from_linen: Returns", "from_nnx: NnxReturns"])
def test_what_is_no_prediction_is_refused_with_the_layer_named(kind, function, message):
    if "linen" in kind:
        layer = pcjax.from_linen(Returns(function))
    else:
        layer = pcjax.from_nnx(lambda rngs: NnxReturns(function, rngs))
    network = pcjax.Network((pcjax.dense(6), layer))
    with pytest.raises(ValueError, match=f"layer 1 .*{kind} {message}"):
        jax.eval_shape(network.init, jax.random.key(0), INPUTS)


# Trees of parameters as flax makes them


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_frozen_params_are_params(kind):
    layer = (
        pcjax.from_linen(nn.Dense(4))
        if kind == "linen"
        else pcjax.from_nnx(lambda rngs: nnx.Linear(6, 4, rngs=rngs))
    )
    case = problems.make(pcjax.Network((layer, pcjax.dense(4))), (6,))
    frozen = (flax.core.freeze(case.params[0]), case.params[1])
    grad_fn = jax.jit(pcjax.value_and_grad(case.network, pcjax.sequential(2, 0.1)))
    grads, expected = (
        grad_fn(params, case.inputs, case.targets)[1]
        for params in (frozen, case.params)
    )
    assert jax.tree.structure(grads) == jax.tree.structure(frozen)
    for have, want in zip(*map(jax.tree.leaves, (grads, expected)), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-6)


def test_boxed_params_are_applied_with_and_without_their_boxes():
    kernel = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    layer = pcjax.from_linen(nn.Dense(4, kernel_init=kernel))
    network = pcjax.Network((layer, pcjax.dense(4)))
    boxed = network.init(jax.random.key(0), INPUTS)
    assert nn.get_partition_spec(boxed[0])["kernel"] == PartitionSpec(None, "model")
    plain = (nn.meta.unbox(boxed[0]), boxed[1])
    own = jax.tree.map(np.asarray, plain[0])
    expected = np.asarray(INPUTS) @ own["kernel"] + own["bias"]
    for theta in (boxed[0], plain[0]):
        np.testing.assert_allclose(layer.apply(theta, INPUTS), expected, atol=1e-6)
    grad_fn = pcjax.value_and_grad(network, pcjax.sequential(2, 0.1))
    twin = pcjax.Network((pcjax.from_linen(nn.Dense(4)), pcjax.dense(4)))
    expected_fn = pcjax.value_and_grad(twin, pcjax.sequential(2, 0.1))
    targets = np.ones((5, 4), np.float32)

    @jax.jit
    def all_three(boxed, plain):
        pairs = (grad_fn, boxed), (expected_fn, plain), (grad_fn, plain)
        return [rule(params, INPUTS, targets)[1] for rule, params in pairs]

    grads, expected, unboxed = all_three(boxed, plain)
    assert jax.tree.structure(grads) == jax.tree.structure(boxed)
    problems.assert_trees_close(nn.meta.unbox(grads), expected, rtol=1e-6)
    problems.assert_trees_close(unboxed, expected, rtol=1e-6)
    others = ({"kernel": plain[0]["kernel"]}, plain[1])
    with pytest.raises(ValueError, match="params of another network: layer 0 has"):
        grad_fn(others, INPUTS, targets)


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_keys_are_typed_or_not(make_key):
    linen = pcjax.from_linen(nn.Dense(3))
    for layer in (linen, pcjax.from_nnx(lambda rngs: nnx.Linear(6, 3, rngs=rngs))):
        params, typed = (
            layer.init(key, INPUTS) for key in (make_key(3), jax.random.key(3))
        )
        problems.assert_trees_close(params, typed)
