"""python -m experiments.equilibrium."""

from experiments.common.harness import cli
from experiments.equilibrium import Config, main

if __name__ == "__main__":
    cli(main, Config)
