"""The library against the slow NumPy transcription of the equations.

Activities are compared by how far they moved since the start, relative to the largest
move of their layer: early layers move little, and comparing the activities themselves
would let a wrong move pass.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from pcjax.optimizers.mq import mq as mq_transform
from tests.reference import cases, inference, learning, mq, over_batch
from tests.reference.both_sides import (
    BATCH,
    CLAMPS,
    EPS,
    METHODS,
    OUTPUTS,
    Config,
    make_decay,
    make_gamma,
    settings,
    to_library,
)
from tests.tiers import thorough

RTOL = 1e-10
RATE = 0.3  # step size of the weights

NETS = ["dense", "relu", "conv", "residual"]
FACTORS = Config(
    net=NETS,
    output=list(OUTPUTS),
    method=list(METHODS),
    clamp=list(CLAMPS),
    gamma=["one", "number", "hidden", "all", "hidden_example", "all_example", "state"],
    decay=["zero", "number", "hidden", "example", "state"],
    step_size=["constant", "schedule"],
    num_steps=[1, 2, 3, 4, 5],
)


def pairs(config):
    """Every pair of choices that a configuration makes."""
    return set(itertools.combinations(enumerate(config), 2))


def covering_configs():
    """Few configurations in which any two choices meet, found greedily."""
    rng = np.random.default_rng(0)
    missing = set().union(*map(pairs, itertools.product(*FACTORS)))
    found = []
    while missing:
        candidates = [
            Config(*(levels[rng.integers(len(levels))] for levels in FACTORS))
            for _ in range(200)
        ]
        best = max(candidates, key=lambda config: len(pairs(config) & missing))
        if pairs(best) & missing:
            missing -= pairs(best)
            found.append(best)
    return found


CONFIGS = covering_configs()


def met(config):
    """Choices with the method, and how far errors come before inference ends."""
    alone = {(config.method, *choice) for choice in enumerate(config)}
    if config.method == "simultaneous" and config.decay == "zero":
        alone.add(config.num_steps)
    return alone


def few(configs):
    """As few in which every choice meets both methods, found greedily."""
    found, missing = [], set().union(*map(met, configs))
    while missing:
        found.append(max(configs, key=lambda config: len(met(config) & missing)))
        missing -= met(found[-1])
    return found


QUICK = few(CONFIGS)


def config_name(config):
    return "-".join(map(str, config))


def assert_close(actual, expected, rtol, name=""):
    """Close relative to the largest entry; where all should be zero, they are."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected)
    assert actual.shape == expected.shape, name
    scale, error = np.abs(expected).max(), np.abs(actual - expected).max()
    assert error <= rtol * scale, f"{name}: off by {error:.1e}, largest {scale:.1e}"


def assert_moves_close(actual, expected, rtol):
    """Compares activities per time and layer by how far they moved since time 0."""
    for t, (have, want) in enumerate(zip(actual, expected, strict=True)):
        assert len(have) == len(want)
        for i in range(len(want)):
            start = np.asarray(actual[0][i], np.float64)
            moved = np.asarray(have[i], np.float64) - start
            assert_close(moved, want[i] - expected[0][i], rtol, name=f"h_{i}({t})")
    for i, (have, want) in enumerate(zip(actual[0], expected[0], strict=True)):
        assert_close(have, want, rtol, name=f"h_{i}(0)")


def assert_trees_close(actual, expected, rtol):
    """Compares trees leaf by leaf."""
    actual, expected = tuple(actual), tuple(expected)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    leaves = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for i, (have, want) in enumerate(leaves):
        assert_close(have, want, rtol, name=f"leaf {i}")


def assert_weight_moves_close(problem, params, layers):
    """Compares parameters by how far they moved since the problem's own."""
    old = tuple(layer.params for layer in problem.layers)
    actual, expected = (
        jax.tree.map(lambda a, b: np.asarray(a) - b, new, old)
        for new in (tuple(params), tuple(layer.params for layer in layers))
    )
    assert_trees_close(actual, expected, RTOL)


