"""python -m experiments.generative."""

from experiments.common.harness import cli
from experiments.generative import Config, main

if __name__ == "__main__":
    cli(main, Config)
