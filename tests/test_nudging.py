"""Nudged outputs, against closed forms of equilibria in NumPy and float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from benchmarks import hlo
from pcjax import training
from tests import problems
from tests.tiers import thorough

F64 = {"dtype": jnp.float64}
SIZES = (5, 6, 4, 3)


def case_of(activation):
    """A network whose outputs are far from the targets."""
    case = problems.dense_case(SIZES, activation, batch=4, **F64)
    return case._replace(targets=2 * case.targets)


def to_equilibrium(network):
    """Gradients of a clamp's equilibrium, to about 1e-13."""
    return partial(pcjax.value_and_grad, network, pcjax.error_based(400, 0.25))


def limit(case, slope):
    """`g(beta) / beta` as beta goes to 0: PC of the linearised net, by example.

    `e_l = P_l^T S^-1 r` with `S = I + sum_l P_l P_l^T`, at feed-forward inputs. `slope`
    is f' as a function of f.
    """
    weights = [np.asarray(p["kernel"]) for p in case.params]
    biases = [np.asarray(p["bias"]) for p in case.params]
    grads = [np.zeros_like(w) for w in weights]
    for x, y in zip(np.asarray(case.inputs), np.asarray(case.targets), strict=True):
        sources, h = [x], x @ weights[0] + biases[0]
        function = np.tanh if slope is tanh_slope else (lambda value: value)
        for w, b in zip(weights[1:], biases[1:], strict=True):
            sources.append(function(h))
            h = sources[-1] @ w + b
        reach = [np.eye(len(h))]  # P_l, from the output down
        for w, source in zip(weights[:0:-1], sources[:0:-1], strict=True):
            reach.insert(0, reach[0] @ w.T * slope(source)[None])
        total = sum(p @ p.T for p in reach)
        for index, p in enumerate(reach):
            error = p.T @ np.linalg.solve(total, y - h)
            grads[index] -= np.outer(sources[index], error) / len(case.inputs)
    return grads


def linear_slope(value):
    return np.ones_like(value)


def tanh_slope(value):
    return 1 - value**2


def kernels(grads):
    return [np.asarray(g["kernel"]) for g in grads]


def distance(one, other):
    return np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(one, other, strict=True)))


def biases_of(make, case, betas, exact):
    """How far the gradients of every beta are from those of no nudge."""

    def grads(beta):
        return make(to_equilibrium(case.network), beta)(*case[1:])[1]

    found = jax.jit(lambda b: jax.lax.map(grads, b))(np.asarray(betas))
    rows = list(zip(*kernels(found), strict=True))  # of every beta
    return np.array([distance(row, exact) for row in rows])


@pytest.mark.parametrize("name", ["softmax", *thorough(["identity"])])
def test_beta_one_is_the_full_clamp(x64, name):
    case, output = case_of(jnp.tanh), problems.OUTPUTS[name]
    rule = partial(
        pcjax.value_and_grad, case.network, pcjax.sequential(3, 0.1), output=output
    )
    both = pcjax.nudged(rule, 1.0), rule(clamp=pcjax.full_clamp)
    found = jax.jit(lambda *a: [f(*a) for f in both])
    problems.assert_trees_close(*found(*case[1:]))


def test_in_linear_networks_the_bias_of_one_sign_is_linear_and_centred_has_none(x64):
    case = case_of(pcjax.networks.linear)
    exact = limit(case, linear_slope)
    betas = [-0.4, 0.2, 1.5]
    one_sided = biases_of(pcjax.nudged, case, betas, exact)
    np.testing.assert_allclose(one_sided / np.abs(betas), one_sided[2] / 1.5, rtol=1e-9)
    assert one_sided[1] > 1e-3
    assert biases_of(pcjax.centred, case, betas, exact).max() < 1e-10


def slope_of(betas, values):
    return np.polyfit(np.log(betas), np.log(values), 1)[0]


def test_the_biases_are_of_first_and_second_order(x64):
    case, betas = case_of(jnp.tanh), [0.02, 0.04, 0.08]
    exact = limit(case, tanh_slope)
    for make, order in ((pcjax.nudged, 1), (pcjax.centred, 2)):
        values = biases_of(make, case, betas, exact)
        assert slope_of(betas, values) == pytest.approx(order, abs=0.1)


