"""The table of MQ's starts: its nets, and what it measures against a loop."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from experiments import mq_starts
from experiments.common.harness import execute
from experiments.mq_starts_nets import NETS, Size
from pcjax import training
from tests.tiers import thorough

SMOKE = mq_starts.EXPERIMENT.sizes["smoke"]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("side", [8, *thorough([32])])
def test_nets_take_images_of_both_sizes(net, side):
    network = NETS[net].make((side, side, 3), 10, dataclasses.replace(SMOKE, blocks=2))
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), images)
    assert jax.eval_shape(network.apply, params, images).shape == (2, 10)
    norms = [path for path in pcjax.optimizers.layer_names(params) if "Norm" in path]
    assert bool(norms) == (net in ("CNN with norms", "transformer"))


def test_the_paper_sizes_are_the_papers():
    size = mq_starts.EXPERIMENT.sizes["paper"]
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    for net, expected in (
        ("MLP", pcjax.mlp([3072, 1024, 1024, 1024, 10])),
        ("conv net", pcjax.convnet(10)),
    ):
        network = NETS[net].make((32, 32, 3), 10, size)
        init = [
            jax.eval_shape(n.init, jax.random.key(0), images)
            for n in (network, expected)
        ]
        assert init[0] == init[1]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("mq_starts")
    config = mq_starts.Config(out=out, nets=("MLP",), factors=(10, 100), seed=3)
    size = Size(2, 1, 96, 8, (4, 4), 8, 1, 32)
    experiment = mq_starts.EXPERIMENT._replace(sizes={"smoke": size})
    shallow = NETS["MLP"]._replace(make=lambda *_: pcjax.mlp([64, 8, 10]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETS, "MLP", shallow)
        execute(experiment, config)
    return config, out, json.loads((out / "results.json").read_text())


def test_a_row_of_the_table_is_that_of_a_loop(found):
    config, _, file = found
    images = config.load()
    network = pcjax.mlp([64, 8, 10])
    x = jnp.asarray(images.train.images[:96], jnp.float32).reshape(96, -1) / 255
    y = jax.nn.one_hot(images.train.labels[:96], 10)
    tests = jnp.asarray(images.test.images, jnp.float32) / 255
    params_key, data_key = jax.random.split(jax.random.fold_in(jax.random.key(3), 0))
    tx = pcjax.mq(1e-2, 0.999, start=pcjax.optimizers.first_gradient)

    @jax.jit
    def step(params, state, index):
        def loss(params):
            logits = jax.nn.log_softmax(network.apply(params, x[index]))
            return -jnp.mean(jnp.sum(y[index] * logits, 1))

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params = jax.jit(network.init)(params_key, x[:1])
    state, losses = tx.init(params), []
    for epoch in range(2):
        for index in training.epoch_batches(data_key, epoch, 96, 32):
            params, state, value = step(params, state, index)
            losses.append(float(value))
    row = file["results"]["nets"]["MLP"]["BP"]["MQ, first gradient"]
    right = np.argmax(network.apply(params, tests), 1) == images.test.labels
    np.testing.assert_allclose(row["accuracy"][1][0], right.mean(), atol=2e-3)
    np.testing.assert_allclose(
        row["epoch_losses"][1][0], np.reshape(losses, (2, 3)).mean(1), rtol=1e-4
    )
    np.testing.assert_allclose(row["second_loss"][1][0], losses[1], rtol=1e-4)
    np.testing.assert_allclose(row["highest_loss"][1][0], max(losses), rtol=1e-4)


def test_every_start_and_adam_are_in_the_table(found):
    _, out, file = found
    nets = file["results"]["nets"]
    assert list(nets) == ["MLP"]
    assert list(nets["MLP"]) == ["BP", "SeqIL"]
    for optimizers in nets["MLP"].values():
        assert list(optimizers) == list(mq_starts.OPTIMIZERS)
        first = [row["epoch_losses"][0][0][0] for row in optimizers.values()]
        assert len(set(first)) == len(first)  # each its own trajectory
    assert (out / "mq_starts.png").stat().st_size > 10_000
    assert len(file["claims"]) == 8


def test_claims_hold_within_two_points_of_adam():
    def row(*accuracies):
        return {"accuracy": [[a] for a in accuracies], "highest_loss": [[1.0], [None]]}

    for mine, holds in ((0.28, True), (0.27, False)):
        others = dict.fromkeys(mq_starts.OPTIMIZERS, row(0.1, 0.2))
        optimizers = others | {
            "Adam": row(0.3, 0.1),
            mq_starts.RECOMMENDED: row(0, mine),
        }
        claims = mq_starts.claims(
            {
                "rates": {"MLP": dict.fromkeys(mq_starts.OPTIMIZERS, (1e-3, 1e-2))},
                "nets": {"MLP": {"BP": optimizers}},
            }
        )
        assert [claim.holds for claim in claims] == [None, None, None, holds]
        assert claims[0].here.startswith("30.00 (rate 0.001; ")
        assert claims[3].here.endswith("by rate: 1, nan)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nets": ("resnet",)}, r"--nets must be some of \['MLP'.* got \['resnet'\]"),
        ({"nets": ()}, "got none"),
        ({"factors": ()}, "must be one number or more, got none"),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        mq_starts.Config(**options)
