"""What users bring: losses, widths of numbers, trees, tokens, and mistakes."""

import functools
from typing import NamedTuple

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from pcjax import training
from pcjax.inference.equilibrium import infer_to_equilibrium
from pcjax.training import evaluation
from tests import problems
from tests.tiers import thorough

F64 = {"dtype": jnp.float64}


def _sum(values):
    return jnp.sum(values, axis=1)


def hinge(logits, targets):
    return _sum(jnp.maximum(0, 1 - (2 * targets - 1) * logits))


def huber(logits, targets):
    return _sum(optax.huber_loss(logits, targets, delta=0.3))


def poisson(logits, targets):
    return _sum(jnp.exp(logits) - targets * logits)


def gaussian(logits, targets):
    """Mean and log variance in the two halves of the logits."""
    mean, log_variance = jnp.split(logits, 2, axis=1)
    values, _ = jnp.split(targets, 2, axis=1)
    return _sum(0.5 * ((values - mean) ** 2 * jnp.exp(-log_variance) + log_variance))


MASK = jnp.array([[0.0, 0.0, -jnp.inf, 0.0]])


def masked(logits, targets):
    return pcjax.softmax.loss(logits + MASK.astype(logits.dtype), targets)


LOSSES = {
    "hinge": hinge,
    "Huber": huber,
    "Poisson": poisson,
    "heteroscedastic": gaussian,
    "masked cross-entropy": masked,
}


def case_of_loss(name):
    case = problems.dense_case((6, 7, 8, 4), **F64)
    if name == "masked cross-entropy":
        targets = np.array(case.targets)
        targets[:, 2] = 0
        case = case._replace(targets=jnp.asarray(targets / targets.sum(1)[:, None]))
    return case


@pytest.mark.parametrize(
    "name",
    [
        *("hinge", "heteroscedastic", "masked cross-entropy"),
        *thorough(["Huber", "Poisson"]),
    ],
)
def test_any_loss_is_descended(x64, name):
    case, loss = case_of_loss(name), LOSSES[name]
    output = pcjax.Output(lambda logits: logits, loss)
    step = 1e-8
    grad_fn = pcjax.value_and_grad(
        case.network, pcjax.sequential(1, step), output=output
    )
    (energy, info), grads = jax.jit(grad_fn)(*case[1:])

    @jax.jit
    @jax.value_and_grad
    def mean_loss(params):
        return jnp.mean(loss(case.network.apply(params, case.inputs), case.targets))

    value, want = mean_loss(case.params)
    np.testing.assert_allclose(info.loss.mean(), value, rtol=1e-12)
    assert np.isfinite(energy)
    assert not info.rising.any()
    # The last layer learns backprop's gradient, the one below it step times that.
    for have, exact, scale in ((grads[2], want[2], 1), (grads[1], want[1], step)):
        problems.assert_trees_close(
            jax.tree.map(lambda g, s=scale: np.asarray(g) / s, have),
            exact,
            rtol=1e-5,
            atol=1e-7,
        )


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "identity"])
def test_closed_errors_are_minus_the_gradient_of_the_loss(x64, name):
    output = problems.OUTPUTS[name]
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(3, 4)), rng.dirichlet(np.ones(4), 3)
    closed, derived = (
        jax.jit(each.error)(logits, targets)
        for each in (output, output._replace(closed_error=None))
    )
    np.testing.assert_allclose(closed, derived, atol=1e-12)


def masked_net(classes):
    """Of four classes the last one is masked; of three there is none such."""

    def init(key, h):
        return {"w": jnp.zeros((h.shape[1], classes))}

    def apply(params, h):
        mask = jnp.where(jnp.arange(classes) == 3, -jnp.inf, 0.0)
        return h @ params["w"] + mask[None]

    return pcjax.Network((pcjax.dense(5), pcjax.Layer(init, apply)))


@functools.cache
def masked_case(classes):
    """The same numbers for four classes, the last one masked, as for three."""
    case = problems.make(masked_net(4), (6,), batch=8)
    first, last = case.params
    params = (first, {"w": jnp.asarray(np.asarray(last["w"])[:, :classes])})
    labels = np.random.default_rng(0).integers(0, 3, 8)
    targets = jnp.asarray(np.eye(classes, dtype=np.float32)[labels])
    return problems.Case(masked_net(classes), params, case.inputs, targets)


