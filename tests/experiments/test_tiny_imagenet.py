"""Tiny ImageNet is the same from every kind of source; what is wrong with one is said.

The made-up sets have the official layout with 2 training images and 1 validation image
of each of 200 classes.
"""

import io
import itertools
import json
import os
import shlex
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image

from experiments.common import data
from experiments.tiny_imagenet import builder as tiny_imagenet
from experiments.tiny_imagenet import files
from tests.tiers import thorough

ROOT = "tiny-imagenet-200"
WNIDS = [f"n{wnid:08d}" for wnid in np.random.default_rng(0).permutation(200)]
ANNOTATIONS = "val/val_annotations.txt"
GREY = f"train/{WNIDS[7]}/images/{WNIDS[7]}_0.JPEG"
CMYK = f"train/{WNIDS[8]}/images/{WNIDS[8]}_0.JPEG"
# Tar files of any compression are read by the same lines.
QUICK_FORMS = ["zip", "tar.gz"]
FORMS = [*QUICK_FORMS, *thorough(["tar", "tgz", "tar.bz2", "tar.xz"])]


def _jpeg(pixels, mode="RGB"):
    buffer = io.BytesIO()
    height, width = pixels.shape[:2]
    image = Image.frombytes(mode, (width, height), pixels.tobytes())
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _official():
    """The files of a small set with the official layout: their bytes by their path."""
    rng = np.random.default_rng(1)

    def image():
        coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
        return _jpeg(np.kron(coarse, np.ones((8, 8, 1), np.uint8)))

    content = {
        "wnids.txt": "\n".join(WNIDS).encode(),
        "words.txt": b"".join(f"{wnid}\tthing\n".encode() for wnid in WNIDS),
        "test/images/test_0.JPEG": image(),
        "val/images/._val_0.JPEG": b"what macOS adds",
    }
    for wnid in WNIDS:
        content[f"train/{wnid}/{wnid}_boxes.txt"] = b"x.JPEG\t0\t0\t1\t1\n"
        for i in range(2):
            content[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = image()
    content[GREY] = _jpeg(rng.integers(0, 256, (64, 64), np.uint8), "L")
    ink = np.full((64, 64, 4), [200, 100, 0, 50], np.uint8)
    content[CMYK] = _jpeg(ink, "CMYK")
    lines = []
    for i, label in enumerate(rng.permutation(200)):
        content[f"val/images/val_{i}.JPEG"] = image()
        lines.append(f"val_{i}.JPEG\t{WNIDS[label]}\t0\t32\t44\t62\n")
    content[ANNOTATIONS] = "".join(lines).encode()
    return content


OFFICIAL = _official()


def _write(folder, form, content=OFFICIAL, root=ROOT):
    """Writes files as a folder or an archive, in an order of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (ROOT if form == "folder" else f"{ROOT}-small.{form}")
    if form == "zip":
        path = folder / f"{ROOT}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.mkdir(root)
            for name, file in content.items():
                archive.writestr(f"{root}/{name}", file)
            archive.writestr(f"__MACOSX/{root}/wnids.txt", "none")
    elif form == "folder":
        for name, file in content.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(file)
    else:
        compression = {"tar": "", "tgz": "gz"}.get(form, form.removeprefix("tar."))
        with tarfile.open(path, f"w:{compression}") as archive:
            for name, file in reversed(content.items()):
                member = tarfile.TarInfo(f"./{root}/{name}")
                member.size = len(file)
                archive.addfile(member, io.BytesIO(file))
    return path


def _prepare(folder):
    return tiny_imagenet.prepare(folder / "manual", folder / "sets", progress=False)


def _load(folder):
    return data.load("tiny_imagenet", folder / "sets", folder / "cache", progress=False)


def _decoded(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def _examples(split):
    """What a split holds, whatever its order."""
    return sorted(
        (int(label), image.tobytes()) for image, label in zip(*split, strict=True)
    )


@pytest.fixture(scope="module")
def from_folder(tmp_path_factory):
    """The small set, prepared from a folder and loaded."""
    folder = tmp_path_factory.mktemp("tiny")
    _write(folder / "manual", "folder")
    _prepare(folder)
    return _load(folder)


def test_images_and_labels_are_the_official_ones(from_folder):
    assert (from_folder.name, from_folder.num_classes) == ("tiny_imagenet", 200)
    for split, count in ((from_folder.train, 400), (from_folder.test, 200)):
        assert split.images.shape == (count, 64, 64, 3)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
    validation = [
        (WNIDS.index(wnid), _decoded(OFFICIAL[f"val/images/{name}"]).tobytes())
        for name, wnid, *_ in map(
            str.split, OFFICIAL[ANNOTATIONS].decode().splitlines()
        )
    ]
    assert _examples(from_folder.test) == sorted(validation)
    train = [
        (label, _decoded(OFFICIAL[name]).tobytes())
        for label, wnid in enumerate(WNIDS)
        for i in range(2)
        if (name := f"train/{wnid}/images/{wnid}_{i}.JPEG") not in (GREY, CMYK)
    ]
    found = _examples(from_folder.train)
    assert len(set(found) & set(train)) == len(train) == len(found) - 2


def test_grey_images_have_three_equal_channels(from_folder):
    images = from_folder.train.images[from_folder.train.labels == 7]
    [grey] = [image for image in images if (image == image[..., :1]).all()]
    np.testing.assert_array_equal(grey[..., 0], _decoded(OFFICIAL[GREY]))


def test_cmyk_images_become_rgb(from_folder):
    images = from_folder.train.images[from_folder.train.labels == 8]
    # Light that passes the ink, and then the black: 255 (1 - c / 255)(1 - k / 255).
    expected = (255 - np.array([200, 100, 0])) * (255 - 50) / 255
    errors = np.abs(images - expected).max((1, 2, 3))
    assert errors.min() <= 3 < errors.max()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_identical_data(tmp_path, from_folder, form):
    path = _write(tmp_path / "manual", form)
    info = _prepare(tmp_path)
    assert Path(info.data_dir) == tmp_path / "sets" / "tiny_imagenet" / "1.0.0"
    dataset = _load(tmp_path)
    for split in ("train", "test"):
        for found, expected in zip(
            getattr(dataset, split), getattr(from_folder, split), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
    # Nothing was extracted, and no other folder was made.
    assert list((tmp_path / "manual").iterdir()) == [path]
    assert os.listdir(tmp_path / "sets") == ["tiny_imagenet"]


@pytest.mark.parametrize("form", ["tar", "tgz", "tar.bz2", "tar.xz"])
def test_every_compression_is_read(tmp_path, form):
    path = _write(tmp_path, form, {"words.txt": b"nothing else"})
    assert files.find_source(tmp_path) == path
    with pytest.raises(data.DatasetError, match=r"wnids\.txt is missing or empty"):
        files.read_layout(path)


def test_prepared_set_is_an_ordinary_one_of_tfds(tmp_path):
    import tensorflow_datasets as tfds

    _write(tmp_path / "manual", "zip")
    _prepare(tmp_path)
    source = tfds.data_source(
        "tiny_imagenet", split="validation", data_dir=tmp_path / "sets"
    )
    assert len(source) == 200
    assert source[0]["image"].shape == (64, 64, 3)
    info = source.dataset_info
    assert info.features["label"].names == WNIDS
    assert sorted(info.splits) == ["train", "validation"]


def test_archive_is_not_held_in_memory(tmp_path):
    size = 2**25
    path = _write(tmp_path, "tar.gz", {**OFFICIAL, "test/large": bytes(size)})
    tracemalloc.start()
    try:
        layout = files.read_layout(path)
        images = sum(1 for _ in files.read_images(path, layout.train))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert images == 400
    assert peak < size / 8


def test_command_of_the_message_prepares_without_tensorflow_and_network(tmp_path):
    folder = tmp_path / "two words"
    _write(folder / "manual", "zip")
    with pytest.raises(data.DatasetError) as error:
        _load(folder)
    message = str(error.value)
    assert f"tiny_imagenet is not prepared in {folder / 'sets'}" in message
    [line] = [line for line in message.splitlines() if line.startswith("  python")]
    command = shlex.split(line)
    assert command[:3] == ["python", "-m", "experiments.tiny_imagenet"]
    arguments = [str(folder / "manual") if a == "DIR" else a for a in command[3:]]
    code = f"""
import runpy, socket, sys
def refuse(*args, **kwargs): raise AssertionError("opened a connection")
socket.socket.connect = refuse
sys.argv[1:] = {arguments!r}
runpy.run_module("experiments.tiny_imagenet", run_name="__main__")
assert "tensorflow" not in sys.modules
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    for word in ("tiny_imagenet/1.0.0", "validation", "400", "200", "official"):
        assert word in run.stdout
    assert _load(folder).test.images.shape == (200, 64, 64, 3)
    [info] = folder.glob("sets/tiny_imagenet/*/dataset_info.json")
    assert json.loads(info.read_text())["moduleName"] == "experiments.tiny_imagenet"


def test_prepared_set_is_not_overwritten(tmp_path):
    _write(tmp_path / "manual", "zip")
    _prepare(tmp_path)
    with pytest.raises(data.DatasetError, match=r"1\.0\.0 is there already: delete it"):
        _prepare(tmp_path)


def test_damage_after_preparing_names_the_command(tmp_path):
    _write(tmp_path / "manual", "zip")
    folder = Path(_prepare(tmp_path).data_dir)
    next(folder.glob("*validation*")).write_bytes(b"")
    with pytest.raises(
        data.DatasetError,
        match=r"(?s)split 'validation' cannot .*python -m experiments\.tiny_imagenet",
    ):
        _load(tmp_path)


@pytest.mark.parametrize("names", [[], ["tiny.zip", f"{ROOT}.zip.part"]])
def test_missing_source_is_reported(tmp_path, names):
    manual = tmp_path / "manual"
    for name in names:
        manual.mkdir(exist_ok=True)
        (manual / name).touch()
    with pytest.raises(
        data.DatasetError,
        match=rf"(?s)or folder named {ROOT}\* in {manual}, found none.*cs231n",
    ):
        _prepare(tmp_path)
    with pytest.raises(SystemExit, match="found none"):
        tiny_imagenet.main(
            tyro.cli(tiny_imagenet.Config, args=["--manual-dir", str(manual)])
        )
    assert not (tmp_path / "sets").exists()


def test_two_sources_are_reported(tmp_path):
    for form in ("zip", "folder"):
        _write(tmp_path / "manual", form)
    with pytest.raises(data.DatasetError, match=rf"found {ROOT}, {ROOT}\.zip\."):
        _prepare(tmp_path)


def _without(*names):
    return {name: file for name, file in OFFICIAL.items() if name not in names}


def _with(name, old, new):
    text = OFFICIAL[name].decode()
    assert old in text
    return {**OFFICIAL, name: text.replace(old, new, 1).encode()}


VAL_3 = "val/images/val_3.JPEG"
FIRST = f"train/{WNIDS[0]}/images/{WNIDS[0]}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_without("wnids.txt"), rf"{ROOT}/wnids\.txt is missing or empty"),
        (_without(ANNOTATIONS), rf"{ROOT}/{ANNOTATIONS} is missing or empty"),
        ({**OFFICIAL, ANNOTATIONS: b""}, "val_annotations.txt is missing or empty"),
        (
            _with("wnids.txt", f"{WNIDS[0]}\n", ""),
            "has 199 classes, 199 of them different, expected 200",
        ),
        (
            _with("wnids.txt", WNIDS[0], WNIDS[1]),
            "has 200 classes, 199 of them different, expected 200",
        ),
        (
            _with("wnids.txt", WNIDS[0], "n99"),
            rf"{FIRST}_\d\.JPEG is of class '{WNIDS[0]}', expected a class of wnids",
        ),
        (
            _with(ANNOTATIONS, f"{WNIDS[5]}\t", "n98\t"),
            r"val/images/val_\d+\.JPEG is of class 'n98', expected a class of wnids",
        ),
        (
            _with(ANNOTATIONS, "val_3.JPEG\t", "val_3.JPEG "),
            r"line 4 of val_annotations\.txt is 'val_3\.JPEG n\d+.*4 coordinates",
        ),
        (
            _with(ANNOTATIONS, "val_3.JPEG\t", "val_2.JPEG\t"),
            r"line 4 of val_annotations\.txt is 'val_2\.JPEG.*expected another image",
        ),
        (
            _without(VAL_3),
            rf"found 1 of them missing \['{VAL_3}'\] and 0 others \[\]",
        ),
        (
            {**OFFICIAL, "val/images/val_200.JPEG": b""},
            r"found 0 of them missing \[\] and 1 others \['val/images/val_200\.JPEG'\]",
        ),
        (
            _without(f"{FIRST}_1.JPEG"),
            rf"is incomplete: found 399 train images, 1 of class {WNIDS[0]} and 2 of "
            r"class n\d+; expected equally many of each class, 500 in the official",
        ),
        (
            _without(f"{FIRST}_0.JPEG", f"{FIRST}_1.JPEG"),
            f"found 398 train images, 0 of class {WNIDS[0]} and 2 of class",
        ),
        (
            {name: f for name, f in OFFICIAL.items() if not name.endswith("JPEG")},
            r"validation images of val_annotations\.txt, found 200 of them missing",
        ),
        (
            {name: f for name, f in OFFICIAL.items() if not name.startswith("train")},
            "found 0 train images, 0 of class n",
        ),
        (
            _with(ANNOTATIONS, f"{WNIDS[5]}\t", f"{WNIDS[6]}\t"),
            f"found 200 validation images, 0 of class {WNIDS[5]} and 2 of class "
            rf"{WNIDS[6]}; .* 50 in the official set",
        ),
    ],
)
def test_incomplete_or_contradictory_files_are_reported(tmp_path, content, message):
    path = _write(tmp_path, "tar", content)
    with pytest.raises(data.DatasetError, match=message) as error:
        files.read_layout(path)
    assert str(error.value).startswith(str(path))


