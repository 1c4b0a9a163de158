"""Proximal steps, Theorems 1 and 2, against closed forms and finite differences."""

import inspect
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from pcjax.inference.equilibrium import infer_to_equilibrium
from pcjax.optimizers.normalised import (
    normalise,
    normalised_step_size,
    normalised_weights,
    scale_by_squared_norms,
    squared_norms,
)
from pcjax.theory.newton import newton_step
from pcjax.theory.proximal import (
    Step,
    batch_loss,
    compare,
    example_loss,
    mean_over_examples,
    proximal_objective,
    proximal_step,
)
from pcjax.theory.theorem1 import (
    inference_step,
    lemma1_weights,
    limit_gap,
    proximal_weights,
    theorem1_weights,
)
from tests import problems

pytestmark = pytest.mark.usefixtures("x64")

WEIGHTS = {
    "printed": theorem1_weights,
    "proof": lemma1_weights,
    "corrected": proximal_weights,
}


SIZES = (4, 5, 3, 2)
NETWORK = pcjax.mlp(SIZES, jnp.tanh)  # the same one, so that compilation is shared


def case64(batch=1):
    return problems.make(NETWORK, SIZES[:1], batch=batch, dtype=jnp.float64)


def of_all(solver, tolerance, max_steps):
    """The numbers of a solver, its defaults too: traced, so as to share programs."""
    defaults = inspect.signature(solver).parameters
    given = {"tolerance": tolerance, "max_steps": max_steps}
    return {
        name: defaults[name].default if value is None else value
        for name, value in given.items()
    }


@partial(jax.jit, static_argnums=0)
def solved(solver, case, beta, numbers):
    params, inputs, targets = case
    return solver(batch_loss(NETWORK, inputs, targets), params, beta, **numbers)


def solve(solver, case, beta, tolerance=None, max_steps=None):
    """The step of the mean loss of a case of `NETWORK`."""
    return solved(solver, case, beta, of_all(solver, tolerance, max_steps))


difference = jax.jit(compare)


def kernels(flat):
    """Kernels and biases of raveled parameters; biases come first."""
    layers = []
    for n, m in pairwise(SIZES):
        bias, flat = flat[:m], flat[m:]
        kernel, flat = flat[: n * m].reshape(n, m), flat[n * m :]
        layers.append((kernel, bias))
    return layers


def numpy_loss(case, flat):
    """Half squared error of a tanh MLP, mean over the batch, of raveled parameters."""
    h = np.asarray(case.inputs)
    for index, (kernel, bias) in enumerate(kernels(flat)):
        h = (np.tanh(h) if index else h) @ kernel + bias
    return 0.5 * np.mean(np.sum((h - np.asarray(case.targets)) ** 2, 1))


def numpy_gradient(case, flat, step=1e-5):
    """By central differences of the fourth order."""
    gradient = np.zeros_like(flat)
    for i in range(len(flat)):
        values = []
        for shift in (-2, -1, 1, 2):
            moved = flat.copy()
            moved[i] += shift * step
            values.append(numpy_loss(case, moved))
        gradient[i] = np.dot([1, -8, 8, -1], values) / (12 * step)
    return gradient


def ravel(tree):
    return np.concatenate([np.ravel(np.asarray(x)) for x in jax.tree.leaves(tree)])


@partial(jax.jit, static_argnums=0)
def solved_quadratic(solver, theta, beta, numbers):
    return solver(quadratic, theta, beta, **numbers)


def solve_quadratic(solver, theta, beta, tolerance=None, max_steps=None):
    return solved_quadratic(solver, theta, beta, of_all(solver, tolerance, max_steps))


def quadratic(theta):
    return 0.5 * theta["a"] @ MATRIX @ theta["a"] + theta["b"] ** 2


THETA = {"a": np.arange(1.0, 7), "b": np.array(2.0)}
ORIGIN = {"a": np.zeros(6), "b": np.array(0.0)}  # the minimum
_ROOT = np.random.default_rng(3).normal(size=(6, 6))
MATRIX = _ROOT @ np.diag([0.01, 0.1, 1, 10, 50, 100]) @ _ROOT.T


