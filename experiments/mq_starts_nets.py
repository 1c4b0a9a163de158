"""The nets of `mq_starts`: the paper's, and others of flax modules."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import numpy as np

import pcjax


@dataclass(frozen=True)
class Size:
    """How much is trained, and how large nets are.

    Attributes:
      epochs: passes over the training images.
      seeds: of weights and of the order of the batches.
      train_images: None takes all.
      hidden: features of the MLP's three hidden layers.
      channels: of the paper's conv net.
      width: of the convolutional net with normalisation; the transformer's is thrice.
      blocks: residual blocks of both.
      batch_size: images an iteration.
    """

    epochs: int = 20
    seeds: int = 3
    train_images: int | None = None
    hidden: int = 1024
    channels: tuple[int, ...] = (64, 128, 256)
    width: int = 64
    blocks: int = 4
    batch_size: int = 64


# The nets that are not of the paper, a flax module for every layer.


class Patches(nn.Module):
    """Images [B, H, W, C] to normalised features of patches [B, H/p, W/p, features]."""

    features: int
    patch: int

    @nn.compact
    def __call__(self, x):
        """Convolves without overlap."""
        size = (self.patch, self.patch)
        return nn.LayerNorm()(nn.Conv(self.features, size, strides=size)(x))


class ConvBlock(nn.Module):
    """A residual block of two convolutions with GroupNorm before each."""

    @nn.compact
    def __call__(self, x):
        """[B, H, W, C] to the same."""
        y = x
        for _ in range(2):
            y = nn.relu(nn.GroupNorm(num_groups=4)(y))
            y = nn.Conv(x.shape[-1], (3, 3))(y)
        return x + y


class Tokens(nn.Module):
    """Images [B, H, W, C] to embedded patches with positions, [B, N, features]."""

    features: int
    patch: int

    @nn.compact
    def __call__(self, x):
        """Embeds."""
        size = (self.patch, self.patch)
        x = nn.Conv(self.features, size, strides=size)(x)
        x = x.reshape(len(x), -1, self.features)
        init = nn.initializers.normal(0.02)
        return x + self.param("positions", init, (1, *x.shape[1:]))


class AttentionBlock(nn.Module):
    """A transformer's block, normalised before attention and dense layers."""

    heads: int = 4

    @nn.compact
    def __call__(self, x):
        """[B, N, D] to the same."""
        x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
        y = nn.gelu(nn.Dense(2 * x.shape[-1])(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(y)


class Head(nn.Module):
    """The logits of normalised features, averaged over positions."""

    classes: int

    @nn.compact
    def __call__(self, x):
        """[B, ..., D] to [B, classes]."""
        x = nn.LayerNorm()(x)
        return nn.Dense(self.classes)(x.mean(range(1, x.ndim - 1)))


class Net(NamedTuple):
    """A net of the table.

    Attributes:
      make: `(shape of an image, classes, size) -> Network`.
      low: what a black pixel becomes; a white one becomes 1.
      adam_rate: the middle of Adam's learning rates, how far parameters move in a step.
      mq_rate: the same of MQ: how far they move on average, and some much further.
    """

    make: Callable[[tuple[int, ...], int, Size], pcjax.Network]
    low: float
    adam_rate: float
    mq_rate: float


def _mlp(shape, classes, size):
    return pcjax.mlp([int(np.prod(shape)), *[size.hidden] * 3, classes])


def _conv(shape, classes, size):
    # The last filter of the paper's net does not fit into what is left of 8x8 images.
    sides = (5, 5, 3) if shape[0] >= 32 else (3, 3)
    features = size.channels[: len(sides)]
    return pcjax.convnet(classes, features=features, kernel_sizes=sides)


def _normalised(shape, classes, size):
    stem = Patches(size.width, max(1, shape[0] // 8))
    modules = [stem, *(ConvBlock() for _ in range(size.blocks)), Head(classes)]
    return pcjax.Network(tuple(map(pcjax.from_linen, modules)))


def _transformer(shape, classes, size):
    tokens = Tokens(3 * size.width, max(1, shape[0] // 4))
    blocks = (AttentionBlock() for _ in range(size.blocks))
    return pcjax.Network(tuple(map(pcjax.from_linen, [tokens, *blocks, Head(classes)])))


NETS = {
    "MLP": Net(_mlp, 0.0, 1e-3, 1e-4),
    "conv net": Net(_conv, -1.0, 1e-3, 3e-4),
    "CNN with norms": Net(_normalised, -1.0, 1e-3, 1e-3),
    "transformer": Net(_transformer, -1.0, 1e-3, 1e-3),
}
