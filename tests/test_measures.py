"""Measures of how far a rule is from backprop, against closed forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pcjax
from pcjax.inference.equilibrium import linear_equilibrium
from pcjax.networks import linear
from pcjax.training.measures import likeness, make_measures
from tests import problems, test_error_based
from tests.reference import inference, layers, outputs

pytestmark = pytest.mark.usefixtures("x64")
likeness = jax.jit(likeness)


def test_likeness_is_cosine_and_ratio_of_lengths():
    one = ({"w": np.array([3.0, 0.0]), "b": np.array([4.0])}, np.array([1.0, 1.0]))
    other = (
        {"w": np.array([0.0, 0.0]), "b": np.array([2.0])},
        np.array([-2.0, 0.0]),
    )
    found = likeness(one, other)
    np.testing.assert_allclose(found.cosine, [0.8, -np.sqrt(0.5)])
    np.testing.assert_allclose(found.ratio, [2.5, np.sqrt(0.5)])
    np.testing.assert_array_equal(likeness(one, jax.tree.map(np.zeros_like, one))[0], 0)
    assert np.isnan(likeness(one, jax.tree.map(lambda x: x * np.nan, one))[0]).all()


@pytest.mark.parametrize("sizes", [(5e-20, 1.0), (1.0, 3e-25), (1e25, 1e-30)])
def test_gradients_whose_squares_leave_float32_are_alike(sizes):
    """As those of the early layers of deep nets are."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=500)
    pair = first, first + 0.5 * rng.normal(size=500)
    cosine = pair[0] @ pair[1] / np.sqrt((pair[0] @ pair[0]) * (pair[1] @ pair[1]))
    trees = [
        ({"w": np.float32(s * x), "b": np.zeros(2, np.float32)},)
        for s, x in zip(sizes, pair, strict=True)
    ]
    found = likeness(*trees)
    ratio = sizes[0] / sizes[1] * np.linalg.norm(pair[0]) / np.linalg.norm(pair[1])
    np.testing.assert_allclose(found.cosine, [cosine], rtol=1e-5)
    if ratio < 1e38:
        np.testing.assert_allclose(found.ratio, [ratio], rtol=1e-5)
    halves = [jax.tree.map(lambda x: x.astype(jnp.bfloat16), t) for t in trees]
    np.testing.assert_allclose(likeness(*halves).cosine, [cosine], rtol=1e-2)


def test_measures_of_a_linear_net_are_the_closed_forms():
    case = problems.dense_case((5, 6, 5, 4), linear, dtype=jnp.float64)
    step = 0.01
    grad_fn = pcjax.value_and_grad(case.network, pcjax.sequential(2, step))
    measure = make_measures(
        case.network,
        grad_fn,
        reference=pcjax.error_based(200, pcjax.barzilai_borwein()),
        tolerance=1e-9,
        num_products=20,
    )
    found = jax.jit(measure)(*case[1:])
    bp_fn = pcjax.backprop.value_and_grad(case.network)

    def known(params, inputs, targets):
        batch = (params, inputs, targets)
        (_, info), grads = grad_fn(*batch)
        exact = linear_equilibrium(case.network, *batch)
        own = pcjax.local_gradients(case.network, params, exact.state.activities)
        layers = pcjax.energy.free_energy_per_layer(
            case.network, params, info.state.activities
        )
        start = pcjax.feedforward(case.network, params, inputs)
        first = [h[:1] for h in start[:-1]]
        return info, grads, own, bp_fn(*batch)[1], layers, first

    info, grads, own, bp, layers, start = jax.jit(known)(*case[1:])
    for have, pair in (
        (found.backprop, (grads, bp)),
        (found.equilibrium, (grads, own)),
        (found.equilibrium_to_backprop, (own, bp)),
    ):
        cosine = [np.cos(problems.angle(a, b)) for a, b in zip(*pair, strict=True)]
        np.testing.assert_allclose(have.cosine, cosine, atol=1e-7)
    assert found.settled.all()
    maps = test_error_based.sensitivities(case)
    spread = np.eye(4) + sum(p @ p.T for p in maps)
    largest = np.linalg.eigvalsh(spread)[-1]
    np.testing.assert_allclose(found.error_curvature, largest, rtol=1e-8)
    np.testing.assert_allclose(found.stable_error_step, 2 / largest, rtol=1e-8)

    first, target = (np.asarray(x)[:1] for x in case[2:])

    def energy(hidden):
        activities = (first, *hidden, target)
        return jnp.sum(pcjax.free_energy(*case[:2], activities))

    hidden = [np.asarray(h)[:1] for h in info.state.activities[1:-1]]
    flat, shape = jax.flatten_util.ravel_pytree(hidden)
    hessian = jax.jit(jax.hessian(lambda h: energy(shape(h))))(flat)
    largest = np.linalg.eigvalsh(hessian)[-1]
    np.testing.assert_allclose(found.activity_curvature, largest, rtol=1e-8)
    np.testing.assert_allclose(found.stable_activity_step, 2 / largest, rtol=1e-8)
    slope = jax.jit(jax.grad(energy))
    norms = [
        np.sqrt(sum(np.sum(np.square(g)) for g in slope(place)))
        for place in (hidden, start)
    ]
    np.testing.assert_allclose(found.residual[0], norms[0] / norms[1], rtol=1e-8)
    np.testing.assert_allclose(found.energy, np.mean(layers, 1), rtol=1e-9)


