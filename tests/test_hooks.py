"""What users hand to inference: weights of t, starts and keys; calls un-jitted."""

import resource
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from pcjax.inference.equilibrium import infer_to_equilibrium, linear_equilibrium
from pcjax.networks import linear
from pcjax.numerics.compiled import _compiled
from tests import problems
from tests.tiers import thorough

SIZES = (6, 7, 5, 4)
F64 = {"dtype": jnp.float64}
OPTIONS = {"output": pcjax.softmax}


def gamma_of(activities, errors, t):
    return [1.0 + 0.5 * t] * (len(errors) - 1)


def decay_of(activities, errors, t):
    return [0.1 * t] * (len(errors) - 1)


def clamp_of(targets, outputs, activity, t):
    return (targets + 0.1 * t * outputs) / (1 + 0.1 * t)


@pytest.mark.parametrize("kind", problems.METHODS)
def test_weights_and_clamps_may_depend_on_the_iteration(x64, kind):
    case = problems.dense_case(SIZES, **F64)
    method = problems.METHODS[kind](3, 0.1)
    hooks = {"gamma": gamma_of, "decay": decay_of, "clamp": clamp_of, **OPTIONS}
    grad_fn = pcjax.value_and_grad(case.network, method, **hooks)
    (_, info), grads = jax.jit(grad_fn)(*case[1:])
    count = len(SIZES) - 2

    @jax.jit
    def iterated(hidden, t):
        return problems.iterate(
            case,
            kind,
            hidden,
            lambda layer, slope, h: -0.1 * slope,
            pcjax.softmax,
            lambda *arrays: clamp_of(*arrays, t),
            [1.0 + 0.5 * t] * count,
            [0.1 * t] * count,
        )

    @jax.jit
    def learned(hidden):
        # Three iterations were made when the weights learn.
        activities = problems.clamped(
            case, hidden, pcjax.softmax, lambda *arrays: clamp_of(*arrays, 3)
        )
        gamma = [2.5] * count
        return activities, pcjax.local_gradients(
            case.network, case.params, activities, gamma=gamma, **OPTIONS
        )

    hidden = tuple(jax.jit(lambda: pcjax.feedforward(*case[:3])[:-1])())
    for t in range(3):
        hidden = iterated(hidden, float(t))
    activities, want = learned(hidden)
    problems.assert_trees_close(info.state.activities, activities, rtol=1e-11)
    problems.assert_trees_close(grads, want, rtol=1e-10, atol=1e-13)


def test_a_learning_clamp_of_t_sees_the_iterations_that_were_made(x64):
    case = problems.dense_case(SIZES, **F64)
    method = pcjax.sequential(3, 0.1)

    def grads(learning_clamp):
        grad_fn = pcjax.value_and_grad(
            case.network, method, learning_clamp=learning_clamp, **OPTIONS
        )
        return jax.jit(grad_fn)(*case[1:])[1]

    def at_three(targets, outputs, below):
        return clamp_of(targets, outputs, below, 3)

    problems.assert_trees_close(grads(clamp_of), grads(at_three), rtol=1e-14)


def test_a_gamma_of_t_is_refused_where_there_is_no_iteration():
    case = problems.dense_case(SIZES)
    activities = [jnp.asarray(np.ones((5, size), np.float32)) for size in SIZES]

    def energy(params):
        arrays = case.network, params, activities
        return pcjax.free_energy(*arrays, gamma=gamma_of, **OPTIONS)

    with pytest.raises(ValueError, match="gamma depends on the inference iteration t"):
        jax.eval_shape(energy, case.params)


@pytest.mark.parametrize("kind", ["simultaneous", *thorough(["sequential"])])
def test_inference_goes_on_from_given_activities(x64, kind):
    case = problems.dense_case(SIZES, **F64)
    make = problems.METHODS[kind]
    first = pcjax.infer(case.network, make(2, 0.1), *case[1:], **OPTIONS)
    hidden = first.state.activities[1:-1]
    rest = pcjax.infer(case.network, make(3, 0.1), *case[1:], hidden=hidden, **OPTIONS)
    grad_fn = pcjax.value_and_grad(case.network, make(5, 0.1), **OPTIONS)
    (_, whole), want = jax.jit(grad_fn)(*case[1:])
    problems.assert_trees_close(rest.state, whole.state, rtol=1e-9, atol=1e-12)
    problems.assert_trees_close(rest.initial, first.state, rtol=1e-9, atol=1e-12)
    grad_fn = pcjax.value_and_grad(case.network, make(3, 0.1), **OPTIONS)
    (_, info), grads = jax.jit(grad_fn)(*case[1:], hidden=hidden)
    problems.assert_trees_close(grads, want, rtol=1e-9, atol=1e-12)
    # The loss is that of the feed-forward outputs all the same.
    np.testing.assert_allclose(info.loss, whole.loss)


