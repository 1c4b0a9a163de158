"""Bad inputs, drawn at random, are refused as documented; good ones give good results.

Every bad input must end in the documented ValueError or TypeError, whose message says
what was given; another exception is a failure, and so is a result.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from pcjax import finite, sharding, training
from pcjax.networks import Network
from tests.problems import quick_jit

SEED = 0
EXAMPLES = 100  # of every kind of call
METHODS = (pcjax.sequential, pcjax.simultaneous)
OUTPUTS = (pcjax.softmax, pcjax.sigmoid, pcjax.identity)
SGD = optax.sgd(0.1)
KEY = jax.random.key(0)
MESH = sharding.make_mesh(devices=jax.devices()[:1])
ONE_OF_SEVERAL = sharding.make_mesh(seeds=1, devices=jax.devices()[:1])


class Fault(NamedTuple):
    """A call that must be refused.

    Attributes:
      call: takes no arguments.
      kind: of the documented error.
      message: a pattern that its message has.
    """

    call: Callable[[], Any]
    kind: type[Exception]
    message: str


class Problem(NamedTuple):
    """A random network with a batch, all of it good."""

    sizes: tuple[int, ...]
    network: Network
    params: tuple
    inputs: np.ndarray
    targets: np.ndarray
    activities: tuple


def make_problem(sizes, batch, seed=0, dtype=np.float32):
    """Numbers of both signs; targets are distributions, which suit any output."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    params = tuple(
        {"kernel": normal(n, m) / dtype(np.sqrt(n)), "bias": normal(m)}
        for n, m in itertools.pairwise(sizes)
    )
    inputs = normal(batch, sizes[0])
    targets = rng.dirichlet(np.ones(sizes[-1]), batch).astype(dtype)
    hidden = (normal(batch, n) for n in sizes[1:-1])
    return Problem(
        tuple(sizes),
        pcjax.mlp(sizes, jnp.tanh),
        params,
        inputs,
        targets,
        (inputs, *hidden, targets),
    )


@st.composite
def problems(draw, max_width=8):
    sizes = draw(st.lists(st.integers(1, max_width), min_size=2, max_size=5))
    return make_problem(sizes, draw(st.integers(1, 5)), draw(st.integers(0, 9)))


def other_than(good, low=1, high=9):
    return st.integers(low, high).filter(lambda n: n != good)


def replaced(values, index, value):
    return tuple(value if i == index else x for i, x in enumerate(values))


def shape_pattern(array):
    return re.escape(f"shape {array.shape}")


NOT_FLOATS = (np.int32, np.uint8, np.int8, np.bool_, np.complex64)
NO_ARRAYS = (None, "images", 1.0, [[1.0, 2.0]], {})
NO_COUNTS = st.one_of(
    st.integers(-5, 0),
    st.floats(allow_nan=True),
    st.booleans(),
    st.sampled_from([None, "3", [3], 2j]),
)
NEGATIVE = st.floats(max_value=-1e-6) | st.integers(-9, -1) | st.just(float("nan"))
NOT_REAL = st.sampled_from([None, "0.1", 1j, {}, object()])


def got(value):
    return re.escape(f"got {value!r}")


