"""Memory and matrix products of a training iteration (Tables 3, 4 and 5)."""

from experiments.costs.experiment import EXPERIMENT, Config, main

__all__ = ["EXPERIMENT", "Config", "main"]
