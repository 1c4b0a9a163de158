"""Activities from the top down: samples of a generative network, and starts."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pcjax.checks import check_float, check_non_negative, check_single
from pcjax.energy import Weights, error_weights
from pcjax.networks.network import Network, Params, feedforward
from pcjax.numerics.weights import is_zero, weigh


def ancestral(
    network: Network,
    params: Sequence[Params],
    inputs: jax.Array,
    *,
    given: Mapping[int, jax.Array] | None = None,
    key: jax.Array | None = None,
    gamma: Weights = 1.0,
    temperature: Any = 1.0,
) -> tuple[jax.Array, ...]:
    """The feed-forward pass with activities given, or drawn around their predictions.

    In the order of the layers, `h_l` is what is given, or `p_l + sqrt(v / gamma_l) xi`
    with a key, or else `p_l`. So it starts inference (`hidden=`) from guesses of the
    latents, shows what latents stand for, and draws from the generative model: the last
    entry is the mean of the data given the latents below.

    >>> import pcjax
    >>> network = pcjax.decoder([2, 4, 5])
    >>> inputs = pcjax.no_inputs(3)
    >>> params = network.init(jax.random.key(0), inputs)
    >>> *hidden, logits = ancestral(network, params, inputs, key=jax.random.key(1))
    >>> [h.shape for h in hidden], logits.shape
    ([(3, 2), (3, 4)], (3, 5))

    Args:
      network: L layers.
      params: their parameters.
      inputs: [B, ...], such as `no_inputs(B)`.
      given: activities [B, ...] by index, 1 to L-1.
      key: a random key; None draws nothing.
      gamma: the precisions of `free_energy`; no function.
      temperature: `v` >= 0.

    Returns:
      `(h_1, ..., h_{L-1}, p_L)`, as `feedforward`.

    Raises:
      TypeError: if inputs, parameters or what is given are not floats.
      ValueError: if they do not fit the network, if there are precisions that are a
        function, or 0 where there is something to draw, or the temperature is negative
        or an array.
    """
    check_single("ancestral", "temperature", temperature)
    check_non_negative("ancestral", "temperature", temperature)
    shapes = jax.eval_shape(partial(feedforward, network), params, inputs)
    given, count = _checked(given or {}, shapes), len(network.layers)
    if callable(gamma):
        raise ValueError("ancestral: gamma must be numbers, not a function.")
    weights = error_weights(gamma, (inputs, *shapes), shapes, function="ancestral")
    activities = [inputs]
    for index, (layer, theta, read, weight) in enumerate(
        zip(network.layers, params, network.reads, weights, strict=True), start=1
    ):
        h = given.get(index)
        if h is None:
            h = layer.apply(theta, *(activities[i] for i in read))
            if key is not None and index < count:
                if is_zero(weight):
                    raise ValueError(
                        f"ancestral: the gamma of h_{index} is 0, so that it cannot be "
                        "drawn; expected it to be given."
                    )
                noise = jax.random.normal(
                    jax.random.fold_in(key, index), h.shape, h.dtype
                )
                scale = jnp.sqrt(temperature / jnp.asarray(weight, h.dtype))
                h = h + weigh(scale.astype(h.dtype), noise)
        activities.append(h)
    return tuple(activities[1:])


def _checked(
    given: Mapping[int, jax.Array], shapes: Sequence[Any]
) -> dict[int, jax.Array]:
    """The given activities, refused if the network has no such."""
    hidden = dict(enumerate(shapes[:-1], start=1))
    for index, value in given.items():
        if index not in hidden:
            raise ValueError(
                f"ancestral: given holds an activity {index}, expected hidden ones, 1 "
                f"to {len(hidden)}."
            )
        check_float("ancestral", f"given[{index}]", value)
        if value.shape != hidden[index].shape:
            raise ValueError(
                f"ancestral: given[{index}] must have the shape {hidden[index].shape} "
                f"of its prediction, got {value.shape}."
            )
    return dict(given)
