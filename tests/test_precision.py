"""Products rounded to bfloat16: what they compute, and that small errors survive."""

import functools
import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import pcjax
from pcjax.inference.equilibrium import infer_to_equilibrium
from pcjax.numerics import precision
from tests import problems
from tests.tiers import thorough

# Without the option XLA may leave out a rounding where it computes in float32 anyway.
rounding_jit = partial(jax.jit, compiler_options={"xla_allow_excess_precision": False})

OPTIONS = {"output": pcjax.softmax, "clamp": pcjax.soft_clamp(0.01)}
RUNS = [("sequential", 1), ("sequential", 3), ("simultaneous", 3)]


def network_of(name, product_dtype=None):
    """Five hidden layers (conv: four), as deep as the paper's and deeper."""
    if name == "conv":
        return pcjax.convnet(
            10,
            features=(8, 12, 16, 16),
            kernel_sizes=(2, 2, 2, 2),
            product_dtype=product_dtype,
        )
    activation = {"tanh": jnp.tanh, "relu": jax.nn.relu}[name]
    sizes = [48, 64, 64, 64, 64, 64, 10]
    return pcjax.mlp(sizes, activation, product_dtype=product_dtype)


SHAPES = {"conv": (33, 33, 3), "tanh": (48,), "relu": (48,)}


def case_of(name, product_dtype=None, **kwargs):
    network = network_of(name, product_dtype)
    return problems.make(network, SHAPES[name], batch=16, **kwargs)


@functools.cache
def shallow_case(name, product_dtype=None):
    """Layers of the same kinds, two of them hidden, for what depth does not change."""
    if name == "conv":
        options = {"features": (4, 6), "kernel_sizes": (3, 3)}
        network = pcjax.convnet(10, **options, product_dtype=product_dtype)
        return problems.make(network, (11, 11, 3), batch=16)
    activation = {"tanh": jnp.tanh, "relu": jax.nn.relu}[name]
    network = pcjax.mlp([48, 64, 64, 10], activation, product_dtype=product_dtype)
    return problems.make(network, (48,), batch=16)


def naive(network):
    """The same layers, but inference predicts by rounding whole activities."""
    return pcjax.Network(tuple(layer._replace(near=None) for layer in network.layers))


def double(case):
    """The case in float64: the same numbers."""
    return jax.tree.map(lambda x: x.astype(jnp.float64), case[1:])


def compare(one, other):
    """Cosine and relative error of two trees."""
    u, v = (
        np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(t)])
        for t in (one, other)
    )
    scale = np.linalg.norm(v)
    return u @ v / (np.linalg.norm(u) * scale), np.linalg.norm(u - v) / scale


def learn(network, kind, num_steps, arrays):
    """Weight gradients and hidden errors, and the activities of the hidden layers."""
    method = problems.METHODS[kind](num_steps, 0.05)

    @rounding_jit
    def both(*arrays):
        state = pcjax.infer(network, method, *arrays, **OPTIONS).state
        _, grads = pcjax.value_and_grad(network, method, **OPTIONS)(*arrays)
        return grads, state.errors[:-1], state.activities[1:-1]

    return both(*arrays)


@functools.cache
def exact(name, kind, num_steps):
    """What `learn` gives, in float64, by differentiating the free energy."""
    arrays = double(case_of(name))
    case = problems.Case(network_of(name), *arrays)

    def move(layer, slope, h):
        return -0.05 * slope

    @jax.jit
    def both(*arrays):
        here = case._replace(params=arrays[0], inputs=arrays[1], targets=arrays[2])
        activities = problems.descend(
            here, kind, [move] * num_steps, OPTIONS["output"], OPTIONS["clamp"]
        )
        grads = pcjax.local_gradients(
            here.network, here.params, activities, output=pcjax.softmax
        )
        errors = pcjax.prediction_errors(
            here.network, here.params, activities, output=pcjax.softmax
        )
        return grads, errors[:-1], activities[1:-1]

    return both(*arrays)


def reached(tree):
    """The layers an error has reached; elsewhere it is exactly zero."""
    return [
        i for i, x in enumerate(tree) if np.abs(jax.tree.leaves(x)[0]).max() > 1e-14
    ]


SEEN = [("tanh", "sequential", 1), ("relu", "simultaneous", 3)]
DEEPER = [
    (name, *run)
    for name in ("tanh", "relu", "conv")
    for run in RUNS
    if (name, *run) not in SEEN and (name, *run) != ("conv", "sequential", 3)
]


