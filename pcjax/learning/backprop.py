"""Backprop, the baseline, with the signature of predictive coding."""

import jax
import jax.numpy as jnp

from pcjax.checks import check_parts
from pcjax.learning.gradients import GradFn, Info
from pcjax.networks.network import Network, check_batch
from pcjax.networks.outputs import Output, identity, losses_of


def value_and_grad(network: Network, *, output: Output = identity) -> GradFn:
    """The gradient of the mean loss, shaped like `pcjax.value_and_grad`.

    Args:
      network: L layers, a chain or a graph.
      output: link and loss of the last layer.

    Returns:
      `grad_fn(params, inputs, targets) -> ((energy, info), grads)`, where the energy
      is the mean loss, which is what the free energy is when no activity moves. It
      raises what `pcjax.infer` raises.

    Raises:
      TypeError: if network or output is no such thing.
    """
    check_parts("backprop.value_and_grad", network=network, output=output)

    def grad_fn(params, inputs, targets, *, key=None):
        del key
        check_batch("backprop.value_and_grad", network, params, inputs, targets)

        def mean_loss(params):
            logits = network.apply(params, inputs)
            loss = losses_of(output, logits, targets)
            return jnp.mean(loss), Info(loss, logits, loss, loss)

        return jax.value_and_grad(mean_loss, has_aux=True)(params)

    return grad_fn