def check_states(problem, history, trace, rtol):
    """A trace of states against the oracle's activities and what follows from them."""
    times = range(len(history))
    actual = [[h[t] for h in trace.activities] for t in times]
    assert_moves_close(
        actual, [over_batch.stack(activities) for activities in history], rtol
    )
    for t, activities in enumerate(history):
        predictions = [inference.predict(problem.layers, h) for h in activities]
        errors = [
            inference.prediction_errors(problem.output, h, p)
            for h, p in zip(activities, predictions, strict=True)
        ]
        for name, have, want in [
            ("p", trace.predictions, over_batch.stack(predictions)[1:]),
            ("e", trace.errors, over_batch.stack(errors)[1:]),
        ]:
            for i, (a, b) in enumerate(zip(have, want, strict=True)):
                assert_close(a[t], b, rtol, name=f"{name}_{i + 1}({t})")


def check_start(problem, info, setting, rtol):
    """What is recorded about the feed-forward pass."""
    logits = [inference.feedforward(problem.layers, x)[-1] for x in problem.xs]
    assert_close(info.logits, logits, rtol, name="logits")
    examples = zip(logits, problem.targets, strict=True)
    losses = [problem.output.loss(*given) for given in examples]
    assert_close(info.loss, losses, rtol, name="loss")
    optimizer = inference.GradientDescent(0.0)
    (start,) = over_batch.history(problem, 0, setting, optimizer)
    energies = over_batch.energies(problem, start, setting)
    assert_close(info.initial_energy, energies, rtol, name="initial energy")


def check_training_iteration(config, dtype, rtol):
    """States, energies and weight gradients."""
    problem = over_batch.rounded(
        cases.make_problem(config.net, config.output, BATCH), dtype
    )
    given, oracle = settings(config, len(problem.layers))
    optimizer = inference.GradientDescent(oracle.step_size)
    history = over_batch.history(problem, config.num_steps, oracle, optimizer)
    network, params, inputs, targets = to_library(problem, dtype)
    grad_fn = pcjax.value_and_grad(
        network,
        given.method(config.num_steps, given.step_size),
        output=OUTPUTS[config.output],
        clamp=given.clamp,
        gamma=given.gamma,
        decay=given.decay,
        trace=lambda state: state,
    )
    (energy, info), grads = jax.jit(grad_fn)(params, inputs, targets)
    assert energy.dtype == dtype
    check_states(problem, history, info.trace, rtol)
    check_start(problem, info, oracle, rtol)
    energies = over_batch.energies(problem, history[-1], oracle)
    assert_close(info.energy, energies, rtol, name="energies")
    assert_close(energy, energies.mean(), rtol, name="energy")
    gradient = over_batch.gradient(problem, history[-1], oracle.gamma)
    assert_trees_close(grads, gradient, rtol)


@pytest.mark.parametrize(
    "config",
    [*QUICK, *thorough(c for c in CONFIGS if c not in QUICK)],
    ids=config_name,
)
def test_training_iteration(x64, config):
    check_training_iteration(config, np.float64, RTOL)


@pytest.mark.parametrize(
    "config",
    [
        Config("residual", "identity", "sequential", "soft", "state", "state"),
        Config("relu", "softmax", "simultaneous", "own", "all_example", "example"),
        *thorough(
            [
                Config("dense", "identity", "sequential", "full", "one", "zero"),
                Config("conv", "sigmoid", "simultaneous", "full", "number", "hidden"),
            ]
        ),
    ],
    ids=config_name,
)
def test_training_iteration_in_float32(config):
    check_training_iteration(config, np.float32, 1e-5)


# An error needs 8 iterations to pass all hidden layers, if none moves by decay.
DEEP = Config("deep", "identity", "simultaneous", "full", "hidden_example", "zero")
DEEP = DEEP._replace(step_size="large")


@pytest.mark.parametrize("num_steps", [9, *thorough([5, 6, 8, 11])])
def test_error_passes_a_deep_network(x64, num_steps):
    config = DEEP._replace(num_steps=num_steps)
    check_training_iteration(config, np.float64, RTOL)


