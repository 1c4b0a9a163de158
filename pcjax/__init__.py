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
    barzilai_borwein,
    equilibrium,
    error_based,
    infer,
    infer_to_equilibrium,
    kernel,
    largest_curvature,
    newton_cg,
    sequential,
    simultaneous,
)
from pcjax.learning import (
    Info,
    at_equilibrium,
    augmented_lagrangian,
    backprop,
    decaying,
    forward_update,
    incremental,
    local_gradients,
    spiking,
    value_and_grad,
    z_il,
)
from pcjax.networks import (
    Clamp,
    Layer,
    Network,
    Output,
    add,
    autoencoder,
    check_separate,
    conv,
    convnet,
    dense,
    depth_mup,
    feedforward,
    from_linen,
    from_nnx,
    full_clamp,
    identity,
    layers,
    mlp,
    modules,
    mupc,
    outputs,
    residual,
    residual_mlp,
    sigmoid,
    skip,
    soft_clamp,
    softmax,
    standard,
)
from pcjax.optimizers import ScaleByMQState, finite, mq, normalised, scale_by_mq
from pcjax.theory import newton, proximal, theorem1
from pcjax.training import diagnosis, evaluation, measures, sharding

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
    "at_equilibrium",
    "augmented_lagrangian",
    "autoencoder",
    "backprop",
    "barzilai_borwein",
    "check_separate",
    "conv",
    "convnet",
    "decaying",
    "dense",
    "depth_mup",
    "diagnosis",
    "error_based",
    "evaluation",
    "feedforward",
    "finite",
    "forward_update",
    "free_energy",
    "free_energy_per_layer",
    "from_linen",
    "from_nnx",
    "full_clamp",
    "identity",
    "incremental",
    "infer",
    "infer_to_equilibrium",
    "largest_curvature",
    "local_gradients",
    "measures",
    "mlp",
    "mq",
    "mupc",
    "newton_cg",
    "prediction_errors",
    "residual",
    "residual_mlp",
    "scale_by_mq",
    "sequential",
    "sharding",
    "sigmoid",
    "simultaneous",
    "skip",
    "soft_clamp",
    "softmax",
    "spiking",
    "standard",
    "training",
    "value_and_grad",
    "z_il",
]

__version__ = "0.1.0"
