"""python -m experiments.classification."""

from experiments.classification import Config, main
from experiments.common.harness import cli

if __name__ == "__main__":
    cli(main, Config)