def test_backprop_has_the_cosine_one_and_no_inference():
    case = problems.dense_case((6, 7, 4), dtype=jnp.float64)
    bp = pcjax.backprop.value_and_grad(case.network, output=pcjax.softmax)
    few = pcjax.error_based(1, 0.1)
    measure = make_measures(case.network, bp, output=pcjax.softmax, reference=few)
    found = jax.jit(measure)(*case[1:])
    np.testing.assert_allclose(found.backprop.cosine, 1, rtol=1e-12)
    np.testing.assert_allclose(found.backprop.ratio, 1, rtol=1e-12)
    np.testing.assert_allclose(found.residual, 1)
    assert not found.settled.any()
    np.testing.assert_allclose(found.energy[0], 0, atol=1e-20)


def test_measures_are_of_the_energy_that_is_trained():
    case = problems.dense_case((6, 7, 4), dtype=jnp.float64)
    weights = {"output": pcjax.softmax, "gamma": (2.0, 0.7), "decay": 0.3}
    options = {**weights, "clamp": pcjax.soft_clamp(0.5)}
    grad_fn = pcjax.value_and_grad(case.network, pcjax.sequential(2, 0.1), **options)
    few = pcjax.error_based(1, 0.1)
    measure = make_measures(case.network, grad_fn, reference=few, **options)
    found = jax.jit(measure)(*case[1:])
    curvature = partial(pcjax.largest_curvature, case.network, **options)

    @jax.jit
    def known(*batch):
        (_, info), _ = grad_fn(*batch)
        layers = pcjax.energy.free_energy_per_layer(
            case.network, batch[0], info.state.activities, **weights
        )
        methods = pcjax.error_based(1, 0.0), pcjax.simultaneous(1, 0.0)
        return layers, [curvature(method, *batch) for method in methods]

    layers, (by_errors, by_activities) = known(*case[1:])
    np.testing.assert_allclose(found.error_curvature, by_errors, rtol=1e-9)
    np.testing.assert_allclose(found.activity_curvature, by_activities, rtol=1e-9)
    np.testing.assert_allclose(found.energy, np.mean(layers, 1), rtol=1e-9)


def test_energies_in_float32_are_right_in_every_layer_of_ten():
    """Those of early layers are of errors far below the rounding of activities."""
    case = problems.dense_case((7,) * 10 + (4,))
    step, weights = 0.05, {"gamma": 0.7}
    grad_fn = pcjax.value_and_grad(
        case.network, pcjax.sequential(3, step), output=pcjax.softmax, **weights
    )
    few = pcjax.error_based(1, 0.1)
    measure = make_measures(
        case.network, grad_fn, output=pcjax.softmax, reference=few, **weights
    )
    found = jax.jit(measure)(*case[1:])
    functions = (layers.Identity(), *[layers.Tanh()] * 9)
    params = jax.tree.map(np.float64, case.params)
    parts = [*map(layers.Dense, params, functions)], outputs.Softmax()
    terms = []
    for x, y in zip(*map(np.float64, case[2:]), strict=True):
        *_, activities = inference.infer(
            *(*parts, x, y, inference.sequential, 3),
            inference.GradientDescent(step),
            outputs.full_clamp,
            **weights,
        )
        terms.append(inference.free_energy_per_layer(*parts, activities, **weights))
    assert found.energy.dtype == jnp.float32
    np.testing.assert_allclose(found.energy, np.mean(terms, axis=0), rtol=1e-3)


def test_rules_whose_inference_ends_in_several_states_are_refused():
    case = problems.dense_case((6, 5, 4), batch=2)

    def learn(**options):
        return pcjax.value_and_grad(
            case.network, pcjax.sequential(2, 0.1), output=pcjax.softmax, **options
        )

    measure = make_measures(
        case.network, pcjax.centred(learn, 0.1), output=pcjax.softmax
    )
    with pytest.raises(ValueError, match=r"ends in one state of the 2 .*\(2, 2, 5\)"):
        jax.eval_shape(measure, *case[1:])
