"""How the networks of `experiments.proximal_objective` train and step.

IL is measured with a fixed learning rate, as the captions of Figures 1 and 8 have it
and as Theorem 1 takes the step sizes to be. The authors' baseline `IL` has a normalised
step instead, which changes with the activities during inference; it is IL-norm here.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

import pcjax
from experiments.common import methods
from experiments.common.settings import Settings, settings
from experiments.common.tasks import Task
from experiments.common.trainer import start
from experiments.proximal_objective.rank_one import (
    StepRule,
    normalised_steps,
    optimizer_steps,
)


class Kind(NamedTuple):
    """A method of the figures.

    Attributes:
      method: how it trains.
      inference: its inference, by the settings.
      steps: `(network, tx, opt_state, params) -> StepRule`, of an image's own update.
    """

    method: methods.Method
    inference: Callable[[Settings], pcjax.Method]
    steps: Callable[..., StepRule]


def _simultaneous(found: Settings) -> pcjax.Method:
    return pcjax.simultaneous(found.il_num_steps, found.il_step_size)


def _sequential(found: Settings) -> pcjax.Method:
    return pcjax.sequential(found.num_steps, lambda t: found.step_size / (1 + t))


def _of_optimizer(network, tx, opt_state, params):
    return optimizer_steps(tx, opt_state, params)


def _of_activities(network, tx, opt_state, params):
    return normalised_steps(network)


# The names of `KINDS`, so that --help lists them.
Name = Literal["IL", "IL-norm", "IL-MQ", "SeqIL", "SeqIL-MQ"]
_IL, _IL_MQ, _SEQ, _SEQ_MQ = methods.select(("IL", "IL-MQ", "SeqIL", "SeqIL-MQ"))
KINDS = {
    kind.method.name: kind
    for kind in (
        Kind(_IL, _simultaneous, _of_optimizer),
        Kind(methods.NORMALISED, _simultaneous, _of_activities),
        Kind(_IL_MQ, _simultaneous, _of_optimizer),
        Kind(_SEQ, _sequential, _of_optimizer),
        Kind(_SEQ_MQ, _sequential, _of_optimizer),
    )
}


def select(names: Sequence[str]) -> dict[str, Kind]:
    """The methods of the given names.

    Raises:
      ValueError: if there is no such method, or none is named.
    """
    unknown = sorted(set(names) - set(KINDS))
    if unknown or not names:
        raise ValueError(
            f"expected one or more methods of {list(KINDS)}, got {unknown or 'none'}."
        )
    return {name: KINDS[name] for name in names}


def figure_settings(dataset: str) -> Settings:
    """The settings of the paper's MLP on a data set, with those of the two figures.

    The paper names a learning rate of SeqIL only; IL has the same here, so that the two
    differ in their inference alone. SeqIL's step size decays, IL's does not.
    """
    found = settings("mlp", dataset)
    return dataclasses.replace(
        found,
        learning_rates=found.learning_rates | {"IL": 1.0, "SeqIL": 1.0, "IL-norm": 1.0},
        num_steps=5,
        step_size=0.04,
        il_num_steps=20,
        il_step_size=0.01,
    )


def trainer(kind: Kind, task: Task, found: Settings, iterations: int) -> Callable:
    """`key -> (params, opt_state)` after so many iterations, compiled once."""
    tx = kind.method.optimizer(found.learning_rates[kind.method.name], found)
    step_size = kind.method.step_size(found)
    recipe = kind.method.rule(found, step_size)
    update = recipe.update(task.network, task.output, tx)
    count, size = len(task.train.images), min(found.batch_size, len(task.train.images))
    steps = count // size  # of an epoch; a last short batch is dropped

    def iterate(carry, index):
        params, opt_state = carry
        inputs, targets = task.prepare(*jax.tree.map(lambda x: x[index], task.train))
        params, opt_state, _ = update(params, opt_state, inputs, targets)
        return (params, opt_state), None

    @jax.jit
    def fit(params, key):
        def shuffled(epoch):
            return jax.random.permutation(jax.random.fold_in(key, epoch), count)

        epochs = jax.vmap(shuffled)(jnp.arange(-(-iterations // steps)))
        batches = epochs[:, : steps * size].reshape(-1, size)[:iterations]
        return jax.lax.scan(iterate, (params, tx.init(params)), batches)[0]

    def train(key):
        begun = start(task.network, key[None], task.example())
        return fit(*jax.tree.map(lambda x: x[0], (begun.params, begun.key)))

    return train