@st.composite
def bad_batches(draw, name, p):
    """`(params, inputs, targets)`, one of them bad, and the error of function `name`.

    Messages about the inner workings of a layer start with "network", all others with
    the name of the function.
    """
    _, _, params, inputs, targets, _ = p
    batch = len(inputs)
    index = draw(st.integers(0, len(params) - 1))
    at = re.escape(f"params[{index}]")
    kind = draw(st.sampled_from(BATCH_FAULTS))
    error, where = ValueError, f"^{re.escape(name)}: "
    if kind == "input dtype":
        inputs = inputs.astype(draw(st.sampled_from(NOT_FLOATS)))
        error, message = TypeError, f"inputs must be floats, got {inputs.dtype}"
    elif kind == "target dtype":
        targets = targets.astype(draw(st.sampled_from(NOT_FLOATS)))
        error, message = TypeError, f"targets must be floats, got {targets.dtype}"
    elif kind == "no inputs":
        inputs = draw(st.sampled_from(NO_ARRAYS))
        error = TypeError
        message = f"inputs must be an array of floats, got a {type(inputs).__name__}"
    elif kind == "no targets":
        targets = draw(st.sampled_from(NO_ARRAYS))
        error = TypeError
        message = f"targets must be an array of floats, got a {type(targets).__name__}"
    elif kind == "no batch axis":
        inputs = draw(st.sampled_from([inputs[0], inputs[0, 0]]))
        message = r"inputs must be a batch \[B, \.\.\.\], got " + shape_pattern(inputs)
    elif kind == "no example":
        inputs, targets = inputs[:0], targets[:0]
        message = "inputs must hold at least one example, got " + shape_pattern(inputs)
    elif kind == "input features":
        size = draw(other_than(inputs.shape[1]))
        inputs = np.ones((batch, size), np.float32)
        where, message = "^network: ", f"expects {p.sizes[0]} .*was given {size}"
    elif kind == "target classes":
        targets = np.ones((batch, draw(other_than(p.sizes[-1]))), np.float32)
        message = f"targets have {shape_pattern(targets)}, but the network's outputs"
    elif kind == "target rank":
        targets = draw(st.sampled_from([targets[0], targets[..., None], targets[0, 0]]))
        message = f"targets have {shape_pattern(targets)}, but the network's outputs"
    elif kind == "target count":
        count = draw(other_than(batch, 0))
        targets = np.ones((count, p.sizes[-1]), np.float32)
        message = f"targets have {shape_pattern(targets)}, but the network's outputs"
    elif kind == "params of other depth":
        params = draw(st.sampled_from([params[:-1], (*params, params[-1])]))
        message = (
            f"the network has {len(p.params)} layers, but .* {len(params)} entries"
        )
    elif kind == "params dtype":
        leaf = draw(st.sampled_from(["kernel", "bias"]))
        dtype = draw(st.sampled_from(NOT_FLOATS))
        bad = {**params[index], leaf: np.ones_like(params[index][leaf], dtype)}
        params = replaced(params, index, bad)
        error = TypeError
        message = rf"{at}\['{leaf}'\] must be floats, got {bad[leaf].dtype}"
    elif kind == "params width":
        size = draw(other_than(p.sizes[index + 1]))
        below = p.sizes[index]
        bad = {
            "kernel": np.ones((below, size), np.float32),
            "bias": np.ones(size, np.float32),
        }
        params = replaced(params, index, bad)
        message = rf"params of another network: layer {index} .*{at} holds .*{size}"
    elif kind == "bias that broadcasts":
        bad = {**params[index], "bias": np.ones((1, 1), np.float32)}
        params = replaced(params, index, bad)
        message = rf"params of another network: layer {index} .*{at} holds .*\(1, 1\)"
    elif kind == "params names":
        bad = draw(
            st.sampled_from([{"w": params[index]["kernel"]}, {}, (), None, 3.0, "w"])
        )
        params = replaced(params, index, bad)
        message = rf"params of another network: layer {index} .*{at} holds"
    else:
        params = draw(st.sampled_from([None, 3, {}, params[0]["kernel"]]))
        error = TypeError
        message = f"params must be a tuple or list, got a {type(params).__name__}"
    return (params, inputs, targets), error, where, message


BATCH_FAULTS = (
    "input dtype",
    "target dtype",
    "no inputs",
    "no targets",
    "no batch axis",
    "no example",
    "input features",
    "target classes",
    "target rank",
    "target count",
    "params of other depth",
    "params dtype",
    "params width",
    "bias that broadcasts",
    "params names",
    "no params",
)


@st.composite
def methods(draw):
    build = draw(st.sampled_from(METHODS))
    return build(draw(st.integers(1, 4)), draw(st.floats(0, 0.5)))


def batch_function(name, network, method, output, **weights):
    """`function(params, inputs, targets)` of one of BATCH_FUNCTIONS."""
    if name == "infer":
        return lambda *args: pcjax.infer(
            network, method, *args, output=output, **weights
        )
    if name == "value_and_grad":
        return pcjax.value_and_grad(network, method, output=output, **weights)
    if name == "backprop.value_and_grad":
        return pcjax.backprop.value_and_grad(network, output=output)
    update = pcjax.incremental(network, method, SGD, output=output, **weights)
    return lambda params, *args: update(params, (), *args)


BATCH_FUNCTIONS = ("infer", "value_and_grad", "incremental", "backprop.value_and_grad")


@st.composite
def batches(draw, name):
    p = draw(problems())
    function = batch_function(
        name, p.network, draw(methods()), draw(st.sampled_from(OUTPUTS))
    )
    args, kind, where, message = draw(bad_batches(name, p))
    if where == "^network: ":
        where = "layer 0 does not accept an activity of shape .*"
    return Fault(lambda: function(*args), kind, where + message)


