"""What is trained: layers, networks of them, outputs and clamps.

`network` defines layers and networks of them, `near` how inference evaluates a layer
and `fitting` what belongs to a network; `layers` holds the dense and convolutional
layers, `pooling` what a convolution may end in, `sizes` the checks of both, `sums` the
layers of graphs, `nets` the paper's nets, `vgg` those of the field's benchmark,
`modules` those of flax, `outputs` the links, losses and clamps of the last layer,
`nudges` the clamps that nudge it, and `separate` checks that no layer mixes examples.
"""

from pcjax.networks.layers import conv, dense
from pcjax.networks.modules import from_linen, from_nnx
from pcjax.networks.nets import autoencoder, convnet, mlp
from pcjax.networks.network import (
    Activation,
    Layer,
    Near,
    Network,
    Params,
    feedforward,
    linear,
)
from pcjax.networks.nudges import free_nudge, nudge
from pcjax.networks.outputs import (
    Clamp,
    Output,
    full_clamp,
    identity,
    sigmoid,
    soft_clamp,
    softmax,
)
from pcjax.networks.pooling import Pool, average_pool, max_pool
from pcjax.networks.separate import check_separate
from pcjax.networks.sums import add, skip
from pcjax.networks.vgg import vgg

__all__ = [
    "Activation",
    "Clamp",
    "Layer",
    "Near",
    "Network",
    "Output",
    "Params",
    "Pool",
    "add",
    "autoencoder",
    "average_pool",
    "check_separate",
    "conv",
    "convnet",
    "dense",
    "feedforward",
    "free_nudge",
    "from_linen",
    "from_nnx",
    "full_clamp",
    "identity",
    "linear",
    "max_pool",
    "mlp",
    "nudge",
    "sigmoid",
    "skip",
    "soft_clamp",
    "softmax",
    "vgg",
]