@pytest.mark.parametrize(
    ("name", "kind", "num_steps"),
    [*SEEN, ("conv", "sequential", 3), *thorough(DEEPER)],
)
def test_errors_of_early_layers_survive(x64, name, kind, num_steps):
    case = case_of(name, jnp.bfloat16)
    grads, errors, _ = learn(case.network, kind, num_steps, case[1:])
    true_grads, true_errors, activities = exact(name, kind, num_steps)
    layers = reached(true_errors)
    assert len(layers) >= min(3, len(true_errors))
    sizes = [
        np.linalg.norm(true_errors[i]) / np.linalg.norm(activities[i]) for i in layers
    ]
    assert sizes[0] < 1e-5  # what bfloat16, or two of them, cannot tell from zero
    for i in layers:
        cosine, distance = compare(errors[i], true_errors[i])
        assert cosine > 0.995, (i, cosine)
        assert distance < 0.1, (i, distance)
    for i in [*layers, len(grads) - 1]:
        cosine, distance = compare(grads[i], true_grads[i])
        assert cosine > 0.995, (i, cosine)
        assert distance < 0.1, (i, distance)


@pytest.mark.parametrize(("kind", "num_steps"), [*thorough(RUNS[:2]), RUNS[2]])
def test_rounding_whole_activities_would_spoil_the_errors(x64, kind, num_steps):
    case = case_of("relu", jnp.bfloat16)
    _, errors, _ = learn(naive(case.network), kind, num_steps, case[1:])
    _, true_errors, _ = exact("relu", kind, num_steps)
    layers = reached(true_errors)
    assert min(compare(errors[i], true_errors[i])[0] for i in layers) < 0.98


@pytest.mark.parametrize("dtype", [None, *thorough([jnp.float32])])
def test_float32_products_of_changes_are_better_than_of_activities(x64, dtype):
    # Nothing is rounded then; the sums of a product of whole activities are.
    true = exact("tanh", "sequential", 1)
    distances = []
    case = case_of("tanh", dtype)
    for network in (naive(case.network), case.network):
        _, errors, _ = learn(network, "sequential", 1, case[1:])
        distances.append(compare(errors[1], true[1][1])[1])
    assert distances[1] < distances[0] / 2


@pytest.mark.parametrize("name", ["relu", "conv"])
def test_hidden_errors_start_at_exactly_zero(name):
    case = shallow_case(name, jnp.bfloat16)
    inference = jax.jit(
        partial(pcjax.infer, case.network, pcjax.sequential(1, 0.05), **OPTIONS)
    )(*case[1:])
    for error in inference.initial.errors[:-1]:
        np.testing.assert_array_equal(error, 0)


# In float64 nothing is rounded, so that only the algebra is left.


def _rules(network):
    tx = optax.sgd(0.1)
    for kind, make in problems.METHODS.items():
        for num_steps in (1, 3):
            method = make(num_steps, 0.1)
            yield (
                f"{kind} {num_steps}",
                pcjax.value_and_grad(network, method, **OPTIONS),
            )
        incremental = pcjax.incremental(network, make(4, 0.1), tx, **OPTIONS)
        yield (
            f"incremental {kind}",
            lambda params, *batch, f=incremental: f(params, tx.init(params), *batch),
        )
    by_errors = pcjax.error_based(3, 0.1)
    yield "errors 3", pcjax.value_and_grad(network, by_errors, **OPTIONS)
    yield "backprop", pcjax.backprop.value_and_grad(network, output=pcjax.softmax)
    method = pcjax.sequential(5, 0.1)
    yield (
        "equilibrium",
        lambda *arrays: infer_to_equilibrium(network, method, *arrays, **OPTIONS).state,
    )


def _mixed(dtype):
    """Rounded layers around one that knows nothing of it."""
    ends = (
        pcjax.dense(6, product_dtype=dtype),
        pcjax.dense(4, jnp.tanh, product_dtype=dtype),
    )
    return pcjax.Network((ends[0], problems.residual(), ends[1]))


BUILD = {
    "mlp": (
        lambda dtype: pcjax.mlp([60, 7, 6, 8, 4], jnp.tanh, product_dtype=dtype),
        (6, 10, 1),
    ),
    # Some rows and columns are reached by no filter.
    "conv": (
        lambda dtype: pcjax.convnet(
            4, features=(3, 5), kernel_sizes=(3, 2), product_dtype=dtype
        ),
        (12, 9, 2),
    ),
    "autoencoder": (
        lambda dtype: pcjax.autoencoder([6, 4, 6], product_dtype=dtype),
        (6,),
    ),
    "mixed": (_mixed, (5,)),
}