@st.composite
def bad_weights(draw, p):
    """`gamma` or `decay` of a wrong number, sign or kind, and its error."""
    name = draw(st.sampled_from(["gamma", "decay"]))
    hidden, batch = len(p.sizes) - 2, len(p.inputs)
    counts = {hidden, hidden + 1} if name == "gamma" else {hidden}
    kind = draw(st.sampled_from(["value", "one value", "number", "batch", "kind"]))
    start = f"^free_energy: {name} must "
    if kind == "value":
        value = draw(NEGATIVE)
        return {name: value}, ValueError, start + f"be >= 0, {got(value)}"
    if kind == "one value":
        value = draw(NEGATIVE)
        entries = [1.0] * max(counts)
        entries[draw(st.integers(0, max(0, len(entries) - 1))) :] = [value]
        return {name: entries}, ValueError, start + f"be >= 0, {got(value)}"
    if kind == "kind":
        value = draw(NOT_REAL)
        entries = [value] * max(1, *counts) if draw(st.booleans()) else value
        return {name: entries}, TypeError, start + f"hold real numbers, {got(value)}"
    if kind == "number":
        count = draw(st.integers(0, 7).filter(lambda n: n not in counts))
        value = draw(st.sampled_from([[0.5] * count, np.full(count, 0.5)]))
        if draw(st.booleans()):
            weights = {name: lambda activities, errors: value}
        else:
            weights = {name: value}
        message = f"be a number or hold one weight .*got {count} weights"
        return weights, ValueError, start + message
    count = max(1, *counts)
    other = draw(other_than(batch, 1, 7))
    value = np.ones((count, other), np.float32)
    message = rf"be a number or hold one weight .*\[{batch}\].*got {count} weights"
    return {name: value}, ValueError, start + message


WEIGHTED = (
    "free_energy",
    "free_energy_per_layer",
    "local_gradients",
    "infer",
    "value_and_grad",
    "incremental",
)


@st.composite
def weights(draw, name):
    p = draw(problems())
    bad, kind, message = draw(bad_weights(p))
    if name == "local_gradients" and "decay" in bad:
        bad, message = {"gamma": [-1.0]}, r"^free_energy: gamma must be >= 0, got -1\.0"
        kind = ValueError
    if name in BATCH_FUNCTIONS:
        method = draw(methods())

        def call():
            function = batch_function(name, p.network, method, pcjax.identity, **bad)
            # Weights are refused once the predictions are there; none need be made.
            return jax.eval_shape(function, p.params, p.inputs, p.targets)
    else:
        function = getattr(pcjax, name)

        def call():
            return jax.eval_shape(
                lambda *args: function(p.network, *args, **bad), p.params, p.activities
            )

    return Fault(call, kind, message)


ACTIVITY_FAULTS = ("count", "width", "examples", "rank", "dtype", "no array", "none")


@st.composite
def activities(draw, name):
    """Activities or parameters that do not fit the network."""
    p = draw(problems())
    start = (
        f"^{'prediction_errors' if name == 'prediction_errors' else 'free_energy'}: "
    )
    function = getattr(pcjax, name)
    layers = len(p.params)
    kind = draw(st.sampled_from((*ACTIVITY_FAULTS, "params")))
    index = draw(st.integers(1, layers))
    error, params, values = ValueError, p.params, p.activities
    good = values[index]
    if kind == "params":
        (params, _, _), error, _, message = draw(
            bad_batches(name, p).filter(lambda x: x[0][0] is not p.params)
        )
        if isinstance(params, tuple) and len(params) != layers:
            message = f"{layers} params, got {layers + 1} and {len(params)}"
        elif name == "local_gradients" and not isinstance(params, tuple):
            start = "^local_gradients: "
        elif error is ValueError:
            # A layer that cannot work with them says so first.
            start, message = "", r"params of another network|layer \d+ (does|predicts)"
    elif kind == "count":
        values = draw(st.sampled_from([values[:-1], (*values, values[-1]), ()]))
        message = f"{layers + 1} activities .*got {len(values)} and {layers}"
    elif kind == "none":
        values = draw(st.sampled_from([None, 2, good]))
        error = TypeError
        message = f"activities must be a tuple or list, got a {type(values).__name__}"
    elif kind == "dtype":
        bad = good.astype(draw(st.sampled_from(NOT_FLOATS)))
        values = replaced(values, index, bad)
        error, message = TypeError, rf"activities\[{index}\] must be floats, got"
    elif kind == "no array":
        values = replaced(values, index, draw(st.sampled_from(NO_ARRAYS)))
        error, message = TypeError, rf"activities\[{index}\] must be an array of floats"
    else:
        if kind == "width":
            bad = np.ones((len(good), draw(other_than(good.shape[1]))), np.float32)
        elif kind == "examples":
            bad = np.ones((draw(other_than(len(good))), good.shape[1]), np.float32)
        else:
            bad = draw(st.sampled_from([good[0], good[..., None], good[0, 0]]))
        values = replaced(values, index, bad)
        message = (
            rf"layer {index - 1} predicts shape .*activities\[{index}\] has "
            + shape_pattern(bad)
        )
    return Fault(
        lambda: function(p.network, params, values), error, f"(?s){start}.*({message})"
    )


ON_ACTIVITIES = (
    "free_energy",
    "free_energy_per_layer",
    "prediction_errors",
    "local_gradients",
)


