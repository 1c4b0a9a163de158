"""Training with products in float32 and in bfloat16, side by side."""

from experiments.precision.experiment import EXPERIMENT, Config, main

__all__ = ["EXPERIMENT", "Config", "main"]