def test_masked_logits_stay_masked_while_weights_move():
    found, tx = [], optax.sgd(0.1)
    for classes in (4, 3):
        network, params, *batch = masked_case(classes)
        update = pcjax.incremental(
            network, pcjax.sequential(3, 0.1), tx, output=pcjax.softmax
        )
        found.append(jax.jit(update)(params, tx.init(params), *batch))
    (params, _, (energy, info)), (less, _, (want, other)) = found
    np.testing.assert_allclose(energy, want, rtol=1e-5)
    np.testing.assert_allclose(info.energy, other.energy, rtol=1e-5)
    problems.assert_trees_close(params[0], less[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        np.asarray(params[1]["w"])[:, :3], less[1]["w"], rtol=1e-5
    )
    np.testing.assert_array_equal(info.rising, other.rising)


def test_a_loss_that_is_not_one_number_an_example_is_refused():
    case = problems.dense_case((6, 4))
    for loss in (lambda p, y: jnp.sum((p - y) ** 2), lambda p, y: (p - y) ** 2):
        output = pcjax.Output(lambda p: p, loss, lambda p, y: y - p)
        for rule in (
            pcjax.value_and_grad(case.network, pcjax.sequential(1, 0.1), output=output),
            pcjax.backprop.value_and_grad(case.network, output=output),
        ):
            with pytest.raises(ValueError, match="output: the loss must be one number"):
                rule(*case[1:])


def test_masked_logits_are_as_if_they_were_not_there():
    for options in ({}, {"clamp": pcjax.soft_clamp(0.1)}):
        found = []
        for classes in (4, 3):
            network, *arrays = masked_case(classes)
            grad_fn = pcjax.value_and_grad(
                network, pcjax.sequential(3, 0.1), output=pcjax.softmax, **options
            )
            found.append(grad_fn(*arrays))
        (energy, info), grads = found[0]
        (want, other), expected = found[1]
        np.testing.assert_allclose(energy, want, rtol=1e-5)
        np.testing.assert_allclose(info.loss, other.loss, rtol=1e-5)
        problems.assert_trees_close(grads[0], expected[0], rtol=1e-4, atol=1e-6)
        assert not info.rising.any()


def every_rule(network):
    """All that infers or learns, as functions of `(params, inputs, targets)`."""
    method, tx = pcjax.sequential(2, 0.1), optax.sgd(0.1)
    options = {"output": pcjax.softmax}
    update = pcjax.incremental(network, method, tx, **options)
    return {
        "backprop": pcjax.backprop.value_and_grad(network, **options),
        "infer": lambda *a: pcjax.infer(network, method, *a, **options).state.errors,
        "value_and_grad": pcjax.value_and_grad(network, method, **options),
        "error_based": pcjax.value_and_grad(
            network, pcjax.error_based(2, 0.1), **options
        ),
        "incremental": lambda p, x, y: update(p, tx.init(p), x, y)[0],
        "equilibrium": lambda *a: (
            infer_to_equilibrium(network, method, *a, **options).state.errors
        ),
    }


def modules(dtype):
    return pcjax.Network(
        (
            pcjax.from_linen(nn.Dense(5, dtype=dtype)),
            pcjax.from_linen(nn.Dense(4, dtype=dtype)),
        )
    )


@functools.cache
def _in_float32(name):
    """What a rule gives for modules of float32, on the numbers of `modules`."""
    case = problems.make(modules(jnp.float32), (6,), batch=8)
    return jax.jit(every_rule(case.network)[name])(*case[1:])


@pytest.mark.parametrize(
    ("dtype", "strict"),
    [
        (jnp.bfloat16, True),
        *thorough(
            [(jnp.float16, True), (jnp.bfloat16, False), (jnp.float16, False)],
        ),
    ],
)
def test_modules_of_half_precision_with_targets_of_float32(dtype, strict):
    case = problems.make(modules(dtype), (6,), batch=8)
    promotion = "strict" if strict else "standard"
    for name, rule in every_rule(case.network).items():
        # Modules of flax promote by themselves; we do not rely on it.
        with jax.numpy_dtype_promotion(promotion):
            found = jax.jit(rule)(*case[1:])
        want = _in_float32(name)
        for have, true in zip(
            jax.tree.leaves(found), jax.tree.leaves(want), strict=True
        ):
            np.testing.assert_allclose(
                np.asarray(have, np.float32), true, atol=0.05, err_msg=name
            )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, *thorough([jnp.float32])])
