"""What is trained: layers, networks of them, outputs and clamps.

`network` defines layers and networks, `layers` the dense and convolutional layers and
the paper's nets, `modules` makes layers of flax modules, and `outputs` holds the links,
losses and clamps of the last layer.
"""

from pcjax.networks.layers import autoencoder, conv, convnet, dense, mlp
from pcjax.networks.modules import from_linen, from_nnx
from pcjax.networks.network import (
    Activation,
    Layer,
    Network,
    Params,
    feedforward,
    linear,
)
from pcjax.networks.outputs import (
    Clamp,
    Output,
    full_clamp,
    identity,
    sigmoid,
    soft_clamp,
    softmax,
)

__all__ = [
    "Activation",
    "Clamp",
    "Layer",
    "Network",
    "Output",
    "Params",
    "autoencoder",
    "conv",
    "convnet",
    "dense",
    "feedforward",
    "from_linen",
    "from_nnx",
    "full_clamp",
    "identity",
    "linear",
    "mlp",
    "sigmoid",
    "soft_clamp",
    "softmax",
]
