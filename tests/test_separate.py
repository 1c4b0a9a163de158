"""Whether the examples of a batch are separate: told of every layer that mixes them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pcjax
from pcjax.networks.network import Layer, Network
from pcjax.networks.separate import check_separate
from tests import problems
from tests.tiers import thorough

INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)


def _with(function):
    """Two dense layers with a layer between them that has no parameters."""
    layer = Layer(lambda key, x: {}, lambda params, x: function(x))
    return Network((pcjax.dense(6), layer, pcjax.dense(4)))


def _check(function, inputs=INPUTS):
    network = _with(function)
    check_separate(network, _params(), inputs)


@functools.cache
def _params():
    """Of every network of `_with`."""
    return problems.make(_with(lambda x: x), INPUTS.shape[1:]).params


@pytest.mark.parametrize("name", ["residual", "nnx", *thorough(["relu", "linen"])])
def test_separate_layers_pass(name):
    case = problems.network_case(name)
    check_separate(case.network, case.params, case.inputs)


def test_a_separate_convolution_passes():
    network = pcjax.convnet(4, features=(3,), kernel_sizes=(3,))
    case = problems.make(network, (6, 5, 2), batch=3)
    check_separate(network, case.params, case.inputs)


@pytest.mark.exhaustive
def test_separate_convolutions_pass():
    case = problems.network_case("conv")
    check_separate(case.network, case.params, case.inputs)


# Of all kinds: statistics of the batch, with and without a derivative; neighbours; one
# pair of examples in one direction alone; order; the batch size.
MIXING = {
    "mean": lambda x: x - x.mean(0, keepdims=True),
    "stopped mean": lambda x: x - jax.lax.stop_gradient(x).mean(0, keepdims=True),
    "normalised": lambda x: x / jnp.std(x, 0, keepdims=True),
    "next": lambda x: x + jnp.roll(x, 1, 0),
    "rank": lambda x: x + jnp.argsort(jnp.argsort(x, 0), 0),
    "weak": lambda x: x + 1e-4 * x.sum(0, keepdims=True),
}


@pytest.mark.parametrize("name", MIXING)
def test_layers_that_mix_are_named(name):
    with pytest.raises(ValueError, match=r"layer 1 mixes .* depends on the others"):
        _check(MIXING[name])


OTHER_PAIRS = [
    pytest.param(pair, marks=pytest.mark.exhaustive)
    for pair in ((1, 0), (0, 4), (1, 3))
]


@pytest.mark.parametrize("pair", [(0, 1), (4, 0), (3, 2), *OTHER_PAIRS])
def test_a_single_pair_is_found(pair):
    one, other = pair
    with pytest.raises(ValueError, match=r"layer 1 mixes .* depends on the others"):
        _check(lambda x: x.at[one].add(0.1 * x[other]))


def test_the_batch_size_is_found():
    with pytest.raises(ValueError, match=r"layer 1 mixes .* on how many there are"):
        _check(lambda x: x / x.shape[0])


def test_what_is_not_finite_is_no_mixing():
    _check(lambda x: jnp.log(x))


def test_one_example_is_refused():
    with pytest.raises(ValueError, match=r"two examples or more, .* shape \(1, 6\)"):
        _check(lambda x: x, INPUTS[:1])


def test_tokens_stand_in_for_each_other():
    embed = pcjax.from_linen(nn.Embed(11, 6))._replace(tokens=True)

    def mean(params, x):
        return embed.apply(params, x) - embed.apply(params, x).mean(0, keepdims=True)

    tokens = jnp.asarray([[3, 1], [3, 2], [0, 2]])
    params = Network((embed, pcjax.dense(4))).init(jax.random.key(0), tokens)
    for layer, mixes in ((embed, False), (embed._replace(apply=mean), True)):
        network = Network((layer, pcjax.dense(4)))
        if mixes:
            with pytest.raises(ValueError, match=r"layer 0 mixes .* on the others"):
                check_separate(network, params, tokens)
        else:
            check_separate(network, params, tokens)
    with pytest.raises(ValueError, match="example 1 is the same as the one before"):
        check_separate(network, params, tokens.at[1, 1].set(1))
