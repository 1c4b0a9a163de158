"""Predictive coding networks in JAX.

Floor by floor, from the ground: `checks`, `numerics`, `networks`, `energy`,
`optimizers`, `inference`, `learning`, `theory`, `training`. An import goes to the same
floor or one below. `checkpoints` stands on its own.
"""

import sys as _sys

from pcjax.energy import free_energy, free_energy_per_layer, prediction_errors
from pcjax.inference import (
    Inference,
    InferenceState,
    Method,
    equilibrium,
    error_based,
    infer,
    kernel,
    sequential,
    simultaneous,
)
from pcjax.learning import (
    Info,
    backprop,
    centred,
    incremental,
    local_gradients,
    nudged,
    value_and_grad,
)
from pcjax.networks import (
    Clamp,
    Layer,
    Network,
    Output,
    add,
    autoencoder,
    average_pool,
    check_separate,
    conv,
    convnet,
    dense,
    feedforward,
    free_nudge,
    from_linen,
    from_nnx,
    full_clamp,
    identity,
    layers,
    max_pool,
    mlp,
    modules,
    nudge,
    outputs,
    sigmoid,
    skip,
    soft_clamp,
    softmax,
    vgg,
)
from pcjax.optimizers import ScaleByMQState, finite, mq, normalised, scale_by_mq
from pcjax.theory import newton, proximal, theorem1
from pcjax.training import diagnosis, evaluation, sharding

# Modules that once were files of pcjax itself are found under that name, too, as in
# `from pcjax.finite import guard`.
for _module in (
    backprop,
    diagnosis,
    equilibrium,
    evaluation,
    finite,
    kernel,
    layers,
    modules,
    newton,
    normalised,
    outputs,
    proximal,
    sharding,
    theorem1,
):
    _sys.modules[f"pcjax.{_module.__name__.rpartition('.')[2]}"] = _module
for _name in ("mq", "incremental"):  # these are functions of the same name, too
    _home = {"mq": "optimizers", "incremental": "learning"}[_name]
    _sys.modules[f"pcjax.{_name}"] = _sys.modules[f"pcjax.{_home}.{_name}"]

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
    "add",
    "autoencoder",
    "average_pool",
    "backprop",
    "centred",
    "check_separate",
    "conv",
    "convnet",
    "dense",
    "diagnosis",
    "error_based",
    "evaluation",
    "feedforward",
    "finite",
    "free_energy",
    "free_energy_per_layer",
    "free_nudge",
    "from_linen",
    "from_nnx",
    "full_clamp",
    "identity",
    "incremental",
    "infer",
    "local_gradients",
    "max_pool",
    "mlp",
    "mq",
    "nudge",
    "nudged",
    "prediction_errors",
    "scale_by_mq",
    "sequential",
    "sharding",
    "sigmoid",
    "simultaneous",
    "skip",
    "soft_clamp",
    "softmax",
    "training",
    "value_and_grad",
    "vgg",
]

__version__ = "0.1.0"
