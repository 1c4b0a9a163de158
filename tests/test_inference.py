"""Inference against gradients of the free energy, closed forms and optax."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from tests import problems
from tests.tiers import thorough

F64 = {"dtype": jnp.float64}


def constant(eps):
    """A move by a fixed step size."""
    return lambda layer, slope, h: -eps * slope


@functools.cache
def dense():
    """A dense network in double precision, for tests that share its programs."""
    return problems.dense_case(**F64)


@functools.cache
def _oracle(network, kind, output, clamp, weights):
    """The hidden activities at the start, and an iteration, as compiled programs."""

    @jax.jit
    def start(params, inputs, targets):
        del targets
        return pcjax.feedforward(network, params, inputs)[:-1]

    @jax.jit
    def iterate(arrays, hidden, eps):
        case = problems.Case(network, *arrays)
        activities = problems.clamped(case, hidden, output, clamp)
        options = dict(weights)
        return activities, problems.iterate(
            case, kind, hidden, constant(eps), output, clamp, **options
        )

    return start, iterate


def descend(
    case, kind, step_sizes, output=pcjax.softmax, clamp=pcjax.full_clamp, **weights
):
    """The activities before the first iteration, and after every one."""
    given = output, clamp, tuple(weights.items())
    start, iterate = _oracle(case.network, kind, *given)
    hidden, found = start(*case[1:]), []
    for eps in (*step_sizes, 0.0):
        activities, hidden = iterate(case[1:], hidden, eps)
        found.append(activities)
    return found


def infer(case, method, **kwargs):
    """`pcjax.infer`, compiled."""
    network, *arrays = case
    run = jax.jit(lambda *arrays: pcjax.infer(network, method, *arrays, **kwargs))
    return run(*arrays)


def layer_weight(scale):
    """A weight of every layer but the last, made of activities and errors."""

    def weight(activities, errors):
        return jnp.stack(
            [
                scale * jnp.sum(h**2 + e**2, axis=1)
                for h, e in zip(activities[1:-1], errors[:-1], strict=True)
            ]
        )

    return weight


def pull_to_activity(targets, outputs, activity):
    """A clamp that uses all it is given, the activity below the output included."""
    return targets + 0.3 * outputs * jnp.mean(activity, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tanh", "simultaneous"),
        ("linen", "sequential"),
        *thorough([("tanh", "sequential"), ("linen", "simultaneous")]),
    ],
)
def test_iterations_follow_the_gradient_of_the_free_energy(x64, kind, name):
    case = problems.network_case(name, **F64)
    options = {"output": pcjax.softmax, "clamp": pcjax.soft_clamp(0.3)}
    if name == "tanh":
        options |= {"gamma": layer_weight(0.2), "decay": layer_weight(0.05)}
    else:
        # Its output activities are no distributions, as softmax needs.
        options |= {"clamp": pull_to_activity, "output": pcjax.identity}
    inference = infer(case, problems.METHODS[kind](3, 0.1), **options)
    start, *_, expected = descend(case, kind, [0.1] * 3, **options)
    problems.assert_trees_close(inference.state.activities, expected)
    problems.assert_trees_close(inference.initial.activities, start)


@pytest.mark.parametrize("kind", problems.METHODS)
def test_a_schedule_gives_the_step_size_of_every_iteration(x64, kind):
    case = dense()
    method = problems.METHODS[kind](3, lambda t: 0.2 / (1 + t))
    problems.assert_trees_close(
        infer(case, method, output=pcjax.softmax).state.activities,
        descend(case, kind, [0.2, 0.1, 0.2 / 3])[-1],
    )


@pytest.mark.parametrize("kind", problems.METHODS)
def test_step_size_gamma_and_decay_may_be_traced(x64, kind):
    case = dense()

    def final(step_size, gamma, decay):
        return pcjax.infer(
            case.network,
            problems.METHODS[kind](2, step_size),
            *case[1:],
            clamp=pcjax.soft_clamp(gamma),
            gamma=gamma,
            decay=decay,
        ).state.activities

    values = jnp.array([[0.1, 0.5, 0.0], [0.3, 2.0, 0.4]])
    mapped = jax.jit(jax.vmap(final))(*values.T)

    @jax.jit
    def expected(step_size, gamma, decay):
        return problems.descend(
            case,
            kind,
            [constant(step_size)] * 2,
            output=pcjax.identity,
            clamp=pcjax.soft_clamp(gamma),
            gamma=gamma,
            decay=decay,
        )

    for row, numbers in enumerate(values.tolist()):
        found = jax.tree.map(lambda x, row=row: np.asarray(x)[row], mapped)
        problems.assert_trees_close(found, expected(*numbers))


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.03),
    "clip": optax.chain(optax.clip_by_global_norm(0.02), optax.sgd(0.5)),
    "uses_activities": optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.1)),
}


def _drive(optimizer, batch):
    """Moves by `optimizer`, one state for each layer and example."""
    states = {}

    def move(layer, slope, h):
        rows = []
        for example in range(batch):
            state = states.get((layer, example), optimizer.init(h[example]))
            update, states[layer, example] = optimizer.update(
                slope[example], state, h[example]
            )
            rows.append(update)
        return jnp.stack(rows)

    return move


@pytest.mark.parametrize("kind", problems.METHODS)
@pytest.mark.parametrize(
    "name",
    ["uses_activities", *thorough(n for n in OPTIMIZERS if n != "uses_activities")],
)
def test_any_optax_transform_moves_the_activities(x64, kind, name):
    case = problems.dense_case((3, 5, 4, 2), batch=2, **F64)
    method = problems.METHODS[kind](3, optimizer=OPTIMIZERS[name])

    @jax.jit
    def expected(*arrays):
        moves = [_drive(OPTIMIZERS[name], 2)] * 3
        return problems.descend(problems.Case(case.network, *arrays), kind, moves)

    activities = infer(case, method, output=pcjax.softmax).state.activities
    problems.assert_trees_close(activities, expected(*case[1:]), rtol=1e-11)


@pytest.mark.parametrize("kind", problems.METHODS)
def test_a_user_written_method_is_driven_like_the_built_in_ones(x64, kind):
    case = dense()

    def step(t, state, gradient, count):
        built_in = problems.METHODS[kind](3, 0.1 * count)
        moves, _ = built_in.step(t, state, gradient, ((),) * 3)
        return moves, count + 1

    method = pcjax.Method(3, lambda hidden: jnp.ones(()), step)
    problems.assert_trees_close(
        infer(case, method, output=pcjax.softmax).state.activities,
        descend(case, kind, [0.1, 0.2, 0.3])[-1],
    )


@pytest.mark.exhaustive
def test_deep_networks_may_skip_what_no_error_has_reached(x64):
    sizes = (3, 4, 5, 6, 5, 4, 3, 4, 5, 2)  # eight hidden layers
    case = problems.dense_case(sizes, batch=2, **F64)
    expected = descend(case, "simultaneous", [0.2] * 10, output=pcjax.identity)
    for num_steps in (6, 8, 10):
        method = pcjax.simultaneous(num_steps, 0.2)
        inference = infer(case, method, trace=lambda state: state.activities[1:-1])
        for t in range(num_steps + 1):
            row = jax.tree.map(lambda x, t=t: np.asarray(x)[t], inference.trace)
            problems.assert_trees_close(row, expected[t][1:-1])
        problems.assert_trees_close(inference.state.activities[1:-1], row)


@pytest.mark.parametrize(
    ("kind", "reached"),
    [("sequential", [4, 4, 4, 4]), ("simultaneous", [2, 3, 4, 4])],
)
def test_how_far_errors_travel(kind, reached):
    case = problems.dense_case()
    options = {"output": pcjax.softmax, "clamp": pcjax.soft_clamp(0.01)}
    method = problems.METHODS[kind](4, 0.05)
    inference = infer(case, method, trace=lambda state: state, **options)
    start = inference.initial.activities[1:-1]
    for t, count in enumerate(reached, start=1):
        state = jax.tree.map(lambda x, t=t: np.asarray(x)[t], inference.trace)
        still = 4 - count
        for error in state.errors[:still]:
            np.testing.assert_array_equal(error, 0)
        assert all(np.all(error != 0) for error in state.errors[still:])
        # Layers that no error has reached have not moved by a bit.
        moved = [
            not np.array_equal(before, after)
            for before, after in zip(start, state.activities[1:-1], strict=True)
        ]
        assert moved == [index >= still for index in range(3)]


@pytest.mark.parametrize(
    ("name", "kind", "num_steps"),
    [
        ("tanh", "sequential", 3),
        ("relu", "simultaneous", 3),
        *thorough(
            [
                ("tanh", "sequential", 1),
                ("tanh", "simultaneous", 3),
                ("tanh", "simultaneous", 5),
                ("relu", "sequential", 1),
            ]
        ),
    ],
)
def test_small_steps_give_the_direction_of_backprop(x64, name, kind, num_steps):
    case = problems.network_case(name, **F64)
    network, *arrays = case
    _, expected = pcjax.backprop.value_and_grad(network, output=pcjax.softmax)(*arrays)
    angles = []

    @jax.jit
    def learn(eps, *arrays):
        method = problems.METHODS[kind](num_steps, eps)
        options = {"output": pcjax.softmax, "clamp": pcjax.soft_clamp(0.25)}
        return pcjax.value_and_grad(network, method, **options)(*arrays)[1]

    for eps in (1e-2, 1e-3):
        grads = learn(eps, *arrays)
        angles.append(
            [problems.angle(g, want) for g, want in zip(grads, expected, strict=True)]
        )
        # An error comes down k layers in as many ways as k of the T iterations can be
        # picked (each once if all layers move together), and takes eps at every move.
        for k, (grad, want) in enumerate(
            zip(reversed(grads), reversed(expected), strict=True)
        ):
            ways = math.comb(num_steps + (k - 1 if kind == "sequential" else 0), k)
            scale = 1.25 / (ways * eps**k)
            scaled = jax.tree.map(lambda g, scale=scale: scale * np.asarray(g), grad)
            problems.assert_trees_close(scaled, want, rtol=0, atol=30 * eps)
    coarse, fine = np.array(angles)
    assert np.all(fine < 0.03)
    assert np.all(fine < 0.12 * coarse + 1e-6)


def test_errors_below_the_rounding_of_the_activities_survive_float32(x64):
    sizes = (8, *[20] * 8, 4)
    exact = problems.dense_case(sizes, **F64)
    grads = {}
    for dtype in (jnp.float32, jnp.float64):
        arrays = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), exact[1:])
        grad_fn = pcjax.value_and_grad(
            exact.network,
            pcjax.sequential(1, 1e-2),
            output=pcjax.softmax,
            trace=lambda state: (state.activities[1:-1], state.errors[:-1]),
        )
        (_, info), grads[dtype] = jax.jit(grad_fn)(*arrays)
    # Most hidden errors could not be had by subtracting float32 activities.
    activities, errors = info.trace
    sizes = [
        np.linalg.norm(e[-1]) / np.linalg.norm(h[-1])
        for h, e in zip(activities, errors, strict=True)
    ]
    assert sum(size < np.finfo(np.float32).eps for size in sizes) >= 5
    for rough, want in zip(grads[jnp.float32], grads[jnp.float64], strict=True):
        assert math.cos(problems.angle(rough, want)) > 0.999


@pytest.mark.parametrize("kind", problems.METHODS)
def test_energy_falls_at_every_small_step(x64, kind):
    case = dense()
    energies = infer(
        case,
        problems.METHODS[kind](12, 0.05),
        output=pcjax.softmax,
        decay=0.01,
        trace=lambda state: pcjax.free_energy(
            case.network,
            case.params,
            state.activities,
            output=pcjax.softmax,
            decay=0.01,
        ),
    ).trace
    assert energies.shape == (13, 5)
    assert np.all(np.diff(energies, axis=0) < 0)


def _equilibrium(case, gammas, decay, softness):
    """Hidden activities of a linear chain with the least energy, by least squares.

    A soft clamp divides the output error by `1 + gamma_L`, as a smaller weight would.
    """
    weights = [np.asarray(theta["kernel"]) for theta in case.params]
    biases = [np.asarray(theta["bias"]) for theta in case.params]
    sizes = [w.shape[1] for w in weights]
    scales = np.sqrt([*gammas, 1 / (1 + softness)])
    ends = np.cumsum([0, *sizes])
    system = np.zeros((ends[-1], ends[-2]))
    for index, weight in enumerate(weights):
        rows = slice(ends[index], ends[index + 1])
        if index < len(gammas):
            system[rows, rows] = scales[index] * np.eye(sizes[index])
        if index:
            columns = slice(ends[index - 1], ends[index])
            system[rows, columns] = -scales[index] * weight.T
    system = np.concatenate([system, math.sqrt(decay) * np.eye(ends[-2])])
    solutions = []
    for x, y in zip(np.asarray(case.inputs), np.asarray(case.targets), strict=True):
        known = [bias * scale for bias, scale in zip(biases, scales, strict=True)]
        known[0] = known[0] + scales[0] * (x @ weights[0])
        known[-1] = known[-1] - scales[-1] * y
        known.append(np.zeros(ends[-2]))
        solutions.append(np.linalg.lstsq(system, np.concatenate(known))[0])
    return np.stack(solutions)


@pytest.mark.parametrize(
    ("gammas", "decay", "softness", "kind"),
    [
        ([1, 1], 0, 0, "simultaneous"),
        ([0.5, 2.0], 0.3, 0.4, "sequential"),
        *thorough(
            [
                ([1, 1], 0, 0, "sequential"),
                ([0.5, 2.0], 0.3, 0.4, "simultaneous"),
            ]
        ),
    ],
)
def test_linear_network_converges_to_its_equilibrium(
    x64, gammas, decay, softness, kind
):
    case = problems.dense_case((3, 4, 5, 2), pcjax.networks.linear, **F64)
    state = infer(
        case,
        problems.METHODS[kind](3000, 0.1),
        clamp=pcjax.soft_clamp(softness),
        gamma=gammas,
        decay=decay,
    ).state
    hidden = state.activities[1:-1]
    np.testing.assert_allclose(
        np.concatenate(hidden, axis=1),
        _equilibrium(case, gammas, decay, softness),
        atol=1e-9,
    )

    def energy(hidden):
        activities = (case.inputs, *hidden, state.activities[-1])
        return jnp.sum(
            pcjax.free_energy(
                case.network, case.params, activities, gamma=gammas, decay=decay
            )
        )

    assert (
        max(np.abs(slope).max() for slope in jax.jit(jax.grad(energy))(hidden)) < 1e-9
    )


@pytest.mark.parametrize("kind", problems.METHODS)
def test_trace_has_the_state_at_the_start_and_after_every_iteration(x64, kind):
    case = dense()
    options = {"output": pcjax.softmax, "clamp": pcjax.soft_clamp(0.1)}
    method = problems.METHODS[kind](4, lambda t: 0.2 / (1 + t))
    inference = infer(case, method, trace=lambda state: state, **options)
    trace = jax.tree.map(np.asarray, inference.trace)
    rows = [jax.tree.map(lambda x, t=t: x[t], trace) for t in range(5)]
    assert all(x.shape[0] == 5 for x in jax.tree.leaves(inference.trace))
    problems.assert_trees_close(rows[0], inference.initial)
    problems.assert_trees_close(rows[-1], inference.state)

    @jax.jit
    def observe(params, activities):
        predictions = tuple(
            layer.apply(theta, h)
            for layer, theta, h in zip(
                case.network.layers, params, activities, strict=False
            )
        )
        return predictions, pcjax.prediction_errors(
            case.network, params, activities, output=pcjax.softmax
        )

    expected = descend(case, kind, [0.2 / (1 + s) for s in range(4)], **options)
    for row, activities in zip(rows, expected, strict=True):
        problems.assert_trees_close(row.activities, activities)
        # Predictions and errors are those of the activities in the same row.
        predictions, errors = observe(case.params, row.activities)
        problems.assert_trees_close(row.predictions, predictions)
        problems.assert_trees_close(row.errors, errors)


def test_without_a_trace_nothing_is_recorded():
    case = problems.dense_case()
    assert infer(case, pcjax.sequential(2, 0.1)).trace is None


@pytest.mark.parametrize("kind", problems.METHODS)
def test_one_layer_has_nothing_to_infer(x64, kind):
    case = problems.dense_case((3, 2), **F64)
    inference = infer(case, problems.METHODS[kind](3, 0.1), output=pcjax.softmax)
    problems.assert_trees_close(inference.state, inference.initial)
    problems.assert_trees_close(inference.state.activities, (case.inputs, case.targets))
