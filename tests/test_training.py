"""Epochs, evaluation and data on the device."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcjax
from pcjax import training
from pcjax.optimizers import finite
from pcjax.training import evaluation
from tests.problems import compilations
from tests.tiers import thorough

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (50, 3, 2, 1), dtype=np.uint8)
LABELS = RANDOM.integers(0, 4, 50)
NETWORK = pcjax.mlp([6, 8, 4])
BATCH = 8
INPUTS = jnp.ones((1, 6))


def _grad_fn(step_size=0.1):
    method = pcjax.sequential(2, step_size)
    return pcjax.value_and_grad(NETWORK, method, output=pcjax.softmax)


def _state(tx, seed=0):
    return training.init_state(
        NETWORK, tx, jax.random.key(seed), jnp.ones((1, 3, 2, 1))
    )


def _epoch(tx, grad_fn=None):
    update = training.make_update(grad_fn or _grad_fn(), tx)
    return training.make_epoch(update, training.classification(4), BATCH)


@cache
def _compiled_epoch():
    """An epoch of gradient descent, which donates its state."""
    return jax.jit(_epoch(optax.sgd(0.1)), donate_argnums=0)


@cache
def _compiled_gradients():
    return jax.jit(_grad_fn())


def _compiled_step(tx):
    """What the optimizer makes of gradients: `(params, opt_state)` after it."""

    def step(params, opt_state, grads, **extra):
        updates, opt_state = tx.update(grads, opt_state, params, **extra)
        return optax.apply_updates(params, updates), opt_state

    return jax.jit(step)


def _prepared(index):
    """Inputs and targets of some of the data, in NumPy."""
    inputs = IMAGES[index].astype(np.float32) / 255
    return inputs, np.eye(4, dtype=np.float32)[LABELS[index]]


@pytest.fixture(scope="module")
def data():
    return training.device_data(IMAGES, LABELS, 4)


def _assert_trees_close(left, right, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance), left, right
    )


def test_epoch_is_its_steps_over_a_permutation_of_the_data(data):
    tx = optax.adam(1e-2)
    state = _state(tx)
    trained, metrics = jax.jit(_epoch(tx))(state, data)
    # Find the batches from the losses: an epoch's order is a permutation of the data.
    order = np.asarray(jax.random.permutation(jax.random.fold_in(state.key, 0), 50))
    params, opt_state = state.params, state.opt_state
    losses, grad_fn, step = [], _compiled_gradients(), _compiled_step(tx)
    for index in order[:48].reshape(6, BATCH):
        (energy, info), grads = grad_fn(params, *_prepared(index))
        params, opt_state = step(params, opt_state, grads)
        losses.append((float(energy), np.mean(info.loss)))
    _assert_trees_close(trained.params, params, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.stack(metrics[:2], 1), losses, rtol=1e-5)
    assert trained.epoch == 1


def test_every_epoch_sees_every_example_once_in_a_new_order(data):
    seen = []

    def update(params, opt_state, inputs, targets):
        info = pcjax.Info(*[jnp.zeros(())] * 4)
        return params, opt_state, (jnp.sum(inputs, axis=(1, 2, 3)), info)

    epoch = jax.jit(training.make_epoch(update, training.classification(4), 10))
    state = _state(optax.sgd(0.1))
    for _ in range(2):
        state, metrics = epoch(state, data)
        seen.append(np.ravel(metrics.energy))
    sums = np.sum(IMAGES.reshape(50, -1) / 255, axis=1)
    for sample in seen:
        np.testing.assert_allclose(np.sort(sample), np.sort(sums), rtol=1e-5)
    assert not np.allclose(*seen)
    assert not np.allclose(seen[0], sums)


def test_same_seed_same_bits(data):
    epoch = jax.jit(_epoch(pcjax.mq(1e-3)), donate_argnums=0)
    runs = []
    for programs in (1, 0):
        state = _state(pcjax.mq(1e-3))
        with compilations(programs):
            for _ in range(3):
                state, _ = epoch(state, data)
        runs.append(jax.tree.leaves((state.params, state.opt_state)))
    for left, right in zip(*runs, strict=True):
        np.testing.assert_array_equal(left, right)


def test_seeds_and_rates_side_by_side_equal_one_by_one(data):
    rates, steps = np.float32([[0.05, 0.2], [0.02, 0.1]])

    def init(key):
        return training.init_state(NETWORK, optax.sgd(0.1), key, INPUTS)

    def train(state, rate, step_size):
        state, metrics = _epoch(optax.sgd(rate), _grad_fn(step_size))(state, data)
        return state.params, metrics

    keys = jax.random.split(jax.random.key(1), 2)
    together = jax.jit(jax.vmap(train))(jax.vmap(init)(keys), rates, steps)
    together = jax.tree.map(np.asarray, together)
    one = jax.jit(train)
    for index in range(2):
        alone = one(init(keys[index]), rates[index], steps[index])
        mine = jax.tree.map(lambda x, index=index: x[index], together)
        _assert_trees_close(mine, alone, rtol=1e-4, atol=1e-6)
    first = jax.tree.leaves(together[0])[0]
    assert not np.allclose(first[0], first[1])


def test_the_state_is_donated(data):
    state = _state(optax.sgd(0.1))
    _compiled_epoch()(state, data)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_an_epoch_lowers_the_loss_of_a_separable_task():
    images = np.repeat(np.eye(4, dtype=np.uint8) * 255, 16, axis=0)
    data = training.device_data(images, np.repeat(np.arange(4), 16), 4)
    network = pcjax.mlp([4, 16, 4])
    tx = optax.sgd(1.0)
    grad_fn = pcjax.value_and_grad(
        network, pcjax.sequential(3, 0.1), output=pcjax.softmax
    )
    state = training.init_state(network, tx, jax.random.key(0), jnp.ones((1, 4)))
    epoch = jax.jit(
        training.make_epoch(
            training.make_update(grad_fn, tx), training.classification(4), 8
        )
    )
    for _ in range(40):
        state, metrics = epoch(state, data)
    evaluate = evaluation.make_evaluation(
        network,
        training.classification(4),
        evaluation.classification_measures(pcjax.softmax),
    )
    assert evaluate(state.params, data).top1 == 1
    assert np.mean(metrics.loss) < 0.1 * np.log(4)


@pytest.mark.parametrize("batch_size", [7, 1000, *thorough([50])])
def test_evaluation_is_the_mean_over_all_examples(data, batch_size):
    params = _state(optax.sgd(0.1)).params
    evaluate = evaluation.make_evaluation(
        NETWORK,
        training.classification(4),
        evaluation.classification_measures(pcjax.softmax),
        batch_size,
    )
    result = evaluate(params, data)
    logits = np.asarray(jax.jit(NETWORK.apply)(params, np.float32(IMAGES / 255)))
    shifted = logits - logits.max(1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    np.testing.assert_allclose(result.loss, -logs[np.arange(50), LABELS].mean(), 1e-5)
    assert result.top1 == pytest.approx((logits.argmax(1) == LABELS).mean(), rel=1e-6)
    assert result.top5 == 1  # of four classes


def test_top5_ties_and_non_finite_logits():
    logits = np.float32([[0, 1, 2, 3, 4, 5, 6], [1] * 7, [np.nan] * 7])
    measure = jax.jit(evaluation.classification_measures(pcjax.softmax))
    for label, (top1, top5) in {
        6: ([1, 0, 0], [1, 0, 0]),
        1: ([0, 0, 0], [0, 1, 0]),
        0: ([0, 1, 0], [0, 1, 0]),
        2: ([0, 0, 0], [1, 1, 0]),
    }.items():
        labels = np.full(3, label, np.int32)
        found = measure(logits, np.eye(7, dtype=np.float32)[labels], labels)
        np.testing.assert_array_equal(found.top1, top1)
        np.testing.assert_array_equal(found.top5, top5)


def test_inputs_and_targets():
    images, labels = np.array([[[0, 51]], [[255, 102]]], np.uint8), np.array([2, 0])
    prepare = jax.jit(training.classification(3, low=-1, high=1))
    inputs, targets = prepare(images, labels)
    np.testing.assert_allclose(inputs[:, 0], [[-1, -0.6], [1, -0.2]], atol=1e-6)
    np.testing.assert_array_equal(targets, [[0, 0, 1], [1, 0, 0]])
    inputs, targets = jax.jit(training.reconstruction())(images, labels)
    expected = 0.99 * np.array([[0, 0.2], [1, 0.4]]) + 0.005
    np.testing.assert_allclose(inputs, expected, rtol=1e-6)
    np.testing.assert_array_equal(inputs, targets)


def test_reconstruction_is_measured_per_pixel():
    logits = np.float32([[0.0, 0.0], [2.0, -1.0]])
    t = np.float32([[0.5, 0.2], [1.0, 0.0]])
    measure = jax.jit(evaluation.reconstruction_measures(pcjax.sigmoid))
    loss = measure(logits, t, None)
    p = 1 / (1 + np.exp(-logits))
    expected = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(1)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (IMAGES / 255, LABELS, TypeError, "expected uint8 images.*float64 and int64"),
        (IMAGES, LABELS * 1.0, TypeError, "integer labels, got uint8 and float64"),
        (IMAGES.tolist(), LABELS, TypeError, "labels, got list and int64"),
        (IMAGES, LABELS.tolist(), TypeError, "labels, got uint8 and list"),
        (IMAGES[0, 0, 0, 0], LABELS, ValueError, r"got images of shape \(\) and"),
        (IMAGES, LABELS[:9], ValueError, r"\(50, 3, 2, 1\) and labels of shape \(9,\)"),
        (IMAGES[:0], LABELS[:0], ValueError, "at least one image"),
        (IMAGES, LABELS + 1, ValueError, r"labels must lie in \[0, 4\), got .* 1 to 4"),
        (
            IMAGES,
            LABELS - 1,
            ValueError,
            r"labels must lie in \[0, 4\), got .* -1 to 2",
        ),
    ],
)
def test_bad_data(images, labels, error, message):
    with pytest.raises(error, match=message):
        training.device_data(images, labels, 4)


@pytest.mark.parametrize("batch_size", [0, 51])
def test_bad_batch_size(data, batch_size):
    update = training.make_update(_grad_fn(), optax.sgd(0.1))
    epoch = training.make_epoch(update, training.classification(4), batch_size)
    with pytest.raises(ValueError, match=f"50 examples hold no batch of {batch_size}"):
        epoch(_state(optax.sgd(0.1)), data)


# Numbers of half precision


def _half_precision(dtype, outputs):
    """A network whose logits [B, outputs] are the inputs themselves, and its data."""
    layer = pcjax.networks.Layer(lambda key, x: {}, lambda params, x: x)
    images = RANDOM.integers(0, 256, (400, outputs), dtype=np.uint8)
    labels = RANDOM.integers(0, outputs, 400)
    network = pcjax.Network((layer,))
    return network, training.device_data(images, labels, outputs), images, labels


@pytest.mark.parametrize("dtype", [jnp.bfloat16, *thorough([jnp.float16])])
def test_measures_of_half_precision_are_added_up_in_float32(dtype):
    network, data, images, labels = _half_precision(dtype, 3)
    measure = evaluation.classification_measures(pcjax.softmax)
    prepare = training.classification(3, dtype=dtype)
    found = evaluation.make_evaluation(network, prepare, measure)(({},), data)
    assert {x.dtype for x in found} == {jnp.dtype("float32")}
    logits = np.asarray((images / np.float32(255)).astype(dtype), np.float64)
    own = logits[np.arange(400), labels][:, None]
    first = np.arange(3)[None] < labels[:, None]
    rank = np.sum((logits > own) | ((logits == own) & first), 1)
    # Of 400, a dtype of 8 bits tells one from the next at most up to 256.
    np.testing.assert_allclose(found.top1, (rank == 0).mean(), rtol=1e-6)
    loss = np.log(np.exp(logits).sum(1)) - own[:, 0]
    np.testing.assert_allclose(found.loss, loss.mean(), rtol=1e-5)


def test_a_loss_over_many_outputs_does_not_overflow():
    # 2,000 outputs of 60 nats each make more than the 65,504 of float16.
    logits = np.full((2, 2000), 60, np.float16)
    targets = np.zeros((2, 2000), np.float16)
    measure = jax.jit(evaluation.reconstruction_measures(pcjax.sigmoid))
    loss = measure(logits, targets, None)
    np.testing.assert_allclose(loss, 60, rtol=1e-6)


def test_whole_numbers_are_added_up_as_such(x64):
    """float32 has no 2^24 + 1."""
    network, data, *_ = _half_precision(jnp.float32, 3)

    def measure(logits, targets, labels):
        return jnp.where(labels >= 0, 2**24 + 1, 0)

    prepare = training.classification(3)
    evaluate = evaluation.make_evaluation(network, prepare, measure)
    assert evaluate(({},), data) == 2**24 + 1


def test_a_measure_of_ones_own_is_averaged_in_float32_too():
    network, data, _, labels = _half_precision(jnp.float16, 3)

    def measure(logits, targets, labels):
        return {
            "half": (1000 * labels).astype(jnp.float16),
            "bool": labels == 1,
            "int8": labels.astype(jnp.int8) * 60,
        }

    evaluate = evaluation.make_evaluation(
        network, training.classification(3, dtype=jnp.float16), measure, 150
    )
    found = evaluate(({},), data)
    np.testing.assert_allclose(found["half"], 1000 * labels.mean(), rtol=1e-6)
    np.testing.assert_allclose(found["bool"], (labels == 1).mean(), rtol=1e-6)
    np.testing.assert_allclose(found["int8"], 60 * labels.mean(), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, *thorough([jnp.float16])])
def test_metrics_of_half_precision_are_means_of_float32(dtype, data):
    losses = RANDOM.uniform(30000, 60000, BATCH).astype(dtype)

    def update(params, opt_state, inputs, targets):
        assert inputs.dtype == targets.dtype == dtype
        own = jnp.asarray(losses)
        info = pcjax.Info(own, None, own, own)
        return params, opt_state, (jnp.mean(own), info)

    prepare = training.classification(4, dtype=dtype)
    epoch = jax.jit(training.make_epoch(update, prepare, BATCH))
    _, metrics = epoch(_state(optax.sgd(0.1)), data)
    assert {x.dtype for x in metrics} == {jnp.dtype("float32")}
    expected = np.asarray(losses, np.float64).mean()
    np.testing.assert_allclose(metrics.loss, np.full(6, expected), rtol=1e-6)
    np.testing.assert_array_equal(metrics.rising, 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_pixels_are_rounded_once(dtype):
    images = np.arange(256, dtype=np.uint8)[:, None]
    for prepare in (
        training.classification(2, low=-1, high=1, dtype=dtype),
        training.reconstruction(low=-1, high=1, dtype=dtype),
    ):
        inputs, _ = jax.jit(prepare)(images, np.zeros(256, np.int32))
        product = np.arange(256.0) * np.float32(2 / 255)
        # In float32, where XLA may round product and sum together.
        sums = product.astype(np.float32) - 1, (product - 1).astype(np.float32)
        assert inputs.dtype == dtype
        apart, fused = (np.ravel(inputs) == x.astype(dtype) for x in sums)
        assert (apart | fused).all()


def test_the_loss_per_pixel_divides_by_the_entries_of_one_example():
    logits, targets = np.float32(RANDOM.normal(size=(2, 3, 2, 5)))
    measure = jax.jit(evaluation.reconstruction_measures(pcjax.identity))
    loss = measure(logits, targets, None)
    expected = 0.5 * np.mean((targets - logits) ** 2, axis=(1, 2))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_missing_pixels_do_not_count_among_those_a_loss_is_divided_by():
    logits = np.float32(RANDOM.normal(size=(2, 3)))
    targets = np.float32([[0.5, np.nan, 1.0], [np.nan] * 3])
    measure = jax.jit(evaluation.reconstruction_measures(pcjax.masked(pcjax.identity)))
    expected = 0.5 * np.mean((targets - logits)[0, [0, 2]] ** 2)
    np.testing.assert_allclose(measure(logits, targets, None), [expected, 0], rtol=1e-6)


# Optimizers that ask for more than the gradient


LOSS_TAKERS = {
    "plateau": lambda: optax.chain(
        optax.sgd(0.5),
        optax.contrib.reduce_on_plateau(patience=1, factor=0.5, atol=0.05),
    ),
    "polyak": lambda: optax.polyak_sgd(max_learning_rate=0.5),
}


@pytest.mark.parametrize(
    ("name", "guarded"),
    [
        ("plateau", True),
        ("polyak", False),
        *thorough([("plateau", False), ("polyak", True)]),
    ],
)
def test_the_loss_is_passed_on(name, guarded, data):
    tx = LOSS_TAKERS[name]()
    used = finite.guard(tx) if guarded else tx
    trained, _ = jax.jit(_epoch(used))(_state(used), data)
    state = _state(tx)
    params, opt_state = state.params, state.opt_state
    grad_fn, step = _compiled_gradients(), _compiled_step(tx)
    for index in np.asarray(training.epoch_batches(state.key, 0, 50, BATCH)):
        (_, info), grads = grad_fn(params, *_prepared(index))
        # The loss of the outputs, not the energy after inference.
        value = np.mean(np.asarray(info.loss))
        params, opt_state = step(params, opt_state, grads, value=value)
    _assert_trees_close(trained.params, params, rtol=1e-4, atol=1e-6)
    found = trained.opt_state.inner_state if guarded else trained.opt_state
    _assert_trees_close(found, opt_state, rtol=1e-4)
    if name == "plateau":
        assert opt_state[-1].scale < 1


def test_a_gradient_function_without_a_loss_gives_its_value():
    def grad_fn(params, inputs, targets):
        return (jnp.float32(3), {"other": 1}), params

    seen = []

    def step(updates, state, params=None, *, value, **extra):
        seen.append(float(value))
        return updates, state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), step)
    params = (jnp.ones(2),)
    training.make_update(grad_fn, tx)(params, (), jnp.ones((1, 2)), jnp.ones((1, 1)))
    assert seen == [3]


# States that may be donated


STARTED = {  # optimizers whose states hold the parameters they started from
    "prodigy": optax.contrib.prodigy(),
    "mechanize": optax.contrib.mechanize(optax.sgd(0.1)),
}


@pytest.mark.parametrize(
    ("name", "seeds"),
    [
        ("prodigy", None),
        ("mechanize", 2),
        *thorough([("prodigy", 2), ("mechanize", None)]),
    ],
)
def test_every_array_of_a_state_has_a_buffer_of_its_own(name, seeds):
    tx = STARTED[name]
    if seeds:
        keys = jax.random.split(jax.random.key(0), seeds)
        state = jax.vmap(lambda key: training.init_state(NETWORK, tx, key, INPUTS))(
            keys
        )
    else:
        state = training.init_state(NETWORK, tx, jax.random.key(0), INPUTS)
    arrays = jax.tree.leaves((state.params, state.opt_state))
    places = [x.unsafe_buffer_pointer() for x in arrays if x.size]
    assert len(set(places)) == len(places)
    jax.jit(lambda state: state, donate_argnums=0)(state)


def test_what_the_caller_has_stays_usable_after_a_donated_epoch(data):
    module = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
    before = np.array(module.kernel[...])
    rates = jnp.array([0.1])
    key = jax.random.key(0)
    network, tx = pcjax.Network((pcjax.from_nnx(module),)), pcjax.mq(rates)
    grad_fn = pcjax.backprop.value_and_grad(network, output=pcjax.softmax)
    flat = training.Data(data.images.reshape(50, 6), data.labels)
    state = training.init_state(network, tx, key, INPUTS)
    np.testing.assert_array_equal(state.params[0]["kernel"], before)
    epoch = jax.jit(_epoch(tx, grad_fn), donate_argnums=0)
    trained, _ = epoch(state, flat)
    assert state.params[0]["kernel"].is_deleted()
    np.testing.assert_array_equal(module.kernel[...], before)
    assert not np.allclose(trained.params[0]["kernel"], before)
    for kept in (rates, key, flat.images):
        assert not kept.is_deleted()


def test_weights_and_order_have_keys_of_their_own():
    key = jax.random.key(5)
    state = training.init_state(NETWORK, optax.sgd(0.1), key, INPUTS)
    params_key, data_key = jax.random.split(key)
    _assert_trees_close(state.params, NETWORK.init(params_key, INPUTS), rtol=0)
    assert state.key == data_key
    assert params_key != data_key


@pytest.mark.parametrize("noisy", [True, *thorough([False])])
def test_typed_and_untyped_keys_train_alike(data, noisy):
    """With noise the state of the optimizer holds a typed key, too."""
    tx = optax.sgd(0.1)
    if noisy:
        tx = optax.chain(optax.add_noise(1e-3, 0.55, key=jax.random.key(7)), tx)
    grad_fn = pcjax.backprop.value_and_grad(NETWORK, output=pcjax.softmax)
    epoch = jax.jit(_epoch(tx, grad_fn), donate_argnums=0)
    results = []
    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        state = training.init_state(NETWORK, tx, key, jnp.ones((1, 3, 2, 1)))
        state, _ = epoch(state, data)
        results.append(state.params)
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_data_of_numpy_are_data_compiled_or_not(data):
    numpy = training.Data(IMAGES, LABELS.astype(np.int32))
    tx = optax.sgd(0.1)
    measure = evaluation.classification_measures(pcjax.softmax)
    evaluate = evaluation.make_evaluation(
        NETWORK, training.classification(4), measure, 20
    )
    want = _compiled_epoch()(_state(tx), data)[0].params
    found = _epoch(tx)(_state(tx), numpy)[0].params
    _assert_trees_close(found, want, rtol=1e-5, atol=1e-7)
    _assert_trees_close(evaluate(want, numpy), evaluate(want, data), rtol=1e-6)


def test_targets_of_generation_are_scaled_to_what_is_asked():
    images = np.array([[[0, 51]], [[255, 102]]], np.uint8)
    prepare = jax.jit(training.generation(low=-1.0, high=3.0, dtype=jnp.bfloat16))
    inputs, targets = prepare(images, np.zeros(2, np.int32))
    assert inputs.shape == (2, 0)
    assert inputs.dtype == targets.dtype == jnp.bfloat16
    want = np.array([[-1, -0.2], [3, 0.6]], np.float32).astype(jnp.bfloat16)
    np.testing.assert_array_equal(targets, want)