@pytest.mark.parametrize("beta", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("solver", [proximal_step, newton_step])
def test_quadratic_loss_has_the_closed_form_step(solver, beta):
    found = solve_quadratic(solver, THETA, beta)
    # theta' = (I + beta A)^{-1} theta
    expected = np.linalg.solve(np.eye(6) + beta * MATRIX, THETA["a"]) - THETA["a"]
    # (I + beta A)^{-1} shrinks, so the error is at most the residual.
    scale = beta * np.hypot(np.linalg.norm(MATRIX @ THETA["a"]), 4)
    atol = 1.01e-8 * scale
    np.testing.assert_allclose(found.update["a"], expected, atol=atol)
    np.testing.assert_allclose(found.update["b"], 2 / (1 + 2 * beta) - 2, atol=atol)
    assert found.converged
    assert found.residual <= 1e-8
    if solver is proximal_step:
        # Where it starts, the residual is 1 to the bit: a tolerance that is reached.
        start = solve_quadratic(solver, THETA, beta, tolerance=1.0)
        assert start.converged
        assert start.num_steps == 0


def test_proximal_objective_is_loss_plus_distance():
    case = case64(batch=3)
    update = jax.tree.map(lambda p: 0.1 * np.asarray(p) - 0.02, case.params)
    flat, move = ravel(case.params), ravel(update)
    expected = numpy_loss(case, flat + move) + move @ move / (2 * 0.3)
    loss_fn = batch_loss(case.network, case.inputs, case.targets)
    objective = partial(proximal_objective, loss_fn, beta=0.3)
    found = jax.jit(objective)(case.params, update)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("beta", [0.01, 1.0, 30.0])
def test_implicit_step_solves_its_equation_by_finite_differences(beta):
    case = case64()
    found = solve(proximal_step, case[1:], beta)
    flat, move = ravel(case.params), ravel(found.update)
    gradient = numpy_gradient(case, flat)
    left_over = move + beta * numpy_gradient(case, flat + move)
    scale = beta * np.linalg.norm(gradient)
    assert np.linalg.norm(left_over) < 1e-8 * scale
    assert found.converged
    assert found.residual <= 1e-8
    # It is a minimiser: every direction goes up.
    here = numpy_loss(case, flat + move) + move @ move / (2 * beta)
    rng = np.random.default_rng(0)
    for direction in rng.normal(size=(20, len(flat))):
        near = move + 1e-2 * direction * np.linalg.norm(move)
        assert numpy_loss(case, flat + near) + near @ near / (2 * beta) > here


def test_newton_step_solves_its_equation_by_finite_differences():
    case, beta, step = case64(), 0.5, 1e-4
    found = solve(newton_step, case[1:], beta)
    flat, move = ravel(case.params), ravel(found.update)
    gradient = numpy_gradient(case, flat)
    size = np.linalg.norm(move)
    along = [numpy_gradient(case, flat + s * step * move / size) for s in (-1, 1)]
    product = size * (along[1] - along[0]) / (2 * step)
    left_over = move + beta * product + beta * gradient
    assert np.linalg.norm(left_over) < 1e-6 * beta * np.linalg.norm(gradient)
    # The Hessian matters: without it nothing is solved.
    assert np.linalg.norm(beta * product) > 0.05 * size
    assert found.converged


def test_theorem_2_orders():
    case = case64()
    loss_fn = example_loss(case.network, case.inputs, case.targets)
    betas = np.logspace(-4, -2, 7).tolist()
    gradient = ravel(jax.jit(jax.grad(loss_fn))(case.params))
    errors = []
    for beta in betas:
        step, newton = (
            ravel(solve(solver, case[1:], beta, tolerance=1e-12).update)
            for solver in (proximal_step, newton_step)
        )
        errors.append([np.linalg.norm(u - step) for u in (-beta * gradient, newton)])
    slopes = np.polyfit(np.log(betas), np.log(errors), 1)[0]
    np.testing.assert_allclose(slopes, [2, 3], atol=0.1)


@partial(jax.jit, static_argnums=0)
def at_rest(weights, case, beta, alphas=None):
    """IL's update at equilibrium, and the limit's own quantity.

    Without `alphas` the step is the normalised one.
    """
    params, inputs, targets = case
    step_sizes = normalised_step_size if alphas is None else alphas
    rest = infer_to_equilibrium(
        NETWORK,
        pcjax.simultaneous(20_000, optimizer=optax.sgd(0.1, 0.9, nesterov=True)),
        params,
        inputs,
        targets,
        tolerance=1e-11,
        **weights(NETWORK, step_sizes, beta)._asdict(),
    )
    update = inference_step(NETWORK, params, rest.state.activities, step_sizes)
    return update, limit_gap(NETWORK, params, update, rest.state.activities), rest


@pytest.mark.parametrize("beta", [0.05, 2.0])
def test_corrected_weights_give_the_proximal_update_and_theorem_1_does_not(beta):
    case = case64()
    true = solve(proximal_step, case[1:], beta, tolerance=1e-11)
    distances = {}
    for name, weights in WEIGHTS.items():
        found, gap, rest = at_rest(weights, case[1:], beta)
        assert rest.converged.all()
        assert gap < 1e-10  # the theorem's limit is reached
        distances[name] = difference(found, true.update).distance
    assert distances["corrected"] < 1e-8
    assert distances["proof"] > 1e-3
    assert distances["printed"] > 1e-2


def test_static_step_sizes_that_match_give_the_proximal_update():
    case, beta = case64(), 0.5
    _, _, rest = at_rest(proximal_weights, case[1:], beta)
    norms = squared_norms(NETWORK, rest.state.activities)
    # The last step size is free: the clamp makes up for it.
    alphas = [float(1 / norm[0]) for norm in norms[:-1]] + [0.123]
    true = solve(proximal_step, case[1:], beta, tolerance=1e-11)
    found, _, _ = at_rest(proximal_weights, case[1:], beta, alphas)
    assert difference(found, true.update).distance < 1e-8
    others = [2 * alphas[0], *alphas[1:]]
    found, _, _ = at_rest(proximal_weights, case[1:], beta, others)
    assert difference(found, true.update).distance > 1e-2


def test_static_step_sizes_approach_the_proximal_update_as_beta_vanishes():
    case = case64()
    distances = {"proof": [], "corrected": []}
    for beta in (1e-2, 1e-3):
        true = solve(proximal_step, case[1:], beta, tolerance=1e-11)
        for name, found in distances.items():
            update, _, _ = at_rest(WEIGHTS[name], case[1:], beta, [0.3] * 3)
            found.append(difference(update, true.update).distance)
    np.testing.assert_allclose(
        distances["corrected"][0] / distances["corrected"][1], 10, rtol=0.1
    )
    # Theorem 1's weights scale layer l by c_{L-1} / c_l, c = alpha ||f||^2.
    loss_fn = example_loss(*case[:1], *case[2:])
    gradient = jax.jit(jax.grad(loss_fn))(case.params)
    forward = jax.jit(partial(pcjax.feedforward, NETWORK))(*case[1:3])
    h = [case.inputs, *map(np.tanh, map(np.asarray, forward[:-1]))]
    norms = [np.sum(np.asarray(f) ** 2) + 1 for f in h]
    scaled = [
        jax.tree.map(lambda g, r=norms[-1] / norm: r * np.asarray(g), g)
        for g, norm in zip(gradient, norms, strict=True)
    ]
    limit = difference(tuple(scaled), gradient).distance
    np.testing.assert_allclose(distances["proof"][1], limit, rtol=0.01)


def weights_at(weights, activities, errors, targets, outputs):
    """Gamma, decay and what is clamped, compiled as one program."""

    @jax.jit
    def of(activities, errors, targets, outputs):
        return (
            weights.gamma(activities, errors),
            weights.decay(activities, errors),
            weights.clamp(targets, outputs, activities[2]),
        )

    return of(activities, errors, targets, outputs)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_those_of_the_theorem(name):
    case, beta, alphas = case64(batch=3), 0.7, [0.2, 0.5, 1.5]
    rng = np.random.default_rng(0)
    activities = [rng.normal(size=(3, n)) for n in (4, 5, 3, 2)]
    errors = [rng.normal(size=(3, n)) for n in (5, 3, 2)]
    f = [activities[0], np.tanh(activities[1]), np.tanh(activities[2])]
    norm = [np.sum(v**2, 1) + 1 for v in f]
    gamma = [a**2 * n for a, n in zip(alphas, norm, strict=True)]
    output = alphas[2] * (1 / beta + norm[2]) - 1
    sign = 1
    if name == "printed":
        gamma[2] = output
    elif name == "corrected":
        gamma, sign = [np.full(3, a) for a in alphas], -1
    decay = [
        sign * alphas[1] ** 2 * np.sum(errors[1] ** 2, 1),
        sign * alphas[2] ** 2 * np.sum(errors[2] ** 2, 1),
    ]
    y, p = rng.normal(size=(2, 3, 2))
    found = WEIGHTS[name](case.network, alphas, beta)
    gammas, decays, clamped = weights_at(found, activities, errors, y, p)
    np.testing.assert_allclose(gammas, gamma, rtol=1e-12)
    np.testing.assert_allclose(decays, decay, rtol=1e-12)
    np.testing.assert_allclose(
        clamped, (y + output[:, None] * p) / (1 + output[:, None]), rtol=1e-12
    )


def test_the_bias_can_be_left_out():
    network, h = pcjax.mlp([2, 3, 1]), (jnp.ones((1, 2)), jnp.ones((1, 3)))
    norms = squared_norms(network, (*h, jnp.ones((1, 1))), bias=False)
    np.testing.assert_array_equal([norm[0] for norm in norms], [2, 3])


def test_graphs_are_refused():
    end = pcjax.add(pcjax.dense(2, jnp.tanh), pcjax.dense(2))
    graph = pcjax.Network((pcjax.dense(3), pcjax.dense(3), end), ((0,), (0,), (1, 2)))
    case = problems.make(graph, (4,), batch=1, dtype=jnp.float64)
    h = [jnp.ones((1, n)) for n in (4, 3, 3, 2)]
    calls = {
        "squared_norms": lambda: squared_norms(graph, h),
        "inference_step": lambda: inference_step(graph, case.params, h, 0.1),
        "limit_gap": lambda: limit_gap(graph, case.params, case.params, h),
    }
    for weights in WEIGHTS.values():
        calls[weights.__name__] = partial(weights, graph, 0.1, 1.0)
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"{name}: expected a chain, got layers"):
            call()


