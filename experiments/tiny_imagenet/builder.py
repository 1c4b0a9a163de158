"""Tiny ImageNet as a TFDS data set, made from its official files.

python -m experiments.tiny_imagenet --manual-dir DIR --data-dir DIR

TFDS does not know it. This prepares it from the official zip, a tar of the same files
or an extracted folder, without TensorFlow; `common.data` reads what it made.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from rich.console import Console
from rich.table import Table

from experiments.common.prepared import DatasetError, tfds_folder
from experiments.tiny_imagenet import files


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """Tiny ImageNet: 64x64 RGB images of 200 classes, labelled as in wnids.txt."""

    __module__ = "experiments.tiny_imagenet"  # TFDS notes it, and __main__ says little
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "The official files."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = files.HOW_TO_GET

    progress = False
    """Whether to show progress bars, which know how many images there are."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(*files.IMAGE_SIZE, 3)),
                "label": tfds.features.ClassLabel(num_classes=files.NUM_CLASSES),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=features,
            supervised_keys=("image", "label"),
            homepage="http://cs231n.stanford.edu/",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        source = files.find_source(Path(dl_manager.manual_dir))
        layout = files.read_layout(source, self.progress)
        self.info.features["label"].names = layout.classes
        return {
            "train": self._generate_examples(source, "train", layout.train),
            "validation": self._generate_examples(
                source, "validation", layout.validation
            ),
        }

    def _generate_examples(
        self, source: Path, split: str, labels: dict[str, int]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        # Files, not arrays: TFDS would need TensorFlow to encode these.
        for name, image in files.track(
            files.read_images(source, labels),
            f"Preparing {split}",
            self.progress,
            len(labels),
        ):
            yield name, {"image": image, "label": labels[name]}


def prepare(
    manual_dir: Path | str, data_dir: Path | str | None = None, progress: bool = True
) -> tfds.core.DatasetInfo:
    """Prepares Tiny ImageNet in `data_dir/tiny_imagenet/<version>`.

    Args:
      manual_dir: folder that holds one of tiny-imagenet-200.zip, a tar of the same
        files, and the extracted folder. It is only read.
      data_dir: folder for prepared data sets. By default as in `data.load`.
      progress: whether to show progress bars.

    Returns:
      What TFDS knows of the set.

    Raises:
      DatasetError: if the files are missing, damaged or incomplete, or if the set is
        prepared there already.
    """
    manual_dir = Path(manual_dir).expanduser().resolve()
    files.find_source(manual_dir)  # before TFDS makes any folder
    data_dir = tfds_folder(data_dir)
    builder = TinyImagenet(data_dir=str(data_dir), file_format="array_record")
    if builder.data_path.exists():
        raise DatasetError(
            f"{builder.data_path} is there already: delete it to prepare it again."
        )
    builder.progress = progress
    tfds.disable_progress_bar()
    try:
        # TFDS makes a folder for downloads, though there are none.
        with tempfile.TemporaryDirectory() as downloads:
            builder.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(manual_dir=manual_dir),
            )
    finally:
        tfds.enable_progress_bar()
    return builder.info


@dataclass(frozen=True)
class Config:
    """Prepares Tiny ImageNet from its official files, for `experiments.common.data`."""

    manual_dir: Path
    """The folder with tiny-imagenet-200.zip, a tar of the same or the folder itself."""
    data_dir: Path | None = None
    """The folder of prepared TFDS data sets, by default TFDS's own."""


def main(config: Config) -> None:
    """Prepares the data set and prints a table of its splits."""
    start = time.perf_counter()
    try:
        info = prepare(config.manual_dir, config.data_dir)
    except DatasetError as error:
        raise SystemExit(str(error)) from error
    table = Table(
        "split", "images", "per class", "official", "MiB", title=info.full_name
    )
    for name, official in files.OFFICIAL_COUNTS.items():
        split = info.splits[name]
        table.add_row(
            name,
            f"{split.num_examples:,}",
            f"{split.num_examples // files.NUM_CLASSES}",
            f"{official}",
            f"{split.num_bytes / 2**20:.1f}",
        )
    console = Console()
    console.print(table)
    seconds = time.perf_counter() - start
    console.print(f"{info.data_dir}: made in {seconds:.1f} s.", soft_wrap=True)
