"""Reads data sets that TFDS prepared, without TensorFlow and without a network."""

import io
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rich.progress
from rich.console import Console


class DatasetError(RuntimeError):
    """A data set that is missing, damaged or cannot be cached, and what helps."""


class Prepared(NamedTuple):
    """What a data set that TFDS prepares must look like.

    Attributes:
      name: as TFDS has it.
      image_shape: (H, W, C).
      num_classes: labels are below.
      test_split: TFDS's name of the split that is for testing.
      builder: the module that prepares the set, if TFDS alone does not know it.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    test_split: str = "test"
    builder: str | None = None


def tfds_folder(data_dir: Path | str | None) -> Path:
    """The folder of prepared data sets, by default the one that TFDS takes."""
    if data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(data_dir).expanduser().resolve()


def find(expected: Prepared, data_dir: Path) -> Path:
    """The folder of the newest version in `data_dir/name/version`.

    Raises:
      DatasetError: if there is none.
    """
    versions = [
        path.parent
        for path in data_dir.glob(f"{expected.name}/*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    ]
    if not versions:
        raise DatasetError(
            f"{expected.name} is not prepared in {data_dir}: there is no "
            f"{expected.name}/<version>/dataset_info.json.\n"
            + how_to_prepare(expected, data_dir)
        )
    return max(versions, key=lambda path: [int(n) for n in path.name.split(".")])


def decode(
    expected: Prepared, folder: Path, split: str, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a split of the data set that TFDS prepared in a folder.

    Returns:
      The images, uint8 [N, H, W, C], and their labels, int32 [N].

    Raises:
      DatasetError: if they cannot be read, or are not as expected.
    """
    data_dir = folder.parents[1]
    where = f"split {split!r}"
    try:
        import tensorflow_datasets as tfds

        described = json.loads((folder / "dataset_info.json").read_text())["splits"]
        for found in described:  # TFDS stumbles over it with other words
            if found["name"] == split and not any(map(int, found["shardLengths"])):
                raise ValueError("it holds no records.")
        source = tfds.data_source(
            # With a version, TFDS goes by the files alone, whatever its own version.
            f"{expected.name}:{folder.name}",
            split=split,
            data_dir=str(data_dir),
            download=False,
            # TFDS would use OpenCV where it is installed, which rounds differently.
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        info = source.dataset_info.splits[split]
        _check_files(info.filepaths, info.shard_lengths)
        images = np.empty((len(source), *expected.image_shape), np.uint8)
        labels = np.empty(len(source), np.int32)
        for i in rich.progress.track(
            range(len(source)),
            f"Decoding {expected.name} {split}",
            console=Console(stderr=True),
            disable=not progress,
        ):
            where = f"record {i} of split {split!r}"
            images[i], labels[i] = _example(source[i], expected)
    except ImportError as error:
        raise DatasetError(
            f"Reading {expected.name} needs more than is installed ({error}): "
            'pip install -e ".[experiments]" in the checkout of pcjax.'
        ) from error
    except Exception as error:  # whatever the readers find wrong with the files
        raise DatasetError(
            f"{folder}: {where} cannot be read: {error}\n"
            f"Prepare it again, there (delete {folder} first) or elsewhere.\n"
            + how_to_prepare(expected, data_dir)
        ) from error
    return images, labels


def _check_files(paths: Sequence[Path], counts: Sequence[int]) -> None:
    """Finds files that are missing or cut off: records of theirs may read as empty."""
    from array_record.python.array_record_module import ArrayRecordReader

    for path, count in zip(paths, counts, strict=True):
        if not path.is_file():
            raise ValueError(f"{path} is missing.")
        reader = ArrayRecordReader(str(path))
        found = reader.num_records()
        if found != count:  # 0 where the end of the file is not as it should be
            raise ValueError(
                f"{path} is damaged: it has {found} readable records, expected {count} "
                "as dataset_info.json says."
            )
        reader.close()


def _example(record: Mapping[str, Any], expected: Prepared) -> tuple[np.ndarray, int]:
    """The image and the label of a record, if they are what is expected."""
    if not {"image", "label"} <= record.keys():
        raise ValueError(f"it has {sorted(record)}, expected an image and a label.")
    from PIL import Image

    with Image.open(io.BytesIO(record["image"])) as file:
        image = np.atleast_3d(np.asarray(file))  # grey images have no axis C
    if image.shape != expected.image_shape or image.dtype != np.uint8:
        raise ValueError(
            f"its image is {image.dtype} {image.shape}, expected uint8 "
            f"{expected.image_shape}."
        )
    label = record["label"]
    if not 0 <= label < expected.num_classes:
        raise ValueError(
            f"its label is {label}, expected 0 to {expected.num_classes - 1}."
        )
    return image, label


def how_to_prepare(expected: Prepared, data_dir: Path) -> str:
    """The command that prepares a data set in `data_dir`, and what else helps."""
    folder = str(data_dir)
    if expected.builder is None:
        arguments = f"{expected.name!r}, data_dir={folder!r}"
        command = (
            "This command downloads and prepares it (it needs `pip install "
            "tensorflow`, which reading does not):\n"
            '  python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder({arguments}, file_format='array_record')"
            '.download_and_prepare()"\n'
        )
    else:
        command = (
            "This command prepares it from the official files in a folder DIR:\n"
            f"  python -m {expected.builder} --manual-dir DIR "
            f"--data-dir {shlex.quote(folder)}\n"
        )
    return (
        f"{command}Where it is prepared elsewhere, name the folder that holds it with "
        "--data-dir or TFDS_DATA_DIR."
    )