def test_training_needs_no_implicit_promotion(dtype):
    """Optimizers, the guard, what makes inputs, and what measures."""
    network = pcjax.mlp([4, 3, 2], jnp.tanh)
    images, labels = np.arange(48, dtype=np.uint8).reshape(12, 4), np.arange(12) % 2
    data = training.device_data(images, labels, 2)
    prepare = training.classification(2, dtype=dtype)
    grad_fn = pcjax.value_and_grad(
        network, pcjax.sequential(1, 0.1), output=pcjax.softmax
    )
    example = jax.eval_shape(prepare, *data)[0]
    example = jnp.zeros((1, *example.shape[1:]), example.dtype)

    def lowered(tx):
        state = jax.eval_shape(
            lambda key: training.init_state(network, tx, key, example),
            jax.random.key(0),
        )
        update = training.make_update(grad_fn, tx)
        return jax.jit(training.make_epoch(update, prepare, 4)).lower(state, data)

    for tx in (
        pcjax.mq(1e-3),
        pcjax.mq(1e-3, start=pcjax.first_gradient),
        pcjax.finite.guard(optax.sgd(0.1)),
    ):
        programs = []
        for promotion in ("strict", "standard"):
            with jax.numpy_dtype_promotion(promotion):
                programs.append(lowered(tx))
        one, other = (program.as_text() for program in programs)
        assert one == other
        trained = programs[0].out_info[0].params
        assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {jnp.dtype(dtype)}
    with jax.numpy_dtype_promotion("strict"):
        params = network.init(jax.random.key(0), example)
        for measure in (
            evaluation.classification_measures(pcjax.softmax),
            evaluation.reconstruction_measures(pcjax.identity),
        ):
            evaluate = evaluation.make_evaluation(network, prepare, measure, 6)
            assert np.isfinite(jax.tree.leaves(evaluate(params, data))).all()


@functools.cache
def _of_zeros():
    """A network without biases, and a method; one program for all tests."""
    network = pcjax.mlp([6, 8, 8, 4], jnp.tanh)
    params = network.init(jax.random.key(0), jnp.zeros((4, 6)))
    params = tuple(theta | {"bias": 0 * theta["bias"]} for theta in params)
    return network, pcjax.simultaneous(60, 0.1), params


@pytest.mark.parametrize("size", [1e-4, 300.0])
def test_rest_in_half_precision_is_judged_in_single(size):
    """Squares of errors that float16 rounds to 0 or takes for infinite."""
    network, method, params = _of_zeros()
    rng = np.random.default_rng(0)
    x = jnp.zeros((4, 6))
    y = jnp.asarray(size * rng.normal(size=(4, 4)), jnp.float32)  # all else is 0
    narrow = jax.tree.map(lambda v: v.astype(jnp.float16), (params, x, y))
    found, want = (
        infer_to_equilibrium(network, method, *arrays, tolerance=0.2)
        for arrays in (narrow, (params, x, y))
    )
    np.testing.assert_array_equal(found.converged, want.converged)
    np.testing.assert_allclose(found.residual, want.residual, atol=0.05)
    np.testing.assert_allclose(found.num_steps, want.num_steps, atol=3)


def test_nets_of_float32_with_targets_of_float64(x64):
    case = problems.dense_case((6, 5, 4))
    for name, rule in every_rule(case.network).items():
        wide = case.targets.astype(jnp.float64)
        found, want = (rule(*case[1:3], y) for y in (wide, case.targets))
        for have, true in zip(
            jax.tree.leaves(found), jax.tree.leaves(want), strict=True
        ):
            np.testing.assert_allclose(have, true, rtol=1e-4, atol=1e-6, err_msg=name)