@pytest.mark.parametrize("method", METHODS)
def test_one_weight_layer_has_nothing_to_infer(x64, method):
    problem = cases.make_problem("shallow", "softmax", BATCH)
    network, *batch = to_library(problem)
    given, oracle = settings(Config(method=method, clamp="soft"), 1)
    grad_fn = pcjax.value_and_grad(
        *(network, given.method(2, EPS)), output=pcjax.softmax, clamp=given.clamp
    )
    (energy, _), grads = jax.jit(grad_fn)(*batch)
    (start,) = over_batch.history(problem, 0, oracle, inference.GradientDescent(EPS))
    assert_close(energy, over_batch.energies(problem, start, oracle).mean(), RTOL)
    assert_trees_close(grads, over_batch.gradient(problem, start, oracle.gamma), RTOL)


class ClippedDescent(inference.GradientDescent):
    """Gradient descent; each layer's gradient of each example has norm <= `bound`."""

    def __init__(self, step_size, bound):
        super().__init__(step_size)
        self.bound = bound

    def update(self, t, i, h, gradient):
        norm = np.sqrt(np.sum(gradient**2))
        return super().update(t, i, h, gradient * min(1.0, self.bound / norm))


# name: (the library's, the oracle's)
OPTIMIZERS = {
    "schedule": (
        optax.sgd(lambda t: EPS / (1 + t)),
        inference.GradientDescent(lambda t: EPS / (1 + t)),
    ),
    "momentum": (optax.sgd(0.1, momentum=0.8), inference.Momentum(0.1, mu=0.8)),
    "adam": (optax.adam(0.05, eps=1e-4), inference.Adam(0.05, eps=1e-4)),
    "clipped": (
        optax.chain(optax.clip_by_global_norm(0.3), optax.sgd(0.4)),
        ClippedDescent(0.4, bound=0.3),
    ),
}


MOVED = [
    ("dense", "schedule", 4, "simultaneous"),
    ("dense", "momentum", 4, "sequential"),
    ("dense", "adam", 4, "simultaneous"),
    ("dense", "clipped", 4, "sequential"),
]
ALL_MOVED = [
    (*run, method)
    for run in [
        *(("dense", name, 4) for name in OPTIMIZERS),
        ("conv", "adam", 4),
        ("deep", "adam", 11),
    ]
    for method in METHODS
]


@pytest.mark.parametrize(
    ("net", "name", "num_steps", "method"),
    [*MOVED, *thorough(run for run in ALL_MOVED if run not in MOVED)],
)
def test_activities_moved_by_an_optimizer(x64, net, name, num_steps, method):
    problem = cases.make_problem(net, "softmax", BATCH)
    decay = "zero" if net == "deep" else "hidden"
    config = Config(net, method=method, gamma="hidden_example", decay=decay)
    given, oracle = settings(config, len(problem.layers))
    tx, optimizer = OPTIMIZERS[name]
    history = over_batch.history(problem, num_steps, oracle, optimizer)
    network, *batch = to_library(problem)

    def run(params, inputs, targets):
        return pcjax.infer(
            *(network, given.method(num_steps, optimizer=tx)),
            *(params, inputs, targets),
            output=pcjax.softmax,
            clamp=given.clamp,
            gamma=given.gamma,
            decay=given.decay,
            trace=lambda state: state,
        )

    result = jax.jit(run)(*batch)
    check_states(problem, history, result.trace, RTOL)
    for state, row in [(result.initial, 0), (result.state, -1)]:
        recorded = jax.tree.map(lambda leaf, row=row: leaf[row], result.trace)
        assert_trees_close(state, jax.tree.map(np.asarray, recorded), RTOL)


@pytest.mark.parametrize(
    ("net", "learning_clamp", "method"),
    [
        ("conv", "full", "sequential"),
        ("dense", "own", "simultaneous"),
        *thorough([("conv", "full", "simultaneous"), ("dense", "own", "sequential")]),
    ],
)
def test_learning_clamp(x64, net, learning_clamp, method):
    """The last layer's gradient uses another output activity; the others do not."""
    problem = cases.make_problem(net, "softmax", BATCH)
    config = Config(net, method=method, clamp="soft", gamma="all_example")
    given, oracle = settings(config, len(problem.layers))
    library_clamp, oracle_clamp = CLAMPS[learning_clamp]
    network, *batch = to_library(problem)
    grad_fn = pcjax.value_and_grad(
        *(network, given.method(3, EPS)),
        output=pcjax.softmax,
        clamp=given.clamp,
        gamma=given.gamma,
        learning_clamp=library_clamp,
    )
    (energy, _), grads = jax.jit(grad_fn)(*batch)
    final = over_batch.history(problem, 3, oracle, inference.GradientDescent(EPS))[-1]
    output_targets = [
        inference.set_output(problem.layers, problem.output, h, target, oracle_clamp)[
            -1
        ]
        for h, target in zip(final, problem.targets, strict=True)
    ]
    gradient = over_batch.gradient(problem, final, oracle.gamma, output_targets)
    assert_trees_close(grads, gradient, RTOL)
    # The energy is that of the clamp that inference ran with.
    assert_close(energy, over_batch.energies(problem, final, oracle).mean(), RTOL)


