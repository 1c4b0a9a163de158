"""Output links, their losses and errors, and the clamps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from tests import problems

LOGITS = np.random.default_rng(0).normal(0, 2, (5, 4))
TARGETS = np.random.default_rng(1).dirichlet(np.ones(4), 5)


def _log_softmax(logits):
    return logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))


# Written out, not taken from a library: link and loss of each output.
CLOSED_FORMS = {
    "softmax": (
        lambda p: np.exp(p) / np.sum(np.exp(p), -1, keepdims=True),
        lambda p, y: -np.sum(y * _log_softmax(p), -1),
    ),
    "sigmoid": (
        lambda p: 1 / (1 + np.exp(-p)),
        lambda p, y: np.sum(np.log(1 + np.exp(p)) - y * p, -1),
    ),
    "identity": (lambda p: p, lambda p, y: np.sum((y - p) ** 2, -1) / 2),
}
OPTAX_LOSSES = {
    "softmax": optax.softmax_cross_entropy,
    "sigmoid": lambda p, y: optax.sigmoid_binary_cross_entropy(p, y).sum(-1),
    "identity": lambda p, y: optax.l2_loss(p, y).sum(-1),
}


@pytest.mark.parametrize("name", problems.OUTPUTS)
def test_link_loss_and_error_in_closed_form(x64, name):
    output, (link, loss) = problems.OUTPUTS[name], CLOSED_FORMS[name]
    logits, targets = jnp.asarray(LOGITS), jnp.asarray(TARGETS)
    problems.assert_trees_close(output.link(logits), link(LOGITS))
    problems.assert_trees_close(output.loss(logits, targets), loss(LOGITS, TARGETS))
    problems.assert_trees_close(output.error(logits, targets), TARGETS - link(LOGITS))
    problems.assert_trees_close(
        output.loss(logits, targets), OPTAX_LOSSES[name](logits, targets)
    )


@pytest.mark.parametrize("name", problems.OUTPUTS)
def test_error_is_minus_the_gradient_of_the_loss(x64, name):
    output = problems.OUTPUTS[name]
    logits, targets = jnp.asarray(LOGITS), jnp.asarray(TARGETS)
    slope = jax.grad(lambda p: jnp.sum(output.loss(p, targets)))(logits)
    problems.assert_trees_close(output.error(logits, targets), -slope)


@pytest.mark.parametrize("name", ["sigmoid", "identity"])
def test_losses_of_images_sum_over_all_pixels(x64, name):
    loss = problems.OUTPUTS[name].loss
    logits, targets = jnp.asarray(LOGITS), jnp.asarray(TARGETS)
    images = loss(logits.reshape(5, 2, 1, 2), targets.reshape(5, 2, 1, 2))
    problems.assert_trees_close(images, CLOSED_FORMS[name][1](LOGITS, TARGETS))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("softmax", [1000.0, 0.0]), ("sigmoid", [2000.0, 0.0])],
)
def test_losses_do_not_overflow(name, expected):
    output = problems.OUTPUTS[name]
    logits = jnp.array([[500.0, -500.0], [500.0, -500.0]])
    if name == "sigmoid":
        logits = 2 * logits
    targets = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_array_equal(output.loss(logits, targets), expected)
    np.testing.assert_array_equal(output.error(logits, targets)[0], [-1, 1])


@pytest.mark.parametrize("name", problems.OUTPUTS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_outputs_and_clamps_keep_the_dtype(x64, name, dtype):
    output = problems.OUTPUTS[name]
    logits, targets = jnp.asarray(LOGITS, dtype), jnp.asarray(TARGETS, dtype)
    clamped = pcjax.soft_clamp(0.01)(targets, output.link(logits), logits)
    for value in (output.loss(logits, targets), output.error(logits, clamped)):
        assert value.dtype == dtype


def test_full_clamp_is_the_target():
    outputs = jnp.asarray(LOGITS)
    targets = jnp.asarray(TARGETS)
    np.testing.assert_array_equal(pcjax.full_clamp(targets, outputs, outputs), targets)


def test_soft_clamp_follows_equation_3(x64):
    outputs, targets = jnp.asarray(LOGITS), jnp.asarray(TARGETS)
    for gamma in (0.01, 0.5, 1, 3.0):
        clamped = pcjax.soft_clamp(gamma)(targets, outputs, outputs)
        expected = (TARGETS + gamma * LOGITS) / (1 + gamma)
        problems.assert_trees_close(clamped, expected)
        # What is left of the error: (y - sigma) / (1 + gamma).
        problems.assert_trees_close(
            clamped - outputs, (TARGETS - LOGITS) / (1 + gamma), atol=1e-12
        )


def test_soft_clamp_tends_to_target_and_prediction(x64):
    outputs, targets = jnp.asarray(LOGITS), jnp.asarray(TARGETS)
    none = pcjax.soft_clamp(0)(targets, outputs, outputs)
    huge = pcjax.soft_clamp(1e12)(targets, outputs, outputs)
    np.testing.assert_array_equal(none, targets)
    np.testing.assert_allclose(huge, outputs, rtol=1e-11, atol=1e-11)


def test_soft_clamp_takes_a_traced_gamma(x64):
    outputs, targets = jnp.asarray(LOGITS), jnp.asarray(TARGETS)
    gammas = jnp.array([0.1, 2.0])
    clamped = jax.jit(
        jax.vmap(lambda gamma: pcjax.soft_clamp(gamma)(targets, outputs, outputs))
    )(gammas)
    for row, gamma in zip(clamped, (0.1, 2.0), strict=True):
        problems.assert_trees_close(row, (TARGETS + gamma * LOGITS) / (1 + gamma))
