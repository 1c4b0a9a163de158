"""What is trained: layers, networks of them, outputs and clamps.

`network` defines layers and networks of them, `near` how inference evaluates a layer
and `fitting` what belongs to a network; `layers` holds the dense and convolutional
layers, `sums` those of graphs, `nets` the paper's nets, `modules` those of flax,
`residual` blocks with a skip inside, `parametrisations` ways to draw and scale weights,
`outputs` holds the links, losses and clamps of the last layer, and `separate` checks
that no layer mixes examples.
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
from pcjax.networks.outputs import (
    Clamp,
    Output,
    full_clamp,
    identity,
    sigmoid,
    soft_clamp,
    softmax,
)
from pcjax.networks.parametrisations import (
    Place,
    Scaling,
    depth_mup,
    mupc,
    standard,
)
from pcjax.networks.residual import residual, residual_mlp
from pcjax.networks.separate import check_separate
from pcjax.networks.sums import add, skip

__all__ = [
    "Activation",
    "Clamp",
    "Layer",
    "Near",
    "Network",
    "Output",
    "Params",
    "Place",
    "Scaling",
    "add",
    "autoencoder",
    "check_separate",
    "conv",
    "convnet",
    "dense",
    "depth_mup",
    "feedforward",
    "from_linen",
    "from_nnx",
    "full_clamp",
    "identity",
    "linear",
    "mlp",
    "mupc",
    "residual",
    "residual_mlp",
    "sigmoid",
    "skip",
    "soft_clamp",
    "softmax",
    "standard",
]
