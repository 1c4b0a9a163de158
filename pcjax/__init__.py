"""Predictive coding networks in JAX."""

from pcjax import backprop, diagnosis, evaluation, finite, sharding, training
from pcjax.energy import free_energy, free_energy_per_layer, prediction_errors
from pcjax.incremental import incremental
from pcjax.inference import infer, sequential, simultaneous
from pcjax.kernel import Inference, InferenceState, Method
from pcjax.layers import autoencoder, conv, convnet, dense, mlp
from pcjax.learning import Info, local_gradients, value_and_grad
from pcjax.modules import from_linen, from_nnx
from pcjax.mq import ScaleByMQState, mq, scale_by_mq
from pcjax.networks import Layer, Network, feedforward
from pcjax.outputs import (
    Clamp,
    Output,
    full_clamp,
    identity,
    sigmoid,
    soft_clamp,
    softmax,
)

__all__ = [
    "Clamp",
    "Inference",
    "InferenceState",
    "Info",
    "Layer",
    "Method",
    "Network",
    "Output",
    "ScaleByMQState",
    "autoencoder",
    "backprop",
    "conv",
    "convnet",
    "dense",
    "diagnosis",
    "evaluation",
    "feedforward",
    "finite",
    "free_energy",
    "free_energy_per_layer",
    "from_linen",
    "from_nnx",
    "full_clamp",
    "identity",
    "incremental",
    "infer",
    "local_gradients",
    "mlp",
    "mq",
    "prediction_errors",
    "scale_by_mq",
    "sequential",
    "sharding",
    "sigmoid",
    "simultaneous",
    "soft_clamp",
    "softmax",
    "training",
    "value_and_grad",
]

__version__ = "0.1.0"