@pytest.mark.parametrize("kind", ["sequential", *thorough(["simultaneous"])])
def test_the_way_to_rest_goes_on_from_given_activities(x64, kind):
    case = problems.dense_case(SIZES, **F64)
    make = problems.METHODS[kind]
    first = pcjax.infer(case.network, make(2, 0.1), *case[1:], **OPTIONS)
    hidden = first.state.activities[1:-1]
    found = infer_to_equilibrium(
        case.network, make(2000, 0.1), *case[1:], hidden=hidden, **OPTIONS
    )
    alone = infer_to_equilibrium(case.network, make(2000, 0.1), *case[1:], **OPTIONS)
    problems.assert_trees_close(
        found.state.activities, alone.state.activities, rtol=1e-5, atol=1e-6
    )
    assert (found.num_steps < alone.num_steps).all()


def test_starts_that_do_not_fit_are_refused():
    case = problems.dense_case()
    method = pcjax.sequential(1, 0.1)
    hidden = [jnp.asarray(np.ones((5, size), np.float32)) for size in (7, 8, 5)]
    for bad, message in (
        (hidden[:-1], "infer: hidden must hold the activities h_1 to h_.*got"),
        ([h[:2] for h in hidden], "infer: hidden must hold .*got"),
    ):
        with pytest.raises(ValueError, match=message):
            pcjax.infer(case.network, method, *case[1:], hidden=bad)
    integers = [jnp.asarray(np.ones(h.shape, np.int32)) for h in hidden]
    with pytest.raises(TypeError, match=r"infer: hidden\[0\] must be floats"):
        pcjax.infer(case.network, method, *case[1:], hidden=integers)
    grad_fn = pcjax.value_and_grad(case.network, method)
    for key in (0, jax.random.split(jax.random.key(0), 3), jnp.zeros(2, jnp.uint32)):
        with pytest.raises(TypeError, match="value_and_grad: key must be a single"):
            grad_fn(*case[1:], key=key)


@cache
def noisy():
    """The same method, so that its program is shared."""
    noise = optax.add_noise(1.0, 0.0, key=jax.random.key(1))
    return pcjax.sequential(2, optimizer=optax.chain(optax.scale(0.0), noise))


def noise_moves(case, **options):
    """What a transform that only draws noise adds to the hidden activities."""
    found = pcjax.infer(case.network, noisy(), *case[1:], **options)
    return [
        np.asarray(b) - np.asarray(a)
        for a, b in zip(
            found.initial.activities[1:-1], found.state.activities[1:-1], strict=True
        )
    ]


def correlation(a, b):
    return abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def _drawing(key):
    """A transform that adds noise by a state that holds a key of any kind."""

    def init(params):
        del params
        return key

    def update(slope, state, params=None):
        del params
        assert (state.shape, state.dtype) == (key.shape, key.dtype)
        several = key.ndim > 0 and key.dtype != jnp.uint32
        first = state[0] if several else state
        return jax.random.normal(first, slope.shape, slope.dtype), state

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize(
    "key",
    [
        jax.random.key(1),
        jax.random.split(jax.random.key(1), 3),
        jax.random.key(1, impl="rbg"),
        jax.random.PRNGKey(1),
    ],
    ids=["typed", "several", "another kind", "old"],
)
def test_keys_of_every_kind_are_drawn_for_each_example(key):
    case = problems.dense_case(SIZES)
    method = pcjax.sequential(1, optimizer=_drawing(key))
    found = pcjax.infer(case.network, method, *case[1:], key=jax.random.key(0))
    for start, end in zip(
        found.initial.activities[1:-1], found.state.activities[1:-1], strict=True
    ):
        moves = np.asarray(end - start)
        assert abs(correlation(moves[0], moves[1])) < 0.95
        assert len(np.unique(moves[:, 0])) == len(moves)


def test_noise_differs_between_examples_layers_and_calls():
    case = problems.dense_case([6, 40, 40, 4], batch=60)
    first = noise_moves(case)
    other = noise_moves(case._replace(inputs=case.inputs + 1))
    assert correlation(first[0][0], first[0][1]) < 0.5
    assert correlation(first[0], first[1]) < 0.1
    assert correlation(first[0], other[0]) < 0.1
    # Two iterations of independent noise of variance 1.
    assert abs(np.std(first[0]) ** 2 - 2) < 0.2
    # Pure: the same call draws the same, and every key draws otherwise.
    again, *keyed = (
        noise_moves(case, **options)
        for options in ({}, {"key": jax.random.key(5)}, {"key": jax.random.key(6)})
    )
    np.testing.assert_array_equal(first[0], again[0])
    assert correlation(keyed[0][0], keyed[1][0]) < 0.1
    assert correlation(keyed[0][0], first[0]) < 0.1


