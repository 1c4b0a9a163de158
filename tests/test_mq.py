"""MQ against its equations, as an optax transform, and as an optimizer."""

import subprocess
import sys
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import optax
import pytest
from flax import nnx

import pcjax
from pcjax.mq import ScaleByMQState, mq, scale_by_mq
from tests.reference.mq import MQ

# Three layers whose gradients differ in size by orders of magnitude.
SHAPES = [((3, 4), (4,)), ((2, 2, 3, 5), (5,)), ((5, 2), (2,))]
SCALES = [1e-3, 1.0, 30.0]
RATES = np.array([0.01, 0.05, 0.02])
F32 = {"rtol": 1e-6, "atol": 0}


def gradient_sequence(num_steps, dtype=np.float32, seed=0):
    """Gradients of `num_steps` iterations, stacked: a tuple of dicts like pcjax's."""
    rng = np.random.default_rng(seed)
    return tuple(
        {
            name: (scale * rng.normal(size=(num_steps, *shape))).astype(dtype)
            for name, shape in zip(("kernel", "bias"), shapes, strict=True)
        }
        for shapes, scale in zip(SHAPES, SCALES, strict=True)
    )


def at(tree, step):
    return jax.tree.map(lambda leaf: leaf[step], tree)


def run(tx, sequence):
    """The updates and the statistics `v` after each step, by one scan."""

    @jax.jit
    def scan(sequence):
        def step(state, gradients):
            updates, state = tx.update(gradients, state)
            return state, (updates, optax.tree_utils.tree_get(state, "v"))

        return jax.lax.scan(step, tx.init(at(sequence, 0)), sequence)[1]

    return scan(sequence)