def test_weights_may_be_negative_where_a_function_gives_them():
    case = case64()
    weights = proximal_weights(case.network, 0.1, 5.0)._asdict()
    # Not compiled: the negative decay and gamma_L are seen as numbers.
    found = pcjax.infer(case.network, pcjax.sequential(2, 0.1), *case[1:], **weights)
    assert np.isfinite(found.state.activities[1]).all()
    with pytest.raises(ValueError, match="decay must be >= 0 and finite"):
        pcjax.infer(case.network, pcjax.sequential(2, 0.1), *case[1:], decay=-1.0)


def settled(case, steps=5):
    """Activities that are off their predictions everywhere."""
    method = pcjax.sequential(steps, 0.2)
    return pcjax.infer(case.network, method, *case[1:]).state.activities


@partial(jax.jit, static_argnums=0)
def errors_of(network, params, activities):
    return pcjax.prediction_errors(network, params, activities)


def test_inference_step_is_the_outer_product():
    case = case64(batch=2)
    activities = settled(case)
    errors = errors_of(case.network, case.params, activities)
    step = partial(inference_step, NETWORK, step_sizes=[0.5, 2.0, 3.0])
    found = jax.jit(step)(case.params, activities)
    for layer, alpha in enumerate([0.5, 2.0, 3.0]):
        h = np.asarray(activities[layer])
        f = np.tanh(h) if layer else h
        e = alpha * np.asarray(errors[layer]) / 2
        np.testing.assert_allclose(found[layer]["kernel"], f.T @ e, rtol=1e-10)
        np.testing.assert_allclose(found[layer]["bias"], e.sum(0), rtol=1e-10)


