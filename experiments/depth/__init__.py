"""What trains deep, and what of it is backprop?"""

from experiments.depth.experiment import EXPERIMENT, Config, main

__all__ = ["EXPERIMENT", "Config", "main"]
