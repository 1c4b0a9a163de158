"""How weights learn: gradients and training iterations.

`gradients` holds the local gradients (eq. 4) after inference, `nudging` those of nudged
outputs, `incremental` iterations in which the weights move along with the activities,
and `backprop` the baseline.
"""

from pcjax.learning import backprop
from pcjax.learning.gradients import (
    GradFn,
    Info,
    Update,
    local_gradients,
    value_and_grad,
)
from pcjax.learning.incremental import incremental
from pcjax.learning.nudging import centred, nudged

__all__ = [
    "GradFn",
    "Info",
    "Update",
    "backprop",
    "centred",
    "incremental",
    "local_gradients",
    "nudged",
    "value_and_grad",
]
