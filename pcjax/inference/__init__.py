"""How activities move down the free energy (eq. 2).

`origin` is the one linearisation of a network at its feed-forward activities, `kernel`
the loop over it, `methods` holds the ways to move and `infer`, `keys` what is random,
and `equilibrium` goes on until the activities rest.
"""

from pcjax.inference.equilibrium import (
    Equilibrium,
    infer_to_equilibrium,
    linear_equilibrium,
)
from pcjax.inference.kernel import Inference, Method
from pcjax.inference.methods import error_based, infer, sequential, simultaneous
from pcjax.inference.state import InferenceState

__all__ = [
    "Equilibrium",
    "Inference",
    "InferenceState",
    "Method",
    "error_based",
    "infer",
    "infer_to_equilibrium",
    "linear_equilibrium",
    "sequential",
    "simultaneous",
]
