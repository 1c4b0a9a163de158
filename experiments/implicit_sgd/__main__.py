"""python -m experiments.implicit_sgd."""

from experiments.common.harness import cli
from experiments.implicit_sgd import Config, main

if __name__ == "__main__":
    cli(main, Config)