INCREMENTAL = [
    Config("dense", "softmax", "sequential", "soft", "one", "zero", "schedule"),
    Config("residual", "identity", "simultaneous", "full", "state", "state"),
    Config("conv", "sigmoid", "sequential", "own", "all_example", "hidden"),
    Config("relu", "softmax", "simultaneous", "soft", "hidden", "example"),
]


@pytest.mark.parametrize(
    "config",
    [
        *(c._replace(num_steps=4) for c in INCREMENTAL),
        INCREMENTAL[0]._replace(num_steps=1),
        *thorough(c._replace(num_steps=2) for c in INCREMENTAL),
        *thorough(c._replace(num_steps=1) for c in INCREMENTAL[1:]),
        *thorough([DEEP._replace(num_steps=7, step_size="constant")]),
    ],
    ids=config_name,
)
def test_incremental(x64, config):
    """Weights by how far they moved; they feed on the activities of every iteration."""
    num_steps = config.num_steps
    problem = cases.make_problem(config.net, config.output, BATCH)
    given, oracle = settings(config, len(problem.layers))
    step_size = oracle.step_size
    step_sizes = [
        step_size(t) if callable(step_size) else step_size for t in range(num_steps)
    ]
    layers, history = learning.incremental(
        *(problem.layers, problem.output, problem.xs, problem.targets),
        *(oracle.method, step_sizes, RATE, oracle.clamp, oracle.gamma, oracle.decay),
    )
    network, params, inputs, targets = to_library(problem)
    tx = optax.sgd(RATE)
    step = pcjax.incremental(
        *(network, given.method(num_steps, given.step_size), tx),
        output=OUTPUTS[config.output],
        clamp=given.clamp,
        gamma=given.gamma,
        decay=given.decay,
    )
    new, _, (energy, info) = jax.jit(step)(params, tx.init(params), inputs, targets)

    assert_weight_moves_close(problem, new, layers)
    check_start(problem, info, oracle, RTOL)
    # The energy recorded is that of the state the last steps were taken from.
    old_layers, old_activities = history[-2]
    energies = over_batch.energies(problem, old_activities, oracle, old_layers)
    assert_close(info.energy, energies, RTOL)
    assert_close(energy, energies.mean(), RTOL)


ENERGIES = [
    *(("dense", "softmax"), ("relu", "sigmoid")),
    *(("conv", "identity"), ("residual", "softmax")),
]
OTHERS = [pair for pair in itertools.product(NETS, OUTPUTS) if pair not in ENERGIES]


