"""Networks as chains of layers.

A network is a tuple of L layers, each a pair of pure functions
`(init, apply)`. Layer `l` maps the activity `h_l` to the prediction of the next
one, `p_{l+1} = g_l(theta_l, h_l)`, for `l = 0..L-1`; `h_0` is the input. Any
differentiable map that treats the examples of a batch separately will do: the
layers built here, a flax module, a residual block, a user's own function.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pcjax.checks import check_float, check_parts, check_sequence
from pcjax.numerics.precision import Anchor

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
          ValueError: if there are no layers, no batch or no example in it, or a layer
            does not accept what the one below predicts.
        """
        params: list[Params] = []
        check_inputs("network.init", self, inputs)
        shape = jax.eval_shape(lambda x: x, inputs)
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
      TypeError: if inputs or parameters are not floats.
      ValueError: if the batch is empty, the parameters are of another network, or a
        layer does not accept what the one below predicts.
    """
    check_inputs("feedforward", network, inputs)
    check_sequence("feedforward", "params", params)
    check_params("feedforward", network, params, inputs)
    predictions, below = [], inputs
    for index, (layer, layer_params) in enumerate(
        zip(network.layers, params, strict=True)
    ):
        below = explain(index, below, layer.apply, layer_params, below)
        predictions.append(below)
    return tuple(predictions)


def check_inputs(function: str, network: Network, inputs: jax.Array) -> None:
    """Refuses a network of no layers and inputs that are no batch of floats."""
    check_parts(function, network=network)
    if not network.layers:
        raise ValueError(f"{function}: a network has at least one layer, got none.")
    check_float(function, "inputs", inputs)
    if len(inputs.shape) < 2:
        raise ValueError(
            f"{function}: inputs must be a batch [B, ...], got shape {inputs.shape}."
        )
    if inputs.shape[0] == 0:
        raise ValueError(
            f"{function}: inputs must hold at least one example, got shape "
            f"{inputs.shape}."
        )


def check_params(
    function: str, network: Network, params: Sequence[Params], inputs: jax.Array
) -> None:
    """Refuses parameters whose trees, shapes or kinds are not those of the network."""
    key = Network(tuple(network.layers))
    expected = _expected_params(key, tuple(inputs.shape), inputs.dtype)
    if len(params) != len(expected):
        raise ValueError(
            f"{function}: the network has {len(expected)} layers, but params holds "
            f"{len(params)} entries."
        )
    for index, (want, have) in enumerate(zip(expected, params, strict=True)):
        wanted, held = (
            {
                jax.tree_util.keystr(path): leaf
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            }
            for tree in (want, have)
        )
        want_shapes, have_shapes = (
            {path: tuple(np.shape(leaf)) for path, leaf in leaves.items()}
            for leaves in (wanted, held)
        )
        if want_shapes != have_shapes:
            raise ValueError(
                f"{function}: params of another network: layer {index} has parameters "
                f"{want_shapes}, but params[{index}] holds {have_shapes}."
            )
        for path, leaf in wanted.items():
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                check_float(function, f"params[{index}]{path}", held[path])


def check_batch(
    function: str,
    network: Network,
    params: Sequence[Params],
    inputs: jax.Array,
    targets: jax.Array,
) -> None:
    """Refuses a batch or parameters that do not belong to the network."""
    check_inputs(function, network, inputs)
    check_sequence(function, "params", params)
    check_float(function, "targets", targets)
    check_params(function, network, params, inputs)
    shapes = jax.eval_shape(network.apply, params, inputs).shape
    if targets.shape != shapes:
        raise ValueError(
            f"{function}: targets have shape {targets.shape}, but the network's "
            f"outputs have shape {shapes}."
        )


@lru_cache(maxsize=64)
def _expected_params(
    network: Network, shape: tuple[int, ...], dtype: Any
) -> tuple[Params, ...]:
    """The shapes `network.init` gives, worked out without computing anything."""
    inputs = jax.ShapeDtypeStruct(shape, dtype)
    return jax.eval_shape(lambda x: network.init(jax.random.key(0), x), inputs)


def explain(index: int, activity: jax.Array, function: Callable, *args) -> Any:
    """Calls `function`; a failure names the layer and the shape it was given."""
    try:
        return function(*args)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(
            f"network: layer {index} does not accept an activity of shape "
            f"{activity.shape} with its parameters: {error}"
        ) from error