def assert_close(actual, expected, **tolerance):
    """Trees of equal structure and dtypes have equal leaves."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


# Each pair: what the library is given, and alpha(b, layer) for the oracle.
LEARNING_RATES = {
    "number": (0.02, lambda b, layer: 0.02),
    "schedule": (
        optax.exponential_decay(0.02, 4, 0.5, staircase=True),
        lambda b, layer: 0.02 * 0.5 ** (b // 4),
    ),
    "layers": (RATES.tolist(), lambda b, layer: RATES[layer]),
    "schedule of layers": (
        lambda count: jnp.asarray(RATES) / (1 + count),
        lambda b, layer: RATES[layer] / (1 + b),
    ),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rates", LEARNING_RATES)
@pytest.mark.parametrize("decay", [0.9999, 0.8, 0.0])
def test_trajectory_is_that_of_the_equations(rates, decay, dtype, request):
    if dtype == "float64":
        request.getfixturevalue("x64")
    learning_rate, alpha = LEARNING_RATES[rates]
    sequence = gradient_sequence(20, dtype)
    hyper = {"decay": decay, "min_step": 0.03, "eps": 1e-3}
    oracle = MQ(alpha, 3, rho=decay, alpha_min=0.03, r=1e-3)

    updates, v = run(mq(learning_rate, **hyper), sequence)

    assert v.dtype == dtype
    for step in range(20):
        gradients = jax.tree.map(
            lambda leaf: leaf.astype(np.float64), at(sequence, step)
        )
        expected = tuple(oracle.update(gradients))
        tolerance = F32 if dtype == "float32" else {"rtol": 1e-12, "atol": 0}
        assert_close(at(updates, step), expected, **tolerance)
        np.testing.assert_allclose(v[step], oracle.v, **tolerance)


def test_scale_by_mq_keeps_the_sign_of_the_gradient():
    sequence = gradient_sequence(3)
    scaled, _ = run(scale_by_mq(0.02), sequence)
    updates, _ = run(mq(0.02), sequence)
    assert_close(updates, jax.tree.map(jnp.negative, scaled), rtol=0, atol=0)
    assert all(
        np.array_equal(np.sign(scaled[0][k]), np.sign(sequence[0][k]))
        for k in scaled[0]
    )


# Which leaves belong together.


class Pair(NamedTuple):
    weights: Any
    offset: Any


def full(value, *shape):
    return jnp.full(shape, value, jnp.float32)


def dense(weight, bias):
    """Six weights and two biases: their pooled mean is .75 weight + .25 bias."""
    return {"kernel": full(weight, 3, 2), "bias": full(bias, 2)}


def nnx_state():
    model = nnx.List([nnx.Linear(3, 2, rngs=nnx.Rngs(0)) for _ in range(2)])
    state = nnx.state(nnx.Dict(a=model[0], b=model[1]), nnx.Param)
    nnx.replace_by_pure_dict(state, {"a": dense(4, 0), "b": dense(8, -4)})
    return state


BOXED = {"kernel": nn.Partitioned(full(4, 3, 2), (None, None)), "bias": full(0, 2)}
TREES = {
    "network": ((dense(4, 0), dense(8, -4)), [3, 7]),
    "linen": ({"params": {"Dense_0": dense(4, 0), "Dense_1": dense(8, -4)}}, [3, 7]),
    "boxed": ({"Dense_0": BOXED, "Dense_1": dense(8, -4)}, [3, 7]),
    "nnx": (nnx_state(), [3, 7]),
    "pairs": ([(full(4, 3, 2), full(0, 2)), Pair(full(8, 3, 2), full(-4, 2))], [3, 7]),
    "bare layers": ((full(4, 3, 2), dense(8, -4), full(2)), [4, 7, 2]),
    "one layer": (dense(8, -4), [7]),
    "array": (full(-5, 7), [5]),
    "number": (full(-5), [5]),
    "none": ([{"kernel": full(4, 3, 2), "bias": None}, None, full(2, 1)], [4, 2]),
    "empty leaf": ([{"kernel": full(4, 3, 2), "bias": full(0, 0)}, full(0, 0)], [4, 0]),
    "no leaves": ({"layer": None}, []),
}


@pytest.mark.parametrize("name", TREES)
def test_a_layer_is_the_container_of_its_arrays(name):
    gradients, means = TREES[name]
    tx = scale_by_mq(learning_rate=1.0)
    updates, state = tx.update(gradients, tx.init(gradients))
    # rho_0 = 1/2, so v_1 = (alpha + mean) / 2.
    np.testing.assert_allclose(state.v, (1 + np.array(means)) / 2, rtol=1e-6)
    step = 1 / (1 + 1e-6) + 1e-3
    assert_close(updates, jax.tree.map(lambda g: step * g, gradients), **F32)


@pytest.mark.parametrize(
    ("group_fn", "means"),
    [
        (jax.tree_util.keystr, [0, 4, 4, 8]),  # bias, kernel of the one, the other
        (lambda path: path[-1], [2, 6]),  # all biases, all kernels
        (lambda path: "everything", [5]),
    ],
)
def test_group_fn_overrides_the_layers(group_fn, means):
    gradients = (dense(4, 0), dense(8, -4))
    tx = scale_by_mq(1.0, group_fn=group_fn)
    _, state = tx.update(gradients, tx.init(gradients))
    np.testing.assert_allclose(state.v, (1 + np.array(means)) / 2, rtol=1e-6)


def test_rates_of_layers_follow_the_order_of_the_leaves():
    gradients = {"b": dense(1, 1), "a": dense(1, 1)}
    tx = scale_by_mq([1.0, 3.0], eps=1.0, min_step=0.0)
    updates, state = tx.update(gradients, tx.init(gradients))
    np.testing.assert_allclose(updates["a"]["bias"], 1 / 2)
    np.testing.assert_allclose(updates["b"]["bias"], 3 / 4)
    np.testing.assert_allclose(state.v, [1.0, 2.0])


# Statistics.


def test_state_is_one_scalar_per_layer_and_a_counter():
    network = pcjax.mlp([32, 16, 16, 16, 10])
    params = network.init(jax.random.key(0), jnp.zeros((1, 32)))
    state = mq(3e-5).init(params)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == 4 * (4 + 1)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("shape", [(3072, 1024), (1, 1_000_003), (1_000_003,)])
def test_means_of_millions_are_accurate_in_single_precision(
    shape, devices, monkeypatch
):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    gradient = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tx = scale_by_mq(0.0)  # v_1 = mean / 2
    _, state = jax.jit(tx.update)(gradient, tx.init(gradient))
    expected = np.abs(gradient.astype(np.float64)).mean() / 2
    np.testing.assert_allclose(state.v, [expected], **F32)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_gradients_have_single_precision_statistics(dtype):
    sequence = jax.tree.map(lambda leaf: leaf.astype(dtype), gradient_sequence(5))
    updates, v = run(scale_by_mq(0.02), sequence)
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float32), sequence)
    wide_updates, wide_v = run(scale_by_mq(0.02), wide)
    assert v.dtype == jnp.float32
    np.testing.assert_allclose(v, wide_v, **F32)
    assert_close(
        updates, jax.tree.map(lambda leaf: leaf.astype(dtype), wide_updates), rtol=1e-2
    )
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("min_step", [0.0, 1e-3])
def test_updates_of_all_layers_become_equally_large(min_step):
    """On a constant gradient `v -> |g|`, hence `step |g| -> alpha + alpha_min |g|`."""
    gradients = (full(1e-3, 3, 4), full(-1.0, 4, 5), full(30.0, 5, 2))
    tx = scale_by_mq(0.02, decay=0.9, min_step=min_step, eps=1e-9)

    def step(state, _):
        updates, state = tx.update(gradients, state)
        return state, [jnp.mean(jnp.abs(leaf)) for leaf in updates]

    _, sizes = jax.lax.scan(step, tx.init(gradients), length=300)
    first, last = np.array(sizes)[:, 0], np.array(sizes)[:, -1]
    expected = 0.02 + min_step * np.array(SCALES)
    np.testing.assert_allclose(last, expected, rtol=1e-5)
    assert first.max() / first.min() > 1e4


def test_gradients_that_vanish_are_stepped_by_at_most_alpha_over_eps(x64):
    tx = scale_by_mq(0.5, decay=0.0, min_step=0.25, eps=1e-3)
    gradient = jnp.ones(3)
    state = tx.init(gradient)._replace(v=jnp.zeros(1))
    updates, _ = tx.update(gradient, state)
    np.testing.assert_allclose(updates, 500.25)


def test_updates_are_differentiable_in_gradient_and_rate(x64):
    """Twice updated, so that the derivative of `v` enters."""

    def updated(gradient, rate):
        tx = scale_by_mq(rate, min_step=0.1, eps=0.1)
        _, state = tx.update(gradient, tx.init(gradient))
        return tx.update(gradient, state)[0]

    gradient = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
    jax.test_util.check_grads(updated, (gradient, 0.3), order=1, eps=1e-6)


# As an optax transform.


def wrapped():
    """MQ in optax's wrappers; each must leave the trajectory of a few steps alone."""
    labels = ({"kernel": "mq", "bias": "mq"},) * 3
    return {
        "chain": optax.chain(optax.scale(0.5), mq(0.02), optax.identity()),
        "inject": optax.inject_hyperparams(mq)(learning_rate=0.02),
        "finite": optax.apply_if_finite(mq(0.02), max_consecutive_errors=3),
        "masked": optax.masked(mq(0.02), True),
        "multi": optax.multi_transform({"mq": mq(0.02), "none": mq(0.02)}, labels),
    }


