"""Decoders: how they are trained, and the most probable latents of images."""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import pcjax
from pcjax import training

OUTPUT = pcjax.masked(pcjax.identity)
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.1  # else latents shrink and weights grow, and no prior counts
# Of hidden layers, which add little of their own, and of pixels.
PRECISIONS = {"train": (1000.0, 30.0), "remember": (1e4, 1e3)}
INFERENCE_STEPS = 100  # of images that are looked at


class Decoder(NamedTuple):
    """A decoder with its precisions.

    Attributes:
      network: `pcjax.decoder`.
      params: its parameters.
      gamma: the precisions of latent, hidden layers and pixels.
    """

    network: pcjax.Network
    params: Any
    gamma: tuple[float, ...]


def make(sizes: Sequence[int], key: jax.Array, use: str = "train") -> Decoder:
    """A decoder with random weights."""
    network = _network(tuple(sizes))
    params = network.init(key, pcjax.no_inputs(1))
    hidden, pixels = PRECISIONS[use]
    return Decoder(network, params, (1.0, *[hidden] * (len(sizes) - 2), pixels))


_network = lru_cache(pcjax.decoder)  # what is the same is compiled for once


def train(
    decoder: Decoder,
    targets: np.ndarray,
    key: jax.Array,
    *,
    epochs: int,
    batch_size: int,
    num_steps: int,
    masks: np.ndarray | None = None,
    weight_decay: float = WEIGHT_DECAY,
) -> Decoder:
    """Trains on images [N, D] in [0, 1], of which only what masks show is known.

    Every image keeps its mask: what is missing is never seen.
    """
    seen = np.ones(targets.shape, bool) if masks is None else masks
    known = pcjax.observed(jnp.asarray(targets), jnp.asarray(seen))
    params = _centred(decoder.params, known)
    steps = epochs * (len(targets) // batch_size)
    method, about = _descent(num_steps), (batch_size, steps, weight_decay)
    epoch, tx = _training(decoder.network, decoder.gamma, method, *about)
    state = training.TrainState(params, tx.init(params), key, jnp.int32(0))
    data = training.Data(known, jnp.zeros(len(known), jnp.int32))
    for _ in range(epochs):
        state, _ = epoch(state, data)
    return decoder._replace(params=state.params)


@lru_cache
def _descent(num_steps: int) -> pcjax.Method:
    """Inference that comes to rest, with no step size to be tuned."""
    schedule = optax.cosine_decay_schedule(0.2, num_steps)
    return pcjax.error_based(num_steps, optimizer=optax.adam(schedule))


def _centred(params: Any, targets: jax.Array) -> Any:
    """The bias starts at the mean image, as the prior is at the origin."""
    return (*params[:-1], params[-1] | {"bias": jnp.nanmean(targets, axis=0)})


@lru_cache
def _training(
    network: pcjax.Network,
    gamma: tuple[float, ...],
    method: pcjax.Method,
    batch_size: int,
    steps: int,
    weight_decay: float,
) -> tuple[Any, optax.GradientTransformation]:
    """A compiled epoch, and its optimizer."""
    grad_fn = pcjax.value_and_grad(network, method, output=OUTPUT, gamma=gamma)
    tx = optax.adamw(
        optax.cosine_decay_schedule(LEARNING_RATE, steps),
        weight_decay=weight_decay,
        mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
    )

    def prepare(images, labels):
        del labels
        return pcjax.no_inputs(len(images)), images

    update = training.make_update(grad_fn, tx)
    return jax.jit(training.make_epoch(update, prepare, batch_size)), tx


def infer(
    decoder: Decoder, targets: jax.Array, num_steps: int = INFERENCE_STEPS
) -> pcjax.InferenceState:
    """The most probable latents of images [B, D] that may have missing pixels."""
    network, params, gamma = decoder
    return _infer(network, gamma, num_steps, params, jnp.asarray(targets))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _infer(network, gamma, num_steps, params, targets):
    return pcjax.infer(
        network,
        _descent(num_steps),
        params,
        pcjax.no_inputs(len(targets)),
        targets,
        output=OUTPUT,
        gamma=gamma,
    ).state


def completed(
    decoder: Decoder,
    targets: np.ndarray,
    seen: np.ndarray,
    num_steps: int = INFERENCE_STEPS,
) -> np.ndarray:
    """Images whose missing pixels are what the decoder predicts from the others."""
    known = pcjax.observed(jnp.asarray(targets), jnp.asarray(seen))
    predicted = np.asarray(infer(decoder, known, num_steps).predictions[-1])
    return np.where(seen, targets, np.clip(predicted, 0, 1))


def stable_step(decoder: Decoder) -> float:
    """A step size that Langevin dynamics are stable for: 1 / (norm of the Hessian).

    The activation functions have slopes of at most 1, so that the norm is bounded by
    that of a linear network, `gamma_1 + sum_l gamma_{l+1} (1 + |W_l|^2)`, but for terms
    of curvature.
    """
    norms = [
        float(np.linalg.norm(np.asarray(theta["kernel"]), 2))
        for theta in decoder.params[1:]
    ]
    terms = zip(decoder.gamma[1:], norms, strict=True)
    return 1 / (decoder.gamma[0] + sum(g * (1 + n**2) for g, n in terms))


def sample(
    decoder: Decoder,
    targets: np.ndarray,
    seen: np.ndarray,
    key: jax.Array,
    *,
    num_steps: int,
) -> np.ndarray:
    """Langevin samples of the latents given what is seen; the images they predict."""
    known = pcjax.observed(jnp.asarray(targets), jnp.asarray(seen))
    start = infer(decoder, known).activities[1:-1]
    network, gamma, params = decoder.network, decoder.gamma, decoder.params
    step = stable_step(decoder)
    images = _sample(network, gamma, num_steps, params, known, start, key, step)
    return np.clip(np.asarray(images), 0, 1)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _sample(network, gamma, num_steps, params, known, hidden, key, step):
    return pcjax.infer(
        network,
        pcjax.langevin(num_steps, step, momentum=0.9),
        params,
        pcjax.no_inputs(len(known)),
        known,
        output=OUTPUT,
        gamma=gamma,
        hidden=hidden,
        key=key,
    ).state.predictions[-1]
