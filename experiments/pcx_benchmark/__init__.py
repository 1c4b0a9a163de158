"""The benchmark of predictive coding on image classification (PCX's)."""

from experiments.pcx_benchmark.experiment import EXPERIMENT, Config, main

__all__ = ["EXPERIMENT", "Config", "main"]
