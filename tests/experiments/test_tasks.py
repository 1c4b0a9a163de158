"""Settings, tasks and methods of the experiments."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from experiments.common import data
from experiments.common.methods import METHODS, MethodName, select
from experiments.common.settings import _SETTINGS, settings
from experiments.common.tasks import make_task
from experiments.depth import cells
from experiments.proximal_objective import methods as proximal


def test_every_method_has_a_rate_everywhere():
    for found in _SETTINGS.values():
        assert set(found.learning_rates) == {method.name for method in METHODS}


def test_settings_of_the_paper():
    mlp, conv = settings("mlp", "svhn_cropped"), settings("conv", "cifar10")
    assert (mlp.learning_rates["BP"], mlp.learning_rates["SeqIL"]) == (0.019, 1.0)
    assert (mlp.epochs, mlp.low, mlp.bp_decay) == (70, 0.0, 3e-5)
    assert conv.learning_rates["SeqIL-MQ"] == 2.2e-4
    assert (conv.epochs, conv.low, conv.bp_decay, conv.mq_decay) == (45, -1, 0, 0.999)
    tiny = settings("conv", "tiny_imagenet")
    assert (tiny.num_steps, tiny.step_size, tiny.epochs) == (4, 0.05, 20)
    assert settings("autoencoder", "cifar10").num_steps == 6
    with pytest.raises(ValueError, match=r"'mlp' on 'tiny_imagenet', only on \['cifar"):
        settings("mlp", "tiny_imagenet")


def test_help_lists_all_methods():
    assert get_args(MethodName) == tuple(method.name for method in METHODS)
    assert get_args(cells.Name) == tuple(method.name for method in cells.OURS)
    assert get_args(proximal.Name) == tuple(proximal.KINDS)


def test_select():
    assert [m.name for m in select(["BP", "iPC"])] == ["BP", "iPC"]
    with pytest.raises(ValueError, match=r"methods of \['BP'.*got \['Adam'\]"):
        select(["BP", "Adam"])
    with pytest.raises(ValueError, match="got none"):
        select([])


@pytest.mark.parametrize("name", ["SeqIL", "SeqIL-Adam", "SeqIL-MQ"])
def test_rates_of_predictive_coding_fall_on_request(name):
    (method,) = select([name])
    params = {"w": jnp.ones(3)}
    slope = {"w": jnp.ones(3)}

    def second_step(**changes):
        found = dataclasses.replace(settings("mlp", "cifar10"), **changes)
        tx = method.optimizer(0.25, found)
        _, state = tx.update(slope, tx.init(params), params)
        return tx.update(slope, state, params)[0]["w"]

    # alpha / (1 + 1): MQ's least step of .001 and its v are not halved.
    exact = 2 * second_step(pc_decay=1.0)
    if name == "SeqIL-MQ":
        exact -= 0.001 * -slope["w"]
    np.testing.assert_allclose(exact, second_step(), rtol=1e-5)


@pytest.mark.parametrize("net", ["mlp", "conv", "autoencoder"])
def test_task(net):
    images = data.load("digits")
    task = make_task(net, images, settings(net, "digits"))
    inputs, targets = task.prepare(task.train.images[:3], task.train.labels[:3])
    example = task.example()
    assert (example.shape[1:], example.dtype) == (inputs.shape[1:], inputs.dtype)
    params = jax.eval_shape(task.network.init, jax.random.key(0), inputs)
    outputs = jax.eval_shape(task.network.apply, params, inputs)
    assert outputs.shape == targets.shape
    assert float(inputs.min()) == pytest.approx(settings(net, "digits").low)
    assert float(inputs.max()) == pytest.approx(settings(net, "digits").high)


def test_a_part_of_the_training_set():
    images = data.load("digits")
    found = settings("mlp", "digits")
    small = make_task("mlp", images, found, train_images=203)
    large = make_task("mlp", images, found, train_images=400, validation=0.25)
    counts = np.bincount(small.train.labels, minlength=10)
    assert counts.tolist() == [21, 21, 21] + [20] * 7
    assert (len(large.train.labels), len(large.validation.labels)) == (300, 100)
    assert len(large.test.labels) == len(images.test.labels)
    # The smaller part is in the larger one, and nothing is held out twice.
    pixels = {image.tobytes() for image in np.asarray(small.train.images)}
    both = [np.asarray(part.images) for part in (large.train, large.validation)]
    assert pixels <= {image.tobytes() for image in np.concatenate(both)}
    assert jnp.bincount(large.validation.labels, length=10).tolist() == [10] * 10
    every = make_task("mlp", images, found, train_images=2000)
    assert len(every.train.labels) == len(images.train.labels)
    with pytest.raises(ValueError, match="at least one training image, got 0"):
        make_task("mlp", images, found, train_images=0)


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("BP", lambda rate: optax.sgd(lambda n: rate / (1 + 3e-5 * n))),
        ("BP-Adam", lambda rate: optax.adam(lambda n: rate / (1 + 3e-5 * n))),
        ("SeqIL", optax.sgd),
        ("IL-MQ", pcjax.mq),
        ("SeqIL-MQ", pcjax.mq),
        ("IL-Adam", optax.adam),
        ("SeqIL-Adam", optax.adam),
    ],
)
def test_methods_step_by_the_optimizer_in_their_name(name, optimizer):
    """Also where the authors' program puts another one in its place."""
    found = settings("autoencoder", "cifar10")
    (method,) = select([name])
    rate = found.learning_rates[name]
    params = ({"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},)
    ours, theirs = method.optimizer(rate, found), optimizer(rate)
    states = ours.init(params), theirs.init(params)
    for step in range(3):
        grads = jax.tree.map(lambda x, n=step: jnp.sin(x * (n + 1)), params)
        (mine, first), (other, second) = (
            tx.update(grads, state, params)
            for tx, state in zip((ours, theirs), states, strict=True)
        )
        states = first, second
        jax.tree.map(np.testing.assert_array_equal, mine, other)
