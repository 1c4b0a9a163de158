"""The free energy against eq. 1 written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pcjax
from tests import problems

SIZES, BATCH = (3, 4, 5, 6, 2), 3
LAYERS = len(SIZES) - 1
RNG = np.random.default_rng(0)
EXAMPLES = RNG.uniform(0.1, 2, (LAYERS, BATCH))
ONES = np.ones((LAYERS, BATCH))


def _from_errors(activities, errors):
    """A weight that depends on activities, errors and the layer."""
    return jnp.stack(
        [
            (index + 1) * jnp.sum(h**2, 1) + jnp.sum(e**2, 1)
            for index, (h, e) in enumerate(zip(activities[1:], errors, strict=True))
        ]
    )


def _column(*values):
    return np.array(values)[:, None] * np.ones((1, BATCH))


# name: (what is passed, the same as a function (activities, errors) -> [L, B])
GAMMAS = {
    "number": (0.7, lambda h, e: _column(0.7, 0.7, 0.7, 1)),
    "none": (0, lambda h, e: _column(0, 0, 0, 1)),
    "none of one": ([0.5, 0, 3.0], lambda h, e: _column(0.5, 0, 3, 1)),
    "integer": (2, lambda h, e: _column(2, 2, 2, 1)),
    "hidden": ([0.5, 2, 3.0], lambda h, e: _column(0.5, 2, 3, 1)),
    "all": ((0.5, 2, 3.0, 4.0), lambda h, e: _column(0.5, 2, 3, 4)),
    "hidden_array": (np.array([0.5, 2, 3]), lambda h, e: _column(0.5, 2, 3, 1)),
    "hidden_examples": (
        EXAMPLES[:-1],
        lambda h, e: np.concatenate([EXAMPLES[:-1], ONES[:1]]),
    ),
    "all_examples": (EXAMPLES, lambda h, e: EXAMPLES),
    "mixed_list": (
        [0.5, EXAMPLES[1], 3.0],
        lambda h, e: np.stack([0.5 * ONES[0], EXAMPLES[1], 3 * ONES[0], ONES[0]]),
    ),
    "callable": (_from_errors, lambda h, e: np.asarray(_from_errors(h, e))),
    "callable_number": (lambda h, e: 0.3, lambda h, e: _column(0.3, 0.3, 0.3, 1)),
}
DECAYS = {
    "zero": (0.0, lambda h, e: 0 * ONES[1:]),
    "number": (0.3, lambda h, e: 0.3 * ONES[1:]),
    "layers": ([0.5, 0, 2.0], lambda h, e: _column(0.5, 0, 2)),
    "examples": (EXAMPLES[1:], lambda h, e: EXAMPLES[1:]),
    "callable": (
        lambda h, e: _from_errors(h, e)[1:],
        lambda h, e: np.asarray(_from_errors(h, e))[1:],
    ),
}
ACTIVATIONS = {
    "relu": (jax.nn.relu, lambda h: np.maximum(h, 0)),
    "tanh": (jnp.tanh, np.tanh),
}


def _cross_entropy(logits, targets):
    return -np.sum(
        targets * (logits - np.log(np.sum(np.exp(logits), 1, keepdims=True))), 1
    )


def _binary_cross_entropy(logits, targets):
    return np.sum(np.log(1 + np.exp(logits)) - targets * logits, 1)


LOSSES = {
    "softmax": (_cross_entropy, lambda p: np.exp(p) / np.exp(p).sum(1, keepdims=True)),
    "sigmoid": (_binary_cross_entropy, lambda p: 1 / (1 + np.exp(-p))),
    "identity": (lambda p, y: np.sum((y - p) ** 2, 1) / 2, lambda p: p),
}


def _problem(activation="tanh"):
    """A network with activities that are far from its predictions."""
    case = problems.dense_case(
        SIZES, ACTIVATIONS[activation][0], batch=BATCH, dtype=jnp.float64
    )
    rng = np.random.default_rng(2)
    hidden = [jnp.asarray(rng.normal(size=(BATCH, size))) for size in SIZES[1:-1]]
    return case, (case.inputs, *hidden, case.targets)


def _errors(case, activities, f, link):
    """`(e_1, ..., e_L)` and the logits, in NumPy."""
    h = [np.asarray(x) for x in activities]
    predictions = [
        (f(x) if index else x) @ np.asarray(theta["kernel"]) + np.asarray(theta["bias"])
        for index, (x, theta) in enumerate(zip(h[:-1], case.params, strict=True))
    ]
    outputs = [*predictions[:-1], link(predictions[-1])]
    return [x - p for x, p in zip(h[1:], outputs, strict=True)], predictions[-1]


def _equation_1(case, activities, activation, output, gamma, decay):
    f, (loss, link) = ACTIVATIONS[activation][1], LOSSES[output]
    errors, logits = _errors(case, activities, f, link)
    gammas, decays = gamma(activities, errors), decay(activities, errors)
    rows = [
        g / 2 * np.sum(e**2, 1) + d / 2 * np.sum(f(np.asarray(h)) ** 2, 1)
        for g, d, e, h in zip(
            gammas[:-1], decays, errors[:-1], activities[1:-1], strict=True
        )
    ]
    return np.stack([*rows, gammas[-1] * loss(logits, np.asarray(activities[-1]))])


@pytest.mark.parametrize(
    ("gamma", "decay", "activation", "output"),
    [
        *((name, "zero", "tanh", "softmax") for name in GAMMAS),
        *(("number", name, "tanh", "sigmoid") for name in DECAYS),
        ("all_examples", "examples", "relu", "identity"),
        ("callable", "callable", "relu", "softmax"),
    ],
)
def test_free_energy_is_equation_1(x64, gamma, decay, activation, output):
    case, activities = _problem(activation)
    weights = {"gamma": GAMMAS[gamma][0], "decay": DECAYS[decay][0]}
    arguments = (case.network, case.params, activities)
    link = problems.OUTPUTS[output]
    rows = _equation_1(
        case, activities, activation, output, GAMMAS[gamma][1], DECAYS[decay][1]
    )
    problems.assert_trees_close(
        pcjax.free_energy_per_layer(*arguments, output=link, **weights), rows
    )
    problems.assert_trees_close(
        pcjax.free_energy(*arguments, output=link, **weights), rows.sum(0)
    )


@pytest.mark.parametrize("output", LOSSES)
def test_prediction_errors_are_activity_minus_prediction(x64, output):
    case, activities = _problem("relu")
    expected, _ = _errors(case, activities, ACTIVATIONS["relu"][1], LOSSES[output][1])
    actual = pcjax.prediction_errors(
        case.network, case.params, activities, output=problems.OUTPUTS[output]
    )
    problems.assert_trees_close(actual, tuple(expected))


def test_energy_at_feed_forward_activities_is_the_loss(x64):
    case, _ = _problem()
    hidden = pcjax.feedforward(case.network, case.params, case.inputs)[:-1]
    rows = pcjax.free_energy_per_layer(
        case.network,
        case.params,
        (case.inputs, *hidden, case.targets),
        output=pcjax.softmax,
    )
    np.testing.assert_array_equal(rows[:-1], np.zeros((LAYERS - 1, BATCH)))
    logits = np.asarray(case.network.apply(case.params, case.inputs))
    problems.assert_trees_close(
        rows[-1], _cross_entropy(logits, np.asarray(case.targets))
    )


def test_one_layer_has_the_loss_alone(x64):
    case = problems.dense_case((3, 2), dtype=jnp.float64)
    logits = np.asarray(case.network.apply(case.params, case.inputs))
    for gamma, weight in ((5.0, 1.0), ([5.0], 5.0)):
        energy = pcjax.free_energy(
            case.network, case.params, (case.inputs, case.targets), gamma=gamma
        )
        expected = weight * np.sum((logits - np.asarray(case.targets)) ** 2, 1) / 2
        problems.assert_trees_close(energy, expected)


def test_image_shaped_activities_sum_over_all_axes(x64):
    case = problems.network_case("conv", dtype=jnp.float64)
    predictions = pcjax.feedforward(case.network, case.params, case.inputs)
    offsets = [0.5 + index for index in range(len(predictions) - 1)]
    hidden = [p + c for p, c in zip(predictions, offsets, strict=False)]
    rows = pcjax.free_energy_per_layer(
        case.network,
        case.params,
        (case.inputs, *hidden, case.targets),
        gamma=2.0,
        decay=0.5,
    )
    # Only h_1 sits on its feed-forward prediction: e_1 is constant.
    count, h = predictions[0][0].size, np.asarray(hidden[0])
    expected = offsets[0] ** 2 * count + np.sum(h**2, (1, 2, 3)) / 4
    problems.assert_trees_close(rows[0], expected)
