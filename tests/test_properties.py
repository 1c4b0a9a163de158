"""Properties over drawn shapes, dtypes, iterations and weights; and bad inputs.

Every bad input must end in the documented error, with a message that says what was
given: nothing else may be raised, and nothing returned.
"""

import itertools
import re
from collections import Counter
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pcjax
from pcjax import finite, sharding, training

WRONG_DTYPES = (jnp.int32, jnp.int8, jnp.uint8, jnp.bool_, jnp.complex64)
SIZES = st.lists(st.integers(1, 6), min_size=2, max_size=5)


class Bad(NamedTuple):
    """A call that must be refused.

    Attributes:
      kind: what is wrong with it.
      call: the call.
      error: what it must raise.
      message: a pattern that the message must hold.
    """

    kind: str
    call: Any
    error: type[Exception]
    message: str


def _array(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def _params(sizes, dtype=jnp.float32):
    return tuple(
        {"kernel": _array((n, m), dtype), "bias": _array((m,), dtype)}
        for n, m in itertools.pairwise(sizes)
    )


def _methods():
    return (pcjax.sequential(2, 0.1), pcjax.simultaneous(2, 0.1))


def _infer(network, method, params, inputs, targets, **options):
    return jax.eval_shape(
        partial(pcjax.infer, network, method, **options), params, inputs, targets
    )


def _value_and_grad(network, method, params, inputs, targets, **options):
    grad_fn = pcjax.value_and_grad(network, method, **options)
    return jax.eval_shape(grad_fn, params, inputs, targets)


def _incremental(network, method, params, inputs, targets, **options):
    update = pcjax.incremental(network, method, optax.sgd(0.1), **options)
    state = (optax.EmptyState(), optax.EmptyState())
    return jax.eval_shape(update, params, state, inputs, targets)


def _backprop(network, method, params, inputs, targets):
    grad_fn = pcjax.backprop.value_and_grad(network)
    return jax.eval_shape(grad_fn, params, inputs, targets)


WEIGHTED = {
    "infer": _infer,
    "value_and_grad": _value_and_grad,
    "incremental": _incremental,
}
BATCHED = {**WEIGHTED, "backprop.value_and_grad": _backprop}


@st.composite
def bad_batches(draw):
    """A batch or parameters that do not belong to the network."""
    sizes, batch = draw(SIZES), draw(st.integers(1, 4))
    name = draw(st.sampled_from(sorted(BATCHED)))
    params = _params(sizes)
    inputs, targets = _array((batch, sizes[0])), _array((batch, sizes[-1]))
    other = draw(st.integers(1, 9))
    error, message = ValueError, f"^{re.escape(name)}: "
    kind = draw(
        st.sampled_from(
            (
                "dtype of inputs",
                "dtype of targets",
                "rank of inputs",
                "features of inputs",
                "no examples",
                "shape of targets",
                "number of layers",
                "width of a layer",
                "names of parameters",
            )
        )
    )
    if kind == "dtype of inputs":
        inputs, error = (
            _array(inputs.shape, draw(st.sampled_from(WRONG_DTYPES))),
            TypeError,
        )
        message += f"inputs must be floats, got {inputs.dtype}"
    elif kind == "dtype of targets":
        targets = _array(targets.shape, draw(st.sampled_from(WRONG_DTYPES)))
        error, message = (
            TypeError,
            f"{message}targets must be floats, got {targets.dtype}",
        )
    elif kind == "rank of inputs":
        inputs = _array(draw(st.sampled_from(((), (sizes[0],)))))
        message += f"inputs must be a batch .*got shape {re.escape(str(inputs.shape))}"
    elif kind == "features of inputs":
        inputs = _array((batch, sizes[0] + other))
        message = rf"layer 0 .*{re.escape(str(inputs.shape))}|params of another network"
    elif kind == "no examples":
        inputs, targets = _array((0, sizes[0])), _array((0, sizes[-1]))
        message += r"inputs must hold at least one example, got shape \(0,"
    elif kind == "shape of targets":
        shapes = ((batch, sizes[-1] + other), (batch + other, sizes[-1]), (batch,), ())
        targets = _array(draw(st.sampled_from(shapes)))
        message += f"targets have shape {re.escape(str(targets.shape))}, but"
    elif kind == "number of layers":
        wrong = params[:-1], params + params[-1:], ()
        params = draw(st.sampled_from(wrong))
        message += f"the network has {len(sizes) - 1} layers, but params holds"
    elif kind == "width of a layer":
        index = draw(st.integers(1, len(sizes) - 1))
        params = _params([n + other * (i == index) for i, n in enumerate(sizes)])
        message += "params of another network: layer "
    else:
        params = ({"w": params[0]["kernel"]}, *params[1:])
        message += "params of another network: layer 0 .*'kernel'.*'w'"
    method = draw(st.sampled_from(_methods()))
    call = partial(BATCHED[name], pcjax.mlp(sizes), method, params, inputs, targets)
    return Bad(kind, call, error, message)


@st.composite
def bad_weights(draw):
    """Gammas and decays that are negative, NaN, or of another number or batch."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=3, max_size=5))
    batch, hidden = draw(st.integers(1, 4)), len(sizes) - 2
    which = draw(st.sampled_from(("gamma", "decay")))
    name = draw(st.sampled_from(sorted(WEIGHTED)))
    number = draw(st.one_of(st.floats(max_value=-1e-3), st.just(float("nan"))))
    kind = draw(st.sampled_from(("value", "one value", "number", "batch")))
    if kind == "value":
        weights, message = number, f"{which} must be >= 0, got "
    elif kind == "one value":
        weights = [1.0] * hidden
        weights[draw(st.integers(0, hidden - 1))] = number
        message = f"{which} must be >= 0, got "
    elif kind == "number":
        allowed = {hidden, hidden + 1} if which == "gamma" else {hidden}
        count = draw(st.integers(1, 9).filter(lambda n: n not in allowed))
        weights, message = (
            [1.0] * count,
            f"{which} must be a number or hold .*got {count}",
        )
    else:
        weights = np.ones((hidden, batch + draw(st.integers(1, 4))))
        message = f"{which} must be a number or hold .*one per example"
    method = draw(st.sampled_from(_methods()))
    arguments = _params(sizes), _array((batch, sizes[0])), _array((batch, sizes[-1]))
    call = partial(WEIGHTED[name], pcjax.mlp(sizes), method, *arguments)
    return Bad(
        f"{kind} of {which}", partial(call, **{which: weights}), ValueError, message
    )


@st.composite
def bad_activities(draw):
    """Activities that do not fit the network."""
    sizes, batch = draw(SIZES), draw(st.integers(1, 4))
    functions = {
        "free_energy": pcjax.free_energy,
        "free_energy_per_layer": pcjax.free_energy_per_layer,
        "prediction_errors": pcjax.prediction_errors,
        "local_gradients": pcjax.local_gradients,
    }
    function = functions[draw(st.sampled_from(sorted(functions)))]
    activities = [_array((batch, n)) for n in sizes]
    index = draw(st.integers(0, len(sizes) - 1))
    kind = draw(st.sampled_from(("number", "shape", "dtype")))
    error = ValueError
    if kind == "number":
        activities = draw(st.sampled_from((activities[:-1], activities * 2)))
        message = f"activities and {len(sizes) - 1} params, got {len(activities)}"
    elif kind == "shape":
        extra = draw(st.integers(1, 5))
        activities[index] = _array((batch, sizes[index] + extra))
        shown = re.escape(str(activities[index].shape))
        message = f"(activities\\[{index}\\] has shape|activity of shape) {shown}"
    else:
        dtype = draw(st.sampled_from(WRONG_DTYPES))
        activities[index], error = _array((batch, sizes[index]), dtype), TypeError
        message = f"must be floats, got {activities[index].dtype}"
    network, params = pcjax.mlp(sizes), _params(sizes)
    call = partial(
        jax.eval_shape, partial(function, network), params, tuple(activities)
    )
    return Bad(f"{kind} of activities", call, error, message)


@st.composite
def bad_methods(draw):
    """Numbers of iterations and step sizes that are none."""
    build = draw(st.sampled_from((pcjax.sequential, pcjax.simultaneous)))
    start = f"^{build.__name__}: "
    kind = draw(st.sampled_from(("T", "step size", "array", "both", "neither")))
    steps = draw(st.integers(1, 9))
    if kind == "T":
        wrong = st.one_of(
            st.integers(max_value=0), st.floats(), st.booleans(), st.text(), st.none()
        )
        arguments = {"num_steps": draw(wrong), "step_size": 0.1}
        message = start + "num_steps must be an int >= 1, got "
    elif kind == "step size":
        wrong = st.one_of(st.floats(max_value=-1e-9), st.just(float("nan")))
        arguments = {"num_steps": steps, "step_size": draw(wrong)}
        message = start + "step_size must be >= 0, got "
    elif kind == "array":
        shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
        arguments = {"num_steps": steps, "step_size": np.ones(shape)}
        message = start + "step_size must be a number or a schedule, got an array"
    else:
        arguments = {"num_steps": steps}
        if kind == "both":
            arguments |= {"step_size": 0.1, "optimizer": optax.sgd(0.1)}
        message = start + "expected exactly one of step_size and optimizer"
    return Bad(f"{kind} of a method", partial(build, **arguments), ValueError, message)


@st.composite
def bad_hyper_parameters(draw):
    """Of MQ, the soft clamp, the guard and the nets."""
    negative = st.one_of(
        st.floats(max_value=-1e-6), st.sampled_from((float("nan"), float("inf")))
    )
    kind = draw(
        st.sampled_from(
            ("rate", "rates", "rho", "min_step", "eps", "type", "clamp", "guard", "mlp")
        )
    )
    build = draw(st.sampled_from((pcjax.mq, pcjax.scale_by_mq)))
    error, start = ValueError, "^scale_by_mq: "
    if kind == "rate":
        call, message = partial(build, draw(negative)), "learning_rate must be >= 0"
    elif kind == "rates":
        rates = [1e-3] * draw(st.integers(2, 9).filter(lambda n: n != 3))
        params = _params([2, 3, 3, 1])
        call = partial(jax.eval_shape, build(rates).init, params)
        message = rf"learning_rate has shape \({len(rates)},\); expected"
    elif kind == "rho":
        wrong = st.one_of(negative, st.floats(min_value=1.0))
        call = partial(build, 1e-3, decay=draw(wrong))
        message = r"decay must be in \[0, 1\), got "
    elif kind == "min_step":
        call, message = (
            partial(build, 1e-3, min_step=draw(negative)),
            "min_step must be",
        )
    elif kind == "eps":
        wrong = st.one_of(negative, st.just(0.0))
        call, message = partial(build, 1e-3, eps=draw(wrong)), "eps must be > 0"
    elif kind == "type":
        wrong = draw(st.one_of(st.none(), st.complex_numbers(), st.binary()))
        call, error = partial(build, 1e-3, decay=wrong), (TypeError, ValueError)
        message = "decay must be a (single )?number, got"
    elif kind == "clamp":
        wrong = st.one_of(st.floats(max_value=-1e-6), st.just(float("nan")))
        call, message = (
            partial(pcjax.soft_clamp, draw(wrong)),
            "gamma must be >= 0, got",
        )
        start = "^soft_clamp: "
    elif kind == "guard":
        word = draw(st.text().filter(lambda text: text not in ("stop", "skip")))
        call, message = (
            partial(finite.guard, optax.sgd(0.1), word),
            "on_nonfinite must be",
        )
        start = "^guard: "
    else:
        sizes = draw(st.lists(st.integers(-3, 5), max_size=4))
        if len(sizes) > 1 and min(sizes) > 0:
            sizes[0] = 0
        call, message = partial(pcjax.mlp, sizes), "two or more positive sizes, got"
        start = "^mlp: .*"
    return Bad(f"{kind} (hyper-parameter)", call, error, start + message)


@st.composite
def bad_data(draw):
    """Data sets and batches of them."""
    count, classes = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    images = np.zeros((count, 2, 2, 1), np.uint8)
    labels = np.zeros(count, np.int32)
    kind = draw(
        st.sampled_from(("images", "labels", "range", "length", "empty", "batch"))
    )
    error = ValueError
    if kind == "batch":
        wrong = draw(st.one_of(st.integers(-3, 0), st.integers(count + 1, count + 9)))
        call = partial(training.epoch_batches, jax.random.key(0), 0, count, wrong)
        return Bad(
            "batch size", call, error, f"{count} examples hold no batch of {wrong}"
        )
    if kind == "images":
        images = images.astype(draw(st.sampled_from((np.float32, np.int32, bool))))
        error, message = TypeError, "expected uint8 images and integer labels, got"
    elif kind == "labels":
        labels = labels.astype(draw(st.sampled_from((np.float32, np.complex64))))
        error, message = TypeError, "expected uint8 images and integer labels, got"
    elif kind == "range":
        wrong = st.one_of(st.integers(-9, -1), st.integers(classes, classes + 9))
        labels[draw(st.integers(0, count - 1))] = draw(wrong)
        message = rf"labels must lie in \[0, {classes}\)"
    elif kind == "length":
        labels = np.zeros(count + draw(st.integers(1, 4)), np.int32)
        message = "expected one label for each of at least one image"
    else:
        images, labels = images[:0], labels[:0]
        message = "expected one label for each of at least one image"
    call = partial(training.device_data, images, labels, classes)
    return Bad(f"{kind} of a data set", call, error, "^device_data: " + message)


BAD = (
    bad_batches(),
    bad_weights(),
    bad_activities(),
    bad_methods(),
    bad_hyper_parameters(),
    bad_data(),
)


@pytest.mark.faults
@pytest.mark.slow
def test_bad_inputs_end_in_the_documented_errors(faults):
    refused: Counter[str] = Counter()
    seen: set[str] = set()

    def check(bad):
        with pytest.raises(bad.error, match=f"(?s){bad.message}"):
            bad.call()
        refused[bad.kind] += 1
        seen.add(f"{bad.kind} {bad.call}")

    examples = 500 if faults.all else 60
    for strategy in BAD:
        settings(max_examples=examples, database=None)(given(strategy)(check))()
    total = sum(refused.values())
    assert total >= len(BAD) * examples
    assert len(seen) >= total / 2  # the same call twice is rare
    assert len(refused) > 30
    faults.report("a bad input", total, total)


@pytest.mark.slow
@settings(max_examples=30, database=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    batch=st.integers(1, 4),
    num_steps=st.integers(1, 4),
    sequential=st.booleans(),
    gamma=st.floats(0.0, 2.0),
    decay=st.floats(0.0, 0.5),
    seed=st.integers(0, 2**16),
)
def test_any_network_learns_example_by_example(
    sizes, batch, num_steps, sequential, gamma, decay, seed
):
    network = pcjax.mlp(sizes)
    method = (pcjax.sequential if sequential else pcjax.simultaneous)(num_steps, 0.05)
    keys = jax.random.split(jax.random.key(seed), 3)
    inputs = jax.random.normal(keys[0], (batch, sizes[0]))
    targets = jax.nn.softmax(jax.random.normal(keys[1], (batch, sizes[-1])))
    params = network.init(keys[2], inputs)
    grad_fn = pcjax.value_and_grad(
        network, method, output=pcjax.softmax, gamma=gamma, decay=decay
    )
    (energy, info), grads = grad_fn(params, inputs, targets)
    assert energy.shape == ()
    assert info.energy.shape == info.rising.shape == (batch,)
    assert not np.any(info.rising)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)
    alone = [
        grad_fn(params, inputs[i : i + 1], targets[i : i + 1]) for i in range(batch)
    ]
    np.testing.assert_allclose(
        info.energy,
        [single.energy[0] for (_, single), _ in alone],
        rtol=1e-4,
        atol=1e-6,
    )
    mean = jax.tree.map(lambda *each: sum(each) / batch, *[one for _, one in alone])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads, mean
    )
    assert bool(
        finite.fits(jnp.concatenate([x.ravel() for x in jax.tree.leaves(grads)]))
    )


def test_a_mesh_of_more_devices_than_there_are_is_refused():
    with pytest.raises(ValueError, match="make_mesh"):
        sharding.make_mesh(batch=10**6)
