"""python -m experiments.tiny_imagenet."""

from experiments.common.harness import cli
from experiments.tiny_imagenet import Config, main

if __name__ == "__main__":
    cli(main, Config)
