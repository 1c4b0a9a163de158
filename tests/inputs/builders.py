"""Arguments that no network, method, clamp or optimizer can be built from."""

import re

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import optax

import pcjax
from pcjax import training
from pcjax.networks.network import Network
from pcjax.optimizers import finite
from tests.inputs.draws import (
    KEY,
    METHODS,
    NEGATIVE,
    NO_COUNTS,
    NOT_FLOATS,
    NOT_REAL,
    SGD,
    Fault,
    got,
    methods,
    other_than,
    problems,
    replaced,
)


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
            f"step_size must be >= 0 and finite, {got(negative)}",
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
            NEGATIVE.map(lambda x: (x, f"gamma must be >= 0 and finite, {got(x)}")),
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
            f"{name} must be .*" + re.escape(f"got {outside}"),
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


# Called with a problem and the network, method, output and clamp, one of them bad.
WITH_PARTS = {
    "infer": lambda p, network, method, **options: pcjax.infer(
        network, method, p.params, p.inputs, p.targets, **options
    ),
    "value_and_grad": lambda p, network, method, **options: pcjax.value_and_grad(
        network, method, **options
    ),
    "incremental": lambda p, network, method, **options: pcjax.incremental(
        network, method, SGD, **options
    ),
    "backprop.value_and_grad": lambda p, network, output, **_: (
        pcjax.backprop.value_and_grad(network, output=output)
    ),
    "free_energy": lambda p, network, output, **_: pcjax.free_energy(
        network, p.params, p.activities, output=output
    ),
    "prediction_errors": lambda p, network, output, **_: pcjax.prediction_errors(
        network, p.params, p.activities, output=output
    ),
    "feedforward": lambda p, network, **_: pcjax.feedforward(
        network, p.params, p.inputs
    ),
}
PARTS = {
    **dict.fromkeys(
        ("infer", "value_and_grad", "incremental"),
        ("network", "method", "output", "clamp"),
    ),
    **dict.fromkeys(
        ("backprop.value_and_grad", "free_energy", "prediction_errors"),
        ("network", "output"),
    ),
    "feedforward": ("network",),
}


@st.composite
def parts(draw):
    """Networks, methods, outputs and clamps that are none."""
    p = draw(problems())
    function = draw(st.sampled_from(sorted(PARTS)))
    part = draw(st.sampled_from(PARTS[function]))
    bad = draw(st.sampled_from([None, "softmax", 0.5, {}, object(), (1, 2)]))
    good = {
        "network": p.network,
        "method": draw(methods()),
        "output": pcjax.softmax,
        "clamp": pcjax.full_clamp,
    }
    return Fault(
        lambda: WITH_PARTS[function](p, **good | {part: bad}),
        TypeError,
        f"^{re.escape(function)}: {part} must be an? .*{got(bad)}",
    )
