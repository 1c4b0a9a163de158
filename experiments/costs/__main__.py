"""python -m experiments.costs."""

from experiments.common.harness import cli
from experiments.costs import Config, main

if __name__ == "__main__":
    cli(main, Config)
