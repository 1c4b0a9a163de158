"""Decodes a data set into the cache and says what is in it.

python -m experiments.data --dataset cifar10 --data-dir DIR
python -m experiments.data --dataset cifar10 --data-dir DIR --jpeg-quality 25
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.common import data, jpeg
from experiments.common.harness import cli
from experiments.common.options import refuse_no_quality


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
    jpeg_quality: int | None = None
    """Also says how far JPEG files of this quality, 1 to 100, change the images."""

    def __post_init__(self) -> None:
        refuse_no_quality(self.jpeg_quality)


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
    if config.jpeg_quality is not None:
        changed = jpeg.recompressed(dataset, config.jpeg_quality)
        for name in ("train", "test"):
            before, after = (getattr(x, name).images for x in (dataset, changed))
            # In float32, as a whole data set of float64 may be too much to hold.
            lost = np.square(before.astype(np.float32) - after).mean(dtype=np.float64)
            print(
                f"JPEG of quality {config.jpeg_quality} changes the pixels of {name} "
                f"by {lost:.1f} in the mean square, of values 0 to 255."
            )


if __name__ == "__main__":
    cli(main, Config)