def test_equilibrium_propagation_tends_to_backprop(x64):
    case, betas = case_of(jnp.tanh), [0.005, 0.01, 0.02]
    backprop = pcjax.backprop.value_and_grad(case.network)
    exact = kernels(jax.jit(backprop)(*case[1:])[1])
    for make, order in ((pcjax.nudged, 1), (pcjax.centred, 2)):
        free = partial(make, clamp=pcjax.free_nudge)
        values = biases_of(free, case, betas, exact)
        assert slope_of(betas, values) == pytest.approx(order, abs=0.1)
    # PCX's has another limit.
    assert distance(limit(case, tanh_slope), exact) > 0.1 * distance(exact, [0] * 3)


def test_the_clamps_in_closed_form(x64):
    rng = np.random.default_rng(0)
    y, u, u0 = (rng.normal(size=(3, 4)) for _ in range(3))
    for beta in (-0.3, 0.2, 4.0):
        # Of energy and loss, the free output is at rest.
        h = pcjax.free_nudge(beta)(y, u, u)
        np.testing.assert_allclose((h - u) + beta * (h - y), 0, atol=1e-14)
        h = pcjax.nudge(beta)(y, u, u, first=u0)
        np.testing.assert_allclose(h - u0, beta * (y - u0), rtol=1e-12)
    problems.assert_trees_close(
        pcjax.free_nudge(0.2)(y, u, u), pcjax.soft_clamp(5.0)(y, u, u)
    )


def test_the_target_stays_frozen_at_the_feed_forward_output(x64):
    case = case_of(jnp.tanh)

    def feed(params, inputs):
        return pcjax.feedforward(case.network, params, inputs)

    *hidden, first = map(np.asarray, jax.jit(feed)(*case[1:3]))
    want = first + 0.3 * (np.asarray(case.targets) - first)
    method, clamp = pcjax.sequential(4, 0.3), pcjax.nudge(0.3)
    run = partial(
        pcjax.infer,
        case.network,
        method,
        clamp=clamp,
        trace=lambda state: state.activities[-1],
    )
    # As a clamp of the weight gradient alone it is the same.
    learn = partial(pcjax.value_and_grad, case.network, method, clamp=clamp)

    @jax.jit
    def everything(*batch):
        moved = [h + 1 for h in hidden]
        # Of the weights, wherever it starts.
        traces = [run(*batch).trace, run(*batch, hidden=moved).trace]
        both = ({}, {"learning_clamp": clamp})
        return traces, [learn(**more)(*batch)[1] for more in both]

    traces, grads = everything(*case[1:])
    for found in traces:
        np.testing.assert_allclose(found, np.stack([want] * 5), rtol=1e-12)
    problems.assert_trees_close(*grads)


def test_centred_is_the_mean_of_two_calls(x64):
    case, method, beta = case_of(jnp.tanh), pcjax.sequential(3, 0.1), 0.3
    rule = partial(pcjax.value_and_grad, case.network, method, output=pcjax.softmax)
    found = jax.jit(
        lambda *a: [
            *(rule(clamp=pcjax.nudge(b))(*a) for b in (beta, -beta)),
            pcjax.centred(rule, beta)(*a),
        ]
    )(*case[1:])
    found = jax.tree.map(np.asarray, found)
    ((up, one), plus), ((down, other), minus), ((energy, info), grads) = found
    problems.assert_trees_close(
        grads, jax.tree.map(lambda p, m: (p - m) / (2 * beta), plus, minus), 1e-10
    )
    np.testing.assert_allclose(energy, (up + down) / 2, rtol=1e-12)
    for name in ("initial_energy", "energy"):
        mean = (getattr(one, name) + getattr(other, name)) / 2
        np.testing.assert_allclose(getattr(info, name), mean, rtol=1e-12)
    for name in ("loss", "logits"):
        problems.assert_trees_close(getattr(info, name), getattr(one, name))
    assert info.state.activities[-1].shape == (2, *case.targets.shape)


def test_an_example_that_one_sign_makes_rise_is_reported():
    network, params, x, _ = problems.dense_case((5, 6, 3), batch=256)
    rng = np.random.default_rng(0)
    y = np.float32(3 * rng.normal(size=(256, 3)))
    params = jax.tree.map(lambda w: 3 * np.asarray(w), params)
    rule = partial(pcjax.value_and_grad, network, pcjax.sequential(2, 0.3))

    @jax.jit
    def infos(params, x, y):
        rules = [pcjax.nudged(rule, b) for b in (0.8, -0.8)]
        return [f(params, x, y)[0][1] for f in (*rules, pcjax.centred(rule, 0.8))]

    up, down, both = jax.tree.map(np.asarray, infos(params, x, y))
    either = up.rising | down.rising
    mean = (up.energy + down.energy) <= (up.initial_energy + down.initial_energy)
    assert (either & mean).any()  # which the mean would hide
    np.testing.assert_array_equal(both.rising, either)