@st.composite
def feedforwards(draw):
    p = draw(problems())
    (params, inputs, targets), kind, _, message = draw(bad_batches("feedforward", p))
    hypothesis.assume(targets is p.targets or len(p.inputs[:0]) == len(inputs))
    start = "^(feedforward|network): "
    if kind is ValueError and params is not p.params and len(params) == len(p.params):
        # A layer that cannot work with them says so first.
        message = r"params of another network|layer \d+ does not accept"
    elif "expects" in message:
        message = "layer 0 does not accept"
    call = draw(
        st.sampled_from(
            [
                lambda: pcjax.feedforward(p.network, params, inputs),
                lambda: p.network.apply(params, inputs),
            ]
        )
    )
    return Fault(call, kind, f"(?s){start}.*({message})")


@st.composite
def inits(draw):
    p = draw(problems())
    (_, inputs, _), kind, where, message = draw(
        bad_batches("network.init", p).filter(lambda x: x[0][1] is not p.inputs)
    )
    if where == "^network: ":
        where = "layer 0 does not accept an activity of shape .*"
    return Fault(lambda: p.network.init(KEY, inputs), kind, where + message)


@st.composite
def constructors(draw):
    bad = draw(NO_COUNTS)
    sizes = draw(st.lists(st.integers(1, 9), min_size=2, max_size=5))
    index = draw(st.integers(0, len(sizes) - 1))
    broken = [bad if i == index else n for i, n in enumerate(sizes)]
    short = draw(st.sampled_from([[], [3], (), None, 7]))
    pair = draw(st.sampled_from([(3, bad), (bad, 3), (3,), (3, 3, 3), 3, None, "ab"]))
    dtype = draw(st.sampled_from(["int32", np.bool_, "complex64", "no dtype"]))
    narrow = draw(st.sampled_from([np.float16, "float16"]))
    a, b = sizes[0], sizes[0] + draw(st.integers(1, 9))
    build = draw(st.sampled_from([pcjax.mlp, pcjax.autoencoder]))
    name = build.__name__
    any_build = draw(
        st.sampled_from(
            [
                lambda **k: pcjax.dense(3, **k),
                lambda **k: pcjax.conv(3, (3, 3), **k),
                lambda **k: pcjax.mlp(sizes, **k),
                lambda **k: pcjax.convnet(3, **k),
                lambda **k: pcjax.autoencoder([a, b, a], **k),
            ]
        )
    )
    no_mlp = (f"^{name}: expected two or more positive sizes, ", ValueError)
    faults = [
        (lambda: pcjax.dense(bad), f"^dense: features must be an int >= 1, {got(bad)}"),
        (
            lambda: pcjax.dense(3, in_features=bad),
            f"^dense: in_features must be an int >= 1, {got(bad)}",
        ),
        (
            lambda: pcjax.conv(bad, (3, 3)),
            f"^conv: features must be an int >= 1, {got(bad)}",
        ),
        (
            lambda: pcjax.conv(3, pair),
            f"^conv: kernel_size must be two ints >= 1, {got(pair)}",
        ),
        (
            lambda: pcjax.conv(3, (3, 3), pair),
            f"^conv: strides must be two ints >= 1, {got(pair)}",
        ),
        (lambda: build(broken), no_mlp[0] + got(broken)),
        (lambda: build(short), no_mlp[0] + got(short)),
        (
            lambda: pcjax.autoencoder([a, *sizes, b]),
            f"^autoencoder: the input has size {a}, the reconstruction {b}",
        ),
        (
            lambda: pcjax.convnet(bad),
            f"^convnet: num_classes must be an int >= 1, {got(bad)}",
        ),
        (
            lambda: pcjax.convnet(3, features=broken, kernel_sizes=sizes),
            f"^convnet: features must be ints >= 1, {got(broken)}",
        ),
        (
            lambda: pcjax.convnet(3, features=sizes, kernel_sizes=broken),
            f"^convnet: kernel_sizes must be ints >= 1, {got(broken)}",
        ),
        (
            lambda: pcjax.convnet(3, features=sizes, kernel_sizes=sizes[1:]),
            f"^convnet: {len(sizes)} features, but {len(sizes) - 1} kernel sizes",
        ),
        (
            lambda: any_build(product_dtype=dtype),
            re.escape(f"product_dtype must be a float dtype, got {dtype}"),
            TypeError,
        ),
        (
            lambda: any_build(product_dtype=narrow),
            "product_dtype must have the range of float32.*got float16",
        ),
    ]
    # None is the default of these.
    if bad is None:
        del faults[1]
    call, message, *kind = draw(st.sampled_from(faults))
    return Fault(call, (kind or [ValueError])[0], message)


