"""Test accuracies of MLPs and convolutional nets (Table 2, Figures 5 and 6)."""

from experiments.classification.experiment import EXPERIMENT, Config, main

__all__ = ["EXPERIMENT", "Config", "main"]
