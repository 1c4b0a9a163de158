"""Weight gradients, the quantities reported with them, backprop and iPC."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from tests import problems
from tests.tiers import thorough

F64 = {"dtype": jnp.float64}


def mean_energy(case, activities, **options):
    """The mean free energy as a function of the parameters."""
    return lambda params: jnp.mean(
        pcjax.free_energy(case.network, params, activities, **options)
    )


def by_total_error(activities, errors):
    """Weights of the hidden layers that depend on the output error too."""
    total = sum(jnp.sum(e**2, axis=range(1, e.ndim)) for e in errors)
    return jnp.stack([0.5 + total] * (len(errors) - 1))


WEIGHTS = {
    "plain": {},
    "layers": {"gamma": [0.5, 2.0, 1.5, 3.0], "decay": 0.2},
    "examples": {"gamma": np.linspace(0.2, 2, 15).reshape(3, 5)},
    "callable": {"gamma": by_total_error},
}


QUICK = [("nnx", "plain", "simultaneous"), ("tanh", "callable", "sequential")]
CASES = [
    (*case, kind)
    for case in [
        *((name, "plain") for name in ("conv", "residual", "nnx")),
        *(("tanh", weights) for weights in WEIGHTS if weights != "plain"),
    ]
    for kind in problems.METHODS
]


@pytest.mark.parametrize(
    ("name", "weights", "kind"),
    [*QUICK, *thorough(case for case in CASES if case not in QUICK)],
)
def test_gradients_and_energies_are_those_of_the_free_energy(x64, name, weights, kind):
    case = problems.network_case(name, **F64)
    network, *arrays = case
    method = problems.METHODS[kind](4, 0.1)
    options = {"output": pcjax.softmax, **WEIGHTS[weights]}
    clamp = pcjax.soft_clamp(0.1)

    @jax.jit
    def both(*arrays):
        inference = pcjax.infer(network, method, *arrays, clamp=clamp, **options)
        grad_fn = pcjax.value_and_grad(network, method, clamp=clamp, **options)
        return inference, grad_fn(*arrays)

    inference, ((energy, info), grads) = both(*arrays)

    @jax.jit
    def want(params, state, initial):
        fixed = dict(options)
        if callable(fixed.get("gamma")):
            fixed["gamma"] = fixed["gamma"](state.activities, state.errors)
        energy = mean_energy(case, state.activities, **fixed)
        energies = (
            pcjax.free_energy(network, params, each.activities, **options)
            for each in (state, initial)
        )
        return jax.value_and_grad(energy)(params), tuple(energies)

    (value, expected), energies = want(case.params, inference.state, inference.initial)
    problems.assert_trees_close(grads, expected)
    np.testing.assert_allclose(energy, value, rtol=1e-12)
    problems.assert_trees_close((info.energy, info.initial_energy), energies)


def test_info_has_loss_and_logits_of_the_feed_forward_pass(x64):
    case = problems.dense_case(**F64)
    network, *arrays = case
    grad_fn = pcjax.value_and_grad(
        network,
        pcjax.sequential(3, 0.2),
        output=pcjax.softmax,
        clamp=pcjax.soft_clamp(0.3),
        trace=lambda state: state.activities[1],
    )
    (_, info), _ = jax.jit(grad_fn)(*arrays)
    logits = network.apply(case.params, case.inputs)
    problems.assert_trees_close(info.logits, logits)
    loss = optax.softmax_cross_entropy(logits, case.targets)
    problems.assert_trees_close(info.loss, loss)
    first = pcjax.feedforward(network, case.params, case.inputs)[0]
    assert info.trace.shape == (4, *first.shape)
    problems.assert_trees_close(info.trace[0], first)


def test_energy_reports_that_inference_diverges():
    case = problems.dense_case()
    grad_fn = pcjax.value_and_grad(
        case.network, pcjax.simultaneous(8, 4.0), output=pcjax.softmax
    )
    (_, info), _ = jax.jit(grad_fn)(*case[1:])
    assert np.all(info.energy > 10 * info.initial_energy)


@pytest.mark.parametrize("output", problems.OUTPUTS)
def test_local_gradients_match_finite_differences(x64, output):
    case = problems.dense_case((3, 4, 2), **F64)
    hidden = pcjax.feedforward(case.network, case.params, case.inputs)[0]
    activities = (case.inputs, hidden + 0.3, case.targets)
    options = {"output": problems.OUTPUTS[output], "gamma": [0.7, 1.3]}
    grads = pcjax.local_gradients(case.network, case.params, activities, **options)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, case.params)
    energy = jax.jit(mean_energy(case, activities, **options))
    leaves, tree = jax.tree.flatten(case.params)
    for place, grad in enumerate(jax.tree.leaves(grads)):
        direction = np.random.default_rng(place).normal(size=grad.shape)

        def shifted(step, place=place, direction=direction):
            moved = list(leaves)
            moved[place] = np.asarray(moved[place]) + step * direction
            return float(energy(tree.unflatten(moved)))

        slope = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
        np.testing.assert_allclose(
            np.sum(np.asarray(grad) * direction), slope, rtol=1e-7
        )


@pytest.mark.parametrize(
    "gamma", [[0.5, 2.0, 1.5, 3.0], by_total_error, *thorough([1.0])]
)
def test_learning_clamp_changes_the_last_gradient_only(x64, gamma):
    case = problems.dense_case(**F64)
    network, *arrays = case
    method = pcjax.sequential(3, 0.2)
    options = {"output": pcjax.softmax, "gamma": gamma}
    soft = {**options, "clamp": pcjax.soft_clamp(0.5)}

    @jax.jit
    def all_three(*arrays):
        learn = pcjax.value_and_grad(
            network, method, learning_clamp=pcjax.full_clamp, **soft
        )
        plain = pcjax.value_and_grad(network, method, **soft)
        state = pcjax.infer(network, method, *arrays, **soft).state
        return learn(*arrays), plain(*arrays), state

    (value, grads), (same_value, same), state = all_three(*arrays)
    problems.assert_trees_close((value, grads[:-1]), (same_value, same[:-1]))
    if callable(gamma):
        options["gamma"] = gamma(state.activities, state.errors)
    activities = (*state.activities[:-1], case.targets)
    energy = jax.jit(jax.grad(mean_energy(case, activities, **options)))
    expected = energy(case.params)
    problems.assert_trees_close(grads[-1], expected[-1])
    # Full clamp: the error y - sigma; soft clamp: (y - sigma) / (1 + 0.5).
    problems.assert_trees_close(
        grads[-1], jax.tree.map(lambda g: 1.5 * np.asarray(g), same[-1]), rtol=1e-10
    )


LOSSES = {
    "softmax": optax.softmax_cross_entropy,
    "sigmoid": lambda p, y: optax.sigmoid_binary_cross_entropy(p, y).sum(1),
    "identity": lambda p, y: optax.l2_loss(p, y).sum(1),
}


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("conv", "softmax"),
        ("relu", "sigmoid"),
        ("relu", "identity"),
        *thorough([("relu", "softmax"), ("conv", "sigmoid"), ("conv", "identity")]),
    ],
)
def test_backprop_is_the_gradient_of_the_mean_loss(x64, name, output):
    case = problems.network_case(name, **F64)
    network, *arrays = case

    @jax.jit
    def want(params):
        def mean_loss(params):
            logits = network.apply(params, case.inputs)
            losses = LOSSES[output](logits, case.targets)
            return jnp.mean(losses), (losses, logits)

        return jax.value_and_grad(mean_loss, has_aux=True)(params)

    (value, (losses, logits)), expected = want(case.params)
    (energy, info), grads = pcjax.backprop.value_and_grad(
        network, output=problems.OUTPUTS[output]
    )(*arrays)
    problems.assert_trees_close((energy, grads), (value, expected))
    for have in (info.loss, info.initial_energy, info.energy):
        problems.assert_trees_close(have, losses)
    problems.assert_trees_close(info.logits, logits)
    assert info.trace is None


def _iterate_incrementally(case, kind, steps, tx, options):
    """iPC as a loop: activities and weights step from the same state."""
    network, params, inputs, _ = case
    move = lambda layer, slope, h: -0.1 * slope  # noqa: E731
    hidden = pcjax.feedforward(network, params, inputs)[:-1]
    opt_state = tx.init(params)
    weights = {key: options[key] for key in ("output", "gamma", "decay")}
    for _ in range(steps):
        case = case._replace(params=params)
        activities = problems.clamped(case, hidden, options["output"], options["clamp"])
        energy = pcjax.free_energy(network, params, activities, **weights)
        grads = jax.grad(mean_energy(case, activities, **weights))(params)
        hidden = problems.iterate(case, kind, hidden, move, **options)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    return params, opt_state, energy


@pytest.mark.parametrize(
    ("name", "num_steps", "kind"),
    [
        ("tanh", 3, "simultaneous"),
        *thorough(
            [
                ("tanh", 3, "sequential"),
                *(("tanh", 1, kind) for kind in problems.METHODS),
                *(("conv", t, kind) for t in (1, 3) for kind in problems.METHODS),
            ]
        ),
    ],
)
def test_incremental_is_the_loop_over_public_functions(x64, name, num_steps, kind):
    case = problems.network_case(name, **F64)
    network, *arrays = case
    layers = len(network.layers)
    tx = optax.adam(0.01)
    options = {
        "output": pcjax.softmax,
        "clamp": pcjax.soft_clamp(0.1),
        "gamma": [0.5 + index for index in range(layers)],
        "decay": 0.1,
    }
    update = pcjax.incremental(
        network, problems.METHODS[kind](num_steps, 0.1), tx, **options
    )
    opt_state = tx.init(case.params)
    params, opt_state, (energy, info) = jax.jit(update)(
        case.params, opt_state, *arrays[1:]
    )

    @jax.jit
    def want(*arrays):
        here = problems.Case(network, *arrays)
        logits = network.apply(here.params, here.inputs)
        initial = problems.descend(here, kind, [], pcjax.softmax, options["clamp"])
        weights = {key: options[key] for key in ("output", "gamma", "decay")}
        return (
            _iterate_incrementally(here, kind, num_steps, tx, options),
            (logits, optax.softmax_cross_entropy(logits, here.targets)),
            pcjax.free_energy(network, here.params, initial, **weights),
        )

    expected, (logits, loss), initial_energy = want(*arrays)
    problems.assert_trees_close((params, opt_state, info.energy), expected, rtol=1e-10)
    np.testing.assert_allclose(energy, np.mean(expected[-1]), rtol=1e-10)
    problems.assert_trees_close(info.logits, logits)
    problems.assert_trees_close(info.loss, loss)
    problems.assert_trees_close(info.initial_energy, initial_energy)


@pytest.mark.parametrize("kind", problems.METHODS)
def test_first_incremental_iteration_moves_the_last_weights_only(x64, kind):
    case = problems.dense_case(**F64)
    network, *arrays = case
    tx = optax.sgd(0.5)
    update = pcjax.incremental(
        network, problems.METHODS[kind](1, 0.1), tx, output=pcjax.softmax
    )
    params, *_ = jax.jit(update)(case.params, tx.init(case.params), *arrays[1:])
    for before, after in zip(case.params[:-1], params[:-1], strict=True):
        jax.tree.map(np.testing.assert_array_equal, before, after)
    # No activity has moved, so the last layer's step is that of backprop.
    _, grads = pcjax.backprop.value_and_grad(network, output=pcjax.softmax)(*arrays)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, case.params[-1], grads[-1])
    problems.assert_trees_close(params[-1], expected)
