"""What MQ takes for a layer: containers, boxes, names and stacks."""

import inspect
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcjax
from pcjax.optimizers import first_gradient, layer_names
from pcjax.optimizers.mq import mq, scale_by_mq
from tests.test_mq import TwoLinear, at, full, gradient_sequence, nnx_state, run, scan


class Attention(NamedTuple):
    query: jax.Array
    key: jax.Array
    value: jax.Array


class Critic(NamedTuple):
    value: jax.Array


ATTENTION = Attention(full(1, 2, 2), full(2, 2, 2), full(9, 2, 2))
TREES = {
    "attention": ({"attn": ATTENTION}, {"attn": 4}),
    "attention and others": (
        ({"block": ATTENTION, "mlp": {"w": full(5, 2)}},),
        {"0/block": 4, "0/mlp": 5},
    ),
    "an only field": (
        {"actor": {"w": full(3, 2)}, "critic": Critic(full(1, 2))},
        {"actor": 3, "critic": 1},
    ),
    "layers": ((ATTENTION, Critic(full(6, 3))), {"0": 4, "1": 6}),
    "a dict": ({"l": {"value": full(4, 3), "key": full(2, 3)}}, {"l": 3}),
    "boxed": (
        {
            "a": nn.LogicallyPartitioned(full(4, 3), ("x",)),
            "b": {"value": nn.Partitioned(full(1, 2), (None,)), "w": full(5, 2)},
        },
        {"": 4, "b": 3},
    ),
    "a box around a tree": (
        {"a": nn.Partitioned({"w": {"k": full(4, 3)}, "u": full(2, 3)}, (None,))},
        {"a/value": 2, "a/value/w": 4},
    ),
    "boxes at the top": (
        (nn.Partitioned(full(4, 3), (None,)), nnx.Param(full(2, 3))),
        {"0": 4, "1": 2},
    ),
    "nnx": (nnx_state(), {"first": 3, "second": 20 / 3}),
}


@pytest.mark.parametrize("name", TREES)
def test_a_field_called_value_is_a_parameter_and_a_box_is_none(name):
    gradients, means = TREES[name]
    tx = scale_by_mq(1.0)
    _, state = tx.update(gradients, tx.init(gradients))
    assert layer_names(gradients) == tuple(means)
    np.testing.assert_allclose(
        state.v, (1 + np.array(list(means.values()))) / 2, rtol=1e-6
    )


def test_group_fn_still_sees_whole_paths():
    seen = []
    boxed = {"a": nn.Partitioned(full(4, 3), (None,)), "b": ATTENTION}
    scale_by_mq(1.0, group_fn=lambda path: seen.append(path) or "all").init(boxed)
    assert seen == [path for path, _ in jax.tree_util.tree_leaves_with_path(boxed)]


# Names.


@pytest.mark.parametrize("jit", [False, True])
def test_rates_by_name_are_rates_in_order(jit):
    sequence = gradient_sequence(4)
    schedule = lambda count: 0.05 / (1 + count)  # noqa: E731
    named = mq({"2": 0.02, "0": 0.01, "1": schedule})
    ordered = mq(lambda count: jnp.stack([0.01, schedule(count), 0.02]))
    execute = run if jit else scan
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-6),
        execute(named, sequence),
        execute(ordered, sequence),
    )


def test_a_schedule_may_return_rates_by_name():
    gradients = {"a": full(1, 2), "b": {"w": full(1, 2)}}
    tx = scale_by_mq(lambda count: {"b": 3.0, "": 1.0}, eps=1.0, min_step=0.0)
    updates, _ = tx.update(gradients, tx.init(gradients))
    np.testing.assert_allclose(updates["a"], 1 / 2)
    np.testing.assert_allclose(updates["b"]["w"], 3 / 4)


def test_names_of_a_models_layers_make_rates():
    model = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)])
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 4)))
    names = layer_names(params)
    assert names == ("params/layers_0", "params/layers_2")
    rates = {name: 1e-3 if name.endswith("_0") else 2e-3 for name in names}
    np.testing.assert_allclose(mq(rates).init(params)[0].v, [1e-3, 2e-3])
    own = layer_names(params, group_fn=lambda path: path[-1].key)
    assert own == ("bias", "kernel")
    state = mq({"bias": 1.0, "kernel": 2.0}, group_fn=lambda path: path[-1].key)
    np.testing.assert_allclose(state.init(params)[0].v, [1, 2])


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"0": 1.0, "1": 1.0}, r"\['0', '1'\]; expected exactly \['0', '1', '2'\], "
         r"and \['2'\] besides"),
        ({"0": 1.0, "1": 1.0, "2": 1.0, "x": 1.0}, r"expected exactly \['0', '1', "
         r"'2'\], without \['x'\]\. Layers are called as pcjax"),
        ({0: 1.0, 1: 1.0, 2: 1.0}, r"without \['0', '1', '2'\], and \['0', '1', '2'\]"),
        ({"0": 1.0, "1": [1.0, 2.0], "2": 1.0}, r"of the layer 1 has shape \(2,\); "
         r"expected a single number\."),
        ({"0": 1.0, "1": -1.0, "2": 1.0}, "of the layer 1 must be >= 0 .* got -1"),
    ],
)  # fmt: skip
def test_refuses_names_that_do_not_match(rates, message):
    with pytest.raises(ValueError, match=f"(?s)^scale_by_mq: learning_rate.*{message}"):
        mq(rates).init(at(gradient_sequence(1), 0))