def test_keys_are_of_each_example_not_of_its_place_in_the_batch():
    case = problems.dense_case([6, 10, 4], activation=jax.nn.relu, batch=6)
    # Without a key it is made of the bits of activities, and how products are rounded
    # may depend on the size of the batch: quarters are exact in any order.
    case = case._replace(
        **{
            name: jax.tree.map(
                lambda x: jnp.asarray(np.round(4 * np.asarray(x)) / 4),
                getattr(case, name),
            )
            for name in ("params", "inputs", "targets")
        }
    )
    whole = noise_moves(case)[0]
    part = case._replace(inputs=case.inputs[2:4], targets=case.targets[2:4])
    np.testing.assert_allclose(noise_moves(part)[0], whole[2:4], atol=1e-6)


def test_a_method_of_ones_own_may_ask_for_keys():
    case = problems.dense_case([6, 10, 4], batch=6)
    seen = []

    def init(hidden, keys):
        seen.append((len(hidden), keys.shape))
        return keys

    def step(t, state, gradient, keys):
        slopes = [gradient(i + 1, state.errors) for i in range(1)]
        draw = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, t), (10,)))
        return tuple(-0.1 * slope + draw(keys) for slope in slopes), keys

    method = pcjax.Method(2, init, step, random=True)
    found = pcjax.infer(case.network, method, *case[1:], key=jax.random.key(0))
    assert seen[0] == (1, (6,))
    plain = pcjax.infer(case.network, pcjax.simultaneous(2, 0.1), *case[1:])
    assert correlation(found.state.errors[0], plain.state.errors[0]) < 0.9


@cache
def calls():
    """Un-jitted calls of everything that loops."""
    case = problems.dense_case(SIZES)
    method, tx = pcjax.sequential(3, 0.1), optax.sgd(0.1)
    grad_fn = pcjax.value_and_grad(case.network, method, **OPTIONS)
    update = pcjax.incremental(case.network, method, tx, **OPTIONS)
    state = tx.init(case.params)
    flat = problems.dense_case(SIZES, linear)
    rest_fn = pcjax.at_equilibrium.value_and_grad(case.network, method, **OPTIONS)
    multipliers = pcjax.augmented_lagrangian(case.network, 3, 0.1, **OPTIONS)
    forward = pcjax.forward_update(case.network, method, **OPTIONS)
    rule = partial(pcjax.value_and_grad, case.network, method, **OPTIONS)
    both, few = pcjax.centred(rule, 0.1), pcjax.averaged(grad_fn, 2)
    return {
        "arrays in parts": lambda: pcjax.infer(
            case.network,
            pcjax.sequential(3, jnp.float32(0.1)),
            *case[1:],
            clamp=pcjax.soft_clamp(jnp.float32(0.1)),
            gamma=[jnp.ones(len(case.inputs)), np.ones(len(case.inputs))],
            **OPTIONS,
        ),
        "centred": lambda: both(*case[1:]),
        "averaged": lambda: few(*case[1:]),
        "infer": lambda: pcjax.infer(
            case.network,
            pcjax.sequential(3, 0.1),
            *case[1:],
            clamp=pcjax.soft_clamp(0.1),
            gamma=[1.0, 2.0],
            **OPTIONS,
        ),
        "grad_fn": lambda: grad_fn(*case[1:]),
        "incremental": lambda: update(case.params, state, *case[2:]),
        "infer_to_equilibrium": lambda: infer_to_equilibrium(
            case.network, method, *case[1:], **OPTIONS
        ),
        "linear_equilibrium": lambda: linear_equilibrium(*flat),
        "at_equilibrium": lambda: rest_fn(*case[1:]),
        "largest_curvature": lambda: pcjax.largest_curvature(
            case.network, method, *case[1:], **OPTIONS
        ),
        "augmented_lagrangian": lambda: multipliers(*case[1:]),
        "forward_update": lambda: forward(*case[1:]),
    }


