"""The proximal objective along inference (Figures 1 and 8)."""

from experiments.proximal_objective.experiment import EXPERIMENT, Config, main

__all__ = ["EXPERIMENT", "Config", "main"]
