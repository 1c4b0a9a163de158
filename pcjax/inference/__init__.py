"""How activities move down the free energy (eq. 2).

`origin` is the one linearisation of a network at its feed-forward activities, `kernel`
the loop over it, `methods` holds the ways to move and `infer`, `keys` what is random,
and `equilibrium` goes on until the activities rest. For generative use,
`ancestral` draws from the top down, `langevin` samples, and `held` keeps what is known.
"""

from pcjax.inference.ancestral import ancestral
from pcjax.inference.equilibrium import (
    Equilibrium,
    infer_to_equilibrium,
    linear_equilibrium,
)
from pcjax.inference.held import held
from pcjax.inference.kernel import Inference, Method
from pcjax.inference.langevin import langevin
from pcjax.inference.methods import error_based, infer, sequential, simultaneous
from pcjax.inference.state import InferenceState

__all__ = [
    "Equilibrium",
    "Inference",
    "InferenceState",
    "Method",
    "ancestral",
    "error_based",
    "held",
    "infer",
    "infer_to_equilibrium",
    "langevin",
    "linear_equilibrium",
    "sequential",
    "simultaneous",
]
