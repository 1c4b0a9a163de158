"""python -m experiments.proximal_objective."""

from experiments.common.harness import cli
from experiments.proximal_objective import Config, main

if __name__ == "__main__":
    cli(main, Config)
