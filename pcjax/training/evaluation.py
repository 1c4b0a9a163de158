"""Losses and accuracies of the feed-forward outputs, over a whole data set."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pcjax.checks import check_count
from pcjax.networks.network import Network, Params
from pcjax.networks.outputs import Output
from pcjax.numerics.widths import widest
from pcjax.training.data import Data, Prepare, rows
from pcjax.training.epoch import widened

# (logits, targets, labels) -> pytree of [B]
Measure = Callable[[jax.Array, jax.Array, jax.Array], Any]


class ClassificationMeasures(NamedTuple):
    """Per example [B] as measured, [] once averaged over a data set.

    float32, or float64 if the logits are, since half precision cannot hold the mean of
    a data set.

    Attributes:
      loss: cross-entropy in nats.
      top1: whether the label has the highest logit.
      top5: whether it is among the five highest.
    """

    loss: jax.Array
    top1: jax.Array
    top5: jax.Array


def classification_measures(output: Output) -> Measure:
    """Loss, top-1 and top-5 accuracy; a non-finite logit counts as wrong.

    Args:
      output: the network's output.

    Returns:
      A measure for `make_evaluation`. Equal logits rank by class number.
    """

    def measure(logits, targets, labels):
        own = jnp.take_along_axis(logits, labels[:, None], axis=1)
        first = jnp.arange(logits.shape[1])[None] < labels[:, None]
        ahead = ~(logits <= own) | ((logits == own) & first)
        rank = jnp.sum(ahead, axis=1)
        loss = _loss(output, logits, targets)
        return ClassificationMeasures(
            loss, (rank < 1).astype(loss.dtype), (rank < 5).astype(loss.dtype)
        )

    return measure


def reconstruction_measures(output: Output) -> Measure:
    """The loss per pixel: `output.loss / number of outputs` that are not missing."""

    def measure(logits, targets, labels):
        del labels
        loss = _loss(output, logits, targets)
        seen = jnp.sum(~jnp.isnan(targets), axis=range(1, targets.ndim))
        return loss / jnp.maximum(seen, 1).astype(loss.dtype)

    return measure


def _loss(output, logits, targets):
    """The loss [B] in float32 at least, as its sum over many outputs needs."""
    dtype = widest(logits.dtype)
    return output.loss(logits.astype(dtype), targets.astype(dtype))


def make_evaluation(
    network: Network, prepare: Prepare, measure: Measure, batch_size: int = 1000
) -> Callable[[tuple[Params, ...], Data], Any]:
    """Averages a measure of the feed-forward outputs over a whole data set.

    Args:
      network: L layers, a chain or a graph.
      prepare: makes inputs and targets of a batch of raw data.
      measure: `(logits, targets, labels) -> pytree of [B]`.
      batch_size: examples at a time; the result does not depend on it.

    Returns:
      `evaluate(params, data)`: the measure's tree, averaged over all N examples in
      float32 at least.

    Raises:
      ValueError: if the batch size is no int >= 1; by `evaluate`, if there are no
        examples.
    """
    check_count("make_evaluation", "batch_size", batch_size)

    def evaluate(params, data):
        total = len(data.images)
        if not total:
            raise ValueError(
                "make_evaluation: expected one example or more, got images of shape "
                f"{data.images.shape}."
            )
        size = min(batch_size, total)
        count = -(-total // size)

        def accumulate(_, start):
            index = start + jnp.arange(size)
            images, labels = rows(data, jnp.minimum(index, total - 1))
            inputs, targets = prepare(images, labels)
            values = measure(network.apply(params, inputs), targets, labels)
            # The last batch is filled up with copies that do not count.
            return None, jax.tree.map(
                lambda value: jnp.sum(jnp.where(index < total, widened(value), 0)),
                values,
            )

        _, sums = jax.lax.scan(accumulate, None, jnp.arange(count) * size)
        return jax.tree.map(lambda value: jnp.sum(value) / total, sums)

    return evaluate
