"""The VGG nets of the field's benchmark: convolutions that end in a pool."""

from typing import Any, NamedTuple

import jax

from pcjax.checks import check_count
from pcjax.networks.layers import Initializer, conv, dense
from pcjax.networks.network import Activation, Network
from pcjax.networks.pooling import Pool, max_pool


class _Block(NamedTuple):
    """A convolution: its channels over the width, its padding, and whether it pools."""

    channels: int
    padding: int
    pools: bool


# By the number of layers that have weights.
_BLOCKS = {
    5: (_Block(1, 1, True), _Block(2, 1, True), _Block(4, 1, True), _Block(4, 1, True)),
    7: (
        _Block(1, 1, True),
        _Block(1, 1, False),
        _Block(2, 1, True),
        _Block(2, 0, False),
        _Block(4, 1, True),
        _Block(4, 0, False),
    ),
    9: (
        _Block(1, 1, True),
        _Block(1, 1, False),
        _Block(2, 1, True),
        _Block(2, 1, False),
        _Block(4, 1, True),
        _Block(4, 1, False),
        _Block(4, 1, True),
        _Block(4, 1, False),
    ),
}


def vgg(
    depth: int,
    num_classes: int,
    *,
    width: int = 128,
    activation: Activation = jax.nn.gelu,
    pool: Pool | None = None,
    kernel_init: Initializer | None = None,
    product_dtype: Any = None,
) -> Network:
    """A VGG net: 3 x 3 convolutions with activation and pool, then one linear layer.

    With P for a pool of 2 x 2 and v for a convolution without padding, the channels are

        VGG5:  128P 256P 512P 512P
        VGG7:  128P 128 256P 256v 512P 512v
        VGG9:  128P 128 256P 256 512P 512 512P 512

    >>> network = vgg(5, 10, width=8)
    >>> images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    >>> params = jax.eval_shape(network.init, jax.random.key(0), images)
    >>> [p["kernel"].shape[-1] for p in params]
    [8, 16, 32, 32, 10]

    Args:
      depth: 5, 7 or 9 layers with weights.
      num_classes: the number of logits.
      width: the channels of the first convolution; the others have 1, 2 or 4 times as
        many.
      activation: of the convolutions.
      pool: what P stands for; by default `max_pool((2, 2))`.
      kernel_init: see `dense`, as for the next.
      product_dtype: see `dense`.

    Returns:
      A network over images [B, H, W, C]; 32 x 32 suits all depths.

    Raises:
      TypeError: as `conv`.
      ValueError: as `conv`, or if there is no net of that depth.

    References:
      Pinchetti et al., 2024, "Benchmarking Predictive Coding Networks -- Made Simple".
    """
    if depth not in _BLOCKS:
        raise ValueError(f"vgg: depth must be one of {list(_BLOCKS)}, got {depth!r}.")
    for name, value in (("num_classes", num_classes), ("width", width)):
        check_count("vgg", name, value)
    options = {"kernel_init": kernel_init, "product_dtype": product_dtype}
    convs = [
        conv(
            block.channels * width,
            (3, 3),
            (1, 1),
            activation=activation,
            padding=(block.padding, block.padding),
            pool=(pool or max_pool()) if block.pools else None,
            **options,
        )
        for block in _BLOCKS[depth]
    ]
    return Network((*convs, dense(num_classes, **options)))