def test_archive_of_another_folder_is_reported(tmp_path):
    path = _write(tmp_path, "zip", root="tiny")
    with pytest.raises(data.DatasetError, match=r"200/wnids\.txt is missing"):
        files.read_layout(path)


def test_file_that_comes_twice_is_reported(tmp_path):
    path = _write(tmp_path, "tar")
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo(f"{ROOT}/{VAL_3}"))
    with pytest.raises(data.DatasetError, match=f"found {VAL_3} twice, expected it"):
        files.read_layout(path)


@pytest.mark.parametrize("form", ["tar.gz", *thorough(["folder"])])
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (OFFICIAL[VAL_3][:900], "cannot be used: .*truncated"),
        (b"", "cannot be used: cannot identify"),
        (
            _jpeg(np.zeros((64, 32, 3), np.uint8)),
            r"cannot be used: it has 32x64 pixels\. Expected an image of 64x64 pixels",
        ),
    ],
    ids=["cut", "empty", "size"],
)
def test_damaged_image_is_named_and_nothing_is_left(tmp_path, form, image, message):
    path = _write(tmp_path / "manual", form, {**OFFICIAL, VAL_3: image})
    with pytest.raises(data.DatasetError, match=f"{path}: {VAL_3} {message}"):
        _prepare(tmp_path)
    assert not list(tmp_path.glob("sets/*/*"))


