"""python -m experiments.proximal_objective."""

import tyro

from experiments.proximal_objective import Config, main

if __name__ == "__main__":
    main(tyro.cli(Config))
