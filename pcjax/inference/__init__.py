"""How activities move down the free energy (eq. 2).

`origin` is the one linearisation of a network at its feed-forward activities, `kernel`
the loop over it, `methods` holds the ways to move and `infer`, `keys` what is random,
and `equilibrium` goes on until the activities rest. `bb` is the step without a rate,
`newton_cg` the fallback of `equilibrium`, `kinks` and `curvature` what it meets. For
generative use, `ancestral` draws from the top down, `langevin` samples, and `held`
keeps what is known.
"""

from pcjax.inference.ancestral import ancestral
from pcjax.inference.bb import barzilai_borwein
from pcjax.inference.curvature import largest_curvature
from pcjax.inference.equilibrium import infer_to_equilibrium, linear_equilibrium
from pcjax.inference.held import held
from pcjax.inference.kernel import Inference, Method
from pcjax.inference.langevin import langevin
from pcjax.inference.methods import error_based, infer, sequential, simultaneous
from pcjax.inference.newton_cg import newton_cg
from pcjax.inference.rest import Equilibrium
from pcjax.inference.state import InferenceState

__all__ = [
    "Equilibrium",
    "Inference",
    "InferenceState",
    "Method",
    "ancestral",
    "barzilai_borwein",
    "error_based",
    "held",
    "infer",
    "infer_to_equilibrium",
    "langevin",
    "largest_curvature",
    "linear_equilibrium",
    "newton_cg",
    "sequential",
    "simultaneous",
]
