"""What is trained: layers, networks of them, outputs and clamps.

`network` defines layers and networks of them, `near` how inference evaluates a layer
and `fitting` what belongs to a network; `layers` holds the dense and convolutional
layers, `sums` those of graphs, `nets` the paper's nets, `modules` those of flax,
`outputs` holds the links, losses and clamps of the last layer, and `separate` checks
that no layer mixes examples. For generative use, `priors` holds what stands at
the ends of a network, `masks` what is missing of the data, and `bidirectional`
predictions both ways.
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
from pcjax.networks.outputs import (
    Clamp,
    Output,
    full_clamp,
    identity,
    sigmoid,
    soft_clamp,
    softmax,
)
from pcjax.networks.priors import decoder, free_output, no_inputs, prior
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
    "add",
    "autoencoder",
    "bidirectional",
    "check_separate",
    "conv",
    "convnet",
    "decoder",
    "dense",
    "feedforward",
    "free_output",
    "from_linen",
    "from_nnx",
    "full_clamp",
    "identity",
    "linear",
    "masked",
    "mlp",
    "no_inputs",
    "observed",
    "prior",
    "sigmoid",
    "skip",
    "soft_clamp",
    "softmax",
]
