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
    ancestral,
    equilibrium,
    error_based,
    held,
    infer,
    kernel,
    langevin,
    sequential,
    simultaneous,
)
from pcjax.learning import (
    Amortised,
    Info,
    Precise,
    amortised,
    averaged,
    backprop,
    incremental,
    local_gradients,
    value_and_grad,
    with_precisions,
)
from pcjax.networks import (
    Clamp,
    Layer,
    Network,
    Output,
    add,
    autoencoder,
    bidirectional,
    check_separate,
    conv,
    convnet,
    decoder,
    dense,
    feedforward,
    free_output,
    from_linen,
    from_nnx,
    full_clamp,
    identity,
    layers,
    masked,
    mlp,
    modules,
    no_inputs,
    observed,
    outputs,
    prior,
    sigmoid,
    skip,
    soft_clamp,
    softmax,
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
    "Amortised",
    "Clamp",
    "Inference",
    "InferenceState",
    "Info",
    "Layer",
    "Method",
    "Network",
    "Output",
    "Precise",
    "ScaleByMQState",
    "add",
    "amortised",
    "ancestral",
    "autoencoder",
    "averaged",
    "backprop",
    "bidirectional",
    "check_separate",
    "conv",
    "convnet",
    "decoder",
    "dense",
    "diagnosis",
    "error_based",
    "evaluation",
    "feedforward",
    "finite",
    "free_energy",
    "free_energy_per_layer",
    "free_output",
    "from_linen",
    "from_nnx",
    "full_clamp",
    "held",
    "identity",
    "incremental",
    "infer",
    "langevin",
    "local_gradients",
    "masked",
    "mlp",
    "mq",
    "no_inputs",
    "observed",
    "prediction_errors",
    "prior",
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
    "with_precisions",
]

__version__ = "0.1.0"
