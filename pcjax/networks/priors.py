"""Networks without an input: priors, decoders of latents, and data left free.

What stands for the clamped input is an array without features, [B, 0]: it says how many
examples there are and of which dtype, so that everything takes it as any other input.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pcjax.checks import (
    check_callable,
    check_count,
    check_parts,
    check_real,
    is_int,
)
from pcjax.networks.layers import dense
from pcjax.networks.network import Activation, Layer, Network, Params, linear
from pcjax.networks.sizes import are_sizes


def no_inputs(batch_size: int, dtype: Any = jnp.float32) -> jax.Array:
    """The input of a network that starts from priors: no features, [B, 0].

    Args:
      batch_size: the number of examples B >= 1.
      dtype: of the activities.

    Returns:
      An array [B, 0]. It is also the target of a network that ends in free data.

    Raises:
      ValueError: if the batch size is no int >= 1.
    """
    check_count("no_inputs", "batch_size", batch_size)
    return jnp.zeros((batch_size, 0), dtype)


def prior(
    shape: int | Sequence[int], mean: Any = 0.0, *, learned: bool = False
) -> Layer:
    """A layer that predicts the mean of a latent from nothing: `p = mu`.

    The latent is the activity that it predicts, so with `gamma` as its precision the
    free energy holds `gamma/2 ||h - mu||^2`, the prior `N(mu, 1/gamma)`. It reads the
    network's input, but only for the number of examples: as the first layer of a chain,
    or as any layer of a graph that reads `h_0`. Gamma 0 is no prior.

    >>> import pcjax
    >>> network = pcjax.Network((prior(2), pcjax.dense(5)))
    >>> inputs = no_inputs(3)
    >>> params = network.init(jax.random.key(0), inputs)
    >>> network.apply(params, inputs).shape
    (3, 5)

    Args:
      shape: of the latent of one example.
      mean: `mu`, a number or an array of this shape; where it is learned, the first.
      learned: whether `mu` is a parameter.

    Returns:
      A layer with parameters `{"mean": [*shape]}`, or none.

    Raises:
      TypeError: if the mean does not hold real numbers.
      ValueError: if a size is no int >= 1, or the mean has another shape. By `Network`,
        if the layer reads anything but the input.
    """
    sizes = (shape,) if is_int(shape) else tuple(shape)  # type: ignore[arg-type]
    if not sizes or not are_sizes(sizes):
        raise ValueError(f"prior: shape must hold ints >= 1, got {shape!r}.")
    check_real("prior", "mean", mean)
    if np.shape(mean) not in ((), sizes):
        raise ValueError(
            f"prior: mean must be a number or an array of shape {sizes}, got one of "
            f"shape {np.shape(mean)}."
        )

    def start(dtype) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(mean, dtype), sizes)

    def init(key: jax.Array, inputs: jax.Array) -> Params:
        del key
        return {"mean": start(inputs.dtype)} if learned else {}

    def apply(params: Params, inputs: jax.Array) -> jax.Array:
        mu = params["mean"] if learned else start(inputs.dtype)
        # Zeros that belong to the devices that hold the examples.
        none = jnp.sum(inputs.reshape(len(inputs), -1)[:, :0], axis=1, dtype=mu.dtype)
        return mu[None] + none.reshape(-1, *(1,) * len(sizes))

    return Layer(init, apply, source=True)


def decoder(
    sizes: Sequence[int],
    activation: Activation = jnp.tanh,
    *,
    learned_prior: bool = False,
    product_dtype: Any = None,
) -> Network:
    """A generative network: a prior, and dense layers from the latent to the data.

    `h_1 ~ N(mu, 1/gamma_1)`, `h_{l+1} ~ N(W_l f(h_l) + b_l, 1/gamma_{l+1})`: every
    activity is a latent of its own, so that more sizes are a deeper hierarchy. The
    first latent is read as it is.

    Args:
      sizes: of the latents from the top and of the data, such as
        `[64, 128, 128, 784]`.
      activation: `f` of the layers below the first latent.
      learned_prior: whether `mu` is a parameter; it starts at 0.
      product_dtype: see `dense`.

    Returns:
      A network of `len(sizes)` layers, whose input is `no_inputs(batch_size)`.

    Raises:
      TypeError: if the activation is no function.
      ValueError: if there are fewer than two sizes, or one is no int >= 1.
    """
    if not are_sizes(sizes) or len(sizes) < 2:
        raise ValueError(f"decoder: expected two or more sizes >= 1, got {sizes!r}.")
    check_callable("decoder", "activation", activation)
    layers = [
        dense(size, activation if index else linear, product_dtype=product_dtype)
        for index, size in enumerate(sizes[1:])
    ]
    return Network((prior(sizes[0], learned=learned_prior), *layers))


def free_output(network: Network) -> Network:
    """The network with its data as one more hidden activity, which nothing clamps.

    A layer that predicts nothing goes on top: with the target `no_inputs(batch_size)`,
    its loss is 0, and the data `h_L` are inferred or sampled like any latent, with the
    error `h_L - p_L` of the logits. `pcjax.held` keeps those elements that are known.

    Args:
      network: L layers; its parameters are now `(*params, {})`.

    Returns:
      A network of L + 1 layers.

    Raises:
      TypeError: if it is no network.
    """
    check_parts("free_output", network=network)
    count = len(network.layers)
    reads = (*network.reads, (count,))
    return Network((*network.layers, Layer(_no_params, _nothing)), reads)


def _no_params(key: jax.Array, inputs: jax.Array) -> Params:
    del key, inputs
    return {}


def _nothing(params: Params, inputs: jax.Array) -> jax.Array:
    del params
    return inputs.reshape(len(inputs), math.prod(inputs.shape[1:]))[:, :0]
