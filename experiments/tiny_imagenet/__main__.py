"""python -m experiments.tiny_imagenet."""

import tyro

from experiments.tiny_imagenet import Config, main

if __name__ == "__main__":
    main(tyro.cli(Config))