@st.composite
def chains(draw):
    """Networks whose layers do not fit onto each other, or onto the inputs."""
    sizes = draw(st.lists(st.integers(1, 8), min_size=2, max_size=4))
    batch = draw(st.integers(1, 5))
    inputs = np.ones((batch, draw(st.integers(1, 8))), np.float32)
    images = np.ones((batch, *draw(st.tuples(*[st.integers(1, 4)] * 3))), np.float32)
    dense = tuple(map(pcjax.dense, sizes))
    index = len(sizes)
    wrong = draw(other_than(sizes[-1]))
    side = draw(st.integers(5, 9))
    shape = draw(st.sampled_from([(batch, 0), (batch, 2, 0)]))
    faults = [
        (
            (*dense, pcjax.dense(2, in_features=wrong)),
            inputs,
            rf"layer {index} .*expects {wrong} input features, .*given {sizes[-1]}",
        ),
        (
            (*dense, pcjax.conv(2, (1, 1))),
            inputs,
            rf"layer {index} .*expects images \[B, H, W, C\], but was given",
        ),
        (
            (pcjax.conv(2, (side, side)),),
            images,
            rf"layer 0 .*filters of \({side}, {side}\) do not fit into images",
        ),
        (dense, np.ones(shape, np.float32), "layer 0 .*expected one input feature"),
        ((), inputs, "^network.init: a network has at least one layer, got none"),
    ]
    layers, x, message = draw(st.sampled_from(faults))
    return Fault(lambda: Network(layers).init(KEY, x), ValueError, f"(?s){message}")


@st.composite
def methods_refused(draw):
    build = draw(st.sampled_from(METHODS))
    steps = draw(st.integers(1, 4))
    bad, negative, unreal = draw(NO_COUNTS), draw(NEGATIVE), draw(NOT_REAL)
    hypothesis.assume(unreal is not None)
    shape = draw(st.sampled_from([(1,), (2, 3), (0,)]))
    optimizer = draw(st.sampled_from([0.1, "adam", object(), optax.sgd]))
    faults = [
        (
            lambda: build(bad, 0.1),
            ValueError,
            f"num_steps must be an int >= 1, {got(bad)}",
        ),
        (
            lambda: build(steps, negative),
            ValueError,
            f"step_size must be >= 0, {got(negative)}",
        ),
        (
            lambda: build(steps, unreal),
            TypeError,
            f"step_size must hold real numbers, {got(unreal)}",
        ),
        (
            lambda: build(steps, np.ones(shape)),
            ValueError,
            "step_size must be a number or a schedule, .*shape "
            + re.escape(f"{shape}"),
        ),
        (
            lambda: build(steps),
            ValueError,
            "expected exactly one of step_size and optimizer",
        ),
        (
            lambda: build(steps, 0.1, optimizer=SGD),
            ValueError,
            "expected exactly one of step_size and optimizer",
        ),
        (
            lambda: build(steps, optimizer=optimizer),
            TypeError,
            "optimizer must be an optax transform, " + got(optimizer),
        ),
    ]
    call, kind, message = draw(st.sampled_from(faults))
    return Fault(call, kind, f"^{build.__name__}: {message}")


@st.composite
def soft_clamps(draw):
    value, message = draw(
        st.one_of(
            NEGATIVE.map(lambda x: (x, f"gamma must be >= 0, {got(x)}")),
            NOT_REAL.map(lambda x: (x, f"gamma must hold real numbers, {got(x)}")),
            st.sampled_from([np.ones(1), np.ones((5, 2)), [0.1, 0.2]]).map(
                lambda x: (x, "gamma must be a single number, got an array of shape")
            ),
        )
    )
    kind = TypeError if "real numbers" in message else ValueError
    return Fault(lambda: pcjax.soft_clamp(value), kind, f"^soft_clamp: {message}")


