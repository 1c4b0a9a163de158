"""What a decoder can do: reconstruct, complete, denoise, recall and sample."""

import base64
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pcjax
from experiments.generative import models
from experiments.generative.models import Decoder

SHOWN = 8  # images of a picture
NOISE = 0.2  # standard deviation of what is added to pixels in [0, 1]
BATCH_SIZE = 50  # of stored images
RECALL_STEPS = 1000  # inference iterations of recalling
RECALLED = 0.005  # the squared error a pixel below which an image counts as recalled


def reconstruction_error(
    decoder: Decoder, test: np.ndarray, num_steps: int = models.INFERENCE_STEPS
) -> float:
    """The squared error a pixel of what the latents of whole images predict."""
    state = models.infer(decoder, jnp.asarray(test), num_steps)
    return _error(state.predictions[-1], test)


def masks(name: str, count: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """What is seen, [count, D]: the upper half, or half of the pixels at random."""
    seen = np.zeros((count, *shape), bool)
    if name == "half":
        seen[:, : shape[0] // 2] = True
    else:
        rng = np.random.default_rng(seed)
        seen[:] = rng.random((count, *shape[:2], 1)) < 0.5
    return seen.reshape(count, -1)


def nearest(images: np.ndarray, stored: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """For each image the stored one nearest in what is seen, [B, D]."""
    known = np.where(seen, images, 0)
    # ||x - s||^2 over what is seen, without what all have in common
    distances = seen.astype(np.float32) @ (stored**2).T - 2 * known @ stored.T
    return stored[distances.argmin(1)]


def completions(
    decoder: Decoder, train: np.ndarray, test: np.ndarray, shape: tuple[int, ...]
) -> dict[str, Any]:
    """Errors of missing pixels: ours, of the mean image, of the nearest neighbour."""
    found = {}
    for name in ("half", "random"):
        seen = masks(name, len(test), shape)
        ours = models.completed(decoder, test, seen)
        others = {
            "decoder": ours,
            "nearest neighbour": np.where(seen, test, nearest(test, train, seen)),
            "mean image": np.where(seen, test, train.mean(0)),
        }
        found[name] = {
            "errors": {key: _error(x, test, ~seen) for key, x in others.items()},
            "pictures": _pictures(
                shape,
                original=test,
                seen=np.where(seen, test, 0.5),
                **{key.replace(" ", "_"): x for key, x in others.items()},
            ),
        }
    return found


def denoising(
    decoder: Decoder, train: np.ndarray, test: np.ndarray, shape: tuple[int, ...]
) -> dict[str, Any]:
    """Errors of images from which noise is taken by inferring their latents."""
    noise = np.random.default_rng(1).normal(size=test.shape).astype(np.float32)
    noisy = test + NOISE * noise
    everything = np.ones(test.shape, bool)
    others = {
        "decoder": np.asarray(
            models.infer(decoder, jnp.asarray(noisy)).predictions[-1]
        ),
        "noisy": noisy,
        "nearest neighbour": nearest(noisy, train, everything),
    }
    return {
        "errors": {key: _error(x, test) for key, x in others.items()},
        "pictures": _pictures(
            shape, original=test, noisy=noisy, denoised=others["decoder"]
        ),
    }


def reconstructions(
    decoder: Decoder, train: np.ndarray, test: np.ndarray, shape: tuple[int, ...]
) -> dict[str, Any]:
    """Errors of whole images, pictures of them, and ways between their latents."""
    state = models.infer(decoder, jnp.asarray(test))
    ours, latents = np.asarray(state.predictions[-1]), state.activities[1]
    ways = []
    for first in (0, 2, 4):
        weight = jnp.linspace(0, 1, SHOWN)[:, None]
        between = (1 - weight) * latents[first][None] + weight * latents[first + 1][
            None
        ]
        given = {1: between}
        inputs = pcjax.no_inputs(SHOWN)
        *_, images = pcjax.ancestral(
            decoder.network, decoder.params, inputs, given=given
        )
        ways.append(np.asarray(images))
    return {
        "errors": {
            "decoder": _error(ours, test),
            "mean image": _error(np.broadcast_to(train.mean(0), test.shape), test),
            "nearest neighbour": _error(
                nearest(test, train, np.ones(test.shape, bool)), test
            ),
        },
        "pictures": _pictures(shape, original=test, decoder=ours),
        "between": _pictures(shape, **{f"way_{i}": x for i, x in enumerate(ways)}),
    }


def samples(
    decoder: Decoder, test: np.ndarray, shape: tuple[int, ...], num_steps: int
) -> dict[str, Any]:
    """Draws from the prior, and Langevin samples given nothing or the upper half."""
    inputs = pcjax.no_inputs(2 * SHOWN)
    *_, logits = pcjax.ancestral(
        decoder.network,
        decoder.params,
        inputs,
        key=jax.random.key(1),
        gamma=decoder.gamma,
    )
    drawn = np.asarray(logits)
    nothing = np.zeros((SHOWN, test.shape[1]), bool)
    free = models.sample(
        decoder, test[:SHOWN], nothing, jax.random.key(2), num_steps=num_steps
    )
    image = np.repeat(test[:1], SHOWN, 0)
    seen = masks("half", SHOWN, shape)
    half = models.sample(decoder, image, seen, jax.random.key(3), num_steps=num_steps)
    return {
        "step_size": models.stable_step(decoder),
        "spread": {
            # The standard deviation over chains, a pixel.
            "given the upper half": float(half.std(0)[~seen[0]].mean()),
            "given nothing": float(free.std(0).mean()),
        },
        "pictures": _pictures(
            shape,
            prior=drawn[:SHOWN],
            prior_again=drawn[SHOWN:],
            Langevin=free,
            given_half=np.where(seen, image, half),
        ),
    }


def recall(
    sizes: tuple[int, ...],
    images: np.ndarray,
    shape: tuple[int, ...],
    *,
    iterations: int,
    num_steps: int,
    key: jax.Array,
) -> dict[str, Any]:
    """Images stored, and recalled from their upper halves.

    What is hidden is found out far more slowly than what is seen: recalling has ten
    times as many inference iterations as looking at whole images.
    """
    batch_size = min(len(images), BATCH_SIZE)
    memory = models.train(
        models.make(sizes, key, "remember"),
        images,
        key,
        epochs=max(1, iterations // (len(images) // batch_size)),
        batch_size=batch_size,
        num_steps=num_steps,
        weight_decay=0.0,
    )
    seen = masks("half", len(images), shape)
    found = models.completed(memory, images, seen, RECALL_STEPS)
    bound = np.where(seen, images, nearest(images, images, seen))
    return {
        "stored": len(images),
        "stored_error": reconstruction_error(memory, images, RECALL_STEPS),
        "recalled": _recalled(found, images, seen),
        "nearest_neighbour": _recalled(bound, images, seen),
        "recalled_as_nearest": float(
            np.mean(
                np.all(nearest(found, images, np.ones_like(seen)) == images, axis=1)
            )
        ),
        "error": _error(found, images, ~seen),
        "pictures": _pictures(
            shape, stored=images, cue=np.where(seen, images, 0.5), recalled=found
        ),
    }


def _recalled(found: np.ndarray, images: np.ndarray, seen: np.ndarray) -> float:
    errors = np.where(seen, 0, (found - images) ** 2).sum(1) / (~seen).sum(1)
    return float(np.mean(errors < RECALLED))


def _error(found: Any, images: np.ndarray, where: np.ndarray | None = None) -> float:
    """The mean squared error a pixel."""
    squares = (np.asarray(found, np.float64) - images) ** 2
    return float(squares.mean() if where is None else squares[where].mean())


def _pictures(shape: tuple[int, ...], **rows: np.ndarray) -> dict[str, str]:
    """Rows of the first images as strips, in base64."""
    return {
        name.replace("_", " "): encode(images[:SHOWN].reshape(-1, *shape))
        for name, images in rows.items()
    }


def encode(pictures: np.ndarray) -> str:
    """Pictures [N, H, W, C] in [0, 1] side by side as a PNG, in base64."""
    from PIL import Image

    pixels = np.round(255 * np.clip(pictures, 0, 1)).astype(np.uint8)
    strip = np.concatenate(list(pixels), axis=1)
    file = io.BytesIO()
    Image.fromarray(strip[..., 0] if strip.shape[-1] == 1 else strip).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def decode(text: str) -> np.ndarray:
    """The strip [H, N W, ...] that `encode` made."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(text))) as file:
        return np.asarray(file)
