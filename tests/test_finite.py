"""Steps that are not finite: refused, counted, and named."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from pcjax import training
from pcjax.optimizers import finite
from pcjax.training import diagnosis
from tests import problems
from tests.tiers import thorough

NETWORK = pcjax.mlp((6, 8, 8, 4))
SMALL = pcjax.mlp((6, 8, 4))  # where layers are not the point
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (40, 6), dtype=np.uint8)
LABELS = RANDOM.integers(0, 4, 40)
BATCH, BAD = 5, 3  # of 8 iterations, the fourth is not finite
SEQUENTIAL, SIMULTANEOUS = pcjax.sequential(2, 0.1), pcjax.simultaneous(3, 0.1)
OPTIONS = {"output": pcjax.softmax, "clamp": pcjax.soft_clamp(0.01)}
OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "mq": lambda: pcjax.mq(1e-2),
    "adam": lambda: optax.adam(1e-2),
    "momentum": lambda: optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9)),
}


def _iterate(rule, tx):
    if rule == "iPC":
        return pcjax.incremental(SMALL, SIMULTANEOUS, tx, **OPTIONS)
    if rule == "BP":
        grad_fn = pcjax.backprop.value_and_grad(SMALL, output=pcjax.softmax)
    else:
        method = SEQUENTIAL if rule == "SeqIL" else SIMULTANEOUS
        grad_fn = pcjax.value_and_grad(SMALL, method, **OPTIONS)
    return training.make_update(grad_fn, tx)


RULES = ("BP", "IL", "SeqIL", "iPC")
# Guards are of any optimizer and of any gradient, but weights move twice: after
# inference and within it.
RUNS = [
    ("mq", "SeqIL"),
    ("adam", "iPC"),
    *thorough(
        (name, rule)
        for name in OPTIMIZERS
        for rule in RULES
        if (name, rule) not in (("mq", "SeqIL"), ("adam", "iPC"))
    ),
]


@cache
def _program(rule, name, guard=None):
    """An optimizer, and the compiled iteration that it is part of."""
    tx = OPTIMIZERS[name]()
    if guard == "optax":
        tx = optax.apply_if_finite(tx, 10)
    elif guard:
        tx = finite.guard(tx, guard)
    return tx, jax.jit(_iterate(rule, tx), donate_argnums=(0, 1))


@cache
def _start(network):
    """The parameters of all, in NumPy."""
    return jax.tree.map(np.asarray, problems.make(network, (6,)).params)


def _train(program, poison=None, leave_out=()):
    """8 iterations, `poison` in the batch BAD; leaves out some."""
    tx, update = program
    params = jax.tree.map(jnp.array, _start(SMALL))
    opt_state = jax.jit(tx.init)(params)
    states = []
    for index in range(8):
        if index in leave_out:
            continue
        rows = slice(index * BATCH, (index + 1) * BATCH)
        inputs = IMAGES[rows] / np.float32(255)
        if index == BAD and poison is not None:
            inputs[2, 1] = poison
        targets = np.eye(4, dtype=np.float32)[LABELS[rows]]
        params, opt_state, (_, info) = update(params, opt_state, inputs, targets)
        states.append(jax.tree.map(np.asarray, (params, opt_state)))
    return states, info


def _assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def _close(left, right):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), left, right
    )


@pytest.mark.faults
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "rule"), RUNS)
def test_stop_keeps_the_state_before_the_failure(name, rule, poison, faults):
    before = _train(_program(rule, name))[0][BAD - 1]
    states, _ = _train(_program(rule, name, "stop"), poison)
    params, opt_state = states[-1]
    # The steps of one iteration of iPC are counted, and those before its failure taken.
    per_iteration = 3 if rule == "iPC" else 1
    first = int(opt_state.first_refused)
    assert first // per_iteration == BAD
    assert opt_state.count == first
    assert opt_state.refused == 8 * per_iteration - first
    if first == BAD * per_iteration:
        _close(params, before[0])
        _close(opt_state.inner_state, before[1])
    _assert_equal(params, states[BAD][0])
    _assert_equal(opt_state.inner_state, states[BAD][1].inner_state)
    with pytest.raises(finite.NonFiniteError, match=f"step {first} was refused") as e:
        finite.raise_if_refused(opt_state)
    assert e.value.step == first
    faults.report("a batch whose gradient is not finite: stop", 1, 1, 1)


@pytest.mark.faults
@pytest.mark.parametrize("guard", ["skip", *thorough(["optax"])])
@pytest.mark.parametrize(("name", "rule"), RUNS)
def test_skip_goes_on_as_if_the_batch_had_not_been(name, rule, guard, faults):
    expected = _train(_program(rule, name), leave_out=(BAD,))[0][-1]
    params, opt_state = _train(_program(rule, name, guard), np.nan)[0][-1]
    _close(params, expected[0])
    _close(opt_state.inner_state, expected[1])
    faults.report("a batch whose gradient is not finite: skip", 1, 1, 1)


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
@pytest.mark.parametrize(
    "name", ["mq", *thorough(name for name in OPTIMIZERS if name != "mq")]
)
def test_a_guard_changes_nothing_as_long_as_all_is_finite(name, on_nonfinite):
    expected = _train(_program("SeqIL", name))[0][-1]
    params, opt_state = _train(_program("SeqIL", name, on_nonfinite))[0][-1]
    _close(params, expected[0])
    _close(opt_state.inner_state, expected[1])
    assert opt_state.count == 8
    assert opt_state.refused == 0
    finite.raise_if_refused(opt_state)


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
@pytest.mark.parametrize("one_cpu", [True, False])
def test_update_and_step_agree(on_nonfinite, one_cpu, monkeypatch):
    """As an optax transform in a user's loop, and as the step of `make_update`.

    On a GPU and on several devices a step is chosen, and no loop waits for it.
    """
    monkeypatch.setattr(finite, "on_one_cpu", lambda: one_cpu)
    tx = finite.guard(pcjax.mq(1e-2), on_nonfinite)
    params = {"w": jnp.linspace(-1, 1, 24).reshape(4, 6)}
    left = right = (params, tx.init(params))
    for index in range(4):
        gradients = {"w": params["w"] * (index + 1)}
        if index == 1:
            gradients["w"] = gradients["w"].at[0, 0].set(jnp.nan)
        left = jax.jit(tx.step)(gradients, left[1], left[0])
        updates, state = jax.jit(tx.update)(gradients, right[1], right[0])
        right = optax.apply_updates(right[0], updates), state
    _close(left, right)
    assert left[1].refused == (3 if on_nonfinite == "stop" else 1)


def test_networks_side_by_side_are_guarded_one_by_one():
    tx = finite.guard(pcjax.mq(1e-2))
    grad_fn = pcjax.value_and_grad(SMALL, SEQUENTIAL, **OPTIONS)
    update = training.make_update(grad_fn, tx)
    epoch = training.make_epoch(update, training.classification(4), BATCH)
    data = training.device_data(IMAGES, LABELS, 4)

    def init(key):
        return training.init_state(SMALL, tx, key, jnp.ones((1, 6)))

    states = jax.jit(jax.vmap(init))(jax.random.split(jax.random.key(1), 3))
    one_large = np.array([1, 1e30, 1], np.float32)
    params = jax.tree.map(
        lambda x: x * one_large.reshape(3, *[1] * (x.ndim - 1)), states.params
    )
    states = states._replace(params=params)
    trained, metrics = jax.jit(jax.vmap(epoch, in_axes=(0, None)))(states, data)
    np.testing.assert_array_equal(trained.opt_state.first_refused, [-1, 0, -1])
    alone, _ = jax.jit(lambda *a: epoch(jax.tree.map(lambda x: x[2], a[0]), a[1]))(
        states, data
    )
    params, trained_params = jax.tree.map(np.asarray, (params, trained.params))
    _close(jax.tree.map(lambda x: x[2], trained_params), alone.params)
    _assert_equal(
        jax.tree.map(lambda x: x[1], trained_params),
        jax.tree.map(lambda x: x[1], params),
    )
    assert metrics.rising.shape == (3, 8)
    assert np.all(metrics.rising[1] == 1)
    with pytest.raises(finite.NonFiniteError, match="step 0"):
        finite.raise_if_refused(trained.opt_state)


def test_raise_if_refused_wants_a_guard():
    params = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="holds no GuardState; wrap the optimizer"):
        finite.raise_if_refused(optax.adam(1e-3).init(params))
    with pytest.raises(ValueError, match="must be 'stop' or 'skip', got 'ignore'"):
        finite.guard(optax.adam(1e-3), "ignore")


def test_rising_energy_is_visible():
    batch = _problem()

    @jax.jit
    def rising(step_size):
        method = pcjax.simultaneous(6, step_size)
        grad_fn = pcjax.value_and_grad(NETWORK, method, **OPTIONS)
        return grad_fn(*batch)[0][1].rising

    for step_size, least, most in ((0.05, 0, 0), (50.0, 0.5, 1), (1e30, 0.5, 1)):
        found = rising(step_size)
        assert found.shape == (BATCH,)
        assert least <= np.mean(found) <= most


# Derivatives through a step


@pytest.mark.parametrize("poisoned", [True, *thorough([False])])
@pytest.mark.parametrize("name", ["sgd", "mq"])
def test_derivatives_are_those_of_the_steps_that_were_taken(name, poisoned, x64):
    """By rate, start and gradient, against the optimizer without a guard."""
    make = {"sgd": optax.sgd, "mq": pcjax.mq}[name]
    rng = np.random.default_rng(0)
    start, scales = jnp.asarray(rng.normal(size=(2, 6)))

    def after(wrap, rate, start, scales, leave_out):
        tx = wrap(make(rate))
        params, state = {"w": start}, tx.init({"w": start})
        for index in range(3):
            gradients = {"w": scales * params["w"] ** 2 * (index + 1)}
            if index == 1 and leave_out:
                continue
            if index == 1 and poisoned:
                gradients["w"] = gradients["w"].at[0].set(jnp.nan)
            params, state = finite.descend(tx, gradients, state, params)
        return jnp.sum(params["w"] ** 3)

    def derivatives(wrap, leave_out):
        grad = jax.grad(lambda *a: after(wrap, *a, leave_out), argnums=(0, 1))
        return jax.jit(grad)(0.1, start, scales)

    expected = derivatives(lambda tx: tx, poisoned)
    found = derivatives(lambda tx: finite.guard(tx, "skip"), False)
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-12)
        assert np.max(np.abs(want)) > 1e-3


def test_noise_with_a_seed_goes_on_after_a_refused_step():
    """A typed random key is in the state, kept by a refusal and drawn from once."""
    noise = optax.add_noise(1.0, 0.0, key=jax.random.key(1))
    tx = finite.guard(optax.chain(noise, optax.sgd(1.0)), "skip")
    params = {"w": jnp.zeros(3)}
    state, moves = tx.init(params), []
    for gradient in (0.0, jnp.nan, 0.0, 0.0):
        gradients = {"w": jnp.full(3, gradient)}
        new, state = jax.jit(tx.step)(gradients, state, params)
        moves.append(np.asarray(new["w"] - params["w"]))
        params = new
    plain = optax.chain(noise, optax.sgd(1.0))
    update, inner = jax.jit(plain.update), plain.init(params)
    for move in (moves[0], moves[2], moves[3]):
        updates, inner = update({"w": jnp.zeros(3)}, inner)
        np.testing.assert_allclose(move, updates["w"], rtol=1e-5, atol=1e-6)
    assert np.all(moves[1] == 0)


# What is too large


@pytest.mark.parametrize(
    ("dtype", "value", "fits"),
    [
        # Squares are taken in float32 at least: 1000^2 is no float16.
        (jnp.float16, 1000.0, True),
        (jnp.float16, np.inf, False),
        (jnp.bfloat16, 1e18, True),
        (jnp.bfloat16, 1e20, False),
        (jnp.float32, 1.8e19, True),
        (jnp.float32, 1.9e19, False),
        (jnp.float64, 1e150, True),
        (jnp.float64, 1e155, False),
    ],
)
def test_what_the_guard_takes_for_too_large(dtype, value, fits, x64):
    assert finite.fits(jnp.array([0.0, -value], dtype)) == fits


def test_magnitudes_of_half_precision_are_added_up_in_float32():
    assert finite.fits(jnp.full(100, 1e3, jnp.float16))  # the sum is no float16


def test_the_first_of_several_refused_steps_is_named():
    params = {"w": jnp.ones(2)}
    state = finite.guard(optax.sgd(0.1)).init(params)
    several = state._replace(first_refused=np.array([7, -1, 3, 5]))
    with pytest.raises(finite.NonFiniteError, match="step 3 was refused") as error:
        finite.raise_if_refused((several, state))
    assert error.value.step == 3
    finite.raise_if_refused((state, state))


# Diagnosis


def _problem(network=NETWORK):
    targets = np.eye(4, dtype=np.float32)[LABELS[:BATCH]]
    inputs = jnp.asarray(IMAGES[:BATCH] / np.float32(255))
    return jax.tree.map(jnp.asarray, _start(network)), inputs, jnp.asarray(targets)


def _poison(params, layer, value=jnp.nan):
    layers = list(params)
    kernel = layers[layer]["kernel"]
    layers[layer] = {**layers[layer], "kernel": kernel.at[0, 0].set(value)}
    return tuple(layers)


METHODS = {"BP": None, "IL": SIMULTANEOUS, "SeqIL": SEQUENTIAL}
# To a diagnosis both kinds of inference before learning are the same.
DIAGNOSED = ("BP", "SeqIL", "iPC", *thorough(["IL"]))


def _diagnose(rule, params, inputs, targets, network=NETWORK, **options):
    move = rule == "iPC"
    method = SIMULTANEOUS if move else METHODS[rule]
    return diagnosis.diagnose(
        network, method, params, inputs, targets, weights_move=move, **options
    )


@pytest.mark.parametrize("rule", DIAGNOSED)
def test_what_is_finite_has_no_diagnosis(rule):
    tx = pcjax.mq(1e-2)
    params, inputs, targets = _problem(SMALL)
    state = tx.init(params)
    options = {**OPTIONS, "network": SMALL, "tx": tx, "opt_state": state}
    assert _diagnose(rule, params, inputs, targets, **options) is None


@pytest.mark.parametrize("rule", RULES)
def test_parameters_inputs_and_targets_come_first(rule):
    params, inputs, targets = _problem()
    tx = optax.sgd(0.1)
    options = {**OPTIONS, "tx": tx, "opt_state": tx.init(params)}
    found = _diagnose(rule, _poison(params, 1), inputs, targets, **options)
    assert found == ("parameter", (1,), None, ("[1]['kernel']",))
    found = _diagnose(rule, params, inputs.at[0, 0].set(np.inf), targets, **options)
    assert str(found) == "input not finite"
    found = _diagnose(rule, params, inputs, targets.at[0, 0].set(np.nan), **options)
    assert found.quantity == "target"


@pytest.mark.parametrize(
    ("rule", "layer"),
    [
        *(("BP", layer) for layer in range(3)),
        *(("SeqIL", 0), ("iPC", 2)),
        *thorough([*(("IL", layer) for layer in range(3)), ("SeqIL", 1), ("SeqIL", 2)]),
        *thorough([("iPC", 0), ("iPC", 1)]),
    ],
)
def test_an_activity_that_overflows_is_named(rule, layer):
    """h_{l+1} overflows first where theta_l is too large, by the forward pass."""
    params, inputs, targets = _problem()
    layers = [jax.tree.map(jnp.ones_like, theta) for theta in params]
    # Finite, but not the sum of them.
    layers[layer] = jax.tree.map(lambda x: jnp.full_like(x, 3e38), layers[layer])
    found = _diagnose(
        rule, tuple(layers), inputs + 1, targets, **OPTIONS, **_sgd(params)
    )
    assert found.quantity == "activity"
    assert found.iteration == 0
    assert found.layers[0] == layer + 1
    assert str(found).startswith(f"activity of layer{'s' * (len(found.layers) > 1)} ")
    assert "in the feed-forward pass" in str(found)


def _sgd(params):
    tx = optax.sgd(0.1)
    return {"tx": tx, "opt_state": tx.init(params)}


@pytest.mark.parametrize(
    ("kind", "iteration"),
    [(pcjax.simultaneous, 2), *thorough([(pcjax.sequential, 1)])],
)
def test_divergence_of_inference_is_named_by_layer_and_iteration(kind, iteration):
    params, inputs, targets = _problem()
    # One step of 1e25 takes h_2 far away; in the next, squares of it overflow nowhere,
    # but its product with the weights and the step size does.
    method = kind(4, 1e25)
    found = diagnosis.diagnose(NETWORK, method, params, inputs, targets, **OPTIONS)
    trace = pcjax.infer(
        NETWORK, method, params, inputs, targets, **OPTIONS, trace=lambda s: s
    ).trace
    assert (found.quantity, found.iteration) == ("activity", iteration)
    for index, h in enumerate(trace.activities[1:-1]):
        bad = not np.all(np.isfinite(h[found.iteration]))
        assert bad == (index + 1 in found.layers)
        assert np.all(np.isfinite(h[: found.iteration]))


def test_a_gradient_too_large_for_its_square_is_named():
    params, inputs, targets = _problem()
    found = diagnosis.diagnose(
        NETWORK, None, params, inputs * 1e25, targets, output=pcjax.softmax
    )
    assert found.quantity == "gradient"
    assert found.layers[0] == 0


@pytest.mark.parametrize("rule", ["BP", "iPC", *thorough(["IL", "SeqIL"])])
def test_a_statistic_of_the_optimizer_is_named(rule):
    params, inputs, targets = _problem(SMALL)
    tx = pcjax.mq(1e-2)
    state = tx.init(params)
    state = (state[0]._replace(v=state[0].v.at[1].set(jnp.nan)), *state[1:])
    options = {**OPTIONS, "network": SMALL, "tx": tx, "opt_state": state}
    found = _diagnose(rule, params, inputs, targets, **options)
    assert found.quantity == "optimizer state"
    assert found.leaves == ("[0].v",)
    assert str(found).startswith("optimizer state at [0].v not finite")


def test_a_gradient_within_incremental_inference_is_named():
    params, inputs, targets = _problem()
    tx = optax.sgd(1e30)  # the first step of the weights makes the second overflow
    found = _diagnose(
        "iPC", params, inputs, targets, **OPTIONS, tx=tx, opt_state=tx.init(params)
    )
    assert found.quantity == "gradient"
    assert found.iteration == 3
    assert found.layers == (1, 2)
    shorter = diagnosis.diagnose(
        NETWORK,
        pcjax.simultaneous(2, 0.1),
        params,
        inputs,
        targets,
        **OPTIONS,
        tx=tx,
        opt_state=tx.init(params),
        weights_move=True,
    )
    assert shorter is None


def test_diagnosis_of_moving_weights_needs_an_optimizer():
    params, inputs, targets = _problem()
    with pytest.raises(ValueError, match="weights_move needs the method and tx"):
        _diagnose("iPC", params, inputs, targets)


@pytest.mark.parametrize(
    ("kind", "last"),
    [(pcjax.sequential, 1), *thorough([(pcjax.simultaneous, 2)])],
)
def test_the_last_iteration_of_inference_is_replayed(kind, last):
    params, inputs, targets = _problem()
    # As above, where more iterations follow.
    found = diagnosis.diagnose(
        NETWORK, kind(last, 1e25), params, inputs, targets, **OPTIONS
    )
    assert (found.quantity, found.iteration) == ("activity", last)


def test_of_moving_weights_one_iteration_of_inference_is_replayed():
    """Later states are those of other weights, of which only gradients are seen."""
    params, inputs, targets = _problem()
    found = diagnosis.diagnose(
        NETWORK,
        pcjax.simultaneous(4, 1e25),
        params,
        inputs,
        targets,
        **OPTIONS,
        **_sgd(params),
        weights_move=True,
    )
    assert found.quantity == "gradient"
    assert found.iteration >= 2


def test_activities_given_to_start_from_are_those_of_training():
    params, inputs, targets = _problem(SMALL)
    arguments = SMALL, SEQUENTIAL, params, inputs, targets

    def found(value):
        hidden = [jnp.full((BATCH, 8), value)]
        return diagnosis.diagnose(*arguments, **OPTIONS, hidden=hidden)

    assert found(1.0) is None
    assert found(1e25).quantity == "gradient"  # too large for its square
    start = "activity of layers 1, 2 not finite at the start from hidden"
    assert str(found(jnp.inf)) == start
    other = {"network": SMALL, "hidden": [jnp.ones((BATCH, 8))]}
    with pytest.raises(ValueError, match=r"hidden is of inference.*method=None"):
        _diagnose("BP", *arguments[2:], **other)
    with pytest.raises(ValueError, match=r"hidden is of inference.*weights_move"):
        _diagnose("iPC", *arguments[2:], **other, **_sgd(params))


@pytest.mark.parametrize(
    ("rule", "far", "want"),
    [
        ("SeqIL", 0, ("activity", (1, 2), 1)),
        ("iPC", 0, ("activity", (1, 2), 1)),
        ("iPC", 1, ("gradient", (0, 1), 3)),
    ],
)
def test_the_key_is_that_of_training(rule, far, want):
    """A method that leaps in iteration `far`, and with one key alone."""
    params, inputs, targets = _problem(SMALL)
    key = jax.random.key(7)

    def init(hidden, keys):
        own = jax.random.split(key, BATCH)
        return jnp.all(jax.random.key_data(keys) == jax.random.key_data(own))

    def step(t, state, gradient, leaps):
        move = jnp.where(leaps & (t == far), jnp.inf, 0.0)
        return (jnp.full_like(state.activities[1], move),), leaps

    found = [
        diagnosis.diagnose(
            SMALL,
            pcjax.Method(2 * far + 1, init, step, random=True),
            *(params, inputs, targets),
            **OPTIONS,
            **_sgd(params),
            weights_move=rule == "iPC",
            key=given,
        )
        for given in (key, None)
    ]
    assert found[0][:3] == want
    assert found[1] is None


def test_the_learning_clamp_is_that_of_training():
    params, inputs, targets = _problem(SMALL)

    def clamp(targets, outputs, activity):
        return jnp.full_like(targets, jnp.inf)

    arguments = SMALL, SEQUENTIAL, params, inputs, targets
    found = diagnosis.diagnose(*arguments, **OPTIONS, learning_clamp=clamp)
    assert (found.quantity, found.layers) == ("gradient", (1,))
    assert diagnosis.diagnose(*arguments, **OPTIONS) is None


def _infinite(targets, outputs, activity):
    return jnp.full_like(targets, jnp.inf)


@pytest.mark.parametrize(
    ("rule", "option"),
    [
        ("SeqIL", {"gamma": 3e38}),
        ("SeqIL", {"decay": 3e38}),
        ("SeqIL", {"clamp": _infinite}),
        ("SeqIL", {"output": pcjax.softmax._replace(link=jnp.log)}),
        ("iPC", {"decay": 3e38}),
    ],
)
def test_the_energy_is_that_of_training(rule, option):
    params, inputs, targets = _problem(SMALL)
    options = {**OPTIONS, "network": SMALL, **_sgd(params), **option}
    found = _diagnose(rule, params, inputs, targets, **options)
    assert found.quantity in ("activity", "error", "gradient")


@pytest.mark.parametrize("rule", ["BP", *thorough(["SeqIL"])])
def test_an_optimizer_that_asks_for_the_loss_is_given_it(rule):
    params, inputs, targets = _problem(SMALL)
    tx = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())
    state = tx.init(params)
    options = {**OPTIONS, "network": SMALL, "tx": tx}
    found = _diagnose(rule, params, inputs, targets, **options, opt_state=state)
    assert found is None
    bad = (*state[:-1], state[-1]._replace(scale=jnp.array(jnp.nan)))
    found = _diagnose(rule, params, inputs, targets, **options, opt_state=bad)
    assert found.leaves == ("[1].scale",)


@pytest.mark.parametrize("rule", ["BP", "iPC", *thorough(["SeqIL"])])
def test_an_infinity_that_an_optimizer_starts_with_is_no_failure(rule):
    """The best loss so far, as long as losses are only being gathered."""
    params, inputs, targets = _problem(SMALL)
    plateau = optax.contrib.reduce_on_plateau(accumulation_size=9)
    tx = optax.chain(optax.sgd(0.1), plateau)
    state = tx.init(params)
    options = {**OPTIONS, "network": SMALL, "tx": tx}
    assert np.isinf(state[1].best_value)
    found = _diagnose(rule, params, inputs, targets, **options, opt_state=state)
    assert found is None
    bad = (*state[:-1], state[-1]._replace(best_value=jnp.array(jnp.nan)))
    found = _diagnose(rule, params, inputs, targets, **options, opt_state=bad)
    assert found.leaves == ("[1].best_value",)


@pytest.mark.parametrize("rule", ["BP", *thorough(["SeqIL"])])
def test_the_loss_that_an_optimizer_is_given_is_that_of_training(rule):
    params, inputs, targets = _problem()
    losses = pcjax.softmax.loss(NETWORK.apply(params, inputs), targets)

    def update_fn(updates, state, params=None, *, value, **extra):
        bad = jnp.isclose(value, losses.mean(), rtol=1e-5)
        scale = jnp.where(bad, jnp.inf, 1.0)
        return jax.tree.map(lambda u: scale * jnp.ones_like(u), updates), state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update_fn)
    found = _diagnose(rule, params, inputs, targets, **OPTIONS, tx=tx, opt_state=())
    assert found.quantity == "update"
    assert found.layers == (0, 1, 2)