ANCHORED = [
    ("mlp", "incremental simultaneous"),
    ("conv", "incremental sequential"),
    ("conv", "simultaneous 3"),
    ("autoencoder", "equilibrium"),
    ("mixed", "sequential 3"),
    ("mixed", "backprop"),
    ("mlp", "errors 3"),
]
RULES = (
    *("simultaneous 1", "simultaneous 3", "incremental simultaneous"),
    *("sequential 1", "sequential 3", "incremental sequential"),
    *("errors 3", "backprop", "equilibrium"),
)
OTHERS = [pair for pair in itertools.product(BUILD, RULES) if pair not in ANCHORED]


@pytest.mark.parametrize(("name", "rule"), [*ANCHORED, *thorough(OTHERS)])
def test_anchored_products_are_the_products(x64, name, rule):
    build, shape = BUILD[name]
    case = problems.make(build(None), shape, dtype=jnp.float64)
    plain, anchored = (dict(_rules(build(dtype))) for dtype in (None, jnp.float64))
    assert set(plain) == set(RULES)
    want, have = (jax.jit(rules[rule])(*case[1:]) for rules in (plain, anchored))
    assert jax.tree.leaves(have)
    problems.assert_trees_close(have, want, rtol=1e-9, atol=1e-13)


def _left_out(strides):
    return pytest.param(strides, marks=pytest.mark.exhaustive)


@pytest.mark.parametrize("strides", [(1, 3), (3, 2), *map(_left_out, [(1, 1), (2, 2)])])
def test_transposes_of_the_convolution(x64, strides):
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=s)) for s in ((4, 9, 8, 3), (3, 2, 3, 5)))
    bilinear = precision.convolution(strides)
    plain = partial(bilinear.apply, dtype=None)
    g = jnp.asarray(rng.normal(size=jax.eval_shape(plain, x, w).shape))

    @jax.jit
    def both(x, w, g):
        have = (
            bilinear.pull_inputs(g, w, x.shape, jnp.float64),
            bilinear.pull_kernel(x, g, w.shape, jnp.float64),
        )
        return have, jax.vjp(plain, x, w)[1](g)

    problems.assert_trees_close(*both(x, w, g))


def test_what_is_rounded():
    rng = np.random.default_rng(0)
    x, w, g, y0 = (
        rng.normal(size=s).astype(np.float32)
        for s in ((4, 30), (30, 20), (4, 20), (4, 20))
    )
    product = precision.rounded(precision.matmul, jnp.bfloat16)

    def rounded(a):
        return a.astype(ml_dtypes.bfloat16).astype(np.float64)

    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    for value, function in (
        (rounded(x) @ rounded(w), product.apply),
        (y0, lambda x, w: product.known(x, w, y0)),
    ):
        outputs, pull = jax.vjp(function, x, w)
        close(outputs, value)
        pulled = pull(jnp.asarray(g))
        close(pulled[0], rounded(g) @ rounded(w).T)
        close(pulled[1], rounded(x).T @ rounded(g))


def test_a_known_product_has_the_derivatives_of_the_product(x64):
    rng = np.random.default_rng(0)
    x, w, y = (jnp.asarray(rng.normal(size=s)) for s in ((4, 6), (6, 3), (4, 3)))
    product = precision.plain(precision.matmul)

    def known(x, w):
        return product.known(x, w, jax.lax.stop_gradient(product.apply(x, w)))

    @partial(jax.jit, static_argnums=0)
    def both(function, x, w):
        return jax.jvp(function, (x, w), (x + 1, w - 1)), jax.vjp(function, x, w)[1](y)

    problems.assert_trees_close(both(known, x, w), both(product.apply, x, w))
    np.testing.assert_array_equal(product.known(x, w, y), y)


@functools.cache
def _lowered(name):
    """The program of every rule for a network of rounded products."""
    network, *arrays = shallow_case(name, jnp.bfloat16)
    return {label: jax.jit(rule).lower(*arrays) for label, rule in _rules(network)}