@st.composite
def mqs(draw):
    """Hyper-parameters out of range, and trees that MQ cannot train."""
    build = draw(st.sampled_from([pcjax.mq, pcjax.scale_by_mq]))
    p = draw(problems())
    name = draw(st.sampled_from(["learning_rate", "decay", "min_step", "eps"]))
    infinite = st.just(float("inf"))
    zero = st.sampled_from([0, 0.0])
    above = st.floats(min_value=1.0)
    values = {"decay": NEGATIVE | above, "eps": NEGATIVE | zero | infinite}
    outside = draw(values.get(name, NEGATIVE | infinite))
    no_number = draw(NOT_REAL | st.booleans())
    many = draw(st.sampled_from([[0.1, 0.1], np.ones(3)]))
    single = name if name != "learning_rate" else "eps"
    count = draw(other_than(len(p.params), 2))
    rates = np.full(count, 0.1)
    dtype = draw(st.sampled_from(NOT_FLOATS))
    index = draw(st.integers(0, len(p.params) - 1))
    wrong = replaced(
        p.params, index, jax.tree.map(lambda x: x.astype(dtype), p.params[index])
    )
    fewer = draw(st.sampled_from([p.params[:-1], (*p.params, p.params[0]), ()]))

    def make(**options):
        return build(**{"learning_rate": 0.1, **options})

    good = make()
    faults = [
        (
            lambda: make(**{name: outside}),
            ValueError,
            f"{name} must be .*got {outside}",
        ),
        (
            lambda: make(**{name: no_number}),
            TypeError,
            f"{name} must be a number, {got(no_number)}",
        ),
        (
            lambda: make(**{single: many}),
            ValueError,
            f"{single} must be a single number, got " + re.escape(f"{many}"),
        ),
        (
            lambda: make(learning_rate=rates).init(p.params),
            ValueError,
            rf"learning_rate has shape \({count},\); expected a single number or shape "
            rf"\({len(p.params)},\)",
        ),
        (lambda: good.init(wrong), TypeError, f"the leaf at .*{index}.*has dtype"),
        (
            lambda: jax.eval_shape(
                lambda: good.update(wrong, jax.eval_shape(good.init, p.params))
            ),
            TypeError,
            f"the leaf at .*{index}.*has dtype {np.dtype(dtype)}",
        ),
        (
            lambda: good.update(fewer, jax.eval_shape(good.init, p.params)),
            ValueError,
            f"gradients of {len(fewer)} layers .*init for {len(p.params)} layers",
        ),
    ]
    call, kind, message = draw(st.sampled_from(faults))
    return Fault(call, kind, f"(?s)^scale_by_mq: {message}")


@st.composite
def data(draw):
    """Data sets, epochs and evaluations."""
    n, classes = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    images = np.zeros((n, *draw(st.sampled_from([(3,), (2, 2), (2, 2, 3)]))), np.uint8)
    labels = np.arange(n, dtype=draw(st.sampled_from([np.int32, np.uint8]))) % classes
    label = draw(st.integers(-9, -1) | st.integers(classes, classes + 9))
    outside = labels.astype(np.int64)
    outside[draw(st.integers(0, n - 1))] = label
    image_dtype = draw(st.sampled_from([np.float32, np.int32, np.bool_, np.complex64]))
    label_dtype = draw(st.sampled_from([np.float32, np.bool_, np.complex64]))
    lists = draw(
        st.sampled_from([(images.tolist(), labels), (images, labels.tolist())])
    )
    other = np.zeros(draw(other_than(n, 0)), np.int32)
    odd = draw(st.sampled_from([other, labels[:, None], labels[0]]))
    bad = draw(NO_COUNTS)
    no_int = draw(NO_COUNTS.filter(lambda x: type(x) is not int))
    too_many = draw(st.integers(n + 1, n + 9) | st.integers(-5, 0))
    state = training.TrainState((), (), KEY, jnp.zeros((), jnp.int32))
    few = training.Data(images, labels)
    p = make_problem((3, 2), n)
    measure = training.classification_measures(pcjax.softmax)
    prepare = training.classification(2)

    def epoch(size):
        return training.make_epoch(lambda *args: args, prepare, size)(state, few)

    def make(x, y):
        return training.device_data(x, y, classes)

    ints = "^epoch: num_examples and batch_size must be ints, got "
    hold = f"^epoch: {n} examples hold no batch of {too_many}"
    expected = "^device_data: expected uint8 images and integer labels, got "
    faults = [
        (
            lambda: make(images, outside),
            ValueError,
            rf"^device_data: labels must lie in \[0, {classes}\), got values.*{label}",
        ),
        (
            lambda: make(images.astype(image_dtype), labels),
            TypeError,
            expected + f"{np.dtype(image_dtype)}",
        ),
        (
            lambda: make(images, labels.astype(label_dtype)),
            TypeError,
            expected + f"uint8 and {np.dtype(label_dtype)}",
        ),
        (lambda: make(*lists), TypeError, expected + ".*list"),
        (
            lambda: make(images, odd),
            ValueError,
            "^device_data: expected one label .*labels of " + shape_pattern(odd),
        ),
        (
            lambda: make(images[:0], labels[:0]),
            ValueError,
            "^device_data: expected one label .*images of " + shape_pattern(images[:0]),
        ),
        (
            lambda: training.device_data(images, labels, bad),
            ValueError,
            f"^device_data: num_classes must be an int >= 1, {got(bad)}",
        ),
        (lambda: training.epoch_batches(KEY, 0, n, too_many), ValueError, hold),
        (lambda: epoch(too_many), ValueError, hold),
        (
            lambda: training.epoch_batches(KEY, 0, n, no_int),
            TypeError,
            ints + re.escape(f"{n} and {no_int!r}"),
        ),
        (
            lambda: training.epoch_batches(KEY, 0, no_int, 1),
            TypeError,
            ints + re.escape(f"{no_int!r} and 1"),
        ),
        (lambda: epoch(no_int), TypeError, ints + re.escape(f"{n} and {no_int!r}")),
        (
            lambda: training.make_evaluation(p.network, prepare, measure, bad),
            ValueError,
            f"^make_evaluation: batch_size must be an int >= 1, {got(bad)}",
        ),
        (
            lambda: training.make_evaluation(p.network, prepare, measure, n)(
                p.params, training.Data(images[:0], labels[:0])
            ),
            ValueError,
            "^make_evaluation: expected one example .*" + shape_pattern(images[:0]),
        ),
    ]
    call, kind, message = draw(st.sampled_from(faults))
    return Fault(call, kind, message)