@pytest.mark.parametrize("name", wrapped())
def test_wrappers_of_optax(name):
    sequence = gradient_sequence(4)
    halved = (
        jax.tree.map(lambda leaf: leaf / 2, sequence) if name == "chain" else sequence
    )
    expected, _ = run(mq(0.02), halved)
    tx = wrapped()[name]
    params = at(sequence, 0)
    state = tx.init(params)
    for step in range(4):
        updates, state = tx.update(at(sequence, step), state, params)
        assert_close(updates, at(expected, step), **F32)


def test_masked_leaves_do_not_count():
    gradients = (
        {"kernel": full(4, 3, 2), "bias": full(9, 2)},
        dense(8, -4),
        full(7, 2),
    )
    mask = ({"kernel": True, "bias": False}, {"kernel": True, "bias": True}, False)
    tx = optax.masked(mq([1.0, 3.0], eps=1.0, min_step=0.0), mask)
    updates, state = tx.update(gradients, tx.init(gradients))
    np.testing.assert_allclose(updates[0]["kernel"], -4 / 2)
    np.testing.assert_allclose(updates[0]["bias"], 9)
    np.testing.assert_allclose(updates[1]["kernel"], -8 * 3 / 4)
    np.testing.assert_allclose(updates[2], 7)
    np.testing.assert_allclose(state.inner_state[0].v, [(1 + 4) / 2, (3 + 7) / 2])


