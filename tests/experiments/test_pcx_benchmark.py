"""The field's benchmark: its configurations, schedules, measures and a small run."""

import json
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pcjax
from experiments import pcx_benchmark
from experiments.common import data
from experiments.common.tasks import Task
from experiments.pcx_benchmark import (
    algorithms,
    experiment,
    measures,
    published,
    statements,
)
from tests import problems
from tests.tiers import thorough

LENGTH = algorithms.Length(epochs=50, steps=10, batch_size=8)


def test_every_algorithm_has_a_configuration_for_every_net():
    assert set(get_args(published.Algorithm)) == set(published.ALGORITHMS)
    for net in get_args(experiment.Net):
        for name in published.ALGORITHMS:
            found = algorithms.algorithm(name, net, "cifar10", LENGTH)
            assert found.method.name == name
            recipe = found.method.rule(found.settings, found.hyper.step_size)
            assert (recipe.inference is None) == name.startswith("BP")
            assert recipe.weights_move == (name == "iPC")
    (_, settings, hyper, activation) = algorithms.algorithm(
        "SE", "vgg5", "cifar10", LENGTH._replace(rate_factor=2.0)
    )
    assert hyper == (2 * 2.66e-4, 0.0235)
    assert activation is jax.nn.gelu
    assert settings.batch_size == 8


def test_beta_grows_up_to_the_full_clamp_with_the_sign_of_the_method():
    def betas(name):
        return algorithms.betas(name, published.configuration("vgg5", name), 50)

    np.testing.assert_allclose(betas("PN")[:3], [0.323, 0.343, 0.363])
    np.testing.assert_allclose(betas("PN")[-3:], [1, 1, 1])
    np.testing.assert_allclose(betas("NN")[:2], [-0.179, -0.199])
    signed = betas("CN-sign")
    np.testing.assert_allclose(np.abs(signed), 0.9)
    assert 10 < np.sum(signed > 0) < 40


def test_the_learning_rate_rises_for_a_tenth_and_falls_by_a_cosine():
    schedule = algorithms._schedule(500)
    found = [float(schedule(n)) for n in (0, 25, 50, 275, 500)]
    np.testing.assert_allclose(found, [1, 1.05, 1.1, 0.6, 0.1], rtol=1e-5)


def small_task(case, output=pcjax.softmax):
    return Task(case.network, output, None, None, None, None)


def test_a_recipe_nudges_with_the_beta_of_its_epoch():
    case = problems.dense_case((5, 6, 4))
    found = algorithms.algorithm("NN", "mlp", "mnist", LENGTH)
    recipe = found.method.rule(found.settings, 0.1)
    rule = partial(
        pcjax.value_and_grad, case.network, recipe.inference, output=pcjax.identity
    )
    for epoch in (0, 3):
        beta = -(0.9 + 0.02 * epoch)
        functions = (
            recipe._replace(epoch=epoch).grad_fn(case.network, pcjax.softmax),
            pcjax.nudged(rule, beta),
        )
        found = jax.jit(lambda *a, f=functions: [g(*a)[1] for g in f])
        problems.assert_trees_close(*found(*case[1:]), 1e-5, 1e-7)


def test_cosines_to_backprop_by_numpy():
    case = problems.dense_case((5, 6, 4))
    recipe = algorithms.Recipe(pcjax.sequential(3, 0.3), output=pcjax.softmax)
    runs = jax.tree.map(lambda x: np.stack([x, 2 * x]), jax.device_get(case.params))
    found = measures.cosines(recipe, small_task(case), runs, *case[2:])
    learn = pcjax.value_and_grad(
        case.network, pcjax.sequential(3, 0.3), output=pcjax.softmax
    )
    backprop = pcjax.backprop.value_and_grad(case.network, output=pcjax.softmax)
    both = jax.jit(lambda params: [f(params, *case[2:])[1] for f in (learn, backprop)])
    for run in range(2):
        grads = both(jax.tree.map(lambda x, r=run: x[r], runs))
        for layer in range(2):
            a, b = (
                np.concatenate([np.ravel(x) for x in jax.tree.leaves(g[layer])])
                for g in grads
            )
            want = a @ b / np.sqrt((a @ a) * (b @ b))
            np.testing.assert_allclose(found[layer, run], want, rtol=1e-4)


def test_images_in_colour_are_augmented_and_all_are_normalised():
    rng = np.random.default_rng(0)
    splits = [
        data.Split(rng.integers(0, 256, (20, 32, 32, 3), np.uint8), np.arange(20) % 10)
        for _ in range(2)
    ]
    images = data.Dataset("cifar10", 10, *splits)
    size = experiment.Size(1, 1, None, 10, width=4)
    task = experiment.make_task("vgg5", images, size)
    prepare = jax.jit(task.prepare)
    inputs, _ = prepare(*task.train)
    mean = np.mean(inputs, axis=(0, 1, 2)), np.std(inputs, axis=(0, 1, 2))
    np.testing.assert_allclose(mean, [[0] * 3, [1] * 3], atol=1e-4)
    pixels = splits[0].images.reshape(-1, 3) / 255
    moments = experiment.channel_moments(splits[0].images)
    np.testing.assert_allclose(moments, [pixels.mean(0), pixels.std(0)], rtol=1e-12)
    moved, _ = prepare(*task.train, key=jax.random.key(0))
    assert not np.allclose(inputs, moved)
    assert len(task.test.labels) == 10
    assert experiment.augmentations("mlp", images) == ()
    wide = images._replace(train=data.Split(np.zeros((1, 64, 64, 3)), [0]))
    crop = experiment.augmentations("vgg5", wide)[1]
    assert crop(None, jnp.zeros((2, 64, 64, 3))).shape == (2, 56, 56, 3)


