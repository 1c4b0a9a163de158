"""The old name of `experiments.costs.measures`."""

from experiments.costs.measures import compile_step, inspect

__all__ = ["compile_step", "inspect"]
