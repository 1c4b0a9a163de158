"""Bad input is refused with what was given and what was expected."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcjax
from pcjax.networks.network import Network
from tests import problems

CASE = problems.dense_case((3, 4, 5, 2))  # a batch of 5
NETWORK, PARAMS, INPUTS, TARGETS = CASE
METHOD = pcjax.sequential(2, 0.1)
SGD = optax.sgd(0.1)
OPT_STATE = SGD.init(PARAMS)
ACTIVITIES = (
    INPUTS,
    *pcjax.feedforward(NETWORK, PARAMS, INPUTS)[:-1],
    TARGETS,
)

# Every public function that takes a batch: name in its messages, call.
BATCH_FUNCTIONS = {
    "value_and_grad": lambda *args: pcjax.value_and_grad(NETWORK, METHOD)(*args),
    "infer": lambda *args: pcjax.infer(NETWORK, METHOD, *args),
    "backprop.value_and_grad": lambda *args: pcjax.backprop.value_and_grad(NETWORK)(
        *args
    ),
    "incremental": lambda params, *args: pcjax.incremental(NETWORK, METHOD, SGD)(
        params, OPT_STATE, *args
    ),
}
BATCHES = {
    "target_classes": (
        (PARAMS, INPUTS, jnp.ones((5, 3))),
        ValueError,
        r"targets have shape \(5, 3\), but the network's outputs have shape \(5, 2\)",
    ),
    "target_rank": (
        (PARAMS, INPUTS, jnp.ones(5)),
        ValueError,
        r"targets have shape \(5,\), but the network's outputs have shape \(5, 2\)",
    ),
    "target_count": (
        (PARAMS, INPUTS, TARGETS[:4]),
        ValueError,
        r"targets have shape \(4, 2\), but the network's outputs have shape \(5, 2\)",
    ),
    "labels": (
        (PARAMS, INPUTS, jnp.arange(5)),
        TypeError,
        r"targets must be floats, got int32 of shape \(5,\).*one_hot",
    ),
    "integer_images": (
        (PARAMS, jnp.ones((5, 3), jnp.uint8), TARGETS),
        TypeError,
        r"inputs must be floats, got uint8 of shape \(5, 3\)",
    ),
    "no_examples": (
        (PARAMS, INPUTS[:0], TARGETS[:0]),
        ValueError,
        r"inputs must hold at least one example, got shape \(0, 3\)",
    ),
    "one_example_unbatched": (
        (PARAMS, INPUTS[0], TARGETS[0]),
        ValueError,
        r"inputs must be a batch \[B, \.\.\.\], got shape \(3,\)",
    ),
    "input_size": (
        (PARAMS, jnp.ones((5, 4)), TARGETS),
        ValueError,
        r"layer 0 .*\(5, 4\).*expects 3 input features, but was given 4",
    ),
    "params_of_fewer_layers": (
        (PARAMS[:2], INPUTS, TARGETS),
        ValueError,
        "the network has 3 layers, but params holds 2 entries",
    ),
    "params_of_another_network": (
        (problems.dense_case((3, 4, 6, 2)).params, INPUTS, TARGETS),
        ValueError,
        r"params of another network: layer 1 .*\(4, 5\).*params\[1\] .*\(4, 6\)",
    ),
    "params_of_other_names": (
        (({"w": jnp.ones((3, 4))}, *PARAMS[1:]), INPUTS, TARGETS),
        ValueError,
        r"params of another network: layer 0 .*'kernel'.*params\[0\] .*'w'",
    ),
}


@pytest.mark.parametrize("function", BATCH_FUNCTIONS)
@pytest.mark.parametrize("name", BATCHES)
def test_batches_that_do_not_fit(function, name):
    arguments, kind, message = BATCHES[name]
    if name != "input_size":
        message = f"^{function}: {message}"
    with pytest.raises(kind, match=f"(?s){message}"):
        BATCH_FUNCTIONS[function](*arguments)


@pytest.mark.parametrize("build", problems.METHODS.values())
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0, "step_size": 0.1}, "num_steps must be an int >= 1, got 0"),
        ({"num_steps": -2, "step_size": 0.1}, "num_steps must be .* got -2"),
        ({"num_steps": 2.0, "step_size": 0.1}, r"num_steps must be .* got 2\.0"),
        ({"num_steps": True, "step_size": 0.1}, "num_steps must be .* got True"),
        (
            {"num_steps": 1, "step_size": -0.1},
            r"step_size must be >= 0 and finite, got -0\.1",
        ),
        (
            {"num_steps": 1, "step_size": np.nan},
            "step_size must be >= 0 and finite, got nan",
        ),
        (
            {"num_steps": 1, "step_size": jnp.ones(3)},
            r"step_size must be a number or a schedule, got an array of shape \(3,\)",
        ),
        ({"num_steps": 1}, "exactly one of step_size and optimizer, got .*None.*None"),
        (
            {"num_steps": 1, "step_size": 0.1, "optimizer": SGD},
            r"exactly one of step_size and optimizer, got step_size=0\.1",
        ),
    ],
)
def test_arguments_of_methods(build, arguments, message):
    with pytest.raises(ValueError, match=f"^{build.__name__}: .*{message}"):
        build(**arguments)


NEEDS = (
    r"{} must be a number or hold one weight \(or one per example, \[5\]\) "
    "for each of the 2 hidden layers"
)
WEIGHTS = {
    "negative_gamma": ({"gamma": -1.0}, r"gamma must be >= 0 and finite, got -1\.0"),
    "nan_gamma": ({"gamma": float("nan")}, "gamma must be >= 0 and finite, got nan"),
    "one_negative_gamma": (
        {"gamma": [1.0, -2.0]},
        r"gamma must be >= 0 and finite, got -2\.0",
    ),
    "too_many_gammas": (
        {"gamma": [1.0, 1.0, 1.0, 1.0]},
        NEEDS.format("gamma") + r" and, if wished, the output; got 4 weights",
    ),
    "too_few_gammas": ({"gamma": [1.0]}, NEEDS.format("gamma") + ".*got 1 weights"),
    "gamma_of_another_batch": (
        {"gamma": np.ones((2, 4))},
        NEEDS.format("gamma") + r".*got 2 weights of shapes \[\(4,\), \(4,\)\]",
    ),
    "callable_gamma": (
        {"gamma": lambda activities, errors: jnp.ones(5)},
        NEEDS.format("gamma") + ".*got 5 weights",
    ),
    "negative_decay": ({"decay": -0.1}, r"decay must be >= 0 and finite, got -0\.1"),
    "too_many_decays": (
        {"decay": [0.1, 0.1, 0.1]},
        NEEDS.format("decay") + r"; got 3 weights of shapes \[\(\), \(\), \(\)\]",
    ),
    "decay_of_another_batch": (
        {"decay": np.ones((2, 1))},
        NEEDS.format("decay") + r"; got 2 weights of shapes \[\(1,\), \(1,\)\]",
    ),
}
WEIGHTED = {
    "free_energy": lambda **weights: pcjax.free_energy(
        NETWORK, PARAMS, ACTIVITIES, **weights
    ),
    "value_and_grad": lambda **weights: pcjax.value_and_grad(
        NETWORK, METHOD, **weights
    )(*CASE[1:]),
    "incremental": lambda **weights: pcjax.incremental(NETWORK, METHOD, SGD, **weights)(
        PARAMS, OPT_STATE, INPUTS, TARGETS
    ),
}


@pytest.mark.parametrize("function", WEIGHTED)
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_wrong(function, name):
    weights, message = WEIGHTS[name]
    with pytest.raises(ValueError, match=message):
        WEIGHTED[function](**weights)


def test_negative_soft_clamp():
    with pytest.raises(
        ValueError, match=r"^soft_clamp: gamma must be >= 0 and finite, got -0\.5"
    ):
        pcjax.soft_clamp(-0.5)


def _replace(index, value):
    return tuple(value if i == index else h for i, h in enumerate(ACTIVITIES))


@pytest.mark.parametrize(
    ("params", "activities", "kind", "message"),
    [
        (
            PARAMS,
            ACTIVITIES[:-1],
            ValueError,
            "a network of 3 layers has 4 activities and 3 params, got 3 and 3",
        ),
        (PARAMS[:1], ACTIVITIES, ValueError, "4 activities and 3 params, got 4 and 1"),
        (
            PARAMS,
            _replace(2, jnp.ones((5, 6))),
            ValueError,
            r"layer 1 predicts shape \(5, 5\), but activities\[2\] has shape \(5, 6\)",
        ),
        (
            PARAMS,
            _replace(3, jnp.ones((4, 2))),
            ValueError,
            r"layer 2 predicts shape \(5, 2\), but activities\[3\] has shape \(4, 2\)",
        ),
        (
            PARAMS,
            _replace(0, jnp.ones((5, 7))),
            ValueError,
            r"layer 0 does not accept an activity of shape \(5, 7\)",
        ),
        (
            PARAMS,
            _replace(3, jnp.ones((5, 2), jnp.int32)),
            TypeError,
            r"activities\[3\] must be floats, got int32 of shape \(5, 2\)",
        ),
    ],
    ids=["count", "params", "hidden", "batch", "input", "integers"],
)
@pytest.mark.parametrize(
    "function", [pcjax.free_energy, pcjax.prediction_errors, pcjax.local_gradients]
)
def test_activities_that_do_not_fit(function, params, activities, kind, message):
    with pytest.raises(kind, match=message) as error:
        function(NETWORK, params, activities)
    if "does not accept" not in message:
        assert str(error.value).startswith(
            ("free_energy: ", "local_gradients: ", "prediction_errors: ")
        )


KEY = jax.random.key(0)
BROKEN_CHAIN = Network((pcjax.dense(4), pcjax.dense(2, in_features=5)))
CONV_ON_DENSE = Network((pcjax.dense(4), pcjax.conv(2, (3, 3))))
NNX_CHAIN = Network(
    (
        pcjax.from_nnx(lambda rngs: nnx.Linear(3, 4, rngs=rngs)),
        pcjax.from_nnx(lambda rngs: nnx.Linear(5, 2, rngs=rngs)),
    )
)
LINEN_CONV = Network((pcjax.dense(4), pcjax.from_linen(nn.Conv(2, (3, 3, 3)))))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: BROKEN_CHAIN.init(KEY, INPUTS),
            ValueError,
            r"layer 1 .*\(5, 4\).*expects 5 input features, but was given 4",
        ),
        (
            lambda: CONV_ON_DENSE.init(KEY, INPUTS),
            ValueError,
            r"layer 1 .*expects images \[B, H, W, C\], but was given \(5, 4\)",
        ),
        (
            lambda: NNX_CHAIN.init(KEY, INPUTS),
            ValueError,
            r"layer 1 does not accept an activity of shape \(5, 4\)",
        ),
        (
            lambda: LINEN_CONV.init(KEY, INPUTS),
            ValueError,
            r"layer 1 does not accept an activity of shape \(5, 4\)",
        ),
        (
            lambda: pcjax.convnet(10).init(KEY, jnp.ones((1, 8, 8, 3))),
            ValueError,
            r"layer 1 .*filters of \(5, 5\) do not fit into images \(1, 2, 2, 64\)",
        ),
        (
            lambda: NETWORK.init(KEY, jnp.ones((5, 3), jnp.int32)),
            TypeError,
            r"inputs must be floats, got int32 of shape \(5, 3\)",
        ),
        (
            lambda: NETWORK.apply(PARAMS, jnp.ones((5, 3), jnp.uint8)),
            TypeError,
            r"inputs must be floats, got uint8 of shape \(5, 3\)",
        ),
        (
            lambda: NETWORK.init(KEY, jnp.ones(())),
            ValueError,
            r"inputs must be a batch \[B, \.\.\.\], got shape \(\)",
        ),
        (
            lambda: NETWORK.init(KEY, jnp.ones(3)),
            ValueError,
            r"inputs must be a batch \[B, \.\.\.\], got shape \(3,\)",
        ),
        (
            lambda: Network(()).init(KEY, INPUTS),
            ValueError,
            "a network has at least one layer, got none",
        ),
        (
            lambda: pcjax.infer(Network(()), METHOD, (), INPUTS, INPUTS),
            ValueError,
            "a network has at least one layer, got none",
        ),
        (
            lambda: pcjax.free_energy(Network(()), (), (INPUTS,)),
            ValueError,
            "a network has at least one layer, got none",
        ),
        (
            lambda: pcjax.feedforward(NETWORK, PARAMS[1:], INPUTS),
            ValueError,
            "feedforward: the network has 3 layers, but params holds 2 entries",
        ),
        (
            lambda: NETWORK.apply(PARAMS[::-1], INPUTS),
            ValueError,
            r"^feedforward: params of another network: layer 0 .*\(5, 2\)",
        ),
        (lambda: pcjax.mlp([3]), ValueError, r"mlp: .*two or more .*got \[3\]"),
        (lambda: pcjax.mlp([3, 0, 2]), ValueError, r"positive sizes, got \[3, 0, 2\]"),
        (
            lambda: pcjax.convnet(10, features=(4, 5)),
            ValueError,
            "convnet: 2 features, but 3 kernel sizes",
        ),
        (
            lambda: pcjax.autoencoder([5, 3, 4]),
            ValueError,
            "autoencoder: the input has size 5, the reconstruction 4",
        ),
    ],
)
def test_networks_that_cannot_be(call, kind, message):
    with pytest.raises(kind, match=f"(?s){message}"):
        call()


@pytest.mark.parametrize(
    "make",
    [
        lambda x: pcjax.soft_clamp(x),
        lambda x: pcjax.nudge(x),
        lambda x: pcjax.free_nudge(x),
        lambda x: pcjax.sequential(2, x),
        lambda x: pcjax.langevin(2, 0.1, temperature=x),
        lambda x: pcjax.langevin(2, 0.1, momentum=x),
        lambda x: pcjax.spiking(x),
        lambda x: pcjax.decaying(x),
        lambda x: pcjax.barzilai_borwein(largest=x),
        lambda x: pcjax.augmented_lagrangian(pcjax.mlp([3, 2, 2]), 2, x),
        lambda x: pcjax.augmented_lagrangian(pcjax.mlp([3, 2, 2]), 2, 0.1, rho=x),
    ],
)
def test_an_array_is_no_single_number(make):
    """It would broadcast over examples or features."""
    with pytest.raises(ValueError, match=r"must be a .*number.*shape \(2,\)"):
        make(jnp.array([0.1, 0.2]))
