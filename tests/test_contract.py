"""What every learning method promises, whatever it computes.

A method is seen as a training iteration `update(params, opt_state, inputs, targets)`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from pcjax import training
from tests import problems
from tests.tiers import thorough

RATE = 0.1  # step size of the weights
SOFTMAX = {"output": pcjax.softmax}
SOFT = {**SOFTMAX, "clamp": pcjax.soft_clamp(0.1)}


def _predictive(method, **options):
    return lambda network, eps, tx: training.make_update(
        pcjax.value_and_grad(network, method(3, eps), **options), tx
    )


def _backprop(network, eps, tx):
    del eps
    return training.make_update(pcjax.backprop.value_and_grad(network, **SOFTMAX), tx)


def _adam(num_steps, eps):
    return pcjax.sequential(num_steps, optimizer=optax.adam(eps))


def _scheduled(num_steps, eps):
    return pcjax.simultaneous(num_steps, lambda t: eps / (1 + t))


def _incremental(method):
    return lambda network, eps, tx: pcjax.incremental(
        network, method(3, eps), tx, **SOFT
    )


# (network, step size of the activities, optimizer of the weights) -> update
METHODS: dict[str, Callable[..., Any]] = {
    "backprop": _backprop,
    "simultaneous": _predictive(pcjax.simultaneous, **SOFTMAX, gamma=2.0, decay=0.1),
    "sequential": _predictive(
        pcjax.sequential, **SOFT, learning_clamp=pcjax.full_clamp
    ),
    "scheduled": _predictive(_scheduled, **SOFT),
    "adam": _predictive(_adam, **SOFT),
    "error_based": _predictive(pcjax.error_based, **SOFT),
    "incremental_simultaneous": _incremental(pcjax.simultaneous),
    "incremental_sequential": _incremental(pcjax.sequential),
}
SHARED_WEIGHTS = [name for name in METHODS if not name.startswith("incremental")]


def first(*names, of=METHODS):
    """The names, and those of the other methods for the long run."""
    return [*names, *thorough(name for name in of if name not in names)]


class Setup(NamedTuple):
    """A method with a small problem in double precision, compiled once."""

    case: problems.Case
    tx: optax.GradientTransformation
    state: Any  # of `tx`
    update: Callable[..., Any]
    compiled: Callable[..., Any]
    traces: list[None]  # one entry for every compilation


@functools.cache
def setup(name):
    case = dense_case()
    tx = optax.sgd(RATE, momentum=0.9)
    update = METHODS[name](case.network, 0.1, tx)
    traces = []

    def traced(*arguments):
        traces.append(None)
        return update(*arguments)

    state = tx.init(case.params)
    return Setup(case, tx, state, update, jax.jit(traced), traces)


def dense_case(seed=0):
    return problems.dense_case((3, 5, 4, 2), batch=4, dtype=jnp.float64, seed=seed)


def assert_close(actual, expected, tolerance=1e-11):
    problems.assert_trees_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "name", first("backprop", "simultaneous", "adam", "incremental_sequential")
)
def test_compiled_equals_eager_without_recompilation(x64, name):
    case, _, state, update, compiled, traces = setup(name)
    params = case.params
    expected = update(params, state, case.inputs, case.targets)
    params, state, _ = actual = compiled(params, state, case.inputs, case.targets)
    assert_close(actual, expected)
    # Its own results are arguments of the same types again.
    before = len(traces)
    compiled(params, state, -np.asarray(case.inputs), case.targets)
    assert len(traces) == before


@pytest.mark.parametrize(
    "name", first("simultaneous", "adam", "incremental_sequential")
)
def test_vmap_over_seeds_and_step_sizes_equals_a_loop(x64, name):
    tx = setup(name).tx
    cases = [dense_case(seed) for seed in (1, 2)]
    step_sizes = jnp.array([0.05, 0.3])

    def run(params, eps):
        update = METHODS[name](cases[0].network, eps, tx)
        return update(params, tx.init(params), cases[0].inputs, cases[0].targets)

    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(c.params for c in cases))
    mapped = jax.jit(jax.vmap(run))(stacked, step_sizes)
    run = jax.jit(run)
    results = [run(c.params, eps) for c, eps in zip(cases, step_sizes, strict=True)]
    for index, expected in enumerate(results):
        assert_close(
            jax.tree.map(lambda x, i=index: np.asarray(x)[i], mapped), expected
        )
    # The step size does something, except to backprop, which has none.
    kernels = [run(cases[0].params, eps)[0][0]["kernel"] for eps in step_sizes]
    assert np.array_equal(*kernels) == (name == "backprop")


ROUGH = [
    ("backprop", jnp.bfloat16),
    ("simultaneous", jnp.bfloat16),
    ("adam", jnp.bfloat16),
    ("incremental_sequential", jnp.bfloat16),
]
OTHERS = [
    (name, dtype)
    for name in METHODS
    for dtype in (jnp.float32, jnp.bfloat16)
    if (name, dtype) not in ROUGH
]


@pytest.mark.parametrize(("name", "dtype"), [*ROUGH, *thorough(OTHERS)])
def test_dtype_is_kept(x64, name, dtype):
    case, _, state, update, compiled, _ = setup(name)
    arguments = (case.params, state, case.inputs, case.targets)
    exact = compiled(*arguments)
    assert {leaf.dtype for leaf in jax.tree.leaves(exact)} == {jnp.dtype("float64")}
    rough = jax.jit(update)(
        *jax.tree.map(lambda x: np.asarray(x).astype(dtype), arguments)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(rough[0])} == {jnp.dtype(dtype)}
    # Nothing but rounding separates the precisions.
    for have, want in zip(jax.tree.leaves(rough), jax.tree.leaves(exact), strict=True):
        # Energies and losses, which are sums, have float32 at least.
        assert have.dtype in (dtype, jnp.float32)
        scale = float(jnp.finfo(dtype).eps) * max(1, np.abs(want).max())
        np.testing.assert_allclose(
            np.asarray(have, np.float64), want, rtol=0, atol=8 * scale
        )


def _gradients(name, case):
    """The mean gradient and the per-example quantities of a batch."""
    _, _, state, _, compiled, _ = setup(name)
    # The first step with momentum goes along the gradient.
    params, _, (_, info) = compiled(case.params, state, case.inputs, case.targets)
    grads = jax.tree.map(
        lambda old, new: (np.asarray(old) - np.asarray(new)) / RATE, case.params, params
    )
    return grads, info


@pytest.mark.parametrize("name", first("simultaneous", "sequential", of=SHARED_WEIGHTS))
def test_an_example_does_not_depend_on_its_batch(x64, name):
    case = setup(name).case

    def part(index):
        return case._replace(
            inputs=np.asarray(case.inputs)[index],
            targets=np.asarray(case.targets)[index],
        )

    grads, info = _gradients(name, case)
    alone = [_gradients(name, part(slice(i, i + 1))) for i in range(4)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 4, *(g for g, _ in alone))
    assert_close(grads, mean)
    assert_close(
        info, jax.tree.map(lambda *x: np.concatenate(x), *(i for _, i in alone))
    )
    order = np.array([2, 0, 3, 1])
    permuted_grads, permuted = _gradients(name, part(order))
    assert_close(permuted_grads, grads)
    assert_close(permuted, jax.tree.map(lambda x: np.asarray(x)[order], info))


@pytest.mark.parametrize("name", METHODS)
def test_a_non_finite_example_is_reported_and_stays_alone(x64, name):
    case = setup(name).case
    broken = case._replace(inputs=case.inputs.at[1, 0].set(jnp.nan))
    grads, info = _gradients(name, broken)
    bad = np.array([False, True, False, False])
    for values in (info.loss, info.initial_energy):
        np.testing.assert_array_equal(np.isnan(values), bad)
    if name in SHARED_WEIGHTS:
        np.testing.assert_array_equal(np.isnan(info.energy), bad)
    else:
        assert np.all(np.isnan(info.energy))  # the weights are everyone's
    assert all(np.isnan(leaf).any() for leaf in jax.tree.leaves(grads[-1]))


@pytest.mark.parametrize("name", first("sequential", "incremental_simultaneous"))
def test_training_can_be_scanned_with_donated_weights(x64, name):
    case, _, state, update, compiled, _ = setup(name)
    batches = np.stack([scale * np.asarray(case.inputs) for scale in (1, -1, 2)])

    def train(params, opt_state, batches):
        def iterate(carry, inputs):
            *carry, (energy, _) = update(*carry, inputs, case.targets)
            return tuple(carry), energy

        (params, opt_state), energies = jax.lax.scan(
            iterate, (params, opt_state), batches
        )
        return params, opt_state, energies

    params, opt_state, energies = case.params, state, []
    for inputs in batches:
        params, opt_state, (energy, _) = compiled(
            params, opt_state, inputs, case.targets
        )
        energies.append(energy)
    given = jax.tree.map(jnp.copy, (case.params, state))
    result = jax.jit(train, donate_argnums=(0, 1))(*given, batches)
    assert_close(result, (params, opt_state, np.stack(energies)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))


@pytest.mark.parametrize("name", METHODS)
def test_training_lowers_the_loss(x64, name):
    case, _, state, _, compiled, _ = setup(name)
    params, losses = case.params, []
    for _ in range(60):
        params, state, (_, info) = compiled(params, state, case.inputs, case.targets)
        losses.append(np.mean(info.loss))
    # Cross-entropy against soft targets ends at their entropy.
    targets = np.asarray(case.targets)
    entropy = -np.sum(targets * np.log(targets)) / 4
    assert losses[-1] - entropy < 0.5 * (losses[0] - entropy)
