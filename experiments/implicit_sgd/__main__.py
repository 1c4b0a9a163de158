"""python -m experiments.implicit_sgd."""

import tyro

from experiments.implicit_sgd import Config, main

if __name__ == "__main__":
    main(tyro.cli(Config))