def test_multi_steps_equals_a_step_on_the_mean_gradient():
    sequence = gradient_sequence(8)
    tx = optax.MultiSteps(mq(0.02), every_k_schedule=4)
    params = at(sequence, 0)
    state, update = tx.init(params), jax.jit(tx.update)
    means = jax.tree.map(
        lambda leaf: leaf.reshape(2, 4, *leaf.shape[1:]).mean(1), sequence
    )
    expected, _ = run(mq(0.02), means)
    for step in range(8):
        updates, state = update(at(sequence, step), state, params)
        if step % 4 == 3:
            assert_close(updates, at(expected, step // 4), rtol=1e-5, atol=1e-7)
        else:
            assert_close(updates, jax.tree.map(jnp.zeros_like, params), rtol=0, atol=0)


def test_non_finite_gradients_leave_the_state_alone_in_apply_if_finite():
    tx = optax.apply_if_finite(mq(0.02), max_consecutive_errors=3)
    state = tx.init(full(1, 3))
    updates, after = tx.update(full(np.nan, 3), state)
    np.testing.assert_array_equal(updates, 0)
    np.testing.assert_array_equal(after.inner_state[0].v, state.inner_state[0].v)


def test_traced_hyper_parameters_under_vmap_equal_a_loop():
    sequence = gradient_sequence(6)
    grid = {
        "learning_rate": np.array([0.01, 0.05, 0.02], np.float32),
        "decay": np.array([0.5, 0.9, 0.0], np.float32),
        "min_step": np.array([0.0, 0.1, 0.01], np.float32),
        "eps": np.array([1e-6, 1e-2, 1.0], np.float32),
    }
    mapped = jax.vmap(lambda hyper: run(mq(**hyper), sequence))(grid)
    for index in range(3):
        hyper = {name: float(values[index]) for name, values in grid.items()}
        assert_close(at(mapped, index), run(mq(**hyper), sequence), **F32)


def test_traced_rates_of_layers():
    sequence = gradient_sequence(2)
    expected = run(mq(RATES.tolist()), sequence)
    assert_close(
        jax.jit(lambda rates: run(mq(rates), sequence))(RATES), expected, **F32
    )
    assert_close(
        jax.jit(lambda *rates: run(mq(rates), sequence))(*RATES), expected, **F32
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rates", LEARNING_RATES)
def test_contract_of_a_transform(rates, dtype):
    """Jit equals eager; dtypes, shapes and structure are kept; compiled once."""
    tx = mq(LEARNING_RATES[rates][0])
    gradients = jax.tree.map(
        lambda leaf: jnp.asarray(leaf[0], dtype), gradient_sequence(1)
    )
    params = jax.tree.map(jnp.ones_like, gradients)
    traces = []

    @jax.jit
    def update(*arguments):
        traces.append(arguments)
        return tx.update(*arguments, unused_extra_argument=1)

    state = jit_state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(gradients, state, params)
        jit_updates, jit_state = update(gradients, jit_state, params)
        assert_close(jit_updates, updates, rtol=1e-6 if dtype == jnp.float32 else 1e-2)
        assert_close(jit_state, state, **F32)
    assert len(traces) == 1
    avals = [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tx.init(params))]
    for after in (state, jit_state):
        assert jax.tree.structure(after) == jax.tree.structure(tx.init(params))
        assert [
            (x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(after)
        ] == avals
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(jit_updates))
    assert jax.tree.structure(jit_updates) == jax.tree.structure(params)
    # A no-op over the per-parameter parts of the state, of which there are none.
    assert_close(optax.tree_utils.tree_map_params(tx, lambda x: 0 * x, state), state)


def test_donating_the_state_spares_the_callers_rates():
    rates = jnp.asarray(RATES, jnp.float32)
    tx = mq(rates)
    gradients = at(gradient_sequence(1), 0)
    state = tx.init(gradients)
    jax.jit(tx.update, donate_argnums=1)(gradients, state)
    assert state[0].v.is_deleted()
    np.testing.assert_allclose(rates, RATES, **F32)


def test_gradients_may_be_sharded_over_any_axis():
    """In a process of its own, as the number of devices is fixed at the start."""
    program = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from pcjax.mq import scale_by_mq
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
values = np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32)
tx = scale_by_mq(0.0)
for spec in (PartitionSpec("x", None), PartitionSpec(None, "x")):
    gradient = jax.device_put(values, NamedSharding(mesh, spec))
    updates, state = jax.jit(tx.update)(gradient, tx.init(gradient))
    np.testing.assert_allclose(state.v, [np.abs(values).mean() / 2], rtol=1e-6)
    assert updates.sharding == gradient.sharding
"""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": ":".join(path for path in sys.path if path),
    }
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


# As an optimizer.


def regression():
    """Inputs, targets, and the least loss that a linear map with bias attains."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(64, 5)).astype(np.float32)
    targets = inputs @ rng.normal(size=(5, 3)) + 2 + 0.5 * rng.normal(size=(64, 3))
    features = np.column_stack([inputs, np.ones(64)])
    residual = targets - features @ np.linalg.lstsq(features, targets)[0]
    return jnp.asarray(inputs), jnp.asarray(targets, jnp.float32), np.mean(residual**2)


def optimizer():
    return mq(optax.exponential_decay(0.02, 100, 0.5), decay=0.99, min_step=0.02)


def mean_squared_error(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


def test_trains_a_linen_model_to_the_least_squares_solution():
    inputs, targets, least = regression()
    model = nn.Sequential([nn.Dense(8), nn.Dense(3)])
    params = model.init(jax.random.key(0), inputs)
    tx = optimizer()

    def loss_fn(params):
        return mean_squared_error(model.apply(params, inputs), targets)

    def step(carry, _):
        params, state = carry
        loss, gradients = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), loss

    (params, state), losses = jax.lax.scan(step, (params, tx.init(params)), length=1000)
    assert isinstance(state[0], ScaleByMQState)
    assert state[0].v.shape == (2,)
    assert losses[0] > 5 * least
    assert least * 0.9999 < losses[-1] < least * 1.001


def test_trains_an_nnx_model_to_the_least_squares_solution():
    inputs, targets, least = regression()
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(5, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs))
    trainer = nnx.Optimizer(model, optimizer(), wrt=nnx.Param)

    @nnx.jit
    def step(model, trainer):
        loss, gradients = nnx.value_and_grad(
            lambda model: mean_squared_error(model(inputs), targets)
        )(model)
        trainer.update(model, gradients)
        return loss

    losses = [step(model, trainer) for _ in range(1000)]
    assert losses[0] > 5 * least
    assert least * 0.9999 < losses[-1] < least * 1.001