def test_refuses_a_mapping_in_the_place_of_a_number():
    with pytest.raises(ValueError, match=r"decay must be a single number, got \{'0'"):
        mq(0.1, decay={"0": 0.5})


# Stacks.


def in_blocks(path):
    return path[0].key == "blocks"


@pytest.mark.parametrize("start", [None, first_gradient, 0.3])
def test_layers_in_a_stack_move_as_if_apart(start):
    rng = np.random.default_rng(0)

    def layer(scale):
        shapes = {"kernel": (4, 3, 2), "bias": (4, 2)}  # of four steps
        return {
            name: np.float32(scale * rng.normal(size=shape))
            for name, shape in shapes.items()
        }

    blocks, head = [layer(s) for s in (1e-3, 1.0, 30.0)], layer(1)
    apart = {**{f"blocks{i}": block for i, block in enumerate(blocks)}, "head": head}
    together = {
        "blocks": jax.tree.map(lambda *x: np.stack(x, 1), *blocks),
        "head": head,
    }
    rates = [0.01, 0.05, 0.02, 0.03]
    found, (state, _) = run(mq(rates, start=start, stacked=in_blocks), together)
    expected, (other, _) = run(mq(rates, start=start), apart)
    np.testing.assert_allclose(state.v, other.v, rtol=1e-6)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(found["head"][name], expected["head"][name], 1e-6)
        for index in range(3):
            np.testing.assert_allclose(
                found["blocks"][name][:, index],
                expected[f"blocks{index}"][name],
                rtol=2e-6,
            )


def test_scanned_layers_of_linen_have_a_scalar_each():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + nn.Dense(3)(nn.LayerNorm()(x)), None

    blocks = nn.scan(
        Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=4
    )()
    params = blocks.init(jax.random.key(0), jnp.ones((2, 3)), None)
    everywhere = lambda path: True  # noqa: E731
    names = layer_names(params, stacked=everywhere)
    assert names == tuple(
        f"params/{module}/{index}"
        for module in ("Dense_0", "LayerNorm_0")
        for index in range(4)
    )
    assert mq(1e-3).init(params)[0].v.shape == (2,)
    tx = scale_by_mq(
        {"params/Dense_0": [1.0, 2.0, 3.0, 4.0], "params/LayerNorm_0": 5.0},
        stacked=everywhere,
    )
    state = tx.init(params)
    np.testing.assert_allclose(state.v, [1, 2, 3, 4, 5, 5, 5, 5])
    _, state = jax.jit(tx.update)(params, state)
    dense_0 = params["params"]["Dense_0"]
    means = np.abs(dense_0["kernel"]).sum((1, 2)) / 12  # nine weights, three biases
    np.testing.assert_allclose(
        state.v, [*(np.arange(1, 5) + means) / 2, *[(5 + 0.5) / 2] * 4], rtol=1e-6
    )


def test_stacks_of_half_precision_have_single_precision_statistics():
    values = np.random.default_rng(0).normal(size=(2, 50, 100))
    gradients = {"w": jnp.asarray(values, jnp.bfloat16)}
    tx = scale_by_mq(0.0, stacked=lambda path: True)  # v_1 = mean / 2
    updates, state = tx.update(gradients, tx.init(gradients))
    assert updates["w"].dtype == jnp.bfloat16
    means = np.abs(np.asarray(gradients["w"], np.float64)).mean((1, 2))
    np.testing.assert_allclose(state.v, means / 2, rtol=1e-6)


def test_an_empty_stack_has_no_layers():
    tree = {"blocks": full(1, 0, 3), "rest": {"w": full(2, 2)}}
    tx = scale_by_mq(1.0, stacked=in_blocks)
    updates, state = tx.update(tree, tx.init(tree))
    assert updates["blocks"].shape == (0, 3)
    np.testing.assert_allclose(state.v, [1.5])


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"kernel": full(1, 4, 3), "bias": full(1, 3)},
            r"the layer the whole tree have leading axes of layers of sizes \[3, 4\]",
        ),
        ({"scale": full(1.0)}, r"the leaf at '\['scale'\]' is a single number"),
    ],
)
def test_refuses_what_is_no_stack(tree, message):
    with pytest.raises(ValueError, match=f"scale_by_mq: .*{message}"):
        mq(0.1, stacked=lambda path: True).init(tree)


def test_refuses_stacked_and_other_arrays_in_one_layer():
    tree = {"l": {"kernel": full(1, 4, 3), "bias": full(1, 3)}}
    with pytest.raises(ValueError, match=r"layer l have .* sizes \[None, 4\]"):
        mq(0.1, stacked=lambda path: path[-1].key == "kernel").init(tree)


# What nnx filters.


def test_gradients_that_nnx_filtered_away_are_refused_with_the_filter_named():
    model = TwoLinear(3, 2, 3)
    grads = nnx.grad(lambda model: jnp.sum(model(jnp.ones((1, 3)))))(model)
    optimizer = nnx.Optimizer(model, pcjax.mq(1e-3), wrt=nnx.Param)
    if "model" not in inspect.signature(optimizer.update).parameters:
        pytest.skip("this version of flax hands on gradients as they are")
    optimizer.update(model, grads)
    message = r"gradients of 0 layers \(none\), .* 2 layers .*nnx.Optimizer .*`wrt`"
    with pytest.raises(ValueError, match=message):
        optimizer.update(model, nnx.to_pure_dict(grads))