CUTS = (0, 0.1, 0.9)


@pytest.mark.parametrize(
    ("form", "keep"),
    [
        ("zip", 0.9),
        ("tar", 0.9),
        ("tar.gz", 0),
        ("tar.gz", 0.1),
        *thorough(
            [("zip", 0), ("zip", 0.1), ("tar", 0), ("tar", 0.1), ("tar.gz", 0.9)]
        ),
        *thorough(itertools.product(("tgz", "tar.bz2", "tar.xz"), CUTS)),
    ],
)
def test_truncated_archive_is_reported(tmp_path, form, keep):
    path = _write(tmp_path / "manual", form)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(
        data.DatasetError, match=rf"{path}( cannot be read, it is damaged|.* missing)"
    ):
        _prepare(tmp_path)
    assert not list(tmp_path.glob("sets/*/*"))


MANY, ONE = range(120, 4096), range(100_000, 100_001)


@pytest.mark.parametrize(
    ("form", "changed"),
    [
        ("zip", ONE),
        ("tar.gz", MANY),
        *thorough([("zip", MANY), ("tar.gz", ONE)]),
        *thorough(itertools.product(("tgz", "tar.bz2", "tar.xz"), (MANY, ONE))),
    ],
)
def test_changed_bytes_of_a_compressed_archive_are_reported(tmp_path, form, changed):
    path = _write(tmp_path / "manual", form)
    content = bytearray(path.read_bytes())
    for i in changed:
        content[i] ^= 0x16
    path.write_bytes(content)
    with pytest.raises(data.DatasetError, match=str(path)):
        _prepare(tmp_path)
    assert not list(tmp_path.glob("sets/*/*"))


