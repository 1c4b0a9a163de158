"""Amortised starts: a network that predicts the latents that inference finds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pcjax.checks import check_callable, check_parts
from pcjax.inference.ancestral import ancestral
from pcjax.learning.gradients import GradFn
from pcjax.learning.sampled import state_of
from pcjax.networks.network import Network

# (inputs, targets) -> what the amortiser reads, [B, ...]
Reads = Callable[[jax.Array, jax.Array], jax.Array]


class Amortised(NamedTuple):
    """Parameters of a generative network and of its amortiser.

    Attributes:
      network: those of the network, whatever its gradient function takes.
      amortiser: those of the amortiser.
    """

    network: Any
    amortiser: Any


def _known(inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """The targets, 0 where they are missing."""
    del inputs
    return jnp.where(jnp.isnan(targets), 0, targets)


def amortised(
    grad_fn: GradFn,
    network: Network,
    amortiser: Network,
    *,
    index: int = 1,
    reads: Reads = _known,
) -> GradFn:
    """Starts inference at the latents that an amortiser predicts, and trains it.

    `h_i = a(x)` and everything above it is fed forward; inference goes on from there;
    and the amortiser learns by backprop to predict where it ended, with the loss
    `||h_i* - a(x)||^2 / 2`, `h_i*` held fixed.

    >>> import pcjax
    >>> network, amortiser = pcjax.decoder([2, 5]), pcjax.mlp([5, 8, 2])
    >>> grad_fn = amortised(
    ...     pcjax.value_and_grad(network, pcjax.sequential(5, 0.1)), network, amortiser
    ... )
    >>> inputs, targets = pcjax.no_inputs(3), jnp.ones((3, 5))
    >>> params = Amortised(
    ...     network.init(jax.random.key(0), inputs),
    ...     amortiser.init(jax.random.key(1), targets),
    ... )
    >>> (energy, info), grads = grad_fn(params, inputs, targets)
    >>> len(grads.network), len(grads.amortiser)
    (2, 2)

    Args:
      grad_fn: that of the network, as `value_and_grad` returns it.
      network: the generative network.
      amortiser: a network from what it reads to the latent.
      index: which activity is the latent.
      reads: what the amortiser reads; by default the targets, 0 where missing.

    Returns:
      A gradient function of `Amortised` parameters, whose energy and `info` are those
      of the network.

    Raises:
      TypeError: if one of them is no such thing; by the gradient function, if the
        parameters are not `Amortised`.
      ValueError: by the gradient function, if the prediction is of another shape than
        the latent.
    """
    check_callable("amortised", "grad_fn", grad_fn)
    check_callable("amortised", "reads", reads)
    check_parts("amortised", network=network)
    check_parts("amortised", network=amortiser)

    def amortised_fn(params, inputs, targets, *, key=None):
        if not isinstance(params, Amortised):
            raise TypeError(
                "amortised: params must be a pcjax.Amortised of network and amortiser, "
                f"got a {type(params).__name__}."
            )
        data = reads(inputs, targets)
        layers = getattr(params.network, "layers", params.network)
        given = {index: amortiser.apply(params.amortiser, data)}
        *hidden, _ = ancestral(network, layers, inputs, given=given)
        (energy, info), grads = grad_fn(
            params.network, inputs, targets, hidden=hidden, key=key
        )
        found = jax.lax.stop_gradient(state_of("amortised", info).activities[index])

        def loss(theta):
            squares = (found - amortiser.apply(theta, data)) ** 2
            return jnp.mean(0.5 * jnp.sum(squares, axis=range(1, squares.ndim)))

        slopes = jax.grad(loss)(params.amortiser)
        return (energy, info), Amortised(grads, slopes)

    return amortised_fn
