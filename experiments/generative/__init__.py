"""Decoders, completions, memories and samples: networks that generate."""

from experiments.generative.experiment import EXPERIMENT, Config, main

__all__ = ["EXPERIMENT", "Config", "main"]
