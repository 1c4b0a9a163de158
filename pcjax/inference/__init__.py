"""How activities move down the free energy (eq. 2).

`kernel` is the one linearisation of a network at its feed-forward activities with the
loops over it, `methods` holds the ways to move and `infer`, and `equilibrium` goes on
until the activities rest.
"""

from pcjax.inference.equilibrium import (
    Equilibrium,
    infer_to_equilibrium,
    linear_equilibrium,
)
from pcjax.inference.kernel import Inference, InferenceState, Method
from pcjax.inference.methods import infer, sequential, simultaneous

__all__ = [
    "Equilibrium",
    "Inference",
    "InferenceState",
    "Method",
    "infer",
    "infer_to_equilibrium",
    "linear_equilibrium",
    "sequential",
    "simultaneous",
]
