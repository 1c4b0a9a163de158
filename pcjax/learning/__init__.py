"""How weights learn: gradients and training iterations.

`gradients` holds the local gradients (eq. 4) after inference, `nudging` those of nudged
outputs, `incremental` iterations in which the weights move along with the activities,
and `backprop` the baseline. `at_equilibrium` goes on until inference rests; `relatives`
and `alm` are rules whose gradients are multiples of backprop's, or go to it. Around any
gradient function go `sampled` (averages over samples), `precisions` (that are learned)
and `amortised` (starts that are).
"""

from pcjax.learning import at_equilibrium, backprop
from pcjax.learning.alm import augmented_lagrangian
from pcjax.learning.amortised import Amortised, amortised
from pcjax.learning.gradients import (
    GradFn,
    Info,
    Update,
    local_gradients,
    value_and_grad,
)
from pcjax.learning.incremental import incremental
from pcjax.learning.nudging import centred, nudged
from pcjax.learning.precisions import Precise, with_precisions
from pcjax.learning.relatives import decaying, forward_update, spiking, z_il
from pcjax.learning.sampled import averaged

__all__ = [
    "Amortised",
    "GradFn",
    "Info",
    "Precise",
    "Update",
    "amortised",
    "at_equilibrium",
    "augmented_lagrangian",
    "averaged",
    "backprop",
    "centred",
    "decaying",
    "forward_update",
    "incremental",
    "local_gradients",
    "nudged",
    "spiking",
    "value_and_grad",
    "with_precisions",
    "z_il",
]
