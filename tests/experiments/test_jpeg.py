"""Images after a round trip through JPEG files."""

import dataclasses

import numpy as np
import pytest

from experiments.common import data
from experiments.common.harness import Options
from experiments.common.jpeg import recompressed
from experiments.common.options import JpegQuality


def _dataset(images):
    labels = np.arange(len(images), dtype=np.int32)
    split = data.Split(np.asarray(images, np.uint8), labels)
    return data.Dataset("some", 10, split, split._replace(images=split.images[::-1]))


def _errors(before, after):
    return np.square(before.train.images.astype(float) - after.train.images).mean()


@pytest.mark.parametrize("channels", [1, 3])
def test_smooth_images_survive_and_lower_quality_loses_more(channels):
    ramp = np.linspace(20, 220, 16)
    image = (ramp[:, None] + ramp[None, ::-1])[..., None] / 2
    noise = np.random.default_rng(0).normal(0, 20, (4, 16, 16, channels))
    dataset = _dataset(np.clip(image + noise, 0, 255))
    smooth = _dataset(np.broadcast_to(image, noise.shape))
    assert _errors(smooth, recompressed(smooth, 95)) < 2
    lost = [_errors(dataset, recompressed(dataset, q)) for q in (90, 75, 25, 5)]
    assert (np.diff(lost) > 0).all()


def test_images_stay_where_they_are():
    dataset = _dataset(np.linspace(0, 250, 6)[:, None, None, None] * np.ones((8, 8, 3)))
    found = recompressed(dataset, 75)
    for before, after in ((dataset.train, found.train), (dataset.test, found.test)):
        np.testing.assert_array_equal(after.labels, before.labels)
        np.testing.assert_allclose(after.images.astype(int), before.images, atol=2)
        assert after.images.dtype == np.uint8
    assert found.name == "some"


def test_colours_have_half_the_resolution_of_the_brightness():
    columns = np.arange(16) % 2 == 0
    # Red and blue alike in brightness (Y of BT.601).
    coloured = np.zeros((1, 16, 16, 3))
    coloured[:, :, columns] = [114, 0, 0]
    coloured[:, :, ~columns] = [0, 0, 299]
    coloured *= 0.8
    bright = np.zeros((1, 16, 16, 3))
    bright[:, :, columns] = 200

    def contrast(images):
        kept = recompressed(_dataset(images), 95).train.images.astype(float)
        return np.abs(kept[:, :, columns] - kept[:, :, ~columns]).mean((0, 1, 2))

    assert (contrast(coloured)[[0, 2]] < 10).all()
    assert (contrast(bright) > 190).all()


def test_the_option_changes_what_is_loaded():
    @dataclasses.dataclass(frozen=True)
    class Config(Options, JpegQuality):
        """All options."""

    plain = Config().load()
    assert _errors(plain, Options().load()) == 0
    lossy = Config(jpeg_quality=10).load()
    np.testing.assert_array_equal(lossy.train.images, recompressed(plain, 10)[2].images)
    assert _errors(plain, lossy) > 0