def test_the_normalised_step_solves_the_local_prediction():
    case = case64()
    activities = settled(case)
    step = partial(inference_step, NETWORK, step_sizes=normalised_step_size)
    update = jax.jit(step)(case.params, activities)
    updated = jax.tree.map(
        lambda p, u: np.asarray(p) + np.asarray(u), case.params, update
    )
    errors = errors_of(case.network, updated, activities)
    for error in errors:
        np.testing.assert_allclose(error, 0, atol=1e-14)
    gap = jax.jit(partial(limit_gap, NETWORK))
    assert gap(case.params, update, activities) < 1e-14
    assert gap(case.params, update, settled(case, 1)) > 1e-3


def test_the_two_forms_of_the_normalised_step_agree_for_one_example():
    case = case64()
    activities = settled(case)
    weights = normalised_weights(case.network)
    tx = optax.chain(scale_by_squared_norms(), optax.sgd(1.0))

    @jax.jit
    def run(params, activities):
        local = partial(pcjax.local_gradients, NETWORK, params, activities)
        norms = squared_norms(NETWORK, activities)
        found, _ = tx.update(local(), tx.init(params), params, squared_norms=norms)
        step = inference_step(NETWORK, params, activities, normalised_step_size)
        return local(gamma=weights), found, step

    local, found, step = run(case.params, activities)
    minus = jax.tree.map(lambda x: -np.asarray(x), step)
    problems.assert_trees_close(local, minus, rtol=1e-12)
    problems.assert_trees_close(found, step, rtol=1e-12)


