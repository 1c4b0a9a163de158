"""Data sets are read as they were written, and damage is reported, never loaded."""

import errno
import io
import json
import multiprocessing
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from experiments import data as command
from experiments.common import cache, data

COUNTS = {"train": 30, "test": 20}
SHAPES = {
    "cifar10": (32, 32, 3),
    "cifar100": (32, 32, 3),
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
}
CLASSES = {"cifar100": 100}  # 10 of the others


def _splits(name, seed=0):
    rng = np.random.default_rng(seed)
    return {
        split: data.Split(
            rng.integers(0, 256, (count, *SHAPES[name]), np.uint8),
            np.arange(count, dtype=np.int32) % 10 * (CLASSES.get(name, 10) // 10),
        )
        for split, count in COUNTS.items()
    }


def _png(image):
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, "PNG")
    return buffer.getvalue()


def _prepare(data_dir, name, splits, version="3.0.2", shards=2):
    """Writes what TFDS would, with lossless images; returns the folder."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    more = name == "cifar100"  # TFDS has its coarse labels, too
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=SHAPES[name], dtype=np.uint8),
            "label": tfds.features.ClassLabel(num_classes=100),
            **(
                {"coarse_label": tfds.features.ClassLabel(num_classes=20)}
                if more
                else {}
            ),
        }
    )
    folder = data_dir / name / version
    folder.mkdir(parents=True)
    infos = []
    for split, arrays in splits.items():
        parts = np.array_split(np.arange(len(arrays.labels)), shards)
        for shard, part in enumerate(parts):
            file = f"{name}-{split}.array_record-{shard:05d}-of-{shards:05d}"
            writer = ArrayRecordWriter(str(folder / file), "group_size:1")
            for i in part:
                record = {"image": _png(arrays.images[i]), "label": arrays.labels[i]}
                record |= {"coarse_label": i % 20} if more else {}
                writer.write(features.serialize_example(record))
            writer.close()
        infos.append(
            {
                "name": split,
                "shardLengths": [str(len(part)) for part in parts],
                "numBytes": "1",
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    info = {
        "name": name,
        "version": version,
        "fileFormat": "array_record",
        "splits": infos,
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(json.dumps(features.to_json()))
    return folder


@pytest.fixture
def load(tmp_path):
    """Loads from `tmp_path / "sets"` with a cache of the test's own."""

    def load(name="cifar10"):
        return data.load(name, tmp_path / "sets", tmp_path / "cache", progress=False)

    return load


@pytest.fixture
def prepared(tmp_path):
    """A prepared CIFAR-10 of a few images: its folder and its splits."""
    splits = _splits("cifar10")
    return _prepare(tmp_path / "sets", "cifar10", splits), splits


def _assert_equal(dataset, splits):
    for split in COUNTS:
        for found, written in zip(getattr(dataset, split), splits[split], strict=True):
            assert found.dtype == written.dtype
            np.testing.assert_array_equal(found, written)


def _forbid_decoding(monkeypatch):
    def fail(*args):
        raise AssertionError("decoded although it is cached")

    monkeypatch.setattr(data.prepared, "decode", fail)


@pytest.mark.parametrize("name", SHAPES)
def test_prepared_images_and_labels_are_read_and_cached(
    tmp_path, load, monkeypatch, name
):
    splits = _splits(name)
    _prepare(tmp_path / "sets", name, splits)
    dataset = load(name)
    assert (dataset.name, dataset.num_classes) == (name, CLASSES.get(name, 10))
    _assert_equal(dataset, splits)
    _forbid_decoding(monkeypatch)
    _assert_equal(load(name), splits)