@st.composite
def transforms(draw):
    """Optimizers that are none, and guards of an unknown kind."""
    p = draw(problems())
    tx = draw(st.sampled_from([None, 0.1, "adam", {}, object(), optax.sgd, (1, 2)]))
    mode = draw(st.sampled_from(["Stop", "", None, 3, True]) | st.text(max_size=5))
    hypothesis.assume(mode not in ("stop", "skip"))
    method = draw(methods())
    held = draw(st.sampled_from([(), SGD.init(p.params), p.params, None]))
    no_transform = "tx must be an optax transform, " + got(tx)
    faults = [
        (lambda: finite.guard(tx), TypeError, f"^guard: {no_transform}"),
        (
            lambda: training.make_update(lambda *args: args, tx),
            TypeError,
            f"^make_update: {no_transform}",
        ),
        (
            lambda: pcjax.incremental(p.network, method, tx),
            TypeError,
            f"^incremental: {no_transform}",
        ),
        (
            lambda: finite.guard(SGD, mode),
            ValueError,
            "^guard: on_nonfinite must be 'stop' or 'skip', " + got(mode),
        ),
        (
            lambda: finite.raise_if_refused(held),
            ValueError,
            "^raise_if_refused: the optimizer state holds no GuardState",
        ),
    ]
    call, kind, message = draw(st.sampled_from(faults))
    return Fault(call, kind, message)


@st.composite
def meshes(draw):
    p = draw(problems())
    name = draw(st.sampled_from(["batch", "seeds", "model"]))
    no_int = draw(NO_COUNTS.filter(lambda x: type(x) is not int and x is not None))
    size = draw(st.integers(-4, 9).filter(lambda n: n != 1))
    devices = jax.devices()[:1]
    scalar = draw(st.sampled_from([3.0, np.float32(1), np.ones(())]))
    faults = [
        (
            lambda: sharding.make_mesh(**{name: no_int}, devices=devices),
            f"^make_mesh: {name} must be an int >= 1, {got(no_int)}",
        ),
        (
            lambda: sharding.make_mesh(**{name: size}, devices=devices),
            f"^make_mesh: 1 devices cannot be arranged as .*{name} = {size}",
        ),
        (
            lambda: sharding.make_mesh(devices=[]),
            "^make_mesh: 0 devices cannot be arranged",
        ),
        (
            lambda: sharding.place_batch(MESH, (scalar, p.targets)),
            r"^place_batch: expected arrays \[B, \.\.\.\], got the scalar",
        ),
        (
            lambda: sharding.state_shardings(
                MESH, p.params, sharding.split_features(1)
            ),
            r"^state_shardings: .*\['bias'\] is to be split over 'model', but the mesh",
        ),
        (
            lambda: sharding.state_shardings(ONE_OF_SEVERAL, {"count": np.ones(())}),
            r"^state_shardings: .*\['count'\] is a scalar, but the mesh has a seeds",
        ),
    ]
    call, message = draw(st.sampled_from(faults))
    return Fault(call, ValueError, message)


FAULTS = {
    **{f"batch of {name}": batches(name) for name in BATCH_FUNCTIONS},
    **{f"weights of {name}": weights(name) for name in WEIGHTED},
    **{f"activities of {name}": activities(name) for name in ON_ACTIVITIES},
    "feedforward": feedforwards(),
    "Network.init": inits(),
    "constructors": constructors(),
    "chains": chains(),
    "methods": methods_refused(),
    "soft_clamp": soft_clamps(),
    "MQ": mqs(),
    "data": data(),
    "optimizers": transforms(),
    "meshes": meshes(),
}


def inject(examples: int, seed: int = SEED, log: Callable = print) -> Counter:
    """Injects bad inputs of every kind, and counts those refused as documented.

    Args:
      examples: how many of each of FAULTS.
      seed: of the random choice.
      log: is given a line about each that was not refused as it should be.

    Returns:
      The numbers "injected" and "refused".
    """
    counts: Counter = Counter()
    for name, strategy in FAULTS.items():
        _inject(name, strategy, examples, seed, log, counts)
    return counts


