"""How implicit is it? Theorems 1 and 2 of the paper in numbers."""

from experiments.implicit_sgd.experiment import Config, main

__all__ = ["Config", "main"]