@pytest.mark.exhaustive
@pytest.mark.slow
def test_real_subset(shared_data, tmp_path):
    archive = shared_data / f"{ROOT}-subset.tar.xz"
    if not archive.is_file():
        pytest.skip(f"the real images are not there: no file {archive}")
    (tmp_path / "manual").mkdir()
    (tmp_path / "manual" / archive.name).symlink_to(archive)
    _prepare(tmp_path)
    dataset = _load(tmp_path)
    for split, count in ((dataset.train, 100), (dataset.test, 20)):
        assert split.images.shape == (200 * count, 64, 64, 3)
        assert np.bincount(split.labels).tolist() == [count] * 200
        # The channel means that training on Tiny ImageNet commonly subtracts.
        channels = split.images.mean((0, 1, 2)) / 255
        np.testing.assert_allclose(channels, [0.4802, 0.4481, 0.3975], atol=0.01)
    with tarfile.open(archive) as source:
        content = {
            member.name.removeprefix(f"{ROOT}/"): source.extractfile(member).read()
            for member in source
            if member.isfile() and "/train/" not in member.name
        }
    wnids = content["wnids.txt"].decode().split()
    validation = []
    for line in content[ANNOTATIONS].decode().splitlines():
        name, wnid, *_ = line.split()
        image = _decoded(content[f"val/images/{name}"])
        if image.ndim == 2:
            image = np.stack([image] * 3, -1)
        validation.append((wnids.index(wnid), image.tobytes()))
    assert _examples(dataset.test) == sorted(validation)
