"""Trains an MLP with backprop and predictive coding and compares them.

python -m experiments.quickstart
python -m experiments.quickstart --dataset cifar10 --data-dir DIR --epochs 10
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import jax
import tyro

from experiments import data, report, runner
from experiments.methods import METHODS, SETTINGS


@dataclass(frozen=True)
class Config:
    """Trains an MLP with backprop and predictive coding and compares them."""

    dataset: str = "digits"
    """digits (built in), cifar10, svhn_cropped, mnist or fashion_mnist."""
    data_dir: Path | None = None
    """The folder of prepared TFDS data sets; digits needs none."""
    epochs: int | None = None
    """Passes over the training set; by default what the data set's settings say."""
    seeds: int = 3
    """Networks trained at once, each with its own initial weights and data order."""
    seed: int = 0
    """Decides all randomness."""
    methods: tuple[str, ...] = tuple(method.name for method in METHODS)
    """The methods to train."""
    out: Path = Path("out/quickstart")
    """Where summary.json and curves.png go."""


def main(config: Config) -> None:
    """Runs the comparison, writing its results after every round of epochs."""
    known = {method.name: method for method in METHODS}
    unknown = sorted(set(config.methods) - set(known))
    if unknown or not config.methods:
        raise SystemExit(f"--methods: expected some of {list(known)}, got {unknown}.")
    if config.seeds < 1 or (config.epochs is not None and config.epochs < 1):
        raise SystemExit(
            "--seeds and --epochs must be at least 1, got "
            f"{config.seeds} and {config.epochs}."
        )
    try:
        images = data.load(config.dataset, config.data_dir)
    except (ValueError, data.DatasetError) as error:
        raise SystemExit(str(error)) from error
    settings = SETTINGS[config.dataset]
    settings = dataclasses.replace(settings, epochs=config.epochs or settings.epochs)
    task = runner.mlp_task(images, settings)
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    with report.Live(config.methods, settings.epochs) as live:
        trainers = []
        for name in config.methods:
            live.status(f"compiling {name}")
            trainers.append(runner.Trainer(known[name], task, settings, keys))
        for trainer, record in runner.train(trainers, settings.epochs):
            live.update(trainer, record)
            if trainer is trainers[-1]:
                summary = report.summarise(trainers, config, settings)
                report.save(summary, config.out)
    report.plot(summary, config.out / "curves.png")
    report.print_table(summary, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config))