# Bad input.


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"learning_rate": -0.1}, r"learning_rate must be >= 0 and finite, got -0\.1"),
        (
            {"learning_rate": [0.1, -0.1]},
            r"learning_rate must be .* got \[0\.1, -0\.1\]",
        ),
        ({"learning_rate": np.nan}, "learning_rate must be .* got nan"),
        ({"learning_rate": np.inf}, "learning_rate must be .* got inf"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1\.0"),
        ({"decay": -0.1}, r"decay must be in \[0, 1\), got -0\.1"),
        ({"decay": jnp.float32(2)}, r"decay must be in \[0, 1\), got 2\.0"),
        ({"min_step": -1e-3}, r"min_step must be >= 0 and finite, got -0\.001"),
        ({"min_step": np.inf}, "min_step must be .* got inf"),
        ({"eps": 0.0}, r"eps must be > 0 and finite, got 0\.0"),
        ({"eps": np.nan}, "eps must be .* got nan"),
    ],
)
def test_refuses_hyper_parameters_out_of_range(hyper, message):
    with pytest.raises(ValueError, match="scale_by_mq: " + message):
        mq(**{"learning_rate": 0.1, **hyper})


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"learning_rate": "0.1"}, "learning_rate must be a number, got '0.1'"),
        ({"learning_rate": None}, "learning_rate must be a number, got None"),
        ({"decay": lambda count: 0.9}, "decay must be a number, got <function"),
        ({"eps": True}, "eps must be a number, got True"),
    ],
)
def test_refuses_hyper_parameters_that_are_no_numbers(hyper, message):
    with pytest.raises(TypeError, match="scale_by_mq: " + message):
        mq(**{"learning_rate": 0.1, **hyper})


