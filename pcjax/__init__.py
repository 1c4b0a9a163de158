"""Predictive coding networks in JAX."""

from pcjax import backprop
from pcjax.energy import free_energy, free_energy_per_layer, prediction_errors
from pcjax.incremental import incremental
from pcjax.inference import (
    Inference,
    InferenceState,
    Method,
    infer,
    sequential,
    simultaneous,
)
from pcjax.learning import Info, local_gradients, value_and_grad
from pcjax.modules import from_linen, from_nnx
from pcjax.networks import (
    Layer,
    Network,
    autoencoder,
    conv,
    convnet,
    dense,
    feedforward,
    mlp,
)
from pcjax.outputs import (
    Clamp,
    Output,
    full_clamp,
    identity,
    sigmoid,
    soft_clamp,
    softmax,
)

__version__ = "0.1.0"
