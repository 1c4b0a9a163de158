"""Programs that run for moments: what counts is how soon they are compiled."""

import os

import jax

# Machine code that is not polished and made in one piece, without the emitters that
# write kernels for fused operations. What is computed and with which products stays.
FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
# XLA ends the process at a flag that it does not know: no flags for untried versions.
TRIED = (0, 10)


def compile_quickly() -> None:
    """Compiles all programs of this process quickly, on a CPU.

    To be called before JAX computes for the first time; later it does nothing. Flags
    that are set in the environment stay.
    """
    if jax.__version_info__[:2] <= TRIED:
        os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