def test_reading_needs_no_tensorflow_and_no_network(tmp_path, prepared):
    code = f"""
import socket, sys
def refuse(*args, **kwargs): raise AssertionError("opened a connection")
socket.socket.connect = refuse
from pathlib import Path
from experiments.common import data
root = Path({str(tmp_path)!r})
data.load("cifar10", root / "sets", root / "cache", progress=False)
assert "tensorflow" not in sys.modules
try:
    data.load("mnist", root / "sets", root / "cache", progress=False)
except data.DatasetError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("mnist is not prepared in")


def test_newest_version_is_read(tmp_path, load):
    old, new = _splits("cifar10", 1), _splits("cifar10", 2)
    _prepare(tmp_path / "sets", "cifar10", old, version="3.0.2")
    _assert_equal(load(), old)
    _prepare(tmp_path / "sets", "cifar10", new, version="3.0.10")
    _assert_equal(load(), new)


def test_caches_of_two_folders_do_not_mix(tmp_path):
    for seed, folder in enumerate(("a", "b")):
        splits = _splits("cifar10", seed)
        _prepare(tmp_path / folder, "cifar10", splits)
        dataset = data.load(
            "cifar10", str(tmp_path / folder), str(tmp_path / "cache"), progress=False
        )
        _assert_equal(dataset, splits)


def test_set_prepared_anew_is_decoded_anew(tmp_path, load, prepared):
    folder, _ = prepared
    load()
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    splits = _splits("cifar10", 1)
    _prepare(tmp_path / "sets", "cifar10", splits)
    _assert_equal(load(), splits)


def test_default_folders_come_from_the_environment(tmp_path, monkeypatch, prepared):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    _assert_equal(data.load("cifar10", progress=False), prepared[1])
    assert len(list(tmp_path.glob("home/pcjax/cifar10-3.0.2-*/*.npy"))) == 4


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'cifar11', expected one of \('digits', "):
        data.load("cifar11")


def test_missing_set_names_folder_and_command(tmp_path, load):
    with pytest.raises(data.DatasetError) as error:
        load("svhn_cropped")
    message = str(error.value)
    assert f"svhn_cropped is not prepared in {tmp_path / 'sets'}" in message
    assert "svhn_cropped/<version>/dataset_info.json" in message
    assert (
        f"tfds.builder('svhn_cropped', data_dir='{tmp_path / 'sets'}', "
        "file_format='array_record').download_and_prepare()"
    ) in message
    assert "--data-dir" in message


def test_command_for_a_missing_set_is_python():
    command = data.prepared.how_to_prepare(
        data.Prepared("mnist", SHAPES["mnist"], 10), Path("/it's")
    )
    code = command.split('python -c "')[1].split('"\n')[0]
    compile(code, "command", "exec")
    assert '"' not in code.replace('"/it\'s"', "")


@pytest.mark.faults
@pytest.mark.parametrize("keep", [0, 0.5, 0.9])
def test_truncated_file_is_named(load, prepared, keep, faults):
    folder, _ = prepared
    file = folder / "cifar10-test.array_record-00001-of-00002"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(
        data.DatasetError,
        match=rf"{file} is damaged: it has 0 readable records, expected 10",
    ):
        load()
    faults.report("a truncated file of a data set", 1, 1)


@pytest.mark.faults
def test_empty_set_is_reported(tmp_path, load, faults):
    splits = _splits("cifar10")
    empty = splits["test"]._replace(
        images=splits["test"].images[:0], labels=splits["test"].labels[:0]
    )
    folder = _prepare(tmp_path / "sets", "cifar10", {**splits, "test": empty})
    with pytest.raises(
        data.DatasetError, match=rf"{folder}: split 'test' .*it holds no records"
    ):
        load()
    faults.report("an empty data set", 1, 1)


def test_missing_file_is_named(load, prepared):
    file = prepared[0] / "cifar10-train.array_record-00000-of-00002"
    file.unlink()
    with pytest.raises(data.DatasetError, match=rf"{file} is missing"):
        load()


def test_wrong_record_count_is_reported(load, prepared):
    info = prepared[0] / "dataset_info.json"
    info.write_text(info.read_text().replace('"15"', '"14"'))
    with pytest.raises(
        data.DatasetError,
        match=r"it has 15 readable records, expected 14 as dataset_info",
    ):
        load()


@pytest.mark.faults
def test_changed_byte_is_reported_with_its_record(load, prepared, faults):
    folder, _ = prepared
    file = folder / "cifar10-train.array_record-00001-of-00002"
    content = bytearray(file.read_bytes())
    content[len(content) // 4] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(
        data.DatasetError,
        match=rf"{folder}: record \d+ of split 'train' cannot be read: .*Corrupted",
    ) as error:
        load()
    assert f"delete {folder} first" in str(error.value)
    assert "download_and_prepare" in str(error.value)
    faults.report("a corrupted byte in a data set", 1, 1)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda split: split._replace(images=split.images[:, :, :31]),
            r"record 0 of split 'test' .*uint8 \(32, 31, 3\), expected uint8 \(32, 32",
        ),
        (
            lambda split: split._replace(images=split.images[..., :1]),
            r"its image is uint8 \(32, 32, 1\), expected uint8 \(32, 32, 3\)",
        ),
        (
            lambda split: split._replace(labels=split.labels + 1),
            r"record 9 of split 'test' .*its label is 10, expected 0 to 9",
        ),
    ],
    ids=["shape", "channels", "label"],
)
def test_records_of_another_kind_are_refused(tmp_path, load, change, message, faults):
    splits = _splits("cifar10")
    _prepare(tmp_path / "sets", "cifar10", {**splits, "test": change(splits["test"])})
    with pytest.raises(data.DatasetError, match=message):
        load()
    faults.report("a data set of other images or labels", 1, 1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"array_record"', '"tfrecord"', "TFRECORD"),
        ('"test"', '"eval"', "split 'test' cannot be read: .*'test'"),
        ("{", "", "split 'train' cannot be read"),
    ],
    ids=["format", "split", "json"],
)
def test_unreadable_description_is_reported(load, prepared, old, new, message):
    info = prepared[0] / "dataset_info.json"
    info.write_text(info.read_text().replace(old, new))
    with pytest.raises(data.DatasetError, match=message) as error:
        load()
    assert str(prepared[0]) in str(error.value)


def test_missing_packages_are_named(load, prepared, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(data.DatasetError, match=r"pip install -e \"\.\[experiments\]"):
        load()


@pytest.mark.faults
@pytest.mark.parametrize("file", ["test-images.npy", "test-labels.npy", "test.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped", "foreign"])
def test_damaged_cache_is_rebuilt(
    tmp_path, load, prepared, monkeypatch, file, damage, faults
):
    load()
    [path] = tmp_path.glob(f"cache/*/{file}")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-3] ^= 1
    if damage == "foreign":
        content = path.with_name(path.name.replace("test", "train")).read_bytes()
    path.write_bytes({"empty": b"", "cut": content[:-5]}.get(damage, content))
    if damage == "missing":
        path.unlink()
    _assert_equal(load(), prepared[1])
    _forbid_decoding(monkeypatch)
    _assert_equal(load(), prepared[1])
    faults.report("a damaged file of the cache", 1, 1, 1)


@pytest.mark.faults
def test_cache_of_another_version_is_rebuilt(
    tmp_path, load, prepared, monkeypatch, faults
):
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_FORMAT", cache._FORMAT + 1)
        load()
    changed = prepared[1]["test"].images + 1
    [path] = tmp_path.glob("cache/*/test-images.npy")
    np.save(path, changed)  # what it holds is not what this version would write
    _assert_equal(load(), prepared[1])
    _forbid_decoding(monkeypatch)
    _assert_equal(load(), prepared[1])
    faults.report("a cache of another version", 1, 1, 1)


@pytest.mark.faults
@pytest.mark.parametrize("writes", range(6))
def test_interrupted_cache_is_rebuilt(
    tmp_path, load, prepared, monkeypatch, writes, faults
):
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) > writes:
            raise KeyboardInterrupt
        return replace(*args)

    replace = cache._replace
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load()
    _assert_equal(load(), prepared[1])
    faults.report("an interrupt while the cache is filled", 1, 1, 1)


def test_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def save(file):
        file.write(b"ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache._replace(path, save)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.faults
def test_full_disk_names_the_folder(tmp_path, load, prepared, monkeypatch, faults):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(
        data.DatasetError,
        match=rf"cannot be cached in {tmp_path}/cache/cifar10-3.0.2-\w+: .*No space "
        r"left on device. They take 0.1 MiB: .*XDG_CACHE_HOME",
    ):
        load()
    assert not list(tmp_path.glob("cache/*/*"))
    faults.report("a full disk while the cache is filled", 1, 1)


@pytest.mark.faults
def test_two_processes_may_fill_the_cache_at_once(
    tmp_path, prepared, monkeypatch, faults
):
    # A function of the library's: processes need not import the tests for it.
    arguments = "cifar10", tmp_path / "sets", tmp_path / "cache", False
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for dataset in pool.starmap(data.load, [arguments] * 2):
            _assert_equal(dataset, prepared[1])
    assert len(list(tmp_path.glob("cache/*/*"))) == 6
    _forbid_decoding(monkeypatch)
    _assert_equal(data.load(*arguments), prepared[1])
    faults.report("two processes fill the cache at once", 1, 1, 1)


def test_digits_are_the_stretched_originals():
    dataset = data.load("digits")
    parts = [dataset.train, dataset.test]
    images = np.concatenate([part.images for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    original = load_digits()
    found = sorted(
        (label, image.tobytes()) for label, image in zip(labels, images, strict=True)
    )
    scaled = np.rint(original.images * 15.9375).astype(np.uint8)
    written = sorted(
        (label, image.tobytes())
        for label, image in zip(original.target, scaled, strict=True)
    )
    assert found == written
    assert images.shape == (1797, 8, 8, 1)
    assert (images.min(), images.max()) == (0, 255)


def test_digits_split_is_stratified_and_always_the_same():
    first, second = data.load(), data.load()
    _assert_equal(second, first._asdict())
    train, test = (np.bincount(part.labels) for part in (first.train, first.test))
    assert np.abs(test / (train + test) - 0.2).max() < 0.01


def test_digits_refuse_a_folder(tmp_path):
    with pytest.raises(ValueError, match=f"takes no data_dir, got {tmp_path}"):
        data.load("digits", tmp_path)


def test_validation_split_is_stratified_disjoint_and_seeded():
    labels = np.repeat(np.arange(4, dtype=np.int32), [10, 20, 30, 41])
    images = np.arange(101, dtype=np.uint8)[:, None, None, None]
    split = data.Split(images, labels)
    rest, held_out = data.validation_split(split, 0.2, seed=1)
    assert np.bincount(held_out.labels).tolist() == [2, 4, 6, 8]
    for part in (rest, held_out):
        assert (np.diff(part.images[:, 0, 0, 0].astype(int)) > 0).all()
        np.testing.assert_array_equal(part.labels, labels[part.images[:, 0, 0, 0]])
    everything = np.concatenate([rest.images, held_out.images])
    assert sorted(everything.ravel().tolist()) == list(range(101))
    again = data.validation_split(split, 0.2, seed=1)[1]
    other = data.validation_split(split, 0.2, seed=2)[1]
    np.testing.assert_array_equal(again.images, held_out.images)
    assert (other.images != held_out.images).any()


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.99, 1.0, 1.5, -0.2])
def test_validation_split_refuses_empty_parts(fraction):
    split = data.Split(np.zeros((20, 1, 1, 1), np.uint8), np.repeat([0, 1], 10))
    with pytest.raises(
        ValueError, match=rf"fraction {fraction} holds out -?\d+ of the"
    ):
        data.validation_split(split, fraction, seed=0)


def test_command_line_prints_a_summary(tmp_path, prepared, capsys):
    command.main(command.Config("cifar10", tmp_path / "sets", tmp_path / "cache"))
    printed = capsys.readouterr().out
    assert "30 x 32 x 32 x 3" in printed
    assert "2 to 2" in printed
    lossy = command.Config(
        "cifar10", tmp_path / "sets", tmp_path / "cache", jpeg_quality=30
    )
    command.main(lossy)
    train, test = re.findall(
        r"quality 30 changes the pixels of (\w+)\s+by ([\d.]+)", capsys.readouterr().out
    )
    assert (train[0], test[0]) == ("train", "test")
    images = data.load("cifar10", tmp_path / "sets", tmp_path / "cache").train.images
    files = [io.BytesIO() for _ in images]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image).save(file, "JPEG", quality=30)
    read = np.stack([np.asarray(Image.open(file)) for file in files])
    error = np.square(images - 1.0 * read).mean()
    assert float(train[1]) == pytest.approx(error, abs=0.06)
    with pytest.raises(ValueError, match="--jpeg-quality must be 1 to 100, got 0"):
        command.Config(jpeg_quality=0)
    with pytest.raises(SystemExit, match="mnist is not prepared"):
        command.main(command.Config("mnist", tmp_path / "sets", tmp_path / "cache"))


@pytest.mark.exhaustive
@pytest.mark.slow
def test_real_cifar10(shared_data, tmp_path, monkeypatch):
    dataset = data.load("cifar10", shared_data / "tfds", tmp_path, progress=False)
    for split, count in ((dataset.train, 50_000), (dataset.test, 10_000)):
        assert split.images.shape == (count, 32, 32, 3)
        assert split.images.dtype == np.uint8
        assert np.bincount(split.labels).tolist() == [count // 10] * 10
        # The channel means that every CIFAR-10 normalisation uses.
        channels = split.images.mean((0, 1, 2))
        np.testing.assert_allclose(channels, [125.3, 123.0, 113.9], atol=2)
    _forbid_decoding(monkeypatch)
    again = data.load("cifar10", shared_data / "tfds", tmp_path, progress=False)
    np.testing.assert_array_equal(again.test.images, dataset.test.images)
