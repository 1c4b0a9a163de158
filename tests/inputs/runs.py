"""Data sets, epochs, evaluations and meshes that cannot be."""

import re

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

import pcjax
from pcjax import training
from pcjax.training import evaluation, sharding
from tests.inputs.draws import (
    KEY,
    NO_COUNTS,
    Fault,
    got,
    make_problem,
    other_than,
    problems,
    shape_pattern,
)

MESH = sharding.make_mesh(devices=jax.devices()[:1])
ONE_OF_SEVERAL = sharding.make_mesh(seeds=1, devices=jax.devices()[:1])


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
    measure = evaluation.classification_measures(pcjax.softmax)
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
            lambda: evaluation.make_evaluation(p.network, prepare, measure, bad),
            ValueError,
            f"^make_evaluation: batch_size must be an int >= 1, {got(bad)}",
        ),
        (
            lambda: evaluation.make_evaluation(p.network, prepare, measure, n)(
                p.params, training.Data(images[:0], labels[:0])
            ),
            ValueError,
            "^make_evaluation: expected one example .*" + shape_pattern(images[:0]),
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
