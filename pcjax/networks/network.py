"""Networks of layers: chains, and graphs of layers that read several activities.

A network is a tuple of L layers, each a pair of pure functions `(init, apply)`. Layer
`l` predicts the activity above it, `h_{l+1}`, from the activities that it reads: in a
chain from `h_l` alone, `p_{l+1} = g_l(theta_l, h_l)`, and in a graph from any that are
below it, `p_{l+1} = g_l(theta_l, h_i for i in reads[l])`. `h_0` is the input, `p_L` the
output. Any differentiable map that treats the examples of a batch separately will do:
the layers built here, a flax module, a residual block, a user's own function.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pcjax.checks import check_sequence, is_int
from pcjax.networks.fitting import (
    check_batch as check_batch,
)
from pcjax.networks.fitting import (
    check_inputs as check_inputs,
)
from pcjax.networks.fitting import (
    check_params as check_params,
)
from pcjax.networks.fitting import (
    explain as explain,
)
from pcjax.networks.fitting import (
    predict_shape,
)
from pcjax.networks.near import Near as Near
from pcjax.numerics.changes import linear as linear

Params = Any  # the pytree of one layer's parameters
Activation = Callable[[jax.Array], jax.Array]


class Layer(NamedTuple):
    """One differentiable map, `p_{l+1} = g_l(theta_l, h_l)`.

    Attributes:
      init: `(key, inputs [B, ...]) -> params`; of `inputs` only the shape and
        dtype may matter. Must be traceable.
      apply: `(params, inputs [B, ...]) -> predictions [B, ...]`, each example on
        its own. In a graph both are called with one array for each activity read.
      activation: the function `f` that `apply` puts on its input before the
        weights (the pre-activation layout). Only the decay term
        `||f(h_l)||^2 / 2` of the free energy reads it.
      near: None, or how inference evaluates the layer by changes (see `Near`).
        `layer._replace(near=None)` evaluates it twice, and so loses small errors.
      tokens: whether the layer reads integers, as an embedding does; only the clamped
        input of a network can be such.
      source: whether the layer predicts from nothing, as a prior does: it can only read
        the input, and uses no more of it than the number of examples.
      activations: None, or of a layer that reads several activities the `f` of each, in
        the order of `Network.reads`; in the decay they take the place of `activation`.
    """

    init: Callable[..., Params]
    apply: Callable[..., jax.Array]
    activation: Activation = linear
    near: Near | None = None
    tokens: bool = False
    source: bool = False
    activations: tuple[Activation, ...] | None = None


class _Network(NamedTuple):
    layers: tuple[Layer, ...]
    reads: tuple[tuple[int, ...], ...]


class Network(_Network):
    """Layers, and the activities that each of them reads.

    >>> import pcjax
    >>> network = Network((pcjax.dense(4), pcjax.dense(2, jax.nn.relu)))
    >>> params = network.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> network.apply(params, jnp.ones((5, 3))).shape
    (5, 2)

    A graph, whose last layer reads the input, too:

    >>> both = pcjax.add(pcjax.dense(2, jax.nn.relu), pcjax.dense(2))
    >>> network = Network((pcjax.dense(4), both), reads=((0,), (1, 0)))

    Args:
      layers: `g_0, ..., g_{L-1}`.
      reads: for layer l the indices, at most l, of the activities that `apply` is
        called with, in this order; so the order of the layers is a topological one.
        None is the chain, `reads[l] = (l,)`.

    Raises:
      TypeError: if a layer is no `Layer`.
      ValueError: if a layer reads nothing, the same twice or what is not below it, a
        hidden activity is read by no layer, or a layer has `activations` of more or
        fewer activities than it reads, or of one.
    """

    __slots__ = ()

    def __new__(
        cls,
        layers: Sequence[Layer],
        reads: Sequence[Sequence[int]] | None = None,
    ) -> "Network":
        """Checks layers and edges."""
        if isinstance(layers, Layer) or not isinstance(layers, Sequence):
            raise TypeError(
                "Network: layers must be a tuple or list of layers, got "
                f"{'a single layer' if isinstance(layers, Layer) else repr(layers)}."
            )
        for index, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(
                    f"Network: layer {index} must be a pcjax.Layer, such as "
                    "pcjax.dense(10), pcjax.from_linen(module) or pcjax.Layer(init, "
                    f"apply); got {layer!r}."
                )
        if reads is None:
            reads = tuple((index,) for index in range(len(layers)))
        checked = _checked_reads(len(layers), reads)
        for index, (layer, read) in enumerate(zip(layers, checked, strict=True)):
            if layer.source and read != (0,):
                raise ValueError(
                    f"Network: layer {index} is a prior, which predicts from nothing: "
                    "expected it to be the first layer, or in a graph to read the "
                    f"input alone, reads[{index}] = (0,); got {read}."
                )
            given = layer.activations
            if given is not None and not 1 < len(given) == len(read):
                raise ValueError(
                    f"Network: layer {index} reads {read}: expected activations to be "
                    "None or, of several activities, a tuple with a function for each; "
                    f"got {len(given)} functions."
                )
        return super().__new__(cls, tuple(layers), checked)

    @property
    def is_chain(self) -> bool:
        """Whether every layer reads the activity right below it alone."""
        return self.reads == tuple((index,) for index in range(len(self.layers)))

    def readers(self, index: int) -> tuple[int, ...]:
        """The layers that read activity `h_index`."""
        return tuple(layer for layer, read in enumerate(self.reads) if index in read)

    def activation(self, index: int) -> Activation:
        """The `f` in the decay of `h_index`: that of the first layer reading it.

        Of a layer that reads several activities it is the one put on `h_index`.
        """
        first = self.readers(index)[0]
        layer = self.layers[first]
        if layer.activations is None:
            return layer.activation
        return layer.activations[self.reads[first].index(index)]

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
            does not accept what is predicted below.
        """
        params: list[Params] = []
        check_inputs("network.init", self, inputs)
        shapes = [jax.eval_shape(lambda x: x, inputs)]
        for index, (layer, read) in enumerate(
            zip(self.layers, self.reads, strict=True)
        ):
            layer_key = jax.random.fold_in(key, index)
            # Layers may look at shapes only, so zeros stand for the activities.
            below = [jnp.zeros(shapes[i].shape, shapes[i].dtype) for i in read]
            layer_params = explain(index, below, layer.init, layer_key, *below)
            shapes.append(predict_shape(index, layer, layer_params, below))
            params.append(layer_params)
        return tuple(params)

    def apply(self, params: Sequence[Params], inputs: jax.Array) -> jax.Array:
        """Returns the output logits `p_L` [B, ...] of the feed-forward pass."""
        return feedforward(self, params, inputs)[-1]