def test_normalised_gradients_are_those_of_the_optax_form():
    case = case64(batch=4)
    grad_fn = pcjax.value_and_grad(case.network, pcjax.sequential(3, 0.1))
    (_, info), grads = grad_fn(*case[1:])
    h = list(map(np.asarray, info.state.activities))
    means = [np.mean(np.sum(f**2, 1)) for f in (h[0], *map(np.tanh, h[1:-1]))]
    found = jax.jit(normalise(case.network, grad_fn, bias=False))(*case[1:])
    want = [
        jax.tree.map(lambda g, m=m: np.asarray(g) / m, grad)
        for grad, m in zip(grads, means, strict=True)
    ]
    problems.assert_trees_close(list(found[1]), want, rtol=1e-12)
    refused = normalise(case.network, pcjax.backprop.value_and_grad(case.network))
    with pytest.raises(ValueError, match="normalise: expected a grad_fn that infers"):
        jax.eval_shape(refused, *case[1:])


def test_the_optax_form_divides_by_the_batch_mean():
    case = case64(batch=4)

    def record(state):
        return squared_norms(case.network, state.activities)

    grad_fn = pcjax.value_and_grad(case.network, pcjax.sequential(2, 0.1), trace=record)
    (_, info), grads = grad_fn(*case[1:])
    norms = [np.asarray(norm)[-1] for norm in info.trace]
    tx = scale_by_squared_norms()
    found, _ = jax.jit(lambda *a: tx.update(a[0], a[1], squared_norms=a[2]))(
        grads, tx.init(case.params), norms
    )
    inputs = np.asarray(case.inputs)
    mean = np.mean(np.sum(inputs**2, 1) + 1)
    np.testing.assert_allclose(
        found[0]["kernel"], np.asarray(grads[0]["kernel"]) / mean, rtol=1e-12
    )
    with pytest.raises(ValueError, match="needs squared_norms= of the 3 layers"):
        tx.update(grads, tx.init(case.params))


