"""Tests on eight virtual devices, run by `tests/test_sharding.py`."""

import itertools
import re
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from benchmarks import hlo
from pcjax import training
from pcjax.optimizers import finite
from pcjax.training import evaluation, sharding
from tests.problems import compilations, dense_case, make, shard_map
from tests.tiers import thorough

SIZES = (12, 24, 16, 4)
ARRAYS = 2 * (len(SIZES) - 1)
NUMBERS = sum((a + 1) * b for a, b in itertools.pairwise(SIZES))
STEPS = 3
OPTIMIZERS = {
    "SGD": lambda: optax.sgd(0.1),
    "MQ": lambda: pcjax.mq(1e-3),
    "Adam": lambda: optax.adam(1e-3),
}
METHODS = ("BP", "SeqIL", "IL", "iPC")
SPLIT = sharding.split_features(16)


def _update(network, method, tx):
    """The training iteration of one of METHODS."""
    if method == "BP":
        grad_fn = pcjax.backprop.value_and_grad(network, output=pcjax.softmax)
        return training.make_update(grad_fn, tx)
    options = {"output": pcjax.softmax, "clamp": pcjax.soft_clamp(0.01)}
    if method == "iPC":
        inference = pcjax.simultaneous(STEPS, 0.1)
        return pcjax.incremental(network, inference, tx, **options)
    kind = {"SeqIL": pcjax.sequential, "IL": pcjax.simultaneous}[method]
    grad_fn = pcjax.value_and_grad(network, kind(STEPS, 0.1), **options)
    return training.make_update(grad_fn, tx)


def _recorded(tx):
    """The transform, keeping the sum of its updates in its state."""

    def update(updates, total, params=None):
        del params
        return updates, jax.tree.map(jnp.add, total, updates)

    record = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), update
    )
    return optax.chain(tx, record)


def _steps(network, method, optimizers):
    """`(init, update)`: a training step by each optimizer, from the same weights."""
    transforms = {name: _recorded(OPTIMIZERS[name]()) for name in optimizers}

    def init(params):
        return {name: tx.init(params) for name, tx in transforms.items()}

    def update(params, states, inputs, targets):
        return {
            name: _update(network, method, tx)(params, states[name], inputs, targets)
            for name, tx in transforms.items()
        }

    return init, update


def _distance(have, want):
    """The largest relative distance of two trees' arrays, in their own norms."""
    distances = []
    for a, b in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        norm = np.linalg.norm(b)
        distances.append(np.linalg.norm(a - b) / norm if norm else np.abs(a).max())
    return max(distances)


LAYOUTS = {
    "batch": {},
    "batch x seeds": {"seeds": 2},
    "batch x model": {"model": 2},
}


def _mesh(layout="batch"):
    return sharding.make_mesh(**LAYOUTS[layout])


# In single precision the sum over the examples is only taken in another order. Adam
# divides every entry by its own magnitude, so that the rounding of the smallest counts
# as much as that of the largest. Over the model axis each sum of a product is another;
# the small errors of early layers then carry the rounding of predictions, as they do on
# one device, where it puts these updates up to 5e-6 from those of double precision. So
# does a part of the batch where a product of fewer rows rounds otherwise.
def _tolerance(dtype, layout, optimizer):
    if dtype == "float64":
        return 1e-11
    alike = layout != "batch x model" and _rows_round_alike()
    return 1e-6 if alike and optimizer != "Adam" else 2e-5


