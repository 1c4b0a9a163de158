"""python -m experiments.costs."""

import tyro

from experiments.costs import Config, main

if __name__ == "__main__":
    main(tyro.cli(Config))