def test_mean_over_examples_is_the_mean_of_single_steps():
    case = case64(batch=3)
    step = partial(newton_step, beta=0.5)
    found = jax.jit(partial(mean_over_examples, step, NETWORK))(*case[1:])
    inputs, targets = np.asarray(case.inputs), np.asarray(case.targets)
    steps = [
        solve(
            newton_step,
            (case.params, inputs[b : b + 1], targets[b : b + 1]),
            0.5,
        )
        for b in range(3)
    ]
    mean = jax.tree.map(
        lambda *u: sum(map(np.asarray, u)) / 3, *(s.update for s in steps)
    )
    problems.assert_trees_close(found.update, mean, rtol=1e-9, atol=1e-12)
    assert found.converged.shape == (3,)
    assert found.converged.all()
    joint = solve(newton_step, case[1:], 0.5)
    assert difference(joint.update, mean).distance > 0.01


def test_compare_is_cosine_and_relative_distance():
    one = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    other = {"a": jnp.array([0.0]), "b": jnp.array([2.0])}
    found = compare(one, other)
    np.testing.assert_allclose(found, [0.8, np.sqrt(13) / 2], rtol=1e-14)


def test_a_solver_that_fails_says_so():
    short = solve(proximal_step, case64()[1:], 10.0, max_steps=2)
    assert not short.converged
    assert short.residual > 1e-3
    assert short.num_steps == 2
    absolute = jax.jit(lambda x, beta: proximal_step(jnp.abs, x, beta, max_steps=50))
    # The minimum of |x| + (x - 0.1)^2 / 2 lies on the kink, where no gradient is 0.
    kink = absolute(0.1, 1.0)
    assert not kink.converged
    assert kink.residual > 0.5
    assert abs(0.1 + kink.update) < 1e-3
    for broken in (absolute(np.nan, 1.0), absolute(0.1, -1.0)):
        assert not broken.converged
        assert np.isnan(broken.residual)
    assert np.isnan(broken.update)


def test_newton_steps_that_do_not_exist_say_so():
    @jax.jit
    def saddle_step(beta):
        saddle = lambda x: (x[0] ** 2 - x[1] ** 2) / 2  # noqa: E731
        return newton_step(saddle, jnp.array([1.0, 1.0]), beta)

    # I + H = diag(2, 0), whereas I + H / 2 = diag(1.5, 0.5).
    assert not saddle_step(1.0).converged
    assert not saddle_step(1.0).residual <= 1e-3
    np.testing.assert_allclose(saddle_step(0.5).update, [-1 / 3, 1], rtol=1e-9)
    assert np.isnan(saddle_step(-0.5).update).all()
    assert not saddle_step(-0.5).converged


def test_single_precision_stays_single():
    case = problems.dense_case((4, 2), batch=1, dtype=jnp.float32)
    loss_fn = example_loss(case.network, case.inputs, case.targets)
    for solver in (proximal_step, newton_step):
        found = jax.jit(partial(solver, loss_fn, tolerance=1e-4))(case.params, 0.5)
        assert found.converged
        leaves = jax.tree.leaves((found.update, found.residual))
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype("f4")}


def test_bad_input_is_refused():
    case = case64(batch=2)
    batch = batch_loss(case.network, case.inputs, case.targets)

    def per_example(params):
        logits = case.network.apply(params, case.inputs)
        return pcjax.identity.loss(logits, case.targets)

    for beta in (0, -1.0, np.nan):
        for function in (
            partial(proximal_step, batch, case.params),
            partial(newton_step, batch, case.params),
            partial(proximal_objective, batch, case.params, case.params),
            partial(proximal_weights, case.network, 1.0),
            partial(theorem1_weights, case.network, 1.0),
            partial(lemma1_weights, case.network, 1.0),
        ):
            with pytest.raises(ValueError, match="beta must be >"):
                function(beta)
    with pytest.raises(ValueError, match="expected one example"):
        example_loss(case.network, case.inputs, case.targets)
    for solver in (proximal_step, newton_step):
        with pytest.raises(ValueError, match=r"must return a scalar, got shape \(2,\)"):
            jax.eval_shape(partial(solver, per_example, beta=1.0), case.params)
    with pytest.raises(ValueError, match="about one example"):
        limit_gap(case.network, case.params, case.params, settled(case))
    with pytest.raises(ValueError, match="the update has shapes"):
        proximal_objective(batch, case.params, case.params[:1], 1.0)
    with pytest.raises(ValueError, match="each of the 3 layers, got 2"):
        proximal_weights(case.network, [1.0, 2.0], 1.0)
    with pytest.raises(ValueError, match="step_sizes must be >= 0 and finite"):
        proximal_weights(case.network, -1.0, 1.0)
    conv = problems.network_case("conv", dtype=jnp.float64)
    activities = jax.eval_shape(lambda: settled(conv))
    step = partial(inference_step, conv.network, step_sizes=1.0)
    with pytest.raises(ValueError, match="expected dense layers"):
        jax.eval_shape(step, conv.params, activities)


