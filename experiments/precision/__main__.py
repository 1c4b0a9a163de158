"""python -m experiments.precision."""

from experiments.common.harness import cli
from experiments.precision import Config, main

if __name__ == "__main__":
    cli(main, Config)