@cache
def _rows_round_alike():
    """Whether a row of a product is the same however many others there are.

    It is not on CPUs in older versions of XLA.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, SIZES[1])).astype(np.float32)
    weights = rng.normal(size=(SIZES[1], SIZES[2])).astype(np.float32)
    multiply = jax.jit(jnp.matmul)
    return np.array_equal(multiply(x, weights)[:2], multiply(x[:2], weights))


@pytest.mark.parametrize(
    ("method", "dtype", "optimizers"),
    [
        ("SeqIL", "float64", ["MQ"]),
        *thorough((method, "float64", [*OPTIMIZERS]) for method in METHODS),
        *thorough((method, "float32", [*OPTIMIZERS]) for method in ("SeqIL", "iPC")),
    ],
)
def test_a_step_on_eight_devices_is_that_of_one(method, dtype, optimizers, request):
    if dtype == "float64":
        request.getfixturevalue("x64")
    case = dense_case(SIZES, batch=16, dtype=dtype)
    init, update = _steps(case.network, method, optimizers)
    batch = case.inputs, case.targets
    states = [
        (params, init(params))
        for params in (case.params, jax.tree.map(lambda x: -0.5 * x, case.params))
    ]
    step = jax.jit(update)
    steps = [jax.tree.map(np.asarray, step(*state, *batch)) for state in states]
    for layout in LAYOUTS:
        mesh = _mesh(layout)
        state, want, function = states[0], steps[0], update
        split = SPLIT if layout == "batch x model" else sharding.replicated
        if layout == "batch x seeds":
            state, want = _stack(states), _stack(steps)
            function = jax.vmap(update, in_axes=(0, 0, None, None))
        state = sharding.place_state(mesh, state, split)
        have = jax.jit(function)(*state, *sharding.place_batch(mesh, batch))
        for name in optimizers:
            tolerance = _tolerance(dtype, layout, name)
            params, (_, have_updates), value = have[name]
            want_params, (_, want_updates), want_value = want[name]
            assert len(params[0]["kernel"].sharding.device_set) == 8
            assert min(np.abs(x).max() for x in jax.tree.leaves(want_updates)) > 0
            assert _distance(have_updates, want_updates) < tolerance, (layout, name)
            assert _distance(params, want_params) < 1e-6, (layout, name)
            assert _distance(value, want_value) < 1e-6, (layout, name)
            # The optimizer's state.
            assert _distance(have[name][1], want[name][1]) < tolerance, (layout, name)


def _stack(trees):
    return jax.tree.map(lambda *x: np.stack(x), *trees)


def test_wide_layers_lie_in_parts_on_the_devices():
    params = sharding.place_state(
        _mesh("batch x model"), dense_case(SIZES).params, SPLIT
    )
    shapes = [p["kernel"].addressable_shards[0].data.shape for p in params]
    assert shapes == [(12, 12), (24, 8), (16, 4)]
    assert params[0]["bias"].addressable_shards[0].data.shape == (12,)


def test_mq_adds_up_the_magnitudes_of_a_layer_that_lies_in_parts(x64):
    rng = np.random.default_rng(0)
    gradient = {"kernel": rng.normal(size=(6, 16)), "bias": rng.normal(size=16)}
    tx = pcjax.scale_by_mq(0.5, min_step=0.0)
    mesh = _mesh("batch x model")
    arguments = (
        sharding.place_state(mesh, (gradient,), SPLIT),
        sharding.place_state(mesh, tx.init((gradient,))),
    )
    compiled = jax.jit(tx.update).lower(*arguments).compile()
    _, state = compiled(*arguments)
    mean = np.mean([*np.abs(gradient["kernel"]).ravel(), *np.abs(gradient["bias"])])
    np.testing.assert_allclose(state.v, [0.25 + mean / 2], rtol=1e-14)
    # Each device sums its own part: one number of kernel and bias goes over the mesh.
    sent = hlo.collectives(compiled)
    assert set(sent) == {"all-reduce"}
    assert (sent["all-reduce"].arrays, sent["all-reduce"].bytes) == (2, 2 * 8)


def test_mq_keeps_updates_where_gradients_lie():
    values = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    tx = pcjax.scale_by_mq(0.0)
    for axes in (("batch", None), (None, "batch")):
        place = jax.sharding.NamedSharding(_mesh(), jax.sharding.PartitionSpec(*axes))
        gradient = jax.device_put(values, place)
        updates, state = jax.jit(tx.update)(gradient, tx.init(gradient))
        np.testing.assert_allclose(state.v, [np.abs(values).mean() / 2], rtol=1e-6)
        assert updates.sharding == gradient.sharding


def _compiled(method, optimizer, mesh, **options):
    case = dense_case(SIZES, batch=16)
    tx = OPTIMIZERS[optimizer]()
    update = _update(case.network, method, tx)
    state = sharding.place_state(mesh, (case.params, tx.init(case.params)), **options)
    batch = sharding.place_batch(mesh, (case.inputs, case.targets))
    return jax.jit(update, donate_argnums=(0, 1)).lower(*state, *batch).compile()


@pytest.fixture(scope="module")
def at_once():
    """Whether this version of XLA sends independent sums in one all-reduce."""
    x, y = sharding.place_batch(_mesh(), (np.ones((8, 3)), np.ones((8, 2))))
    compiled = jax.jit(lambda x, y: (x.sum(0), y.sum(0))).lower(x, y).compile()
    counts = hlo.collectives(compiled)["all-reduce"]
    assert counts.arrays == 2
    assert counts.bytes == 4 * (3 + 2)
    return counts.calls == 1


def test_this_version_sends_a_gradient_tree_at_once(at_once):
    if jax.__version_info__ < (0, 10):
        pytest.skip("older versions of XLA send one array at a time on CPU")
    assert at_once


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [
        ("BP", "Adam"),
        ("SeqIL", "MQ"),
        *thorough([("SeqIL", "SGD"), ("SeqIL", "Adam"), ("IL", "MQ")]),
    ],
)
def test_a_step_sends_its_gradient_and_energy_in_one_all_reduce(
    method, optimizer, at_once
):
    counts = hlo.collectives(_compiled(method, optimizer, _mesh()))
    # Not in it: inference, of any number of iterations, and MQ's statistics.
    arrays = ARRAYS + 1
    calls = 1 if at_once else arrays
    assert counts == {"all-reduce": (calls, arrays, 4 * (NUMBERS + 1))}


def test_incremental_sends_one_gradient_an_iteration(at_once):
    counts = hlo.collectives(_compiled("iPC", "MQ", _mesh()))
    # The energy is that of the last state alone.
    arrays = STEPS * ARRAYS + 1
    calls = STEPS + 1 if at_once else arrays
    assert list(counts) == ["all-reduce"]
    found = counts["all-reduce"]
    # In the first iteration no error has reached the two lower layers: XLA may see that
    # their gradients are zero.
    assert arrays - 4 <= found.arrays <= arrays
    assert found.calls == (calls if at_once else found.arrays)
    assert found.bytes <= 4 * (STEPS * NUMBERS + 1)


@pytest.mark.parametrize("kind", [pcjax.sequential, *thorough([pcjax.simultaneous])])
def test_inference_sends_nothing(kind):
    case = dense_case(SIZES, batch=16)
    mesh = _mesh()
    params = sharding.place_state(mesh, case.params)
    batch = sharding.place_batch(mesh, (case.inputs, case.targets))
    infer = partial(pcjax.infer, case.network, kind(5, 0.1), output=pcjax.softmax)
    compiled = jax.jit(infer).lower(params, *batch).compile()
    assert hlo.collectives(compiled) == {}
    whole = jax.jit(infer).lower(case.params, case.inputs, case.targets).compile()
    assert hlo.count(compiled).flops * 8 == hlo.count(whole).flops


def test_convolutions_send_their_gradient_alone(at_once):
    network = pcjax.convnet(4, features=(3, 5), kernel_sizes=(3, 3))
    case = make(network, (11, 9, 2), batch=8)
    mesh, tx = _mesh(), pcjax.mq(1e-3)
    update = _update(network, "SeqIL", tx)
    state = sharding.place_state(mesh, (case.params, tx.init(case.params)))
    batch = sharding.place_batch(mesh, (case.inputs, case.targets))
    counts = hlo.collectives(jax.jit(update).lower(*state, *batch).compile())
    numbers = sum(x.size for x in jax.tree.leaves(case.params))
    calls = 1 if at_once else 7
    assert counts == {"all-reduce": (calls, 7, 4 * (numbers + 1))}


RANDOM = np.random.default_rng(0)
DATA = training.device_data(
    RANDOM.integers(0, 256, (40, 4, 3), dtype=np.uint8), RANDOM.integers(0, 4, 40), 4
)
PREPARE = training.classification(4)


def _epoch(mesh, network, tx, batch_size=16):
    update = _update(network, "SeqIL", tx)
    prepare = sharding.split_batches(mesh, PREPARE) if mesh else PREPARE
    return training.make_epoch(update, prepare, batch_size)


@cache
def _params(seed):
    return dense_case(SIZES, seed=seed).params


def _state(tx, seeds=None):
    """States as of `training.init_state`, drawn by NumPy."""

    def init(params, key):
        zero = jnp.zeros((), jnp.int32)
        return training.TrainState(params, tx.init(params), key, zero)

    if seeds is None:
        return init(_params(0), jax.random.key(0))
    keys = jax.random.split(jax.random.key(0), seeds)
    return jax.vmap(init)(_stack([_params(seed) for seed in range(seeds)]), keys)


MQ = pcjax.mq(1e-3)


def _over_seeds(epoch, seeds):
    return jax.vmap(epoch, in_axes=(0, None)) if seeds else epoch


@cache
def _alone(seeds=None):
    """An epoch of SeqIL-MQ on one device, compiled."""
    epoch = jax.jit(_over_seeds(_epoch(None, pcjax.mlp(SIZES), MQ), seeds))
    return epoch.lower(_state(MQ, seeds), DATA).compile()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_epochs_split_the_work_and_keep_state_where_it_lies(layout, at_once):
    mesh, network = _mesh(layout), pcjax.mlp(SIZES)
    seeds = 4 if layout == "batch x seeds" else None
    split = SPLIT if layout == "batch x model" else sharding.replicated
    alone = _alone(seeds)
    state = want = _state(MQ, seeds)
    shardings = sharding.state_shardings(mesh, state, split)
    state = sharding.place_state(mesh, state, split)
    data = sharding.place_data(mesh, DATA)
    epoch = jax.jit(
        _over_seeds(_epoch(mesh, network, MQ), seeds),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    compiled = epoch.lower(state, data).compile()
    flops = hlo.count(alone).flops
    assert hlo.count(compiled).flops * 8 == flops
    if layout != "batch x model":
        count, own = 40 // 16, 4 // 2 if seeds else 1
        arrays = count * (ARRAYS + 3)  # and the means of EpochMetrics
        calls = count if at_once else arrays
        expected = calls, arrays, 4 * count * own * (NUMBERS + 3)
        assert hlo.collectives(compiled) == {"all-reduce": expected}
    state, _ = epoch(state, data)
    with compilations(0):  # the second call is not compiled anew
        state, metrics = epoch(state, data)
    for _ in range(2):
        want, want_metrics = alone(want, DATA)
    same = jax.tree.map(
        lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, shardings
    )
    assert all(jax.tree.leaves(same))
    have = state.params, state.opt_state, metrics
    assert _distance(have, (want.params, want.opt_state, want_metrics)) < 1e-5


EXPLICIT = {
    "batch": ((8,), ("batch",), sharding.replicated),
    "batch x model": ((4, 2), ("batch", "model"), SPLIT),
}


def _explicit_mesh(sizes, names):
    """A mesh of jax as newer versions make it where nothing else is said."""
    kinds = (jax.sharding.AxisType.Explicit,) * len(names)
    return jax.make_mesh(sizes, names, axis_types=kinds)


@pytest.mark.parametrize("layout", ["batch x model", *thorough(["batch"])])
def test_a_mesh_of_jax_with_explicit_axes_serves_as_well(layout):
    sizes, names, split = EXPLICIT[layout]
    mesh, network = _explicit_mesh(sizes, names), pcjax.mlp(SIZES)
    tx = finite.guard(pcjax.mq(1e-3))
    want, want_metrics = jax.jit(_epoch(None, network, tx))(_state(tx), DATA)
    state = sharding.place_state(mesh, _state(tx), split)
    data = sharding.place_data(mesh, DATA)
    have, metrics = jax.jit(_epoch(mesh, network, tx))(state, data)
    assert _distance(have.params, want.params) < 1e-6
    assert _distance((have.opt_state, metrics), (want.opt_state, want_metrics)) < 1e-5
    assert have.opt_state.count == 2
    kernel = have.params[0]["kernel"].sharding
    assert kernel.is_equivalent_to(state.params[0]["kernel"].sharding, 2)


def test_seeds_need_a_mesh_with_automatic_axes():
    mesh = _explicit_mesh((2, 4), ("seeds", "batch"))
    with pytest.raises(ValueError, match=r"explicit axis 'seeds'.*sharding\.make_mesh"):
        sharding.place_state(mesh, _state(optax.sgd(0.1), 2))
    automatic = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 4), ("seeds", "batch"), axis_types=automatic)
    state = sharding.place_state(mesh, _state(optax.sgd(0.1), 2))
    assert state.params[0]["kernel"].addressable_shards[0].data.shape == (1, 12, 24)


@pytest.mark.parametrize("made", ["inside", *thorough(["outside"])])
def test_each_device_guards_its_own_network_under_shard_map(made):
    """One of eight networks has a batch that is not finite, and it alone refuses."""
    tx = finite.guard(pcjax.mq(1e-2), "skip")
    update = _update(pcjax.mlp(SIZES), "SeqIL", tx)
    case = dense_case(SIZES, batch=4)
    params = _stack([case.params] * 8)
    states = _stack([tx.init(case.params)] * 8)
    batch = _stack([(case.inputs * (n + 1), case.targets) for n in range(8)])
    batch[0][3, 0, 0] = np.inf

    def train(params, state, inputs, targets):
        if made == "inside":
            state = tx.init(params)

        def iterate(carry, _):
            return update(*carry, inputs, targets)[:2], None

        return jax.lax.scan(iterate, (params, state), length=2)[0]

    def on_device(*arguments):
        own = train(*jax.tree.map(lambda x: x[0], arguments))
        return jax.tree.map(lambda x: x[None], own)

    rows = jax.sharding.PartitionSpec("batch")
    run = shard_map(on_device, mesh=_mesh(), in_specs=rows, out_specs=rows)
    have = jax.jit(run)(params, states, *batch)
    want = jax.jit(jax.vmap(train))(params, states, *batch)
    assert _distance(have, want) < 1e-5
    np.testing.assert_array_equal(have[1].refused, [0, 0, 0, 2, 0, 0, 0, 0])
    moved = jax.tree.map(lambda x, y: np.asarray(x[3] - y[3]), have[0], params)
    assert all(np.all(x == 0) for x in jax.tree.leaves(moved))


def test_without_split_batches_every_device_does_all_the_work():
    mesh = _mesh()
    epoch = jax.jit(_epoch(None, pcjax.mlp(SIZES), MQ))
    state, data = (
        sharding.place_state(mesh, _state(MQ)),
        sharding.place_data(mesh, DATA),
    )
    compiled = epoch.lower(state, data).compile()
    assert hlo.count(compiled) == hlo.count(_alone())
    assert hlo.collectives(compiled) == {}


def test_a_split_data_set_trains_the_same_and_sends_the_batches():
    mesh, tx = _mesh(), optax.sgd(0.1)
    own = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    epoch = jax.jit(_epoch(mesh, pcjax.mlp(SIZES), tx))
    state = sharding.place_state(mesh, _state(tx))
    results, counts = [], []
    for data in (sharding.place_data(mesh, DATA), jax.device_put(DATA, own)):
        compiled = epoch.lower(state, data).compile()
        counts.append(hlo.collectives(compiled)["all-reduce"].bytes)
        results.append(compiled(state, data)[0].params)
    # Two batches of 16 images, one byte a pixel, and as many labels of four bytes.
    assert counts[1] - counts[0] == 2 * 16 * (12 + 4)
    assert _distance(*results) < 1e-6


def test_evaluation_splits_the_batches_too():
    mesh, network = _mesh(), pcjax.mlp(SIZES)
    params = _state(optax.sgd(0.1)).params
    measure = evaluation.classification_measures(pcjax.softmax)

    def compiled(prepare, *arguments):
        # 40 examples in batches of 16: the last one is filled up.
        evaluate = evaluation.make_evaluation(network, prepare, measure, 16)
        return jax.jit(evaluate).lower(*arguments).compile()

    alone = compiled(PREPARE, params, DATA)
    placed = sharding.place_state(mesh, params), sharding.place_data(mesh, DATA)
    split = compiled(sharding.split_batches(mesh, PREPARE), *placed)
    assert hlo.count(split).flops * 8 == hlo.count(alone).flops
    assert _distance(split(*placed), alone(params, DATA)) < 1e-6


def test_the_placed_state_may_be_donated():
    mesh, tx = _mesh(), optax.sgd(0.1)
    state = _state(tx)
    before = jax.tree.map(np.asarray, state.params)
    placed = sharding.place_state(mesh, state)
    step = jax.jit(
        lambda params: jax.tree.map(lambda x: x + 1, params), donate_argnums=0
    )
    jax.block_until_ready(step(placed.params))
    assert placed.params[0]["kernel"].is_deleted()
    jax.tree.map(np.testing.assert_array_equal, state.params, before)


def test_what_cannot_be_divided_is_refused():
    mesh, tx = _mesh(), optax.sgd(0.1)
    message = "a batch holds 12 entries .* the 8 devices of 'batch'; .* multiple of 8"
    with pytest.raises(ValueError, match=f"place_batch: {message}"):
        sharding.place_batch(mesh, np.ones((12, 3)))
    state, data = (
        sharding.place_state(mesh, _state(tx)),
        sharding.place_data(mesh, DATA),
    )
    epoch = jax.jit(_epoch(mesh, pcjax.mlp(SIZES), tx, batch_size=12))
    with pytest.raises(ValueError, match=f"split_batches: {message}"):
        epoch(state, data)
    with pytest.raises(
        ValueError, match=r"^state_shardings: the state's .* of 'seeds'"
    ):
        sharding.place_state(_mesh("batch x seeds"), _state(tx, 3))
    with pytest.raises(ValueError, match=r"scalar, but the mesh has a seeds axis"):
        sharding.place_state(_mesh("batch x seeds"), _state(tx))
    with pytest.raises(ValueError, match=r"holds 17 entries .* of 'model'"):
        sharding.place_state(_mesh("batch x model"), np.ones((3, 17)), SPLIT)
    with pytest.raises(ValueError, match=r"over 'model', but the mesh has the axes"):
        sharding.place_state(mesh, np.ones((3, 16)), SPLIT)
    for sizes in ({"batch": 3}, {"batch": 8, "seeds": 2}, {"seeds": 16}):
        with pytest.raises(ValueError, match="make_mesh: 8 devices cannot be arranged"):
            sharding.make_mesh(**sizes)


def _names_of_a_reader(readme):
    """What the page builds upon, from the README or as small as can be."""
    if readme:
        names = {}
        exec(readme, names)
        return names | {"update": training.make_update(names["grad_fn"], names["tx"])}
    zeros = jax.nn.initializers.zeros
    network, tx = pcjax.mlp([64, 128, 10], kernel_init=zeros), optax.sgd(0.1)
    params = dense_case([64, 128, 10]).params
    update = _update(network, "BP", tx)

    @jax.jit
    def train_step(params, opt_state, inputs, targets):
        params, opt_state, (loss, _) = update(params, opt_state, inputs, targets)
        return params, opt_state, loss

    names = {"jax": jax, "jnp": jnp, "network": network, "tx": tx, "params": params}
    return names | {"update": update, "train_step": train_step}


@pytest.mark.parametrize("with_readme", [False, *thorough([True])])
def test_the_examples_of_the_documentation_run(with_readme):
    root = Path(__file__).parents[2]
    readme, page = (
        re.findall(r"```python\n(.*?)```", (root / name).read_text(), re.DOTALL)
        for name in ("README.md", "docs/scaling.md")
    )
    blocks = [block for block in page if "jax.distributed" not in block]
    assert len(blocks) == 4
    labels = np.arange(128) % 10
    names = _names_of_a_reader(readme[0] if with_readme else "")
    names |= {
        "opt_state": names["tx"].init(names["params"]),
        "images": RANDOM.integers(0, 256, (128, 64), dtype=np.uint8),
        "labels": labels,
        "inputs": RANDOM.uniform(size=(128, 64)).astype(np.float32),
        "targets": np.eye(10, dtype=np.float32)[labels],
    }
    for block, axes in zip(
        blocks,
        (
            {"batch": 8},
            {"seeds": 4, "batch": 2},
            {"batch": 4, "model": 2},
            {"batch": 8},
        ),
        strict=True,
    ):
        exec(block, names)
        assert dict(names["mesh"].shape) == axes
        assert np.all(np.isfinite(names["metrics"].loss))
    kernel = names["state"].params[0]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (64, 128 // 2)
    assert names["loss"].sharding.is_fully_replicated