# What is handed through


@pytest.mark.parametrize("name", WEIGHTS)
def test_without_a_bias_no_weight_has_its_constant(name):
    """Each of gamma, decay and clamp with the norms of a network without biases."""
    rng = np.random.default_rng(0)
    activities = [rng.normal(size=(3, n)) for n in SIZES]
    errors = [rng.normal(size=(3, n)) for n in SIZES[1:]]
    f = [activities[0], *map(np.tanh, activities[1:3])]
    norms = [np.sum(v**2, 1) for v in f]
    beta = 0.7
    y, p = rng.normal(size=(2, 3, 2))
    found = WEIGHTS[name](NETWORK, lambda norm: 1 / norm, beta, bias=False)
    gammas, decays, clamped = weights_at(found, activities, errors, y, p)
    alphas = [1 / norm for norm in norms]
    gamma = alphas  # alpha, and also alpha^2 ||f||^2
    output = alphas[2] * (1 / beta + norms[2]) - 1
    if name == "printed":
        gamma = [*alphas[:2], output]
    np.testing.assert_allclose(gammas, gamma, rtol=1e-12)
    sign = -1 if name == "corrected" else 1
    decay = [
        sign * alpha**2 * np.sum(np.asarray(error) ** 2, 1)
        for alpha, error in zip(alphas[1:], errors[1:], strict=True)
    ]
    np.testing.assert_allclose(decays, decay, rtol=1e-12)
    want = (y + output[:, None] * p) / (1 + output[:, None])
    np.testing.assert_allclose(clamped, want, rtol=1e-12)


def test_steps_without_a_bias_have_the_norms_without_it():
    case = case64(batch=2)
    activities = settled(case)
    h = [np.asarray(x) for x in activities]
    f = [h[0], np.tanh(h[1]), np.tanh(h[2])]
    errors = errors_of(NETWORK, case.params, activities)
    gamma = normalised_weights(NETWORK, bias=False)

    @jax.jit
    def run(params, activities):
        arrays = NETWORK, params, activities
        step = inference_step(*arrays, normalised_step_size, bias=False)
        return step, pcjax.local_gradients(*arrays, gamma=gamma)

    step, grads = run(case.params, activities)
    for layer in range(3):
        e = np.asarray(errors[layer]) / np.sum(f[layer] ** 2, 1, keepdims=True) / 2
        expected = f[layer].T @ e
        np.testing.assert_allclose(step[layer]["kernel"], expected, rtol=1e-10)
        np.testing.assert_allclose(grads[layer]["kernel"], -expected, rtol=1e-10)


def test_the_output_of_an_inference_step_is_that_of_the_network():
    case = case64(batch=2)
    activities = settled(case)
    step = partial(inference_step, NETWORK, step_sizes=2.0, output=pcjax.softmax)
    found = jax.jit(step)(case.params, activities)
    (*_, below, top), last = activities, case.params[-1]
    f = np.tanh(np.asarray(below))
    logits = f @ np.asarray(last["kernel"]) + np.asarray(last["bias"])
    link = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    e = 2.0 * (np.asarray(top) - link) / 2
    np.testing.assert_allclose(found[-1]["kernel"], f.T @ e, rtol=1e-10)


