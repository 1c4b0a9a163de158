"""The training methods that the experiments compare.

A method is a learning rule and an optimizer. Rules and optimizers are functions,
so that the experiments loop over methods and never branch on them. What may differ
between networks that train side by side (`Hyper`) may be traced.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import optax

import pcjax
from experiments.settings import Settings
from pcjax import training
from pcjax.learning import Update


class Hyper(NamedTuple):
    """What may differ between the runs of one program; numbers, or [runs].

    Attributes:
      learning_rate: alpha of the optimizer.
      step_size: eps_0 of inference; backprop has no use for it.
    """

    learning_rate: jax.Array | float
    step_size: jax.Array | float


Rule = Callable[
    [
        pcjax.Network,
        pcjax.Output,
        optax.GradientTransformation,
        Settings,
        jax.Array | float,
    ],
    Update,
]
Optimizer = Callable[[jax.Array | float, Settings], optax.GradientTransformation]


class Method(NamedTuple):
    """A training method.

    Attributes:
      name: its name in tables and plots.
      rule: how an update is made of a network and an optimizer.
      optimizer: what makes steps of gradients.
      step_size: eps_0 of its inference by the settings.
    """

    name: str
    rule: Rule
    optimizer: Optimizer
    step_size: Callable[[Settings], float]

    def hyper(self, settings: Settings) -> Hyper:
        """The learning rate and step size that the settings name."""
        return Hyper(settings.learning_rates[self.name], self.step_size(settings))


def backprop(network, output, tx, settings, step_size):
    """The gradient of the loss."""
    del settings, step_size
    grad_fn = pcjax.backprop.value_and_grad(network, output=output)
    return training.make_update(grad_fn, tx)


def simultaneous(network, output, tx, settings, step_size):
    """Standard inference learning (IL)."""
    method = pcjax.simultaneous(settings.il_num_steps, step_size)
    return inference_learning(network, output, tx, settings, method)


def sequential(network, output, tx, settings, step_size):
    """Inference learning with sequential inference (SeqIL)."""
    method = pcjax.sequential(settings.num_steps, lambda t: step_size / (1 + t))
    return inference_learning(network, output, tx, settings, method)


def incremental(network, output, tx, settings, step_size):
    """Incremental predictive coding: the weights step at every iteration."""
    method = pcjax.simultaneous(settings.ipc_num_steps, step_size)
    clamp = pcjax.soft_clamp(settings.clamp)
    return pcjax.incremental(network, method, tx, output=output, clamp=clamp)


def inference_learning(network, output, tx, settings, method):
    """Inference learning with any method of inference."""
    grad_fn = pcjax.value_and_grad(
        network,
        method,
        output=output,
        clamp=pcjax.soft_clamp(settings.clamp),
        learning_clamp=pcjax.full_clamp if settings.label_gradient else None,
    )
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


def mq(learning_rate, settings):
    """MQ with the rho of the settings."""
    return pcjax.mq(learning_rate, settings.mq_decay)


def _seq(settings):
    return settings.step_size


def _sim(settings):
    return settings.il_step_size


def _ipc(settings):
    return settings.ipc_step_size


METHODS = (
    Method("BP", backprop, decayed(optax.sgd), _seq),
    Method("BP-Adam", backprop, decayed(optax.adam), _seq),
    Method("IL", simultaneous, constant(optax.sgd), _sim),
    Method("IL-MQ", simultaneous, mq, _sim),
    Method("IL-Adam", simultaneous, constant(optax.adam), _sim),
    Method("SeqIL", sequential, constant(optax.sgd), _seq),
    Method("SeqIL-MQ", sequential, mq, _seq),
    Method("SeqIL-Adam", sequential, constant(optax.adam), _seq),
    Method("iPC", incremental, constant(optax.adam), _ipc),
)


def select(names: Sequence[str]) -> list[Method]:
    """The methods of the given names.

    Raises:
      ValueError: if there is no such method, or none is named.
    """
    known = {method.name: method for method in METHODS}
    unknown = sorted(set(names) - set(known))
    if unknown or not names:
        raise ValueError(
            f"expected one or more methods of {list(known)}, got {unknown or 'none'}."
        )
    return [known[name] for name in names]