@pytest.mark.parametrize("name", ["decay", "min_step", "eps"])
@pytest.mark.parametrize("traced", [False, True])
def test_refuses_hyper_parameters_per_layer_other_than_the_rate(name, traced):
    def build(values):
        mq(0.1, **{name: values})

    with pytest.raises(ValueError, match=f"{name} must be a single number, got"):
        (jax.jit(build) if traced else build)(jnp.full(2, 0.5))


@pytest.mark.parametrize("rates", [[0.1, 0.2], lambda count: jnp.full(2, 0.1)])
def test_refuses_a_wrong_number_of_rates(rates):
    params = at(gradient_sequence(1), 0)
    message = (
        r"scale_by_mq: learning_rate has shape \(2,\); expected a single number or "
        r"shape \(3,\), one value for each of the layers \[0\], \[1\], \[2\]\."
    )
    with pytest.raises(ValueError, match=message):
        mq(rates).init(params)


def test_refuses_gradients_of_other_layers():
    tx = mq(0.1)
    state = tx.init({"params": {"Dense_0": dense(1, 0)}})
    message = (
        r"scale_by_mq: gradients of 2 layers \['params'\]\['Dense_0'\], "
        r"\['params'\]\['Dense_1'\], but .* init for 1 layers"
    )
    with pytest.raises(ValueError, match=message):
        tx.update({"params": {"Dense_0": dense(1, 0), "Dense_1": dense(1, 0)}}, state)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, jnp.bool_])
def test_refuses_what_are_no_real_floats(dtype):
    tx = mq(0.1)
    leaf = jnp.ones(2, dtype)
    message = rf"scale_by_mq: the leaf at '\[0\]\['kernel'\]' has dtype {leaf.dtype}"
    with pytest.raises(TypeError, match=message):
        tx.init([{"kernel": leaf}])
    state = tx.init([{"kernel": full(1, 2)}])
    with pytest.raises(TypeError, match=message):
        tx.update([{"kernel": leaf}], state)
