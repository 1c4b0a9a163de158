"""What is trained on what: the paper's nets on a data set."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import pcjax
from experiments.common.data import Dataset, Split, validation_split
from experiments.common.settings import Net, Settings
from pcjax import training
from pcjax.training import evaluation


@dataclass(frozen=True)
class TrainingSize:
    """How much is trained; None stands for what the paper's settings say."""

    epochs: int | None = None
    seeds: int = 5
    train_images: int | None = None


class Task(NamedTuple):
    """A network with its data on the device.

    Attributes:
      network: the chain of layers.
      output: its output.
      prepare: makes inputs and targets of raw images.
      measure: what is measured of the outputs.
      train: what the weights learn from.
      test: the official test set.
      validation: what is held out of the training set; None if nothing is.
    """

    network: pcjax.Network
    output: pcjax.Output
    prepare: training.Prepare
    measure: evaluation.Measure
    train: training.Data
    test: training.Data
    validation: training.Data | None = None

    def example(self) -> jax.Array:
        """One input [1, ...] of zeros, for shape and dtype."""
        image = jax.tree.map(lambda x: x[:1], self.train)
        inputs, _ = jax.eval_shape(self.prepare, *image)
        return jnp.zeros(inputs.shape, inputs.dtype)


def make_task(
    net: Net,
    images: Dataset,
    settings: Settings,
    *,
    train_images: int | None = None,
    validation: float = 0.0,
) -> Task:
    """Puts a data set on the device and builds the net for it.

    Args:
      net: which of the paper's nets; its sizes are in the settings.
      images: the data set.
      settings: sizes and scaling of the pixels.
      train_images: how many training images to take, equally many of every class; None
        and more than there are take all.
      validation: the fraction of these that is held out.

    Raises:
      ValueError: if `train_images` is below 1.
    """
    classes = images.num_classes
    pixels = images.train.images[0].size
    train, held_out = subset(images.train, train_images, classes), None
    if validation:
        train, held_out = validation_split(train, validation, seed=0)
    problem = _problem(
        net,
        pixels,
        classes,
        settings.hidden,
        settings.kernel_sizes,
        (settings.low, settings.high),
    )

    def put(split: Split) -> training.Data:
        return training.device_data(split.images, split.labels, classes)

    return Task(
        *problem,
        put(train),
        put(images.test),
        None if held_out is None else put(held_out),
    )


@lru_cache(maxsize=16)  # what is the same is compiled for once
def _problem(
    net: Net,
    pixels: int,
    classes: int,
    hidden: tuple[int, ...],
    kernel_sizes: tuple[int, ...],
    scale: tuple[float, float],
) -> tuple[pcjax.Network, pcjax.Output, training.Prepare, evaluation.Measure]:
    """Network, output, and what makes inputs and measures."""
    scaled = dict(zip(("low", "high"), scale, strict=True))
    if net == "autoencoder":
        network = pcjax.autoencoder((pixels, *hidden, pixels))
        output = pcjax.sigmoid
        measure = evaluation.reconstruction_measures(output)
        return network, output, training.reconstruction(**scaled), measure
    network = (
        pcjax.mlp([pixels, *hidden, classes])
        if net == "mlp"
        else pcjax.convnet(classes, features=hidden, kernel_sizes=kernel_sizes)
    )
    output = pcjax.softmax
    measure = evaluation.classification_measures(output)
    return network, output, training.classification(classes, **scaled), measure


def subset(split: Split, count: int | None, classes: int) -> Split:
    """The first `count` images, equally many of every class (or one more).

    Images keep their order, so that a smaller subset is part of a larger one.
    """
    total = len(split.labels)
    if count is None or count >= total:
        return split
    if count < 1:
        raise ValueError(f"expected at least one training image, got {count}.")
    kept = np.zeros(total, bool)
    for label in range(classes):
        share = count // classes + (label < count % classes)
        kept[np.flatnonzero(split.labels == label)[:share]] = True
    return Split(split.images[kept], split.labels[kept])
