"""MQ against its equations, as an optax transform, and as an optimizer."""

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
from pcjax.optimizers.mq import ScaleByMQState, mq, scale_by_mq
from tests.reference.mq import MQ
from tests.tiers import thorough

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
    """An entry of every array; by NumPy, which compiles nothing, where it can be."""

    def entry(leaf):
        return (leaf if isinstance(leaf, jax.core.Tracer) else np.asarray(leaf))[step]

    return jax.tree.map(entry, tree)


def scan(tx, sequence):
    """The updates and the states after each step, stacked."""
    params = at(sequence, 0)

    def step(state, gradients):
        updates, state = tx.update(gradients, state, params)
        return state, (updates, state)

    return jax.lax.scan(step, tx.init(params), sequence)[1]


def run(tx, sequence):
    return jax.jit(lambda sequence: scan(tx, sequence))(sequence)


def oracle_run(alpha, sequence, **hyper):
    """The updates and `v` after each step by the NumPy transcription in float64."""
    oracle = MQ(alpha, len(sequence), **hyper)
    for step in range(len(sequence[0]["bias"])):
        gradients = jax.tree.map(lambda leaf: leaf.astype(float), at(sequence, step))
        yield tuple(oracle.update(gradients)), np.array(oracle.v)


def assert_close(actual, expected, **tolerance):
    """Trees of equal structure and dtypes have equal leaves."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


# Each pair: what the library is given, and alpha(b, layer) for the oracle.
LEARNING_RATES = {
    "number": (0.02, lambda b, layer: 0.02),
    "schedule": (
        optax.exponential_decay(1 / 64, 4, 0.5, staircase=True),
        lambda b, layer: 0.5 ** (6 + b // 4),
    ),
    "layers": (RATES.tolist(), lambda b, layer: RATES[layer]),
    "schedule of layers": (
        lambda count: jnp.asarray(RATES) / (1 + count),
        lambda b, layer: RATES[layer] / (1 + b),
    ),
}


@pytest.mark.parametrize(
    ("rates", "decay", "dtype"),
    [
        *((rates, 0.8, "float64") for rates in LEARNING_RATES),
        ("layers", 0.8, "float32"),
        *thorough([("number", 0.9999, "float64"), ("number", 0.0, "float64")]),
    ],
)
def test_trajectory_is_that_of_the_equations(rates, decay, dtype, request):
    if dtype == "float64":
        request.getfixturevalue("x64")
    tolerance = {"rtol": 1e-12} if dtype == "float64" else F32
    learning_rate, alpha = LEARNING_RATES[rates]
    sequence = gradient_sequence(20, dtype)

    tx = mq(learning_rate, decay=decay, min_step=0.03, eps=1e-3)
    updates, (states, _) = run(tx, sequence)

    np.testing.assert_array_equal(states.count, np.arange(1, 21))
    assert states.v.dtype == dtype
    oracle = oracle_run(alpha, sequence, rho=decay, alpha_min=0.03, r=1e-3)
    for step, (expected, v) in enumerate(oracle):
        assert_close(at(updates, step), expected, **tolerance)
        np.testing.assert_allclose(states.v[step], v, **tolerance)


def test_scale_by_mq_keeps_the_sign_of_the_gradient():
    gradient = jnp.array([3.0, -1.0])
    updates, _ = scale_by_mq(0.5, eps=0.5, min_step=1.0).update(
        gradient, scale_by_mq(0.5).init(gradient)
    )
    np.testing.assert_allclose(updates, [4.5, -1.5])


# Which leaves belong together.


class Pair(NamedTuple):
    weights: Any
    offset: Any


def full(value, *shape):
    return jnp.full(shape, value, jnp.float32)


def dense(weight, bias):
    """Six weights and two biases: the mean magnitude is .75 weight + .25 bias."""
    return {"kernel": full(weight, 3, 2), "bias": full(bias, 2)}


class TwoLinear(nnx.Module):
    def __init__(self, inputs, hidden, outputs):
        self.first = nnx.Linear(inputs, hidden, rngs=nnx.Rngs(0))
        self.second = nnx.Linear(hidden, outputs, rngs=nnx.Rngs(1))

    def __call__(self, inputs):
        return self.second(self.first(inputs))


def nnx_state():
    """The parameters of an nnx model, with other values."""
    state = nnx.state(TwoLinear(3, 2, 3), nnx.Param)
    values = {"kernel": (4.0, 8.0), "bias": (0.0, -4.0)}
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full_like(
            leaf, values[path[1].key][path[0].key == "second"]
        ),
        state,
    )


BOXED = {"kernel": nn.Partitioned(full(4, 3, 2), (None, None)), "bias": full(0, 2)}
TREES = {
    "network": ((dense(4, 0), dense(8, -4)), [3, 7]),
    "linen": ({"params": {"Dense_0": dense(4, 0), "Dense_1": dense(8, -4)}}, [3, 7]),
    "boxed": ({"Dense_0": BOXED, "Dense_1": dense(8, -4)}, [3, 7]),
    "nnx": (nnx_state(), [3, 20 / 3]),
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
    inputs = jax.ShapeDtypeStruct((1, 32), jnp.float32)
    state = mq(3e-5).init(jax.eval_shape(network.init, jax.random.key(0), inputs))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == 4 * (4 + 1)


@pytest.mark.parametrize(
    ("shape", "devices"),
    [
        ((3072, 1024), 1),
        ((1_000_003,), 1),
        ((3072, 1024), 2),
        *thorough([((1, 1_000_003), 1), ((1, 1_000_003), 2), ((1_000_003,), 2)]),
    ],
)
def test_means_of_millions_are_accurate_in_single_precision(
    shape, devices, monkeypatch
):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    gradient = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tx = scale_by_mq(0.0)  # v_1 = mean / 2
    _, state = jax.jit(tx.update)(gradient, tx.init(gradient))
    expected = np.abs(gradient.astype(np.float64)).mean() / 2
    np.testing.assert_allclose(state.v, [expected], **F32)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, *thorough([jnp.float16])])
def test_half_precision_gradients_have_single_precision_statistics(dtype):
    sequence = jax.tree.map(lambda leaf: leaf.astype(dtype), gradient_sequence(5))
    updates, (states, _) = run(mq(0.02), sequence)
    assert states.v.dtype == jnp.float32
    for step, (expected, v) in enumerate(oracle_run(lambda b, layer: 0.02, sequence)):
        np.testing.assert_allclose(states.v[step], v, **F32)
        # Rounded once: a wrong intermediate precision would round twice.
        rounded = jax.tree.map(lambda leaf: leaf.astype(dtype), expected)
        assert_close(at(updates, step), rounded, rtol=float(jnp.finfo(dtype).eps))
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
    updates, _ = jax.jit(tx.update)(gradient, state)
    np.testing.assert_allclose(updates, 500.25)


def test_updates_are_differentiable_in_gradient_and_rate(x64):
    """Twice updated, so that the derivative of `v` enters."""

    @jax.jit
    def updated(gradient, rate):
        tx = scale_by_mq(rate, min_step=0.1, eps=0.1)
        _, state = tx.update(gradient, tx.init(gradient))
        return tx.update(gradient, state)[0]

    gradient = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
    jax.test_util.check_grads(updated, (gradient, 0.3), order=1, modes=["rev"])


# As an optax transform.


LABELS = ({"kernel": "mq", "bias": "mq"},) * 3
WRAPPED = {
    "chain": optax.chain(optax.identity(), mq(0.02), optax.scale(1.0)),
    "inject": optax.inject_hyperparams(mq)(learning_rate=0.02),
    "finite": optax.apply_if_finite(mq(0.02), max_consecutive_errors=3),
    "masked": optax.masked(mq(0.02), True),
    "multi": optax.multi_transform({"mq": mq(0.02), "none": mq([0.1, 0.2])}, LABELS),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_of_optax_keep_the_trajectory(name):
    sequence = gradient_sequence(4)
    updates, _ = run(WRAPPED[name], sequence)
    for step, (expected, _) in enumerate(oracle_run(lambda b, layer: 0.02, sequence)):
        assert_close(at(updates, step), expected, **F32)


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
    updates, _ = run(optax.MultiSteps(mq(0.02), every_k_schedule=4), sequence)
    means = jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]).mean(1), sequence)
    expected = [update for update, _ in oracle_run(lambda b, layer: 0.02, means)]
    for step in range(8):
        if step % 4 == 3:
            # The accumulated mean is rounded on the scale of its largest entries.
            sizes = jax.tree.map(lambda x: np.abs(x).max(), expected[step // 4])
            one, other = (
                jax.tree.map(np.divide, tree, sizes)
                for tree in (at(updates, step), expected[step // 4])
            )
            assert_close(one, other, rtol=0, atol=1e-6)
        else:
            assert all(not np.any(leaf[step]) for leaf in jax.tree.leaves(updates))


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
    mapped, _ = jax.jit(jax.vmap(lambda hyper: scan(mq(**hyper), sequence)))(grid)
    for index in range(3):
        rate, rho, alpha_min, r = (float(values[index]) for values in grid.values())
        oracle = oracle_run(
            lambda b, layer, rate=rate: rate,
            sequence,
            rho=rho,
            alpha_min=alpha_min,
            r=r,
        )
        for step, (expected, _) in enumerate(oracle):
            assert_close(at(at(mapped, index), step), expected, **F32)


def test_traced_rates_of_layers():
    sequence = gradient_sequence(2)
    (expected, _), _ = oracle_run(lambda b, layer: RATES[layer], sequence)

    @jax.jit
    def both(array, *numbers):
        return [scan(mq(rates), sequence) for rates in (array, numbers)]

    for traced in both(RATES, *RATES):
        assert_close(at(traced[0], 0), expected, **F32)


@pytest.mark.parametrize(
    ("rates", "dtype"),
    [
        ("number", jnp.bfloat16),
        ("layers", jnp.float32),
        ("schedule of layers", jnp.float32),
    ],
)
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


# As an optimizer.


def regression():
    """Inputs, targets, and the least loss that a linear map with bias attains."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(64, 5)).astype(np.float32)
    targets = inputs @ rng.normal(size=(5, 3)) + 2 + 0.5 * rng.normal(size=(64, 3))
    features = np.column_stack([inputs, np.ones(64)])
    residual = targets - features @ np.linalg.lstsq(features, targets)[0]
    return jnp.asarray(inputs), jnp.asarray(targets, jnp.float32), np.mean(residual**2)


