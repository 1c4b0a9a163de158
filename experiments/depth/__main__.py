"""python -m experiments.depth."""

from experiments.common.harness import cli
from experiments.depth import Config, main

if __name__ == "__main__":
    cli(main, Config)
