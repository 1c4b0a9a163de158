"""Where MQ starts, against a transcription; and hyper-parameters that optax injects."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import optax
import pytest

import pcjax
from pcjax.numerics.reductions import sum_magnitudes
from pcjax.optimizers import first_gradient
from pcjax.optimizers.mq import mq, scale_by_mq
from tests.reference.mq import MQ, mean_magnitude
from tests.test_mq import at, full, gradient_sequence, run
from tests.tiers import thorough

RATES = [0.01, 0.05, 0.02]


def late_gradients(num_steps=12):
    """Gradients of three layers, of which the first vanishes in the first 4 steps."""
    sequence = gradient_sequence(num_steps, np.float64)
    vanishing = jax.tree.map(np.copy, sequence[0])
    for leaf in vanishing.values():
        leaf[:4] = 0
    return (vanishing, *sequence[1:])


@pytest.mark.parametrize("decay", [0.8, 0.9999])
def test_a_start_at_the_first_gradient(decay, x64):
    sequence = late_gradients()
    tx = mq(RATES, decay, min_step=0.03, eps=1e-3, start=first_gradient)
    updates, (states, _) = run(tx, sequence)
    for layer, rate in enumerate(RATES):
        gradients = [at(sequence[layer], step) for step in range(12)]
        magnitudes = np.array([mean_magnitude(g) for g in gradients])
        v = 0.0
        for b, gradient in enumerate(gradients):
            v = v or magnitudes[b]
            step = rate / (v + 1e-3) + 0.03
            for name, leaf in gradient.items():
                np.testing.assert_allclose(
                    updates[layer][name][b], -step * leaf, rtol=1e-12
                )
            v += max(1 - decay, 1 / (b + 1)) * (magnitudes[b] - v)
            np.testing.assert_allclose(states.v[b, layer], v, rtol=1e-12)
        if decay == 0.9999 and layer:  # then v is the mean of what has been seen
            np.testing.assert_allclose(states.v[:, layer], running_mean(magnitudes))


def running_mean(values):
    return np.cumsum(values) / np.arange(1, len(values) + 1)


def test_the_first_update_is_as_large_as_the_rate_says_whatever_the_gradient():
    gradients = (full(1e-3, 3, 4), full(-1.0, 4, 5), full(300.0, 5, 2))
    tx = scale_by_mq(1e-5, min_step=0.0, eps=1e-12, start=first_gradient)
    updates, _ = jax.jit(tx.update)(gradients, tx.init(gradients))
    sizes = [float(np.mean(np.abs(leaf))) for leaf in updates]
    np.testing.assert_allclose(sizes, 1e-5, rtol=1e-6)
    # The paper's: the gradient itself.
    tx = scale_by_mq(1e-5, min_step=0.0, eps=1e-12)
    updates, _ = jax.jit(tx.update)(gradients, tx.init(gradients))
    np.testing.assert_allclose(updates[2], 300, rtol=1e-6)


@pytest.mark.parametrize(
    ("start", "values"),
    [
        (0.3, [0.3] * 3),
        ([0.3, 2.0, 0.1], [0.3, 2.0, 0.1]),
        ({"0": 0.3, "2": 0.1, "1": 2.0}, [0.3, 2.0, 0.1]),
    ],
)
def test_a_given_start_takes_the_place_of_alpha(start, values, x64):
    sequence = gradient_sequence(6, np.float64)
    oracle = MQ(lambda b, layer: 0.02, 3, rho=0.8)
    oracle.v = list(values)
    updates, (states, _) = run(mq(0.02, 0.8, start=start), sequence)
    for step in range(6):
        expected = oracle.update(at(sequence, step))
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-12),
            at(updates, step),
            tuple(expected),
        )
        np.testing.assert_allclose(states.v[step], oracle.v, rtol=1e-12)


def test_a_start_of_the_users_own_sees_rates_and_magnitudes():
    """The larger of the two, for instance."""
    gradients = (full(0.25, 3), full(4.0, 2))
    tx = scale_by_mq([1.0, 2.0], min_step=0.0, eps=1e-9, start=jnp.maximum)
    updates, state = tx.update(gradients, tx.init(gradients))
    np.testing.assert_allclose(updates[0], 0.25 / 1.0)
    np.testing.assert_allclose(updates[1], 4 * 2 / 4.0)
    np.testing.assert_allclose(state.v, [0.25, 4.0])


def test_the_start_is_traced_as_other_numbers_are():
    sequence = gradient_sequence(3)
    mapped = jax.vmap(lambda v: run(mq(0.02, start=v), sequence))(np.array([0.1, 3.0]))
    for index, v in enumerate((0.1, 3.0)):
        updates, (states, _) = at(mapped, index)
        oracle = MQ(lambda b, layer: 0.02, 3)
        oracle.v = [v] * 3
        for step in range(3):
            expected = oracle.update(jax.tree.map(np.float64, at(sequence, step)))
            jax.tree.map(
                partial(np.testing.assert_allclose, rtol=1e-6),
                at(updates, step),
                tuple(expected),
            )
            np.testing.assert_allclose(states.v[step], oracle.v, rtol=1e-6)


@pytest.mark.parametrize("start", [0.3, first_gradient])
def test_a_start_keeps_the_state_as_it_is(start):
    gradients = at(gradient_sequence(1), 0)
    tx = mq(0.02, start=start)
    before = tx.init(gradients)
    updates, after = jax.jit(tx.update)(gradients, before)
    for one, other in ((before, after), (updates, gradients)):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        assert jax.tree.map(jnp.result_type, one) == jax.tree.map(
            jnp.result_type, other
        )
    eager = tx.update(gradients, before)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-6), (updates, after), eager
    )


@pytest.mark.parametrize(
    ("start", "kind", "message"),
    [
        (0.0, ValueError, r"start must be > 0 and finite, got 0\.0"),
        ([0.1, -1.0, 1.0], ValueError, "start must be > 0 and finite"),
        ({"0": -1.0}, ValueError, r"start of the layer 0 must be .* got -1\.0"),
        ("alpha", TypeError, "start must be a number, got 'alpha'"),
        ([0.1, 0.2], ValueError, r"start has shape \(2,\); expected .* \(3,\)"),
        ({"0": 1.0, "3": 1.0}, ValueError, "start names the layers"),
        (lambda rate, size: rate[:2], ValueError, r"start has shape \(2,\)"),
    ],
)
def test_refuses_a_start(start, kind, message):
    gradients = at(gradient_sequence(1), 0)

    def step():
        tx = mq(0.1, start=start)
        tx.update(gradients, tx.init(gradients))

    with pytest.raises(kind, match="scale_by_mq: " + message):
        step()


# Hyper-parameters in half precision.


def _casts_arrays():
    """Whether optax stores arrays in the dtype of the parameters, as before 0.2.8."""
    tx = optax.inject_hyperparams(optax.sgd)(jnp.float32(0.1))
    state = tx.init(jnp.ones(2, jnp.bfloat16))
    return state.hyperparams["learning_rate"].dtype == jnp.bfloat16


# What the refusal advises, where without it all numbers are of half precision.
CASTS = _casts_arrays()
KEEP = {"hyperparam_dtype": jnp.float32} if CASTS else {}


def injected_v(params, **hyper):
    """How far v moves from .5 to the magnitude 1 in an injected step, late on."""
    tx = optax.inject_hyperparams(mq, **KEEP)(**hyper)
    found = []
    for init, update in ((tx.init, tx.update), map(jax.jit, (tx.init, tx.update))):
        state = init(params)
        inner, *rest = state.inner_state
        inner = inner._replace(count=jnp.int32(50_000), v=jnp.full_like(inner.v, 0.5))
        state = state._replace(inner_state=(inner, *rest))
        updates, state = update(params, state, params)
        found.append(
            (float(state.inner_state[0].v[0]), float(jax.tree.leaves(updates)[0][0]))
        )
    np.testing.assert_allclose(*found, rtol=1e-5)
    return found[0]


@pytest.mark.parametrize(
    ("dtype", "decay"),
    [
        (jnp.bfloat16, None),
        (jnp.bfloat16, 0.999),
        (jnp.float32, None),
        *thorough([(jnp.float16, None), (jnp.float16, 0.999), (jnp.float32, 0.999)]),
    ],
)
def test_injected_numbers_keep_their_value(dtype, decay):
    params = {"layer": jnp.ones(4, dtype)}
    options = {} if decay is None else {"decay": decay}
    v, update = injected_v(params, learning_rate=3e-3, **options)
    moved = (v - 0.5) / 0.5
    np.testing.assert_allclose(moved, 1 - (decay or 0.9999), rtol=1e-3)
    np.testing.assert_allclose(
        update, -(3e-3 / 0.5 + 1e-3), rtol=max(2e-6, float(jnp.finfo(dtype).eps))
    )


def test_injected_schedules_and_partial_factories_keep_their_value():
    params = {"layer": jnp.ones(4, jnp.bfloat16)}
    schedule = lambda count: 1e-3 / (1 + count)  # noqa: E731
    tx = optax.inject_hyperparams(partial(mq, decay=0.999), **KEEP)(schedule)
    state = tx.init(params)
    hyper = state.hyperparams
    assert hyper["learning_rate"].dtype == hyper["decay"].dtype == jnp.float32
    assert float(hyper["decay"]) == np.float32(0.999)
    _, state = tx.update(params, state, params)
    _, state = tx.update(params, state, params)
    assert float(state.hyperparams["learning_rate"]) == np.float32(5e-4)


def test_injected_functions_are_named_in_static_args():
    params = {"layer": jnp.ones(4, jnp.bfloat16)}
    make = optax.inject_hyperparams(mq, static_args=("start",), **KEEP)
    tx = make(3e-3, start=first_gradient)
    updates, state = tx.update(params, tx.init(params), params)
    assert float(state.inner_state[0].v[0]) == 1
    np.testing.assert_allclose(float(updates["layer"][0]), -4e-3, rtol=1e-2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["learning_rate", "decay", "min_step", "eps", "start"])
@pytest.mark.parametrize("traced", [False, True])
def test_refuses_numbers_of_half_precision(name, dtype, traced):
    def build(value):
        mq(**{"learning_rate": 0.1, name: value})

    message = rf"scale_by_mq: {name} is of dtype {jnp.dtype(dtype)}, .*hyperparam_dtype"
    with pytest.raises(TypeError, match=message):
        (jax.jit(build) if traced else build)(dtype(0.5))
    if name in ("learning_rate", "start"):
        with pytest.raises(TypeError, match="of the layer 0 is of dtype"):
            mq(**{"learning_rate": 0.1, name: {"0": dtype(0.5)}})


def test_refuses_schedules_and_overwritten_numbers_of_half_precision():
    params = {"layer": jnp.ones(4, jnp.bfloat16)}
    with pytest.raises(TypeError, match="learning_rate is of dtype bfloat16"):
        mq(lambda count: jnp.bfloat16(0.1)).init(params)
    state = optax.inject_hyperparams(mq, **KEEP)(1e-3).init(params)
    tx = optax.inject_hyperparams(mq)(1e-3)
    state.hyperparams["decay"] = 0.999  # optax takes the dtype of the parameters
    message = r"is of dtype bfloat16, .*hyperparam_dtype"
    with pytest.raises(TypeError, match=message):
        jax.jit(tx.update)(params, state, params)
    if CASTS:
        with pytest.raises(TypeError, match=message):
            tx.init(params)
        tx = optax.inject_hyperparams(mq, **KEEP)(1e-3)
    state.hyperparams["decay"] = jnp.float32(0.999)
    _, state = jax.jit(tx.update)(params, state, params)
    assert float(state.hyperparams["decay"]) == np.float32(0.999)


def test_signatures_are_those_of_the_functions():
    for factory in (pcjax.mq, pcjax.scale_by_mq):
        names = inspect.signature(factory).parameters
        assert list(names)[:5] == [
            *("learning_rate", "decay", "min_step", "eps"),
            "group_fn",
        ]
        assert names["decay"].default == 0.9999


# The derivative of the sum of magnitudes.


@pytest.mark.parametrize(
    "shape", [(7, 3), (256, 64), (2**15,), *thorough([pytest.param((3, 3, 64, 64))])]
)
def test_the_derivative_of_a_sum_of_magnitudes_is_that_of_abs(shape, x64):
    array = np.random.default_rng(0).normal(size=shape)
    array.flat[::7] = 0
    signs = np.where(array >= 0, 1.0, -1.0)  # as of jnp.abs, at 0 too

    def total(x):
        return sum_magnitudes(x, jnp.float64)

    @jax.jit
    def derivatives(array, tangent):
        found = jax.value_and_grad(total)(array)
        _, moved = jax.jvp(total, (array,), (tangent,))
        return *found, moved, jax.vmap(jax.grad(total))(jnp.stack([array, -array]))

    tangent = np.random.default_rng(1).normal(size=shape)
    value, gradient, moved, both = derivatives(array, tangent)
    np.testing.assert_allclose(value, np.abs(array).sum(), rtol=1e-12)
    np.testing.assert_array_equal(gradient, signs)
    np.testing.assert_allclose(moved, np.vdot(signs, tangent), rtol=1e-9)
    np.testing.assert_array_equal(both[0], signs)
    np.testing.assert_array_equal(both[1], np.where(array > 0, -1.0, 1.0))


@pytest.mark.parametrize("start", [None, first_gradient])
def test_hypergradients_through_two_steps_of_a_large_layer(start, x64):
    gradient = np.random.default_rng(0).normal(size=(256, 64))

    @jax.jit
    def updated(scale, rate):
        tx = scale_by_mq(rate, min_step=0.1, eps=0.1, start=start)
        _, state = tx.update(scale * gradient, tx.init(gradient))
        return jnp.sum(tx.update(gradient, state)[0] ** 2)

    jax.test_util.check_grads(updated, (1.3, 0.3), order=1, modes=["rev", "fwd"])