def train(apply, params, num_steps=1000):
    """Backprop and MQ, nothing else; returns the losses and the least of them."""
    inputs, targets, least = regression()
    tx = mq(optax.exponential_decay(0.02, 100, 0.5), decay=0.99, min_step=0.02)

    def loss_fn(params):
        return jnp.mean((apply(params, inputs) - targets) ** 2)

    def step(carry, _):
        params, state = carry
        loss, gradients = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), loss

    carry = (params, tx.init(params))
    (_, state), losses = jax.lax.scan(step, carry, length=num_steps)
    assert isinstance(state[0], ScaleByMQState)
    assert state[0].v.shape == (2,)
    return losses, least


def test_trains_a_linen_model_to_the_least_squares_solution():
    model = nn.Sequential([nn.Dense(8), nn.Dense(3)])
    params = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 5)))
    losses, least = train(model.apply, params)
    assert losses[0] > 5 * least
    assert least * 0.9999 < losses[-1] < least * 1.001


def test_trains_an_nnx_model_to_the_least_squares_solution():
    graph, params = nnx.split(TwoLinear(5, 8, 3), nnx.Param)
    losses, least = train(lambda params, x: nnx.merge(graph, params)(x), params)
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
        r"shape \(3,\), one value for each of the layers 0, 1, 2\."
    )
    with pytest.raises(ValueError, match=message):
        mq(rates).init(params)