def test_a_beta_is_known_inside_of_a_jit_and_in_strict_promotion():
    case = problems.dense_case(SIZES)
    rule = partial(pcjax.value_and_grad, case.network, pcjax.sequential(1, 0.1))
    beta, makes = jnp.float32(0.25), (pcjax.nudged, pcjax.centred)

    def of(beta):
        return jax.jit(lambda *a: [make(rule, beta)(*a)[1] for make in makes])

    want = of(0.25)(*case[1:])
    with jax.numpy_dtype_promotion("strict"):
        found, plain = of(beta)(*case[1:]), of(0.25)(*case[1:])
    problems.assert_trees_close(found, want, 1e-5, 1e-7)
    problems.assert_trees_close(plain, want, 1e-5, 1e-7)
    clamp = jax.jit(lambda p: pcjax.free_nudge(beta)(p, p, p))
    np.testing.assert_allclose(clamp(jnp.ones(2)), 1)


def test_both_signs_share_the_forward_pass():
    network = pcjax.mlp([24, 20, 10])
    rule = partial(pcjax.value_and_grad, network, pcjax.sequential(2, 0.05))
    shapes = [jax.ShapeDtypeStruct((8, n), jnp.float32) for n in (24, 10)]
    params = jax.eval_shape(network.init, jax.random.key(0), shapes[0])

    def flops(grad_fn):
        return hlo.count(jax.jit(grad_fn).lower(params, *shapes).compile()).flops

    forward = hlo.count(jax.jit(network.apply).lower(params, shapes[0]).compile()).flops
    one, both = (flops(f(rule, 0.1)) for f in (pcjax.nudged, pcjax.centred))
    assert both == 2 * one - forward


@pytest.mark.parametrize("make", [pcjax.centred, *thorough([pcjax.nudged])])
def test_beta_follows_a_schedule_of_the_epoch_in_one_program(make):
    case = problems.dense_case((5, 6, 3))
    rng = np.random.default_rng(0)
    data = training.device_data(
        rng.integers(0, 256, (12, 5), np.uint8), rng.integers(0, 3, 12), 3
    )
    prepare, tx = training.classification(3), optax.sgd(0.1)
    rule = partial(pcjax.value_and_grad, case.network, pcjax.sequential(2, 0.1))
    betas = (0.3, -0.5)

    def epoch_of(beta):
        update = training.make_update(make(rule, beta), tx)
        return training.make_epoch(update, prepare, 4)

    @jax.jit
    def scheduled(state, data):
        beta = jnp.asarray(betas)[state.epoch]
        return epoch_of(beta)(state, data)

    state = training.TrainState(
        case.params, tx.init(case.params), jax.random.key(0), jnp.int32(0)
    )
    scheduled(state, data)  # compiles
    found, want = state, state
    with problems.compilations(0):
        for _ in betas:
            found, _ = scheduled(found, data)
    for beta in betas:
        want, _ = jax.jit(epoch_of(beta))(want, data)
    problems.assert_trees_close(found.params, want.params, 1e-4, 1e-6)


@pytest.mark.parametrize("make", [pcjax.nudged, pcjax.centred])
def test_what_cannot_nudge_is_refused(make):
    case = problems.dense_case(SIZES)
    method = pcjax.sequential(1, 0.1)
    rule = partial(pcjax.value_and_grad, case.network, method)
    for beta, error in ((0.0, ValueError), (1j, TypeError), (np.inf, ValueError)):
        with pytest.raises(error, match=f"{make.__name__}: beta"):
            make(rule, beta)
    with pytest.raises(ValueError, match="single number"):
        make(rule, jnp.ones(2))
    with pytest.raises(TypeError, match="must make a grad_fn of a clamp alone"):
        make(rule(), 0.1)
    with pytest.raises(TypeError, match="clamp must be a function"):
        make(rule, 0.1, clamp=0.1)


def test_nudges_that_are_none_are_refused():
    for function in (pcjax.nudge, pcjax.free_nudge):
        with pytest.raises(
            TypeError, match=f"{function.__name__}: beta must hold real"
        ):
            function("a")
        with pytest.raises(ValueError, match="single number"):
            function(np.ones(3))
        with pytest.raises(ValueError, match="must be finite"):
            function(np.nan)
    with pytest.raises(ValueError, match="above -1"):
        pcjax.free_nudge(-1.0)