def test_energies_of_half_precision_are_summed_in_float32():
    # 70,000 terms of 1: beyond the range of float16, below the step of bfloat16.
    for dtype in (jnp.float16, jnp.bfloat16):
        logits, targets = jnp.zeros((1, 70_000), dtype), jnp.ones((1, 70_000), dtype)
        layer = pcjax.Layer(lambda key, h: {}, lambda params, h: h)
        network = pcjax.Network((layer,))
        found = pcjax.free_energy(network, ({},), (logits, targets))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, 35_000)
        (energy, info), _ = pcjax.backprop.value_and_grad(network)(
            ({},), logits, targets
        )
        np.testing.assert_allclose([energy, info.loss[0]], 35_000)


class Params(NamedTuple):
    encoder: dict
    head: dict


@functools.cache
def linen_case():
    """A network of modules, all rules, and what each gives for a tuple of params."""
    network = pcjax.Network(tuple(pcjax.from_linen(nn.Dense(n)) for n in (5, 4)))
    case = problems.make(network, (6,))
    rules = every_rule(network)
    rules["local"] = functools.partial(_local_gradients, network)
    return case, rules, {name: rule(*case[1:]) for name, rule in rules.items()}


def _local_gradients(network, params, inputs, targets):
    hidden = pcjax.feedforward(network, params, inputs)[:-1]
    return pcjax.local_gradients(network, params, (inputs, *hidden, targets))


STRUCTURES = {
    "tuple": tuple,
    "list": list,
    "NamedTuple": lambda p: Params(*p),
    "FrozenDict": lambda p: tuple(map(flax.core.freeze, p)),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_gradients_have_the_structure_of_the_parameters(name):
    case, rules, _ = linen_case()
    params = STRUCTURES[name](case.params)
    for rule in ("backprop", "value_and_grad", "error_based", "incremental", "local"):
        found = jax.eval_shape(rules[rule], params, *case[2:])
        grads = found if rule in ("incremental", "local") else found[1]
        assert jax.tree.structure(grads) == jax.tree.structure(params), rule


@pytest.mark.parametrize("name", ["NamedTuple", *thorough(["list", "FrozenDict"])])
def test_the_structure_of_the_parameters_changes_no_number(name):
    case, rules, expected = linen_case()
    params = STRUCTURES[name](case.params)
    for rule, want in expected.items():
        found = rules[rule](params, *case[2:])
        flat = zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True)
        for have, true in flat:
            np.testing.assert_allclose(have, true, rtol=1e-5, atol=1e-6)


def test_parameters_that_are_no_floats_are_refused_by_name():
    def init(key, h):
        return {"w": jnp.ones((h.shape[1], 4)), "steps": jnp.int32(3)}

    layer = pcjax.Layer(init, lambda params, h: h @ params["w"])
    network = pcjax.Network((pcjax.dense(5), layer))
    x, y = jnp.ones((2, 6)), jnp.ones((2, 4))
    params = network.init(jax.random.key(0), x)
    with pytest.raises(TypeError, match=r"params\[1\]\['steps'\] must be floats, got"):
        pcjax.value_and_grad(network, pcjax.sequential(1, 0.1))(params, x, y)


def test_layers_that_are_none_are_named():
    for bad in (nn.Dense(4), (lambda *a: 0, lambda *a: 0), "dense", None):
        with pytest.raises(TypeError, match=r"Network: layer 1 must be a pcjax\.Layer"):
            pcjax.Network((pcjax.dense(5), bad))
    with pytest.raises(TypeError, match="must be a tuple or list of layers, got a sin"):
        pcjax.Network(pcjax.dense(5))
    pair = pcjax.Layer(lambda key, h: {}, lambda params, h: (h, h))
    for layers in ((pair, pcjax.dense(4)), (pcjax.dense(5), pair)):
        with pytest.raises(
            ValueError, match=r"layer . must predict one array.*a tuple"
        ):
            pcjax.Network(layers).init(jax.random.key(0), jnp.ones((2, 6)))
    flat = pcjax.Layer(lambda key, h: {}, lambda params, h: h.sum(0, keepdims=True))
    with pytest.raises(ValueError, match=r"layer 0 must predict .* batch size 2"):
        pcjax.Network((flat,)).init(jax.random.key(0), jnp.ones((2, 6)))


