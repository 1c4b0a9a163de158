"""Parts of the experiment on generative networks, and all of it at smoke."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pcjax
from experiments.generative import Config, experiment, main, measures, models
from tests import problems
from tests.tiers import thorough


def test_nearest_neighbour_is_that_of_all_distances():
    rng = np.random.default_rng(0)
    images, stored = (rng.random((n, 12)).astype(np.float32) for n in (5, 9))
    seen = rng.random((5, 12)) < 0.5
    distances = (np.where(seen, images, 0)[:, None] - stored) ** 2 * seen[:, None]
    expected = stored[distances.sum(2).argmin(1)]
    np.testing.assert_array_equal(measures.nearest(images, stored, seen), expected)


def test_masks_show_the_upper_half_or_half_of_the_pixels():
    half = measures.masks("half", 3, (4, 4, 3)).reshape(3, 4, 4, 3)
    assert half[:, :2].all()
    assert not half[:, 2:].any()
    random = measures.masks("random", 50, (8, 8, 3), seed=1).reshape(50, 8, 8, 3)
    assert np.all(random == random[..., :1])  # a pixel with all of its colours
    assert 0.45 < random.mean() < 0.55
    assert not np.array_equal(random, measures.masks("random", 50, (8, 8, 3), seed=2))


def test_the_step_of_sampling_is_within_the_norm_of_the_hessian(x64):
    decoder = models.make((2, 3, 5), jax.random.key(0))
    draw = problems.make(decoder.network, (0,), dtype=jnp.float64).params
    linear = pcjax.decoder((2, 3, 5), pcjax.networks.linear)
    decoder = decoder._replace(network=linear, params=draw)
    inputs = pcjax.no_inputs(1, jnp.float64)

    def energy(h):
        activities = (inputs, h[None, :2], h[None, 2:5], h[None, 5:])
        return pcjax.free_energy(linear, draw, activities, gamma=decoder.gamma)[0]

    hessian = jax.jit(jax.hessian(energy))(jnp.zeros(10))
    norm = np.linalg.eigvalsh(hessian)[-1]
    assert 0.3 / norm < models.stable_step(decoder) < 1 / norm


def test_pictures_come_back():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3)) / 255
    strip = measures.decode(measures.encode(pictures))
    np.testing.assert_array_equal(strip[:, 5:10] / 255, pictures[1])


@pytest.fixture(scope="module", params=["small", *thorough(["whole"])])
def smoke(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("generative")
    sizes = experiment.EXPERIMENT.sizes
    small = dataclasses.replace(sizes["smoke"], sizes=(8,), memory=(8,))
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "small":
            patch.setitem(sizes, "smoke", small)
        return main(Config(preset="smoke", out=out))["results"], out


def test_smoke_measures_everything(smoke):
    results, out = smoke
    pictures = {path.stem for path in out.glob("*.png")}
    assert pictures == {
        "reconstructions",
        "interpolations",
        "half",
        "random",
        "denoising",
        "samples",
        "memory",
        "recall",
    }
    assert [row["stored"] for row in results["memory"]] == [20]
    # Two epochs already do better than the mean image.
    errors = results["reconstruction"]["errors"]
    assert 0 < errors["decoder"] < errors["mean image"]
    # The mean image knows nothing of an image, and costs the variance of its pixels.
    assert errors["mean image"] == pytest.approx(0.08, abs=0.03)
    # Noise is what was added: its variance a pixel.
    noise = results["denoising"]["errors"]["noisy"]
    assert noise == pytest.approx(measures.NOISE**2, rel=0.1)
