"""The training methods that the experiments compare.

A method is a learning rule and an optimizer. Rules and optimizers are functions,
so that the experiments loop over methods and never branch on them. What may differ
between networks that train side by side (`Hyper`) may be traced.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import optax

import pcjax
from experiments.common.settings import Settings
from pcjax import training
from pcjax.learning.gradients import GradFn, Update
from pcjax.optimizers import normalised
from pcjax.training.diagnosis import NonFinite, diagnose


class Hyper(NamedTuple):
    """What may differ between the runs of one program; numbers, or [runs].

    Attributes:
      learning_rate: alpha of the optimizer.
      step_size: eps_0 of inference; backprop has no use for it.
    """

    learning_rate: jax.Array | float
    step_size: jax.Array | float


class Recipe(NamedTuple):
    """A learning rule with all but network, data and optimizer.

    Attributes:
      inference: the method of inference; None is backprop.
      clamps: `clamp` and `learning_clamp` of inference learning.
      weights_move: whether weights step at every iteration of inference.
      output: in the place of the task's.
      nudge: `(rule, epoch) -> grad_fn` of nudged outputs, see `pcjax.nudged`.
      epoch: which it is of, counted from 0, possibly traced.
    """

    inference: pcjax.Method | None
    clamps: dict[str, Any] = {}  # noqa: RUF012
    weights_move: bool = False
    output: pcjax.Output | None = None
    nudge: Callable[[Any, Any], GradFn] | None = None
    epoch: jax.Array | int = 0

    @property
    def steps(self) -> int:
        """Steps of the optimizer in a training iteration."""
        return self.inference.num_steps if self.weights_move and self.inference else 1

    def update(
        self,
        network: pcjax.Network,
        output: pcjax.Output,
        tx: optax.GradientTransformation,
    ) -> Update:
        """The training iteration."""
        if self.inference is not None and self.weights_move:
            options = {"output": self.output or output, **self.clamps}
            return pcjax.incremental(network, self.inference, tx, **options)
        return training.make_update(self.grad_fn(network, output), tx)

    def grad_fn(self, network: pcjax.Network, output: pcjax.Output) -> GradFn:
        """The gradient, of weights that do not move during inference."""
        output = self.output or output
        if self.inference is None:
            return pcjax.backprop.value_and_grad(network, output=output)
        learn = partial(
            pcjax.value_and_grad, network, self.inference, output=output, **self.clamps
        )
        return learn() if self.nudge is None else self.nudge(learn, self.epoch)

    def diagnose(
        self,
        network: pcjax.Network,
        output: pcjax.Output,
        tx: optax.GradientTransformation,
        before: Any,
        inputs: jax.Array,
        targets: jax.Array,
    ) -> NonFinite | None:
        """What first goes non-finite in the iteration after `(params, opt_state)`."""
        params, opt_state = before
        return diagnose(
            network,
            self.inference,
            params,
            inputs,
            targets,
            tx=tx,
            opt_state=opt_state,
            output=self.output or output,
            weights_move=self.weights_move,
            **self.clamps,
        )


class Normalised(Recipe):
    """The recipe with gradients scaled by `1 / (mean ||h_l||^2 + 1)`."""

    def update(self, network, output, tx):
        """The training iteration."""

        assert self.inference is not None, "backprop moves no activities"
        options = {"output": output, **self.clamps}
        grad_fn = pcjax.value_and_grad(network, self.inference, **options)
        return training.make_update(normalised.normalise(network, grad_fn), tx)


# (settings, step size of inference) -> how to learn
Rule = Callable[[Settings, jax.Array | float], Recipe]
Optimizer = Callable[[jax.Array | float, Settings], optax.GradientTransformation]


class Method(NamedTuple):
    """A training method.

    Attributes:
      name: its name in tables and plots.
      rule: how it learns.
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


def backprop(settings, step_size):
    """The gradient of the loss."""
    del settings, step_size
    return Recipe(None)


def simultaneous(settings, step_size):
    """Standard inference learning (IL)."""
    method = pcjax.simultaneous(settings.il_num_steps, step_size)
    return inference_learning(settings, method)


def sequential(settings, step_size):
    """Inference learning with sequential inference (SeqIL)."""
    method = pcjax.sequential(settings.num_steps, lambda t: step_size / (1 + t))
    return inference_learning(settings, method)


def incremental(settings, step_size):
    """Incremental predictive coding: the weights step at every iteration."""
    method = pcjax.simultaneous(settings.ipc_num_steps, step_size)
    clamps = {"clamp": pcjax.soft_clamp(settings.clamp)}
    return Recipe(method, clamps, weights_move=True)


def normalised_steps(settings, step_size):
    """IL with the step of the authors' baseline in the place of a learning rate."""
    method = pcjax.simultaneous(settings.il_num_steps, step_size)
    return Normalised(method, {"clamp": pcjax.soft_clamp(settings.clamp)})


def inference_learning(settings, method):
    """Inference learning with any method of inference."""
    clamps = {
        "clamp": pcjax.soft_clamp(settings.clamp),
        "learning_clamp": pcjax.full_clamp if settings.label_gradient else None,
    }
    return Recipe(method, clamps)


def decayed(optimizer: Callable) -> Optimizer:
    """The optimizer with backprop's learning rate alpha / (1 + c N)."""

    def make(learning_rate, settings):
        return optimizer(lambda count: learning_rate / (1 + settings.bp_decay * count))

    return make


def constant(optimizer: Callable) -> Optimizer:
    """The optimizer with a learning rate that is constant unless settings say else."""

    def make(learning_rate, settings):
        return optimizer(_scheduled(learning_rate, settings))

    return make


def mq(learning_rate, settings):
    """MQ with the rho of the settings."""
    return pcjax.mq(_scheduled(learning_rate, settings), settings.mq_decay)


def _scheduled(learning_rate, settings):
    if not settings.pc_decay:
        return learning_rate
    return lambda count: learning_rate / (1 + settings.pc_decay * count)


def _seq(settings):
    return settings.step_size


def _sim(settings):
    return settings.il_step_size


def _ipc(settings):
    return settings.ipc_step_size


# The names of `METHODS`, so that --help lists them.
MethodName = Literal[
    "BP",
    "BP-Adam",
    "IL",
    "IL-MQ",
    "IL-Adam",
    "SeqIL",
    "SeqIL-MQ",
    "SeqIL-Adam",
    "iPC",
]
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


NORMALISED = Method("IL-norm", normalised_steps, constant(optax.sgd), _sim)


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
