"""Decodes a data set into the cache and says what is in it.

python -m experiments.data --dataset cifar10 --data-dir DIR
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.common import data
from experiments.common.harness import cli


@dataclass(frozen=True)
class Config:
    """Decodes a data set into the cache and says what is in it."""

    dataset: str = "digits"
    """digits (built in), cifar10, cifar100, svhn_cropped, mnist, fashion_mnist or
    tiny_imagenet."""
    data_dir: Path | None = None
    """The folder of prepared TFDS data sets; digits needs none."""
    cache_dir: Path | None = None
    """The folder for decoded images."""


def main(config: Config) -> None:
    """Loads the data set and prints a table of its splits."""
    try:
        dataset = data.load(config.dataset, config.data_dir, config.cache_dir)
    except (ValueError, data.DatasetError) as error:
        raise SystemExit(str(error)) from error
    table = Table("split", "images", "per class", "mean pixel", title=dataset.name)
    for name in ("train", "test"):
        images, labels = getattr(dataset, name)
        counts = np.bincount(labels, minlength=dataset.num_classes)
        table.add_row(
            name,
            " x ".join(map(str, images.shape)),
            f"{counts.min()} to {counts.max()}",
            f"{images.mean():.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    cli(main, Config)
