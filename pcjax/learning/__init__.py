"""How weights learn: gradients and training iterations.

`gradients` holds the local gradients (eq. 4) after inference, `incremental` iterations
in which the weights move along with the activities, and `backprop` the baseline.
`at_equilibrium` goes on until inference rests; `relatives` and `alm` are rules whose
gradients are multiples of backprop's, or go to it.
"""

from pcjax.learning import at_equilibrium, backprop
from pcjax.learning.alm import augmented_lagrangian
from pcjax.learning.gradients import (
    GradFn,
    Info,
    Update,
    local_gradients,
    value_and_grad,
)
from pcjax.learning.incremental import incremental
from pcjax.learning.relatives import decaying, forward_update, spiking, z_il

__all__ = [
    "GradFn",
    "Info",
    "Update",
    "at_equilibrium",
    "augmented_lagrangian",
    "backprop",
    "decaying",
    "forward_update",
    "incremental",
    "local_gradients",
    "spiking",
    "value_and_grad",
    "z_il",
]
