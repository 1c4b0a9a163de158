"""What is trained: layers, networks of them, outputs and clamps.

`network` defines layers and networks of them, `near` how inference evaluates a layer
and `fitting` what belongs to a network; `layers` holds the dense and convolutional
layers, `pooling` what a convolution may end in, `sizes` the checks of both, `sums` the
layers of graphs, `residual` blocks with a skip inside, `parametrisations` ways to draw
and scale weights, `nets` the paper's nets, `vgg` those of the field's benchmark,
`modules` those of flax, `outputs` the links, losses and clamps of the last layer,
`nudges` the clamps that nudge it, and `separate` checks that no layer mixes examples.
For generative use, `priors` holds what stands at the ends of a network, `masks` what is
missing of the data, and `bidirectional` predictions both ways.
"""

from pcjax.networks.bidirectional import bidirectional
from pcjax.networks.layers import conv, dense
from pcjax.networks.masks import masked, observed
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
from pcjax.networks.parametrisations import (
    Place,
    Scaling,
    depth_mup,
    mupc,
    parametrised,
    standard,
)
from pcjax.networks.pooling import Pool, average_pool, max_pool
from pcjax.networks.priors import decoder, free_output, no_inputs, prior
from pcjax.networks.residual import residual, residual_mlp
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
    "Place",
    "Pool",
    "Scaling",
    "add",
    "autoencoder",
    "average_pool",
    "bidirectional",
    "check_separate",
    "conv",
    "convnet",
    "decoder",
    "dense",
    "depth_mup",
    "feedforward",
    "free_nudge",
    "free_output",
    "from_linen",
    "from_nnx",
    "full_clamp",
    "identity",
    "linear",
    "masked",
    "max_pool",
    "mlp",
    "mupc",
    "no_inputs",
    "nudge",
    "observed",
    "parametrised",
    "prior",
    "residual",
    "residual_mlp",
    "sigmoid",
    "skip",
    "soft_clamp",
    "softmax",
    "standard",
    "vgg",
]
