"""What the gradients of a net are beside backprop's and the equilibrium's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pcjax
from experiments.common import report
from experiments.common.methods import Recipe
from experiments.common.settings import Settings
from experiments.common.tasks import Task
from experiments.common.trainer import Trainer
from experiments.depth.cells import RATELESS, compared
from pcjax.training.measures import likeness, make_measures

Look = Callable[..., dict[str, Any]]  # (params, inputs, targets) -> what is seen


def at_weights(
    looks: dict[str, Look], task: Task, images: int, seeds: int, trainer: Trainer
) -> dict[str, Any]:
    """What the gradients are, before training and at the best rate's weights.

    Args:
      looks: what is looked at, by name.
      task: of which the first held-out images are the batch.
      images: how many.
      seeds: networks of every rate.
      trainer: after the last epoch.
    """
    last = trainer.records[-1].validation
    assert task.validation is not None
    assert last is not None
    score = report.array(last["top1"]).reshape(-1, seeds)
    best = int(np.nan_to_num(score, nan=-1.0).mean(-1).argmax()) * seeds
    fresh = task.network.init(jax.random.key(1), task.example())
    trained = jax.tree.map(lambda x: x[best], trainer.params)
    rows = jax.tree.map(lambda x: x[:images], task.validation)
    batch = task.prepare(*rows)
    return {
        name: {"fresh": look(fresh, *batch), "trained": look(trained, *batch)}
        for name, look in looks.items()
    }


def to_backprop(task: Task, recipe: Recipe) -> Look:
    """Likeness of a recipe's gradient to backprop's."""
    own_fn = recipe.grad_fn(task.network, task.output)
    bp_fn = pcjax.backprop.value_and_grad(task.network, output=task.output)

    @jax.jit
    def compare(*batch):
        return likeness(own_fn(*batch)[1], bp_fn(*batch)[1])._asdict()

    return compare


def comparison(task: Task, found: Settings, passes: int) -> Look:
    """The gradients of all methods beside backprop's and the equilibrium's.

    Each is a program of its own: one of all, of a net of 64 layers, takes minutes to
    compile.
    """
    network, output = task.network, task.output
    bp_fn = jax.jit(pcjax.backprop.value_and_grad(network, output=output))
    reference = pcjax.error_based(passes, RATELESS)
    measures = jax.jit(
        make_measures(network, bp_fn, output=output, reference=reference)
    )
    own_fn = jax.jit(
        pcjax.at_equilibrium.value_and_grad(network, reference, output=output)
    )
    others = {
        name: jax.jit(pcjax.value_and_grad(network, method, output=output))
        for name, method in compared(found).items()
    }
    alike = jax.jit(likeness)
    stay = pcjax.at_equilibrium.value_and_grad(
        network, pcjax.simultaneous(1, 0.0), output=output
    )

    @jax.jit
    def residual(params, inputs, targets, hidden):
        (_, info), _ = stay(params, inputs, targets, hidden=hidden)
        return jnp.median(info.equilibrium.residual)

    def compare(params, inputs, targets):
        batch = (params, inputs, targets)
        seen = measures(*batch)
        _, exact = bp_fn(*batch)
        (_, info), own = own_fn(*batch)
        to_backprop = {"equilibrium": seen.equilibrium_to_backprop}
        to_equilibrium = {"BP": seen.equilibrium}
        residuals = {"equilibrium": residual(*batch, info.state.activities[1:-1])}
        for name, grad_fn in others.items():
            (_, found), grads = grad_fn(*batch)
            residuals[name] = residual(*batch, found.state.activities[1:-1])
            to_backprop[name] = alike(grads, exact)
            to_equilibrium[name] = alike(grads, own)
        return {
            "to_backprop": {k: v._asdict() for k, v in to_backprop.items()},
            "to_equilibrium": {k: v._asdict() for k, v in to_equilibrium.items()},
            "settled": jnp.mean(seen.settled),
            "passes": jnp.mean(seen.passes),
            "residuals": residuals,
            "error_curvature": jnp.max(seen.error_curvature),
            "activity_curvature": jnp.max(seen.activity_curvature),
        }

    return compare
