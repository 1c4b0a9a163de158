"""Networks as chains of layers.

A network is a tuple of L layers, each a pair of pure functions
`(init, apply)`. Layer `l` maps the activity `h_l` to the prediction of the next
one, `p_{l+1} = g_l(theta_l, h_l)`, for `l = 0..L-1`; `h_0` is the input. Any
differentiable map that treats the examples of a batch separately will do: the
layers built here, a flax module, a residual block, a user's own function.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pcjax.precision import Anchor

Params = Any  # the pytree of one layer's parameters
Activation = Callable[[jax.Array], jax.Array]
# (params, inputs, anchor or None) -> (predictions, anchor)
Near = Callable[[Params, jax.Array, Anchor | None], tuple[jax.Array, Anchor | None]]


def linear(x: jax.Array) -> jax.Array:
    """The activation function of a layer that has none: returns `x`."""
    return x


class Layer(NamedTuple):
    """One differentiable map `p_{l+1} = g_l(theta_l, h_l)`.

    Attributes:
      init: `(key, inputs [B, ...]) -> params`; of `inputs` only the shape and
        dtype may matter. Must be traceable.
      apply: `(params, inputs [B, ...]) -> predictions [B, ...]`, each example on
        its own.
      activation: the function `f` that `apply` puts on its input before the
        weights (the pre-activation layout). Only the decay term
        `||f(h_l)||^2 / 2` of the free energy reads it.
      near: None, or how inference evaluates a layer whose products are rounded:
        `(params, inputs, anchor) -> (predictions, anchor)`. With the anchor None it
        is `apply`, and the `Anchor` it returns is that of the feed-forward pass; with
        such an anchor it counts its product from there (see `pcjax.precision`).
        `layer._replace(near=None)` rounds plainly, and so loses small errors.
    """

    init: Callable[[jax.Array, jax.Array], Params]
    apply: Callable[[Params, jax.Array], jax.Array]
    activation: Activation = linear
    near: Near | None = None


class Network(NamedTuple):
    """A chain of layers.

    >>> import pcjax
    >>> network = Network((pcjax.dense(4), pcjax.dense(2, jax.nn.relu)))
    >>> params = network.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> network.apply(params, jnp.ones((5, 3))).shape
    (5, 2)
    """

    layers: tuple[Layer, ...]

    def init(self, key: jax.Array, inputs: jax.Array) -> tuple[Params, ...]:
        """Draws the parameters of every layer.

        Args:
          key: a random key.
          inputs: [B, ...], an example batch; only its shape and dtype matter.

        Returns:
          A tuple of L pytrees.

        Raises:
          TypeError: if the inputs are not floats.
          ValueError: if there are no layers or no batch, or a layer does not accept
            what the one below predicts.
        """
        params: list[Params] = []
        shape = jax.eval_shape(lambda x: x, inputs)
        check_inputs("network.init", self, shape)
        for index, layer in enumerate(self.layers):
            layer_key = jax.random.fold_in(key, index)
            # Layers may look at shapes only, so zeros stand for the activity.
            activity = jnp.zeros(shape.shape, shape.dtype)
            layer_params = explain(index, activity, layer.init, layer_key, activity)
            shape = explain(
                index, activity, jax.eval_shape, layer.apply, layer_params, activity
            )
            params.append(layer_params)
        return tuple(params)

    def apply(self, params: Sequence[Params], inputs: jax.Array) -> jax.Array:
        """Returns the output logits `p_L` [B, ...] of the feed-forward pass."""
        return feedforward(self, params, inputs)[-1]


def feedforward(
    network: Network, params: Sequence[Params], inputs: jax.Array
) -> tuple[jax.Array, ...]:
    """The feed-forward activities, each layer fed with the prediction below.

    Args:
      network: a chain of L layers.
      params: their parameters, as `network.init` returns them.
      inputs: [B, ...].

    Returns:
      `(p_1, ..., p_L)`, the last one being the output logits.

    Raises:
      TypeError: if the inputs are not floats.
      ValueError: if the parameters are of another network, or a layer does not
        accept what the one below predicts.
    """
    check_inputs("feedforward", network, inputs)
    if len(params) != len(network.layers):
        raise ValueError(
            f"feedforward: the network has {len(network.layers)} layers, but params "
            f"holds {len(params)} entries."
        )
    predictions = []
    for index, (layer, layer_params) in enumerate(
        zip(network.layers, params, strict=True)
    ):
        inputs = explain(index, inputs, layer.apply, layer_params, inputs)
        predictions.append(inputs)
    return tuple(predictions)


def check_inputs(function: str, network: Network, inputs: jax.Array) -> None:
    """Refuses a network of no layers and inputs that are no batch of floats."""
    if not network.layers:
        raise ValueError(f"{function}: a network has at least one layer, got none.")
    check_float(function, "inputs", inputs)
    if len(inputs.shape) < 2:
        raise ValueError(
            f"{function}: inputs must be a batch [B, ...], got shape {inputs.shape}."
        )


def check_float(function: str, name: str, array: jax.Array) -> None:
    """Refuses arrays that do not hold real floating-point numbers."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"{function}: {name} must be floats, got {array.dtype} of shape "
            f"{array.shape}. Scale images to floats first, and turn class labels into "
            "targets with jax.nn.one_hot."
        )


def explain(index: int, activity: jax.Array, function: Callable, *args) -> Any:
    """Calls `function`; a failure names the layer and the shape it was given."""
    try:
        return function(*args)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(
            f"network: layer {index} does not accept an activity of shape "
            f"{activity.shape} with its parameters: {error}"
        ) from error