NAMES = (
    *("infer", "grad_fn", "incremental", "infer_to_equilibrium", "linear_equilibrium"),
    *("at_equilibrium", "largest_curvature", "augmented_lagrangian", "forward_update"),
    *("arrays in parts", "centred", "averaged"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_second_call_without_jit_compiles_nothing(name):
    call = calls()[name]
    before = len(problems._compiled)
    jax.block_until_ready(call())
    assert len(problems._compiled) - before <= 3
    with problems.compilations(0):
        jax.block_until_ready(call())


def _resident():
    """Bytes of memory that this process holds now."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_calls_without_jit_keep_no_memory():
    every = calls()
    names = ("infer", "grad_fn", "arrays in parts")
    for name in names:
        jax.block_until_ready(every[name]())
    before = _resident()
    for _ in range(200):
        for name in names:
            jax.block_until_ready(every[name]())
    assert _resident() - before < 20e6  # 3 MB a call once were


def test_arrays_in_parts_are_those_of_each_call(x64):
    case = problems.dense_case(SIZES, dtype=jnp.float64)
    run = partial(pcjax.infer, case.network, **OPTIONS)
    for number in (0.1, 0.2):
        have = run(pcjax.sequential(2, jnp.float64(number)), *case[1:])
        want = run(pcjax.sequential(2, number), *case[1:])
        problems.assert_trees_close(have, want)


class _Weights:
    """Weights that an object holds."""

    def __init__(self, scale):
        self.scale = scale

    def gamma(self, activities, errors):
        return self.scale


def _scale_of(found, activities, errors):
    return found["scale"]


WEIGHTS = {
    "closure": lambda scale: lambda activities, errors: scale,
    "method": lambda scale: _Weights(scale).gamma,
    "partial": lambda scale: partial(_scale_of, {"scale": scale}),
    "jitted": lambda scale: jax.jit(_Weights(scale).gamma),
}


@pytest.mark.parametrize(
    "kind", ["step", "partial", "jitted", *thorough(["closure", "method"])]
)
def test_what_is_traced_is_not_kept(kind):
    """Weights or steps that hold a tracer, data being constant."""
    case = problems.dense_case(SIZES)

    def error(scale):
        step, gamma = (lambda t: 0.1 * scale), 1.0
        if kind != "step":
            step, gamma = 0.1, WEIGHTS[kind](scale)
        method = pcjax.sequential(2, step)
        found = pcjax.infer(case.network, method, *case[1:], gamma=gamma, **OPTIONS)
        return jnp.sum(found.state.errors[-1] ** 2)

    before = _compiled.cache_info().misses
    once = jax.jit(error)(2.0)
    slope = jax.grad(error)(2.0)
    assert _compiled.cache_info().misses == before
    step = 1e-2
    around = (error(2.0 + step) - error(2.0 - step)) / (2 * step)
    np.testing.assert_allclose(once, error(2.0), rtol=1e-5)
    np.testing.assert_allclose(slope, around, rtol=1e-2)


def test_different_methods_are_not_taken_for_each_other():
    case = problems.dense_case((6, 5, 5, 4))
    results = [
        pcjax.infer(case.network, method, *case[1:]).state.activities[1]
        for method in (
            pcjax.sequential(2, 0.1),
            pcjax.simultaneous(2, 0.1),
            pcjax.sequential(2, 0.2),
            pcjax.sequential(2, optimizer=optax.sgd(0.3)),
            pcjax.sequential(3, 0.1),
        )
    ]
    for index, one in enumerate(results):
        for other in results[:index]:
            assert not np.array_equal(one, other)
    assert pcjax.sequential(2, 0.1) == pcjax.sequential(2, 0.1)
    assert pcjax.sequential(2, 0.1) != pcjax.simultaneous(2, 0.1)


def test_the_final_state_is_what_infer_gives():
    case = problems.dense_case(SIZES)
    method = pcjax.sequential(2, 0.1)
    (_, info), _ = pcjax.value_and_grad(case.network, method, **OPTIONS)(*case[1:])
    found = pcjax.infer(case.network, method, *case[1:], **OPTIONS)
    problems.assert_trees_close(info.state, found.state, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("conv", "sequential"),
        ("gelu", "simultaneous"),
        *thorough([("conv", "simultaneous"), ("gelu", "sequential")]),
    ],
)
def test_hypergradients_go_through_the_whole_of_inference(x64, name, kind):
    # The derivative of the inferred activities by weights, inputs and step size.
    if name == "conv":
        case = problems.network_case("conv", **F64)
    else:
        case = problems.dense_case(SIZES, activation=jax.nn.gelu, **F64)
    grad = np.random.default_rng(1).normal(size=case.targets.shape)

    def value(scale, eps):
        params = jax.tree.map(lambda p: p * scale, case.params)
        method = problems.METHODS[kind](3, eps)
        state = pcjax.infer(
            case.network, method, params, case.inputs * scale, case.targets
        ).state
        return sum(jnp.sum(e**2) for e in state.errors) + jnp.sum(
            grad * state.predictions[-1]
        )

    found = jax.jit(jax.grad(value, (0, 1)))(1.0, 0.1)
    value, h = jax.jit(value), 1e-5
    want = (
        (value(1 + h, 0.1) - value(1 - h, 0.1)) / (2 * h),
        (value(1.0, 0.1 + h) - value(1.0, 0.1 - h)) / (2 * h),
    )
    np.testing.assert_allclose(found, want, rtol=1e-6)
