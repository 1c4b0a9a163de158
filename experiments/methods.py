"""The training methods that the experiments compare, and their settings.

A method is a learning rule and an optimizer. Rules and optimizers are functions,
so that the experiments loop over methods and never branch on them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import optax

import pcjax
from pcjax import training
from pcjax.learning import Update


@dataclass(frozen=True)
class Settings:
    """The hyper-parameters of one data set; the defaults are the paper's MLP.

    Attributes:
      hidden: sizes of the hidden layers.
      batch_size: examples a training iteration.
      epochs: passes over the training set.
      clamp: gamma_L of the soft clamp (eq. 3).
      num_steps: inference iterations T of sequential inference.
      step_size: eps_0 of sequential inference, eps_t = eps_0 / (1 + t).
      il_num_steps: T of simultaneous inference.
      il_step_size: eps of simultaneous inference, the same at every iteration.
      ipc_num_steps: T of incremental predictive coding (simultaneous).
      ipc_step_size: its eps, the same at every iteration.
      bp_decay: c of backprop's learning rate alpha / (1 + c N) at iteration N.
      learning_rates: of every method, by name.
    """

    learning_rates: dict[str, float]
    hidden: tuple[int, ...] = (1024, 1024, 1024)
    batch_size: int = 64
    epochs: int = 10
    clamp: float = 0.01
    num_steps: int = 3
    step_size: float = 0.05
    il_num_steps: int = 15
    il_step_size: float = 0.05
    ipc_num_steps: int = 5
    ipc_step_size: float = 0.05
    bp_decay: float = 3e-5


Rule = Callable[
    [pcjax.Network, pcjax.Output, optax.GradientTransformation, Settings],
    Update,
]
Optimizer = Callable[[float, Settings], optax.GradientTransformation]


class Method(NamedTuple):
    """A name, how gradients are made, and what makes steps of them."""

    name: str
    rule: Rule
    optimizer: Optimizer


def backprop(network, output, tx, settings):
    """The gradient of the loss."""
    del settings
    grad_fn = pcjax.backprop.value_and_grad(network, output=output)
    return training.make_update(grad_fn, tx)


def simultaneous(network, output, tx, settings):
    """Standard inference learning (IL)."""
    method = pcjax.simultaneous(settings.il_num_steps, settings.il_step_size)
    return _inference_learning(network, output, tx, settings, method)


def sequential(network, output, tx, settings):
    """Inference learning with sequential inference (SeqIL)."""

    def step_size(t):
        return settings.step_size / (1 + t)

    method = pcjax.sequential(settings.num_steps, step_size)
    return _inference_learning(network, output, tx, settings, method)


def incremental(network, output, tx, settings):
    """Incremental predictive coding: the weights step at every iteration."""
    method = pcjax.simultaneous(settings.ipc_num_steps, settings.ipc_step_size)
    clamp = pcjax.soft_clamp(settings.clamp)
    return pcjax.incremental(network, method, tx, output=output, clamp=clamp)


def _inference_learning(network, output, tx, settings, method):
    clamp = pcjax.soft_clamp(settings.clamp)
    grad_fn = pcjax.value_and_grad(network, method, output=output, clamp=clamp)
    return training.make_update(grad_fn, tx)


def decayed(optimizer: Callable) -> Optimizer:
    """The optimizer with backprop's learning rate alpha / (1 + c N)."""

    def make(learning_rate, settings):
        return optimizer(lambda count: learning_rate / (1 + settings.bp_decay * count))

    return make


def constant(optimizer: Callable) -> Optimizer:
    """The optimizer with a constant learning rate."""

    def make(learning_rate, settings):
        del settings
        return optimizer(learning_rate)

    return make


METHODS = (
    Method("BP", backprop, decayed(optax.sgd)),
    Method("BP-Adam", backprop, decayed(optax.adam)),
    Method("IL", simultaneous, constant(optax.sgd)),
    Method("IL-MQ", simultaneous, constant(pcjax.mq)),
    Method("SeqIL", sequential, constant(optax.sgd)),
    Method("SeqIL-MQ", sequential, constant(pcjax.mq)),
    Method("SeqIL-Adam", sequential, constant(optax.adam)),
    Method("iPC", incremental, constant(optax.adam)),
)

# Where the paper's authors give a rate it is theirs; IL, IL-MQ and iPC have none.
_CIFAR10 = Settings(
    learning_rates={
        "BP": 0.01,
        "BP-Adam": 1.8e-5,
        "IL": 0.25,
        "IL-MQ": 3e-5,
        "SeqIL": 0.75,
        "SeqIL-MQ": 3e-5,
        "SeqIL-Adam": 3e-5,
        "iPC": 1e-4,
    }
)
_SVHN = Settings(
    learning_rates={
        **_CIFAR10.learning_rates,
        "BP": 0.019,
        "BP-Adam": 4.5e-5,
        "IL": 1.0,
        "SeqIL": 1.0,
    }
)
_DIGITS = Settings(
    hidden=(128, 128, 128),
    batch_size=32,
    epochs=20,
    learning_rates={
        "BP": 0.2,
        "BP-Adam": 1e-3,
        "IL": 4.0,
        "IL-MQ": 4e-4,
        "SeqIL": 4.0,
        "SeqIL-MQ": 4e-4,
        "SeqIL-Adam": 1e-3,
        "iPC": 1e-3,
    },
)
SETTINGS = {
    "digits": _DIGITS,
    "cifar10": _CIFAR10,
    "svhn_cropped": _SVHN,
    "mnist": _CIFAR10,
    "fashion_mnist": _CIFAR10,
}
