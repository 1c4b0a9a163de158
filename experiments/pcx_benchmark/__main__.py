"""python -m experiments.pcx_benchmark."""

from experiments.common.harness import cli
from experiments.pcx_benchmark import Config, main

if __name__ == "__main__":
    cli(main, Config)