def test_tokens_are_read_by_a_layer_that_says_so(x64):
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 11, (8, 3)), jnp.int32)
    embed = pcjax.from_linen(nn.Embed(11, 6, param_dtype=jnp.float64))
    network = pcjax.Network((embed._replace(tokens=True), pcjax.dense(4, jnp.tanh)))
    params = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape)),
        jax.eval_shape(network.init, jax.random.key(0), tokens),
    )
    y = jnp.asarray(np.eye(4)[rng.integers(0, 4, 8)])
    method = pcjax.sequential(3, 0.1)
    (_, info), grads = pcjax.value_and_grad(network, method)(params, tokens, y)
    local = jax.jit(functools.partial(pcjax.local_gradients, network))
    want = local(params, info.state.activities)
    problems.assert_trees_close(grads, want)
    assert np.abs(grads[0]["embedding"]).max() > 0
    tx = optax.sgd(0.1)
    update = pcjax.incremental(network, method, tx)
    moved, _, _ = update(params, tx.init(params), tokens, y)
    assert not np.array_equal(moved[0]["embedding"], params[0]["embedding"])
    with pytest.raises(TypeError, match="inputs must be integers, since the first"):
        network.init(jax.random.key(0), np.asarray(tokens, np.float32))
    with pytest.raises(TypeError, match="inputs must be floats, got int32"):
        pcjax.mlp([3, 4]).init(jax.random.key(0), tokens)


def test_mistakes_are_named_by_the_function_that_was_called():
    case = problems.dense_case()
    method = pcjax.sequential(1, 0.1)

    def grad_fn(**options):
        return pcjax.value_and_grad(case.network, method, **options)

    with pytest.raises(ValueError, match="value_and_grad: gamma must be >= 0"):
        grad_fn(gamma=-1.0)(*case[1:])
    with pytest.raises(ValueError, match="value_and_grad: decay must be a number"):
        grad_fn(decay=[1.0])(*case[1:])
    with pytest.raises(ValueError, match="infer: gamma must be >= 0"):
        pcjax.infer(case.network, method, *case[1:], gamma=-1.0)
    with pytest.raises(ValueError, match="infer_to_equilibrium: gamma must be >= 0"):
        infer_to_equilibrium(case.network, method, *case[1:], gamma=-1.0)
    with pytest.raises(TypeError, match=r"clamp must be a function of .*soft_clamp\(0"):
        grad_fn(clamp=pcjax.soft_clamp)
    for name, make in (
        ("mlp", lambda: pcjax.mlp([3, 4, 2], "tanh")),
        ("dense", lambda: pcjax.dense(3, "tanh")),
        ("conv", lambda: pcjax.conv(3, (3, 3), activation="relu")),
    ):
        with pytest.raises(TypeError, match=f"^{name}: activation must be a function"):
            make()


def test_methods_of_a_wrong_shape_are_refused():
    case = problems.dense_case((6, 7, 8, 4))

    def run(step):
        method = pcjax.Method(1, lambda hidden: (), step)
        return pcjax.infer(case.network, method, *case[1:])

    for updates in ((), (jnp.zeros((5, 7)),), (jnp.zeros((5, 7)), jnp.zeros((5, 7)))):
        with pytest.raises(ValueError, match="method: step must return an update for"):
            run(lambda t, state, gradient, own, updates=updates: (updates, own))


def test_optimizers_that_ask_for_the_loss_learn_incrementally():
    case = problems.dense_case((6, 5, 4))
    tx = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1))
    update = pcjax.incremental(case.network, pcjax.sequential(4, 0.1), tx)
    _, state, (energy, _) = update(case.params, tx.init(case.params), *case[2:])
    assert 0 < state[1].best_value <= energy * 1.5


def test_a_key_goes_through_a_training_iteration():
    case = problems.dense_case((6, 5, 4))
    noise = optax.add_noise(0.1, 0.0, key=jax.random.key(1))
    method = pcjax.sequential(2, optimizer=optax.chain(optax.sgd(0.1), noise))
    tx = optax.sgd(0.1)
    update = training.make_update(pcjax.value_and_grad(case.network, method), tx)
    given = case.params, tx.init(case.params), *case[2:]
    update = jax.jit(update)
    one, two = (update(*given, key=jax.random.key(k))[0] for k in (1, 2))
    assert not np.array_equal(one[0]["kernel"], two[0]["kernel"])