def _inject(name, strategy, examples, seed, log, counts):
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def refuse(fault):
        counts["injected"] += 1
        try:
            result = fault.call()
        except Exception as error:
            if isinstance(error, fault.kind) and re.search(fault.message, str(error)):
                counts["refused"] += 1
                return
            found = f"{type(error).__name__}: {error}"
        else:
            found = f"no error, but {result!r:.100}"
        log(f"{name}: expected {fault.kind.__name__} {fault.message!r}; {found}")

    refuse()


@pytest.mark.slow
def test_bad_inputs_are_refused_as_documented():
    wrong: list[str] = []
    counts = inject(EXAMPLES, log=wrong.append)
    print(
        f"faults: bad inputs: {counts['injected']} injected, "
        f"{counts['refused']} refused as documented"
    )
    assert not wrong, f"{len(wrong)}, the first being:\n" + "\n".join(wrong[:5])
    assert counts["refused"] == counts["injected"] >= 2000


@st.composite
def good_weights(draw, hidden, batch, output):
    """A weight per example, [layers, B] or less, as `gamma` and `decay` take it."""
    number = st.floats(0.0, 2.0, width=16)
    kind = draw(st.sampled_from(["number", "layers", "examples"]))
    if kind == "number":
        return draw(number)
    count = hidden + (output and draw(st.integers(0, 1)))
    if kind == "layers":
        return draw(st.lists(number, min_size=count, max_size=count))
    values = draw(st.lists(number, min_size=count * batch, max_size=count * batch))
    return np.asarray(values, np.float32).reshape(count, batch)


def of_example(weights, i):
    return weights[:, i : i + 1] if isinstance(weights, np.ndarray) else weights


@pytest.mark.slow
@hypothesis.settings(
    max_examples=40, deadline=None, database=None, derandomize=True, print_blob=False
)
@hypothesis.given(st.data())
def test_good_inputs_give_finite_results_of_every_example_on_its_own(data):
    sizes = data.draw(st.lists(st.integers(1, 8), min_size=2, max_size=5))
    batch, hidden = data.draw(st.integers(1, 5)), len(sizes) - 2
    dtype = data.draw(st.sampled_from([jnp.float32, jnp.float32, jnp.bfloat16]))
    p = make_problem(sizes, batch, data.draw(st.integers(0, 9)))
    params, inputs, targets = jax.tree.map(
        lambda x: jnp.asarray(x, dtype), (p.params, p.inputs, p.targets)
    )
    num_steps = data.draw(st.integers(1, 4))
    method = data.draw(st.sampled_from(METHODS))(
        num_steps, data.draw(st.floats(0.0, 0.25))
    )
    output = data.draw(st.sampled_from(OUTPUTS))
    gamma = data.draw(good_weights(hidden, batch, output=True))
    decay = data.draw(good_weights(hidden, batch, output=False))
    clamp = pcjax.soft_clamp(data.draw(st.floats(0.0, 1.0)))

    def learn(inputs, targets, gamma, decay):
        grad_fn = pcjax.value_and_grad(
            p.network,
            method,
            output=output,
            clamp=clamp,
            gamma=gamma,
            decay=decay,
            trace=lambda state: state.activities,
        )
        return quick_jit(grad_fn)(params, inputs, targets)

    (energy, info), grads = learn(inputs, targets, gamma, decay)
    assert energy.shape == ()
    assert energy.dtype == dtype
    assert info.energy.shape == info.initial_energy.shape == info.loss.shape == (batch,)
    assert info.logits.shape == targets.shape
    steps = (num_steps + 1, batch)
    assert [h.shape for h in info.trace] == [(*steps, size) for size in sizes]
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    for have, want in zip(jax.tree.leaves(grads), jax.tree.leaves(params), strict=True):
        assert (have.shape, have.dtype) == (want.shape, want.dtype)
    for leaf in jax.tree.leaves((energy, info, grads)):
        assert np.all(np.isfinite(np.asarray(leaf, np.float32)))
    if dtype == jnp.bfloat16:
        return

    i = data.draw(st.integers(0, batch - 1))
    (_, alone), _ = learn(
        inputs[i : i + 1],
        targets[i : i + 1],
        of_example(gamma, i),
        of_example(decay, i),
    )
    for name in ("loss", "logits", "initial_energy", "energy"):
        np.testing.assert_allclose(
            getattr(alone, name)[0], getattr(info, name)[i], rtol=1e-5, atol=1e-5
        )
    for have, want in zip(alone.trace, info.trace, strict=True):
        np.testing.assert_allclose(have[:, 0], want[:, i], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        pcjax.free_energy(
            p.network,
            params,
            [h[-1] for h in info.trace],
            output=output,
            gamma=gamma,
            decay=decay,
        ),
        info.energy,
        rtol=1e-4,
        atol=1e-5,
    )
