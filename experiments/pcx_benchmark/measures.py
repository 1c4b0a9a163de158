"""How near an algorithm's gradient is to backprop's, and inference to its rest."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pcjax
from experiments.common.methods import Recipe
from experiments.common.tasks import Task
from pcjax.inference import infer_to_equilibrium


def cosines(
    recipe: Recipe, task: Task, params: Any, inputs: jax.Array, targets: jax.Array
) -> np.ndarray:
    """The cosine between the gradient and that of the loss, layer by layer, [L, runs].

    Args:
      recipe: how the gradient is made; of incremental predictive coding with weights
        that stand still.
      task: with its network.
      params: [runs] in every leaf.
      inputs: [B, ...].
      targets: [B, classes].
    """
    network, output = task.network, recipe.output or task.output
    backprop = pcjax.backprop.value_and_grad(network, output=output)
    ours = recipe.grad_fn(network, output)

    def one(theta):
        pairs = zip(
            ours(theta, inputs, targets)[1],
            backprop(theta, inputs, targets)[1],
            strict=True,
        )
        return jnp.stack([_cosine(*pair) for pair in pairs])

    return np.asarray(jax.jit(jax.vmap(one))(params)).T


def _cosine(one: Any, other: Any) -> jax.Array:
    a, b = (
        jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (one, other)
    )
    # Gradients of early layers may be so small that their squares are not.
    a, b = (x / jnp.max(jnp.abs(x)) for x in (a, b))
    return jnp.vdot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))


def residuals(
    recipe: Recipe, task: Task, params: Any, inputs: jax.Array, targets: jax.Array
) -> np.ndarray:
    """The median of `Equilibrium.residual` over the batch at the end, [runs]."""
    method = recipe.inference
    assert method is not None, "backprop has no activities"

    def one(theta):
        rest = infer_to_equilibrium(
            task.network,
            method,
            theta,
            inputs,
            targets,
            output=recipe.output or task.output,
            tolerance=0.0,
        )
        return jnp.median(rest.residual)

    return np.asarray(jax.jit(jax.vmap(one))(params))