def test_refuses_gradients_of_other_layers():
    tx = mq(0.1)
    state = tx.init({"params": {"Dense_0": dense(1, 0)}})
    message = (
        "scale_by_mq: gradients of 2 layers params/Dense_0, params/Dense_1, but "
        ".* init for 1 layers"
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


# Too few entries or not by the eight to add side by side, rows long enough for sums
# of their own, and rows too short.
ADDED_UP = [(5, 7), (0, 4), (127, 257), (1, 2**15), (2048, 8), (1001, 24)]
OTHERS = [(40, 256), (2**14, 1), (2**15,), (1024, 96), (3, 3, 64, 64)]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, jnp.float32) for shape in ADDED_UP),
        ((1001, 24), jnp.bfloat16),
        *thorough((shape, jnp.float32) for shape in OTHERS),
        *thorough((s, jnp.bfloat16) for s in [*ADDED_UP[:-1], *OTHERS]),
    ],
)
def test_mean_magnitude_of_any_shape(shape, dtype):
    values = np.random.default_rng(3).normal(size=shape)
    gradients = {"layer": {"kernel": jnp.asarray(values, dtype)}}
    tx = scale_by_mq(1e-3, decay=0.0)  # v becomes the mean magnitude itself
    _, state = jax.jit(tx.update)(gradients, tx.init(gradients))
    found = np.asarray(gradients["layer"]["kernel"], np.float64)
    expected = np.abs(found).mean() if found.size else 0.0
    np.testing.assert_allclose(state.v, [expected], rtol=1e-6)