def test_the_output_of_a_loss_is_that_of_the_network():
    case = case64(batch=3)
    logits = np.asarray(jax.jit(NETWORK.apply)(case.params, case.inputs))
    t = np.asarray(case.targets)
    each = np.log(np.exp(logits).sum(1)) * t.sum(1) - np.sum(t * logits, 1)
    options = {"output": pcjax.softmax}
    found = jax.jit(batch_loss(NETWORK, *case[2:], **options))(case.params)
    np.testing.assert_allclose(found, each.mean(), rtol=1e-12)
    one = example_loss(NETWORK, case.inputs[:1], case.targets[:1], **options)
    np.testing.assert_allclose(jax.jit(one)(case.params), each[0], rtol=1e-12)
    losses = []

    def step(loss_fn, params):
        losses.append(loss_fn(params))
        zero = jnp.zeros(())
        return Step(params, losses[-1], zero > 0, zero)

    found = mean_over_examples(step, NETWORK, *case[1:], **options)
    np.testing.assert_allclose(found.residual, each, rtol=1e-12)
    problems.assert_trees_close(found.update, case.params, rtol=1e-12)


@pytest.mark.parametrize("solver", [proximal_step, newton_step])
def test_a_traced_beta_of_zero_is_no_step(solver):
    found = solve_quadratic(solver, THETA, 0.0)
    assert np.isnan(ravel(found.update)).all()
    assert not found.converged


@pytest.mark.parametrize("solver", [proximal_step, newton_step])
def test_tolerances_that_are_none_are_refused(solver):
    for tolerance in (-1e-9, np.nan, np.inf):
        with pytest.raises(ValueError, match="tolerance must be >= 0 and finite, got"):
            solver(lambda x: x**2 / 2, jnp.array(3.0), 1.0, tolerance=tolerance)


@pytest.mark.parametrize("solver", [proximal_step, newton_step])
def test_what_is_solved_exactly_has_converged_without_tolerance(solver):
    found = solve_quadratic(solver, ORIGIN, 0.5, 0.0)
    assert found.residual == 0
    assert found.converged


def test_a_newton_step_stops_where_it_is_told():
    """Few steps of conjugate gradients leave a residual that `converged` judges."""
    beta, residuals = 100.0, []
    for steps in (1, 3, 100):
        found = solve_quadratic(newton_step, THETA, beta, 1e-6, steps)
        residuals.append(float(found.residual))
        assert found.converged == (found.residual <= 1e-6)
        assert found.num_steps == -1
    assert min(residuals[:2]) > 1e-6 > residuals[2]
    for factor, converged in ((0.99, False), (1.01, True)):
        found = solve_quadratic(newton_step, THETA, beta, factor * residuals[1], 3)
        assert found.converged == converged
    # No more is solved than was asked for.
    rough = solve_quadratic(newton_step, THETA, beta, 0.1)
    assert residuals[2] < rough.residual <= 0.1


def test_a_relative_residual_of_nothing_is_absolute():
    for solver in (proximal_step, newton_step):
        found = solve_quadratic(solver, ORIGIN, 1.0)
        assert found.converged
        assert found.residual == 0
        assert not np.any(ravel(found.update))


def test_what_is_no_update_of_the_same_parameters_is_not_compared():
    """As many entries, but others."""
    one, other = {"w": jnp.ones((2, 3))}, {"w": jnp.ones((3, 2))}
    with pytest.raises(ValueError, match="compare: the update has shapes"):
        compare(one, other)
    with pytest.raises(ValueError, match="compare: the update has shapes"):
        compare({"v": jnp.ones((2, 3))}, one)


@pytest.mark.parametrize("size", [1e-4, 100.0])
def test_updates_in_half_precision_are_compared_in_single(size):
    """Of squares that float16 rounds to 0 or takes for infinite."""
    one = {"w": jnp.full(100, size, jnp.float16)}
    twice = {"w": 2 * one["w"]}
    found = compare(one, twice)
    np.testing.assert_allclose(found, (1.0, 0.5), rtol=1e-3)
