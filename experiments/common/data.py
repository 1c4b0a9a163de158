"""Image data sets as uint8 arrays: scikit-learn's digits, and prepared TFDS sets.

A prepared set is decoded once and then cached.
"""

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common import cache, prepared
from experiments.common.prepared import Prepared

DatasetError = prepared.DatasetError


class Split(NamedTuple):
    """Labelled images.

    Attributes:
      images: uint8 [N, H, W, C].
      labels: int32 [N].
    """

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """A data set with its official test set (but see `load`)."""

    name: str
    num_classes: int
    train: Split
    test: Split


Loader = Callable[[Path | None, Path, bool], Dataset]


def load(
    name: str = "digits",
    data_dir: Path | str | None = None,
    cache_dir: Path | str | None = None,
    progress: bool = True,
) -> Dataset:
    """Loads a data set.

    digits comes with scikit-learn: 8x8 images of 0..16, here stretched to 0..255,
    of which every fifth of each class is for testing. The others are read from
    what TFDS prepared, without TensorFlow and without a network; their images are
    decoded once and then cached. tiny_imagenet has its validation set for testing, as
    its test set has no labels.

    Args:
      name: one of `names()`.
      data_dir: folder that holds the prepared data sets, as TFDS takes it. By default
        `$TFDS_DATA_DIR` or `~/tensorflow_datasets`. digits takes none.
      cache_dir: folder for decoded images. By default `$XDG_CACHE_HOME/pcjax` or
        `~/.cache/pcjax`.
      progress: whether to show a progress bar while decoding.

    Raises:
      ValueError: if there is no data set of that name.
      DatasetError: if it is missing or damaged, or the cache cannot be written.
    """
    if name not in _LOADERS:
        raise ValueError(f"Unknown data set {name!r}, expected one of {names()}.")
    if cache_dir is None:
        cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "pcjax"
    source = None if data_dir is None else Path(data_dir)
    return _LOADERS[name](source, Path(cache_dir).expanduser(), progress)


def names() -> tuple[str, ...]:
    """The data sets that `load` knows."""
    return tuple(_LOADERS)


def validation_split(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Holds out a fraction of every class, drawn at random.

    Returns:
      What is left, and what was held out, both in their old order.

    Raises:
      ValueError: if the fraction leaves a class without examples in either part.
    """
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(split.labels), bool)
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        count = round(fraction * len(members))
        if not 0 < count < len(members):
            raise ValueError(
                f"validation_split: fraction {fraction} holds out {count} of the "
                f"{len(members)} examples of class {label}, expected some but not all."
            )
        held_out[rng.permutation(members)[:count]] = True
    return _select(split, ~held_out), _select(split, held_out)


def _select(split: Split, mask: np.ndarray) -> Split:
    return Split(split.images[mask], split.labels[mask])


def _load_digits(data_dir: Path | None, cache_dir: Path, progress: bool) -> Dataset:
    del cache_dir, progress
    if data_dir is not None:
        raise ValueError(
            f"digits comes with scikit-learn and takes no data_dir, got {data_dir}. "
            "Which data set is meant?"
        )
    import sklearn.datasets

    digits = sklearn.datasets.load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    split = Split(images, digits.target.astype(np.int32))
    test = np.zeros(len(images), bool)
    for label in range(10):
        test[np.flatnonzero(split.labels == label)[4::5]] = True
    return Dataset("digits", 10, _select(split, ~test), _select(split, test))


def _load_prepared(
    expected: Prepared, data_dir: Path | None, cache_dir: Path, progress: bool
) -> Dataset:
    """Reads a data set that TFDS prepared, from the cache if it was read before."""
    folder = prepared.find(expected, prepared.tfds_folder(data_dir))
    # Folders of the same data set do not share a cache, and one that was prepared
    # anew does not find its old one.
    key = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    cache_dir = cache_dir / f"{expected.name}-{folder.name}-{key}"
    source = [
        [path.name, path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(folder.iterdir())
        if path.is_file()
    ]

    def cached(split: str) -> Split:
        arrays = cache.read(cache_dir, split, Split._fields, source)
        if arrays is not None:
            return Split(**arrays)
        decoded = Split(*prepared.decode(expected, folder, split, progress))
        try:
            cache.write(cache_dir, split, decoded._asdict(), source)
        except OSError as error:
            size = sum(array.nbytes for array in decoded) / 2**20
            raise DatasetError(
                f"The decoded images cannot be cached in {cache_dir}: {error}. They "
                f"take {size:.1f} MiB: make room there, or set XDG_CACHE_HOME to a "
                "folder that has it."
            ) from error
        return decoded

    train, test = cached("train"), cached(expected.test_split)
    return Dataset(expected.name, expected.num_classes, train, test)


_LOADERS: dict[str, Loader] = {
    "digits": _load_digits,
    **{
        expected.name: partial(_load_prepared, expected)
        for expected in (
            Prepared("cifar10", (32, 32, 3), 10),
            Prepared("cifar100", (32, 32, 3), 100),
            Prepared("svhn_cropped", (32, 32, 3), 10),
            Prepared("mnist", (28, 28, 1), 10),
            Prepared("fashion_mnist", (28, 28, 1), 10),
            Prepared(
                "tiny_imagenet",
                (64, 64, 3),
                200,
                test_split="validation",  # the official test set has no labels
                builder="experiments.tiny_imagenet",
            ),
        )
    },
}
