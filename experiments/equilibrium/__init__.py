"""How many passes the equilibrium takes."""

from experiments.equilibrium.experiment import EXPERIMENT, METHODS, Config, main

__all__ = ["EXPERIMENT", "METHODS", "Config", "main"]