def check_chain(function: str, network: Network) -> None:
    """Refuses graphs."""
    if not network.is_chain:
        raise ValueError(
            f"{function}: expected a chain, got layers that read {network.reads}."
        )


def _checked_reads(count: int, reads: Any) -> tuple[tuple[int, ...], ...]:
    """The edges as tuples, refused if no network has them."""
    expected = "Network: reads must hold a tuple of ints for each of the"
    if not isinstance(reads, Sequence) or len(reads) != count:
        raise ValueError(f"{expected} {count} layers, got {reads!r}.")
    for index, read in enumerate(reads):
        if not isinstance(read, Sequence) or not all(is_int(i) for i in read):
            raise ValueError(f"{expected} {count} layers, got {read!r} for {index}.")
        if (
            not read
            or len(set(read)) < len(read)
            or not 0 <= min(read) <= max(read) <= index
        ):
            raise ValueError(
                f"Network: layer {index} must read one or more different activities "
                f"of 0 to {index}, the input and those below it; got {tuple(read)}."
            )
    unread = sorted(set(range(1, count)) - {i for read in reads for i in read})
    if unread:
        raise ValueError(
            f"Network: hidden activities {unread} are read by no layer, so that "
            "nothing could be learned for them; expected each to be read."
        )
    return tuple(tuple(int(i) for i in read) for read in reads)


def feedforward(
    network: Network, params: Sequence[Params], inputs: jax.Array
) -> tuple[jax.Array, ...]:
    """The feed-forward predictions, each layer fed with those below.

    Args:
      network: L layers.
      params: their parameters, as `network.init` returns them.
      inputs: [B, ...].

    Returns:
      `(p_1, ..., p_L)`, the last one being the output logits; the activities at the
      start of inference are `(inputs, p_1, ..., p_{L-1}, h_L)`.

    Raises:
      TypeError: if inputs or parameters are not floats.
      ValueError: if the batch is empty, the parameters are of another network, or a
        layer does not accept what is predicted below.
    """
    check_inputs("feedforward", network, inputs)
    check_sequence("feedforward", "params", params)
    check_params("feedforward", network, params, inputs)
    activities = [inputs]
    for index, (layer, layer_params, read) in enumerate(
        zip(network.layers, params, network.reads, strict=True)
    ):
        below = [activities[i] for i in read]
        activities.append(explain(index, below, layer.apply, layer_params, *below))
    return tuple(activities[1:])