@pytest.mark.parametrize(("net", "output"), [*ENERGIES, *thorough(OTHERS)])
def test_free_energy_and_its_gradients(x64, net, output):
    """At activities with errors everywhere; `jax.grad` and `local_gradients` agree."""
    problem = cases.make_problem(net, output, BATCH)
    last = len(problem.layers)
    activities = [cases.perturbed_activities(problem, b) for b in range(BATCH)]
    gamma, gammas = make_gamma("all_example", last)
    decay, decays = make_decay("example", last)
    network, params, *_ = to_library(problem)
    batched = tuple(jnp.asarray(h) for h in over_batch.stack(activities))

    def run(params, hidden):
        def mean_energy(params, hidden):
            state = (batched[0], *hidden, batched[-1])
            terms = pcjax.free_energy_per_layer(
                *(network, params, state),
                output=OUTPUTS[output],
                gamma=gamma,
                decay=decay,
            )
            energies = pcjax.free_energy(
                *(network, params, state),
                output=OUTPUTS[output],
                gamma=gamma,
                decay=decay,
            )
            return jnp.mean(energies), (terms, energies)

        autodiff = jax.grad(mean_energy, argnums=(0, 1), has_aux=True)(params, hidden)
        local = pcjax.local_gradients(
            network, params, batched, output=OUTPUTS[output], gamma=gamma
        )
        return autodiff, local

    ((slopes, moves), (terms, energies)), local = jax.jit(run)(params, batched[1:-1])

    per_example = list(zip(activities, gammas, decays, strict=True))
    expected = [
        inference.free_energy_per_layer(problem.layers, problem.output, *given)
        for given in per_example
    ]
    assert_close(terms, np.transpose(expected), RTOL, name="terms")
    assert_close(energies, np.sum(expected, axis=1), RTOL, name="energies")
    gradient = over_batch.gradient(problem, activities, gammas)
    assert_trees_close(slopes, gradient, RTOL)
    assert_trees_close(local, gradient, RTOL)
    descents = [
        inference.simultaneous(
            *(problem.layers, problem.output, *given), lambda i, h, gradient: gradient
        )[1:-1]
        for given in per_example
    ]
    assert_trees_close(moves, [h / BATCH for h in over_batch.stack(descents)], RTOL)


@pytest.mark.parametrize(
    ("net", "output"),
    [
        ("dense", "softmax"),
        ("relu", "sigmoid"),
        ("conv", "softmax"),
        ("residual", "identity"),
        ("shallow", "sigmoid"),
    ],
)
def test_backprop(x64, net, output):
    problem = cases.make_problem(net, output, BATCH)
    network, *batch = to_library(problem)
    grad_fn = pcjax.backprop.value_and_grad(network, output=OUTPUTS[output])
    (energy, info), grads = jax.jit(grad_fn)(*batch)
    examples = list(zip(problem.xs, problem.targets, strict=True))
    gradient = learning.batch_mean(
        [
            learning.backprop_gradient(problem.layers, problem.output, *given)
            for given in examples
        ]
    )
    assert_trees_close(grads, gradient, RTOL)
    losses = [
        problem.output.loss(inference.feedforward(problem.layers, x)[-1], target)
        for x, target in examples
    ]
    assert_close(info.loss, losses, RTOL)
    assert_close(energy, np.mean(losses), RTOL)


# name: (the library's learning rate, the oracle's)
LEARNING_RATES = {
    "number": (0.02, lambda b, i: 0.02),
    "schedule": (lambda b: 0.02 / (1 + b), lambda b, i: 0.02 / (1 + b)),
    "layers": (
        [0.01, 0.02, 0.04, 0.08],
        lambda b, i: [0.01, 0.02, 0.04, 0.08][i],
    ),
}


@pytest.mark.parametrize(
    ("rate", "net"),
    [("schedule", "conv"), ("layers", "dense"), *thorough([("number", "dense")])],
)
def test_training_with_mq(x64, rate, net):
    """Training iterations up to where `rho` takes over from the running mean's."""
    num_iterations, rho = 5, 0.75
    problem = cases.make_problem(net, "softmax", BATCH)
    given, oracle = settings(Config(net), len(problem.layers))
    learning_rate, alpha = LEARNING_RATES[rate]

    optimizer = mq.MQ(alpha, len(problem.layers), rho=rho)
    trained = problem
    for _ in range(num_iterations):
        descent = inference.GradientDescent(EPS)
        final = over_batch.history(trained, 3, oracle, descent)[-1]
        gradient = over_batch.gradient(trained, final, oracle.gamma)
        updates = optimizer.update(gradient)
        trained = trained._replace(
            layers=learning.descend(trained.layers, updates, rate=-1.0)
        )

    network, params, *batch = to_library(problem)
    tx = mq_transform(learning_rate, decay=rho)
    grad_fn = pcjax.value_and_grad(
        *(network, given.method(3, EPS)), output=pcjax.softmax, clamp=given.clamp
    )

    def train_step(params, opt_state):
        _, grads = grad_fn(params, *batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    train_step, opt_state = jax.jit(train_step), tx.init(params)
    for _ in range(num_iterations):
        params, opt_state = train_step(params, opt_state)
    assert_weight_moves_close(problem, params, trained.layers)