@pytest.mark.parametrize("name", ["relu", "conv"])
def test_dtypes_and_parameters_are_those_of_float32(name):
    case = shallow_case(name, jnp.bfloat16)
    first, twin = (
        jax.jit(network.layers[0].init)(jax.random.key(0), case.inputs)
        for network in (case.network, shallow_case(name).network)
    )
    problems.assert_trees_close(first, twin, rtol=0, atol=0)
    method = pcjax.sequential(2, 0.05)
    infer = partial(pcjax.infer, case.network, method, **OPTIONS)
    shapes = [
        jax.eval_shape(infer, *case[1:]),
        *(program.out_info for program in _lowered(name).values()),
    ]
    floats = {
        leaf.dtype
        for leaf in jax.tree.leaves(shapes)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    assert floats == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", ["relu", "conv"])
def test_every_product_of_the_program_is_one_of_bfloat16(name):
    for label, program in _lowered(name).items():
        products = re.findall(
            r"stablehlo\.(?:dot_general|convolution).*", program.as_text()
        )
        assert len(products) > 5, label
        for line in products:
            signature = line[line.rindex(": (") :]
            dtypes = re.findall(r"x(bf16|f32|f64)>", signature)
            assert dtypes == ["bf16", "bf16", "f32"], (label, line)


@pytest.mark.parametrize("name", ["relu", "conv"])
def test_jit_and_vmap_change_nothing(name):
    case = shallow_case(name, jnp.bfloat16)
    grad_fn = pcjax.value_and_grad(case.network, pcjax.sequential(2, 0.05), **OPTIONS)
    _, params, *batch = case
    both = [params, jax.tree.map(lambda x: np.float32(1.1) * np.asarray(x), params)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *both)
    mapped = rounding_jit(jax.vmap(grad_fn, (0, None, None)))(stacked, *batch)
    one_by_one = rounding_jit(grad_fn)
    alone = [one_by_one(theta, *batch) for theta in both]
    singles = [jax.tree.map(lambda x, i=i: x[i], mapped) for i in range(2)]
    pairs = list(zip(singles, alone, strict=True))
    if name == "relu":  # eager convolutions are slow
        pairs.append((grad_fn(params, *batch), alone[0]))
    for (value, grads), (want_value, want_grads) in pairs:
        problems.assert_trees_close(value, want_value, rtol=1e-3)
        for have, want in zip(grads, want_grads, strict=True):
            # Sums in another order may round to another neighbour.
            assert compare(have, want)[1] < 0.02


def _sums(learning_rate):
    """Gradient descent that adds up the gradients."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, state, params=None: (
            jax.tree.map(lambda g: g * (-learning_rate).astype(g.dtype), grads),
            jax.tree.map(jnp.add, state, grads),
        ),
    )


def test_incremental_follows_steps_of_the_weights_too(x64):
    case = case_of("tanh", jnp.bfloat16)
    method = pcjax.simultaneous(6, 0.05)

    def of(network):
        def gradients(learning_rate, params, *batch):
            tx = _sums(learning_rate)
            update = pcjax.incremental(network, method, tx, **OPTIONS)
            return update(params, tx.init(params), *batch)[1]

        return rounding_jit(gradients)

    nets = case.network, naive(case.network), network_of("tanh")
    close, spoiled, plain = map(of, nets)
    for learning_rate in (1e-1, 1e-3):
        true = plain(learning_rate, *double(case))
        cosines, naives = (
            [
                compare(*layer)[0]
                for layer in zip(of_net(learning_rate, *case[1:]), true, strict=True)
            ]
            for of_net in (close, spoiled)
        )
        assert min(cosines) > 0.97
        assert min(naives) < 0.9


def test_derivatives_by_the_step_size_agree_with_float32():
    def energy(step_size, case):
        method = pcjax.sequential(3, step_size)
        grad_fn = pcjax.value_and_grad(case.network, method, **OPTIONS)
        return grad_fn(*case[1:])[0][0]

    slopes = [
        jax.jit(jax.grad(partial(energy, case=shallow_case("tanh", dtype))))(0.1)
        for dtype in (jnp.bfloat16, None)
    ]
    np.testing.assert_allclose(*slopes, rtol=0.02)


def test_backprop_agrees_with_float32():
    case = case_of("tanh", jnp.bfloat16)
    results = [
        jax.jit(pcjax.backprop.value_and_grad(network, output=pcjax.softmax))(*case[1:])
        for network in (case.network, network_of("tanh"))
    ]
    for have, want in zip(results[0][1], results[1][1], strict=True):
        assert compare(have, want)[0] > 0.999


@pytest.mark.parametrize(
    ("dtype", "error", "message"),
    [
        (jnp.float16, ValueError, "range of float32.*got float16"),
        (jnp.int8, TypeError, "must be a float dtype, got .*int8"),
    ],
)
@pytest.mark.parametrize(
    "build", [network_of, lambda _, dtype: pcjax.dense(3, product_dtype=dtype)]
)
def test_dtypes_that_lose_small_errors_are_refused(build, dtype, error, message):
    with pytest.raises(error, match=message):
        build("conv", dtype)
