"""The learning rules that `experiments.implicit_sgd` compares."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import pcjax
from pcjax.energy import Weights, error_weights
from pcjax.numerics.weights import weigh
from pcjax.optimizers.normalised import normalised_step_size
from pcjax.theory.theorem1 import (
    inference_step,
    lemma1_weights,
    proximal_weights,
    theorem1_weights,
)

SOFT_CLAMP = 0.01  # gamma_L of the authors' runs
SEQ_STEPS, SEQ_STEP_SIZE = 3, 0.05


class Problem(NamedTuple):
    """A network at some point of its training, and examples [N, ...] to look at."""

    network: pcjax.Network
    tx: optax.GradientTransformation  # MQ, and its state at that point below
    params: Any
    opt_state: Any
    inputs: jax.Array
    targets: jax.Array


class Rule(NamedTuple):
    """A way to make an update: how to infer, and what to do with the activities.

    Attributes:
      label: for figures.
      inference: `(problem, beta) -> keyword arguments of infer`.
      step: `(problem, activities [1, ...], beta) -> theta' - theta`.
      num_steps: inference iterations; None infers to equilibrium.
    """

    label: str
    inference: Callable[[Problem, Any], dict[str, Any]]
    step: Callable[[Problem, Any, Any], Any]
    num_steps: int | None = None


def weighted(label: str, weights: Callable, alpha: Any = normalised_step_size) -> Rule:
    """Inference learning with Theorem 1's weights, in one of their versions."""

    def inference(problem, beta):
        return weights(problem.network, alpha, beta)._asdict()

    def step(problem, activities, beta):
        del beta
        return inference_step(problem.network, problem.params, activities, alpha)

    return Rule(label, inference, step)


def _full_clamp(problem, beta):
    del problem, beta
    return {"clamp": pcjax.full_clamp}


def _soft_clamp(problem, beta):
    del problem, beta
    return {"clamp": pcjax.soft_clamp(SOFT_CLAMP)}


def _normalised(problem, activities, beta):
    del beta
    return inference_step(
        problem.network, problem.params, activities, normalised_step_size
    )


def _plain(problem, activities, beta):
    return inference_step(problem.network, problem.params, activities, beta)


def _mq(problem, activities, beta):
    del beta
    grads = pcjax.local_gradients(problem.network, problem.params, activities)
    return problem.tx.update(grads, problem.opt_state, problem.params)[0]


CORRECTED = weighted("IL, corrected weights", proximal_weights)
PROOF = weighted("IL, Theorem 1 as in its proof", lemma1_weights)
PRINTED = weighted("IL, Theorem 1 as printed", theorem1_weights)
PLAIN = Rule("IL, γ = 1, full clamp", _full_clamp, _normalised)
SEQUENTIAL = Rule("SeqIL, T = 3", _soft_clamp, _plain, SEQ_STEPS)
SEQUENTIAL_MQ = Rule("SeqIL-MQ, T = 3", _soft_clamp, _mq, SEQ_STEPS)
RULES = (CORRECTED, PROOF, PRINTED, PLAIN, SEQUENTIAL, SEQUENTIAL_MQ)


def relaxation(num_steps: int, gamma: Weights = 1.0) -> pcjax.Method:
    """Simultaneous inference with momentum, and with steps to the scale of each layer.

    It comes to rest where plain IL does, sooner: Theorem 1's gammas differ by orders
    of magnitude between the layers.
    """
    method = pcjax.simultaneous(
        num_steps, optimizer=optax.sgd(0.2, momentum=0.9, nesterov=True)
    )

    def step(t, state, gradient, opt_state):
        gammas = error_weights(gamma, state.activities, state.errors)
        # Where the clamp follows the output, its error weighs less than 1.
        gammas[-1] = jnp.minimum(gammas[-1], 1.0)

        def scaled(index, error):
            scale = 1 / (gammas[index - 1] + gammas[index])
            return weigh(scale, gradient(index, error))

        return method.step(t, state, scaled, opt_state)

    return method._replace(step=step)


def sequential() -> pcjax.Method:
    """Sequential inference as the authors train with it."""
    return pcjax.sequential(SEQ_STEPS, lambda t: SEQ_STEP_SIZE / (1 + t))
