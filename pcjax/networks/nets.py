"""The paper's nets: chains of dense and convolutional layers."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax

from pcjax.checks import check_callable, check_count
from pcjax.networks.layers import Initializer, conv, dense
from pcjax.networks.network import Activation, Network, linear
from pcjax.networks.parametrisations import (
    Parametrisation,
    Place,
    parametrised,
    standard,
)
from pcjax.networks.sizes import are_sizes


def mlp(
    sizes: Sequence[int],
    activation: Activation = jax.nn.relu,
    *,
    kernel_init: Initializer | None = None,
    parametrisation: Parametrisation = standard,
    product_dtype: Any = None,
) -> Network:
    """A fully connected network in the pre-activation layout.

    Args:
      sizes: of the input, the hidden layers and the output;
        `[3072, 1024, 1024, 1024, 10]` is the paper's classifier.
      activation: `f` of the hidden layers; the input passes unchanged.
      kernel_init: see `dense`, as for the next.
      parametrisation: how weights are drawn and scaled, such as `pcjax.mupc`.
      product_dtype: see `dense`.

    Returns:
      A network of `len(sizes) - 1` dense layers; inputs of any shape are
      flattened.

    Raises:
      TypeError: if `product_dtype` is no float dtype.
      ValueError: if there are fewer than two sizes, or one is no int >= 1.
    """
    if not are_sizes(sizes) or len(sizes) < 2:
        raise ValueError(f"mlp: expected two or more positive sizes, got {sizes!r}.")
    check_callable("mlp", "activation", activation)
    check_callable("mlp", "parametrisation", parametrisation)
    count = len(sizes) - 1
    return Network(
        tuple(
            parametrised(
                dense(
                    size,
                    activation if index else linear,
                    in_features=below,
                    kernel_init=kernel_init,
                    product_dtype=product_dtype,
                ),
                parametrisation(Place(index, count, False)),
            )
            for index, (below, size) in enumerate(itertools.pairwise(sizes))
        )
    )


def convnet(
    num_classes: int,
    *,
    features: Sequence[int] = (64, 128, 256),
    kernel_sizes: Sequence[int] = (5, 5, 3),
    parametrisation: Parametrisation = standard,
    product_dtype: Any = None,
) -> Network:
    """The paper's convolutional classifier, post-activation.

    Stride-2 ReLU convolutions without padding, then one linear layer on the
    flattened channels. The defaults are the net for 32x32 images;
    `features=(32, 64, 128, 256), kernel_sizes=(5, 5, 5, 3)` is the one for
    64x64 (Tiny ImageNet).

    Args:
      num_classes: the number of logits.
      features: the output channels of each convolution.
      kernel_sizes: the side of each (square) filter.
      parametrisation: see `mlp`; the fan in is that of a filter.
      product_dtype: see `dense`.

    Returns:
      A network of `len(features) + 1` layers over images [B, H, W, C].

    Raises:
      TypeError: if `product_dtype` is no float dtype.
      ValueError: if the two lists differ in length, or a size is no int >= 1.
    """
    check_count("convnet", "num_classes", num_classes)
    for name, sizes in (("features", features), ("kernel_sizes", kernel_sizes)):
        if not are_sizes(sizes):
            raise ValueError(f"convnet: {name} must be ints >= 1, got {sizes!r}.")
    if len(features) != len(kernel_sizes):
        raise ValueError(
            f"convnet: {len(features)} features, but {len(kernel_sizes)} kernel sizes."
        )
    convs = [
        conv(channels, (size, size), product_dtype=product_dtype)
        for channels, size in zip(features, kernel_sizes, strict=True)
    ]
    check_callable("convnet", "parametrisation", parametrisation)
    layers = (*convs, dense(num_classes, product_dtype=product_dtype))
    return Network(
        tuple(
            parametrised(layer, parametrisation(Place(index, len(layers), False)))
            for index, layer in enumerate(layers)
        )
    )


def autoencoder(
    sizes: Sequence[int] = (3072, 1024, 256, 20, 256, 1024, 3072),
    activation: Activation = jax.nn.relu,
    *,
    product_dtype: Any = None,
) -> Network:
    """The paper's fully connected autoencoder: an `mlp` that ends where it starts.

    Args:
      sizes: of every layer, input and reconstruction included.
      activation: of the hidden layers.
      product_dtype: see `dense`.

    Returns:
      A network whose logits [B, sizes[-1]] are meant for `pcjax.sigmoid`.

    Raises:
      TypeError: if `product_dtype` is no float dtype.
      ValueError: if the first and the last size differ, there are fewer than two, or
        one is no int >= 1.
    """
    if not are_sizes(sizes) or len(sizes) < 2:
        raise ValueError(
            f"autoencoder: expected two or more positive sizes, got {sizes!r}."
        )
    if sizes[0] != sizes[-1]:
        raise ValueError(
            f"autoencoder: the input has size {sizes[0]}, the reconstruction "
            f"{sizes[-1]}; they must be equal."
        )
    return mlp(sizes, activation, product_dtype=product_dtype)
