"""Error-based inference against closed forms, backprop and autodiff of E(e)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from benchmarks import hlo
from pcjax import training
from pcjax.inference.equilibrium import infer_to_equilibrium, linear_equilibrium
from pcjax.inference.origin import Origin
from pcjax.inference.state import Problem
from pcjax.networks import linear
from tests import problems, test_graphs, test_precision
from tests.tiers import thorough

F64 = {"dtype": jnp.float64}


def rebuilt(case, errors):
    """Hidden activities and logits of hidden errors, from the input upwards."""
    activities = [case.inputs]
    for index, (layer, theta, read) in enumerate(
        zip(case.network.layers, case.params, case.network.reads, strict=True)
    ):
        p = layer.apply(theta, *[activities[i] for i in read])
        activities.append(p + errors[index] if index < len(errors) else p)
    return activities


def energy_of_errors(case, errors, output, gamma=1.0):
    """`E(e)`, summed over the batch."""
    logits = rebuilt(case, errors)[-1]
    gammas = gamma if isinstance(gamma, tuple) else (gamma,) * len(errors)
    pairs = zip(gammas, errors, strict=True)
    hidden = sum(g * jnp.sum(e**2) for g, e in pairs)
    return 0.5 * hidden + jnp.sum(output.loss(logits, case.targets))


@pytest.mark.parametrize(
    ("output", "graph"),
    [
        ("softmax", "residual"),
        ("identity", "input again"),
        *thorough(
            [
                *(("softmax", "chain"), ("softmax", "input again")),
                *(("identity", "chain"), ("identity", "residual")),
            ]
        ),
    ],
)
def test_iterations_descend_the_energy_of_the_errors(x64, output, graph):
    case = test_graphs.case_of(graph, **F64)
    chosen = problems.OUTPUTS[output]
    gammas = (0.7, 0.0, 0.9, 1.2, 0.6, 1.1)[: len(case.network.layers) - 1]

    @jax.jit
    def descended(*arrays):
        here = problems.Case(case.network, *arrays)
        errors = [jnp.zeros_like(p) for p in pcjax.feedforward(*here[:3])[:-1]]
        start = rebuilt(here, errors)
        slopes = jax.grad(lambda e: energy_of_errors(here, e, chosen, gammas))
        for _ in range(4):
            errors = [e - 0.1 * g for e, g in zip(errors, slopes(errors), strict=True)]
        activities = rebuilt(here, errors)
        grads = pcjax.local_gradients(
            here.network,
            here.params,
            (*activities[:-1], here.targets),
            output=chosen,
            gamma=gammas,
        )
        return errors, activities[1:-1], start[1:-1], grads

    errors, activities, start, want = descended(*case[1:])
    method = pcjax.error_based(4, 0.1)
    grad_fn = pcjax.value_and_grad(case.network, method, output=chosen, gamma=gammas)
    (_, info), grads = jax.jit(grad_fn)(*case[1:])
    test_graphs.assert_close(info.state.errors[:-1], errors)
    test_graphs.assert_close(info.state.activities[1:-1], activities, start)
    test_graphs.assert_close(grads, want)


@pytest.mark.parametrize("name", ["tanh", *thorough(["relu", "conv"])])
def test_errors_of_early_layers_survive_rounded_products(x64, name):
    case = test_precision.case_of(name, jnp.bfloat16)
    output, num_steps = pcjax.softmax, 3

    @jax.jit
    def exact(*arrays):
        here = problems.Case(test_precision.network_of(name), *arrays)
        errors = [jnp.zeros_like(p) for p in pcjax.feedforward(*here[:3])[:-1]]
        slopes = jax.grad(lambda e: energy_of_errors(here, e, output))
        for _ in range(num_steps):
            errors = [e - 0.05 * g for e, g in zip(errors, slopes(errors), strict=True)]
        activities = (*rebuilt(here, errors)[:-1], here.targets)
        return errors, pcjax.local_gradients(*here[:2], activities, output=output)

    errors, grads = exact(*test_precision.double(case))
    grad_fn = pcjax.value_and_grad(
        case.network, pcjax.error_based(num_steps, 0.05), output=output
    )
    (_, info), have = test_precision.rounding_jit(grad_fn)(*case[1:])
    for one, other in (
        *zip(info.state.errors[:-1], errors, strict=True),
        *zip(have, grads, strict=True),
    ):
        cosine, distance = test_precision.compare(one, other)
        assert cosine > 0.995
        assert distance < 0.1


def test_weights_may_step_with_every_iteration(x64):
    """iPC in the errors: `e` descends E(e), then the weights the energy there."""
    case = problems.dense_case((6, 7, 5, 4), **F64)
    output, tx = pcjax.softmax, optax.sgd(0.05)

    @jax.jit
    def learned(*arrays):
        here = problems.Case(case.network, *arrays)
        errors = [jnp.zeros_like(p) for p in pcjax.feedforward(*here[:3])[:-1]]
        for _ in range(3):
            activities = (*rebuilt(here, errors)[:-1], here.targets)
            grads = pcjax.local_gradients(*here[:2], activities, output=output)
            slopes = jax.grad(lambda e, here=here: energy_of_errors(here, e, output))
            moves = slopes(errors)
            errors = [e - 0.1 * g for e, g in zip(errors, moves, strict=True)]
            params = jax.tree.map(lambda a, g: a - 0.05 * g, here.params, grads)
            here = here._replace(params=params)
        return here.params

    update = pcjax.incremental(
        case.network, pcjax.error_based(3, 0.1), tx, output=output
    )
    params, *_ = jax.jit(update)(case.params, tx.init(case.params), *case[2:])
    problems.assert_trees_close(params, learned(*case[1:]), rtol=1e-12, atol=1e-14)


def test_one_step_is_backprop_in_the_first_layer(x64):
    case = problems.dense_case((6, 7, 8, 4), **F64)
    bp = pcjax.backprop.value_and_grad(case.network, output=pcjax.softmax)
    _, exact = jax.jit(bp)(*case[1:])
    step = 1e-3
    grad_fn = pcjax.value_and_grad(
        case.network, pcjax.error_based(1, step), output=pcjax.softmax
    )
    _, grads = jax.jit(grad_fn)(*case[1:])
    scaled = jax.tree.map(lambda g: np.asarray(g) / step, grads)
    problems.assert_trees_close(scaled[0], exact[0], rtol=1e-12, atol=1e-15)
    for have, want in zip(scaled[1:-1], exact[1:-1], strict=True):
        assert problems.angle(have, want) < 20 * step


@pytest.mark.parametrize("name", ["input again", *thorough(["branches"])])
def test_one_step_is_backprop_on_edges_from_the_input(x64, name):
    case, step = test_graphs.case_of(name, **F64), 1e-3
    rules = (
        pcjax.backprop.value_and_grad(case.network, output=pcjax.softmax),
        pcjax.value_and_grad(
            case.network, pcjax.error_based(1, step), output=pcjax.softmax
        ),
    )
    exact, grads = (jax.jit(grad_fn)(*case[1:])[1] for grad_fn in rules)
    edges = [
        (layer, read.index(0))
        for layer, read in enumerate(case.network.reads[:-1])
        if 0 in read
    ]
    assert len(edges) > 1
    for layer, part in edges:
        have, want = (
            tree[layer] if "kernel" in tree[layer] else tree[layer][part]
            for tree in (grads, exact)
        )
        scaled = np.asarray(have["kernel"]) / step
        np.testing.assert_allclose(scaled, want["kernel"], rtol=1e-11, atol=1e-14)


def sensitivities(case):
    """`P_l = dp_L/dh_l` of a linear chain, l = 1..L-1."""
    maps, above = [], None
    for theta in reversed(case.params[1:]):
        weights = np.asarray(theta["kernel"]).T
        above = weights if above is None else above @ weights
        maps.append(above)
    return maps[::-1]


@functools.cache
def linear_case():
    return problems.dense_case((6, 7, 8, 5, 4), linear, **F64)


def test_linear_networks_rest_at_the_closed_form(x64):
    case = linear_case()
    maps = sensitivities(case)
    logits = jax.jit(case.network.apply)(case.params, case.inputs)
    residual = np.asarray(case.targets) - np.asarray(logits)
    spread = np.eye(4) + sum(p @ p.T for p in maps)
    method = pcjax.error_based(2000, 1.0 / np.linalg.eigvalsh(spread)[-1])
    found = infer_to_equilibrium(case.network, method, *case[1:], tolerance=1e-12)
    assert found.converged.all()
    solved = np.linalg.solve(spread, np.asarray(residual).T)
    for error, p in zip(found.state.errors[:-1], maps, strict=True):
        np.testing.assert_allclose(error, (p.T @ solved).T, atol=1e-10)
    exact = jax.jit(functools.partial(linear_equilibrium, case.network))(*case[1:])
    test_graphs.assert_close(found.state.activities[1:-1], exact.state.activities[1:-1])


@jax.jit
def _inferred(step_size):
    case = linear_case()
    method = pcjax.error_based(300, step_size)
    return pcjax.value_and_grad(case.network, method)(*case[1:])[0][1]


@pytest.mark.parametrize(("part", "grows"), [(0.95, False), (1.05, True)])
def test_steps_are_stable_up_to_two_over_the_largest_curvature(x64, part, grows):
    case = linear_case()
    maps = sensitivities(case)
    largest = np.linalg.eigvalsh(np.eye(4) + sum(p @ p.T for p in maps))[-1]
    rising = np.asarray(_inferred(part * 2 / largest).rising)
    assert rising.all() == grows
    assert rising.any() == grows


def test_both_coordinates_have_the_same_equilibria(x64):
    case = problems.dense_case((6, 7, 8, 4), **F64)
    options = {"output": pcjax.softmax, "tolerance": 1e-11}
    rests = [
        infer_to_equilibrium(case.network, method, *case[1:], **options)
        for method in (pcjax.error_based(3000, 0.3), pcjax.sequential(3000, 0.3))
    ]
    assert all(rest.converged.all() for rest in rests)
    assert (rests[0].num_steps < rests[1].num_steps).all()
    activities = [rest.state.activities[1:-1] for rest in rests]
    problems.assert_trees_close(*activities, rtol=1e-8, atol=1e-8)


def test_started_activities_are_taken_over(x64):
    case = problems.dense_case((6, 7, 8, 4), **F64)
    first = pcjax.infer(case.network, pcjax.error_based(2, 0.2), *case[1:])
    hidden = first.state.activities[1:-1]
    rest = pcjax.infer(
        case.network, pcjax.error_based(3, 0.2), *case[1:], hidden=hidden
    )
    whole = pcjax.infer(case.network, pcjax.error_based(5, 0.2), *case[1:])
    problems.assert_trees_close(rest.state, whole.state, rtol=1e-9, atol=1e-12)


def test_an_optimizer_may_move_the_errors(x64):
    case = problems.dense_case((6, 7, 8, 4), **F64)
    plain = pcjax.infer(case.network, pcjax.error_based(3, 0.2), *case[1:])
    by_sgd = pcjax.infer(
        case.network, pcjax.error_based(3, optimizer=optax.sgd(0.2)), *case[1:]
    )
    problems.assert_trees_close(by_sgd, plain)


@pytest.mark.parametrize(
    ("num_steps", "product_dtype"),
    [(5, jnp.bfloat16), (1, None), *thorough([(5, None), (1, jnp.bfloat16)])],
)
def test_products_are_those_of_sequential_inference(num_steps, product_dtype):
    network = pcjax.mlp([48, 40, 36, 44, 10], product_dtype=product_dtype)
    inputs, targets = jnp.ones((16, 48)), jnp.ones((16, 10)) / 10
    params = jax.eval_shape(network.init, jax.random.key(0), inputs)
    tx = optax.sgd(0.1)
    opt_state = jax.eval_shape(tx.init, params)
    for update, want in (
        (
            training.make_update(
                pcjax.value_and_grad(network, pcjax.error_based(num_steps, 0.05)), tx
            ),
            2 * 4 + 2 * num_steps * 3,
        ),
        (
            pcjax.incremental(network, pcjax.error_based(num_steps, 0.05), tx),
            # Nobody uses the moves of a single iteration.
            num_steps * 11
            + (product_dtype is not None) * (num_steps - 1) * 3
            - 3 * (num_steps == 1),
        ),
    ):
        lowered = jax.jit(update).lower(params, opt_state, inputs, targets)
        assert hlo.count(lowered.compile()).dots == want


def test_errors_are_those_that_were_given_however_small():
    """Added to a change of the prediction and taken off again, they would round."""
    case = problems.dense_case((6, 7, 8, 4))
    origin = Origin(
        Problem(case.network, pcjax.identity, pcjax.full_clamp, 1.0, 0.0), *case[1:]
    )
    count = len(case.inputs)
    given = jnp.full((count, 7), 0.1), jnp.full((count, 8), 1e-7)
    found = jax.jit(lambda *errors: origin.rebuild(errors, 0).state.errors)(*given)
    for have, want in zip(found[:-1], given, strict=True):
        np.testing.assert_array_equal(have, want)