def test_a_small_run(tmp_path, capsys):
    config = pcx_benchmark.Config(
        epochs=1, algorithms=("BP-CE", "CN-sign"), out=tmp_path
    )
    pcx_benchmark.main(config)
    found = json.loads((tmp_path / "results.json").read_text())
    methods = found["results"]["methods"]
    assert list(methods) == ["BP-CE", "CN-sign"]
    assert np.shape(methods["CN-sign"]["cosine"]) == (4, 2)
    assert np.shape(methods["CN-sign"]["test"]["top1"]) == (1, 2)
    # The output error is beta times the loss's, and over beta it is that.
    assert np.min(np.array(methods["CN-sign"]["cosine"])[-1]) > 0.99
    what = [claim["what"] for claim in found["claims"]]
    assert "CN-sign is ahead of BP-CE" in what
    assert sum("epoch chosen on half" in row for row in what) == 3
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "BP-CE, seconds of the fastest" in capsys.readouterr().out


def test_a_vgg_net_takes_digits_which_are_enlarged():
    """8 pixels are none after four pools."""
    assert pcx_benchmark.Config(net="vgg5").on_nonfinite == "skip"
    images = data.load("digits")
    size = experiment.Size(1, 1, 20, 10, width=4)
    task = experiment.make_task("vgg5", images, size)
    assert task.train.images.shape == (20, 32, 32, 1)
    np.testing.assert_array_equal(
        task.test.images[:, ::4, 3::4], images.test.images[_chosen(images, 10)]
    )
    chosen = algorithms.algorithm("SE", "vgg5", "digits", LENGTH)
    network = experiment.network_of("vgg5", images, size, chosen)
    inputs, _ = jax.eval_shape(task.prepare, *task.train)
    params = jax.eval_shape(network.init, jax.random.key(0), inputs)
    assert len(params) == 5
    assert params[0]["kernel"].shape == (3, 3, 1, 4)
    assert jax.eval_shape(network.apply, params, inputs).shape == (20, 10)


def _chosen(images, count):
    """Which test images are the first of their class, one of each of ten."""
    labels = images.test.labels
    return np.sort([np.flatnonzero(labels == label)[0] for label in range(count)])


@pytest.mark.exhaustive
def test_a_small_run_of_a_vgg_net(tmp_path):
    config = pcx_benchmark.Config(
        net="vgg5", epochs=1, seeds=1, algorithms=("BP-CE", "SE"), out=tmp_path
    )
    pcx_benchmark.main(config)
    methods = json.loads((tmp_path / "results.json").read_text())["results"]["methods"]
    assert np.shape(methods["SE"]["cosine"]) == (5, 1)
    assert np.isfinite(methods["SE"]["train_loss"]).all()


@pytest.mark.parametrize(
    "name", ["iPC", "CN", "ePC", *thorough(["SeqIL-MQ", "PC-rest"])]
)
def test_every_kind_of_algorithm_learns(name):
    """One recipe each on a net of the benchmark: the loss falls in a few iterations."""
    case = problems.dense_case((5, 12, 4))
    chosen = algorithms.algorithm(
        name, "mlp", "digits", LENGTH._replace(rate_factor=20.0)
    )
    method = chosen.method
    recipe = method.rule(chosen.settings, chosen.hyper.step_size)
    tx = method.optimizer(chosen.hyper.learning_rate, chosen.settings)
    update = recipe.update(case.network, pcjax.softmax, tx)

    def train(params):
        def iterate(carry, _):
            *carry, (_, info) = update(*carry, case.inputs, case.targets)
            return tuple(carry), info.loss.mean()

        return jax.lax.scan(iterate, (params, tx.init(params)), length=30)[1]

    losses = jax.jit(train)(case.params)
    assert losses[-1] < 0.98 * losses[0]


def test_pc_at_rest_is_at_rest():
    case = problems.dense_case((5, 12, 12, 4))
    chosen = algorithms.algorithm("PC-rest", "mlp", "digits", LENGTH)
    recipe = chosen.method.rule(chosen.settings, chosen.hyper.step_size)
    task = small_task(case)
    params = jax.tree.map(lambda x: x[None], case.params)
    found = measures.residuals(recipe, task, params, case.inputs, case.targets)
    assert found.shape == (1,)
    assert found < 1e-3


def test_a_method_that_diverged_is_said():
    curves = {"cosine": [[None], [None]], "residual": [None]}
    [claim] = statements._cosines({"PC-rest": curves})
    assert claim.here == "not finite for all examples of a batch"
    curves = {"cosine": [[0.5], [1.0]], "residual": [0.25]}
    [claim] = statements._cosines({"PC-rest": curves})
    assert claim.here == "0.500, 1.000, 0.500; ||dF/dh|| is down to 0.2 of it"
