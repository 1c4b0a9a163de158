"""The official files of Tiny ImageNet in a zip, a tar or a folder, read in one go.

tiny-imagenet-200/wnids.txt                         the classes, a line each
tiny-imagenet-200/train/<wnid>/images/*.JPEG
tiny-imagenet-200/val/images/*.JPEG
tiny-imagenet-200/val/val_annotations.txt           their classes
"""

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import rich.progress
from PIL import Image
from rich.console import Console

from experiments.common.prepared import DatasetError

ROOT = "tiny-imagenet-200"
NUM_CLASSES = 200
IMAGE_SIZE = (64, 64)
OFFICIAL_COUNTS = {"train": 500, "validation": 50}  # images of each class
HOW_TO_GET = (
    f"Put {ROOT}.zip from http://cs231n.stanford.edu/{ROOT}.zip, a tar of the same "
    f"files or the extracted folder {ROOT} there."
)

_TAR: dict[str, Callable[..., Any]] = {  # what opens a tar, by the end of its name
    ".tar": open,
    **dict.fromkeys((".gz", ".tgz"), gzip.open),
    **dict.fromkeys((".bz2", ".tbz2"), bz2.open),
    **dict.fromkeys((".xz", ".txz"), lzma.open),
}
_DAMAGE = (
    OSError,
    EOFError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


class Layout(NamedTuple):
    """Which images there are.

    Attributes:
      classes: the WordNet ids of the classes, in the order of their labels.
      train: the label of each training image, by its path in `tiny-imagenet-200`.
      validation: the same of the validation images.
    """

    classes: tuple[str, ...]
    train: dict[str, int]
    validation: dict[str, int]


def find_source(folder: Path) -> Path:
    """The one archive or folder in `folder` that is named tiny-imagenet-200*.

    Raises:
      DatasetError: if there is none, or more than one.
    """
    found = [
        path
        for path in sorted(folder.glob(f"{ROOT}*"))
        if path.is_dir() or path.suffix == ".zip" or path.suffix in _TAR
    ]
    if len(found) != 1:
        raise DatasetError(
            f"Expected one zip, tar ({', '.join(_TAR)}) or folder named {ROOT}* in "
            f"{folder}, found {', '.join(path.name for path in found) or 'none'}.\n"
            f"{HOW_TO_GET}"
        )
    return found[0]


def read_layout(source: Path, progress: bool = False) -> Layout:
    """Lists the images of a source and checks that they make a data set.

    A part of the official set is one too, if it has equally many images of each class.

    Raises:
      DatasetError: if a file is missing or damaged, an image is of no known class, or
        there are not 200 classes with equally many images in each split.
    """
    texts = {"wnids.txt": "", "val/val_annotations.txt": ""}
    images: dict[str, set[str]] = {"train": set(), "val": set()}
    for name, content in track(
        _files(source, texts.__contains__), f"Reading {source.name}", progress
    ):
        if content is not None:
            texts[name] = content.decode(errors="replace")
        elif match := re.fullmatch(r"(train/[^/]+|val)/images/[^/.]+\.JPEG", name):
            names = images[match[1].partition("/")[0]]
            if name in names:
                raise DatasetError(f"{source}: found {name} twice, expected it once.")
            names.add(name)
    for name, text in texts.items():
        if not text:
            raise DatasetError(f"{source}: {ROOT}/{name} is missing or empty.")
    classes = texts["wnids.txt"].split()
    if len(classes) != NUM_CLASSES or len(set(classes)) != NUM_CLASSES:
        raise DatasetError(
            f"{source}: wnids.txt has {len(classes)} classes, {len(set(classes))} of "
            f"them different, expected {NUM_CLASSES}."
        )
    annotations = _annotations(source, texts["val/val_annotations.txt"])
    _check_annotated(source, images["val"], annotations.keys())
    train = {name: name.split("/")[1] for name in images["train"]}
    return Layout(
        tuple(classes),
        _labels(source, "train", classes, train),
        _labels(source, "validation", classes, annotations),
    )


def read_images(source: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yields those images of a source, as RGB, in the order in which it has them.

    Returns:
      The path of each in `tiny-imagenet-200`, and its file: as it is if it is RGB, and
      made a PNG (which loses nothing) if it is grey or CMYK.

    Raises:
      DatasetError: if the source or an image is damaged.
    """
    wanted = frozenset(names)
    for name, content in _files(source, wanted.__contains__):
        if content is None:
            continue
        try:
            image = _rgb(content)
        except Exception as error:  # whatever Pillow finds wrong with it
            raise DatasetError(
                f"{source}: {name} cannot be used: {error}. Expected an image of "
                f"{IMAGE_SIZE[0]}x{IMAGE_SIZE[1]} pixels."
            ) from error
        yield name, image


def track(
    items: Iterable[Any], description: str, progress: bool, total: int | None = None
) -> Iterable[Any]:
    """Shows a progress bar while the items are taken."""
    console = Console(stderr=True)
    return rich.progress.track(
        items, description, total, console=console, disable=not progress
    )


def _annotations(source: Path, text: str) -> dict[str, str]:
    """The class of each image in val_annotations.txt, by its path."""
    annotations: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split("\t")
        name = f"val/images/{fields[0]}"
        if len(fields) != 6 or name in annotations:
            raise DatasetError(
                f"{source}: line {number} of val_annotations.txt is {line!r}, expected "
                "another image, its class and 4 coordinates, separated by tabs."
            )
        annotations[name] = fields[1]
    return annotations


def _check_annotated(source: Path, found: Iterable[str], known: Iterable[str]) -> None:
    missing, unknown = sorted(set(known) - set(found)), sorted(set(found) - set(known))
    if missing or unknown:
        raise DatasetError(
            f"{source}: expected the validation images of val_annotations.txt, found "
            f"{len(missing)} of them missing {missing[:3]} and {len(unknown)} others "
            f"{unknown[:3]}."
        )


def _labels(
    source: Path, split: str, classes: Iterable[str], images: dict[str, str]
) -> dict[str, int]:
    """The label of each image of a split, given its class."""
    labels = {wnid: label for label, wnid in enumerate(classes)}
    for name, wnid in images.items():
        if wnid not in labels:
            raise DatasetError(
                f"{source}: {name} is of class {wnid!r}, expected a class of wnids.txt."
            )
    counts = Counter(dict.fromkeys(labels, 0))
    counts.update(images.values())
    (most, highest), *_, (least, lowest) = counts.most_common()
    if lowest == 0 or lowest != highest:
        raise DatasetError(
            f"{source} is incomplete: found {len(images)} {split} images, {lowest} of "
            f"class {least} and {highest} of class {most}; expected equally many of "
            f"each class, {OFFICIAL_COUNTS[split]} in the official set."
        )
    return {name: labels[wnid] for name, wnid in images.items()}


def _rgb(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        image.load()  # finds what is cut off
        if image.size != IMAGE_SIZE:
            raise ValueError("it has {}x{} pixels".format(*image.size))
        if image.mode == "RGB":
            return content
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "PNG")
        return buffer.getvalue()


def _files(
    source: Path, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, bytes | None]]:
    """Yields the path in tiny-imagenet-200 of each file, and its content if wanted.

    Files come in the order that the source has them: a compressed tar can only be read
    from its start to its end, and is too large to be held in memory.
    """
    members = _folder_files
    if source.is_file():
        members = _zip_files if source.suffix == ".zip" else _tar_files
    try:
        for path, read in members(source):
            if path.is_relative_to(ROOT):
                name = str(path.relative_to(ROOT))
                yield name, read() if wanted(name) else None
    except _DAMAGE as error:
        raise DatasetError(
            f"{source} cannot be read, it is damaged or cut off: "
            f"{error or type(error).__name__}"
        ) from error


_Members = Iterator[tuple[PurePosixPath, Callable[[], bytes]]]


def _folder_files(source: Path) -> _Members:
    for path in source.rglob("*"):
        if path.is_file():
            yield ROOT / PurePosixPath(path.relative_to(source)), path.read_bytes


def _zip_files(source: Path) -> _Members:
    with zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                yield PurePosixPath(member.filename), partial(archive.read, member)


def _tar_files(source: Path) -> _Members:
    with _TAR[source.suffix](source, "rb") as stream:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                if file := archive.extractfile(member):
                    yield PurePosixPath(member.name), file.read
        # A compressed stream is checked where it ends, which may be after the tar.
        while stream.read(2**20):
            pass
