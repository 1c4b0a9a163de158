"""Whole epochs as one program: shuffling, scaling and training on the device.

Nothing here knows how gradients are made: an `Update` is made of any `grad_fn` and
optax transform, or is `pcjax.incremental(...)`. The functions are pure, so that
`jax.jit(epoch, donate_argnums=0)` compiles an epoch into one dispatch and `jax.vmap`
over the state (and over whatever hyper-parameters went into the update) trains
seeds and settings side by side.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pcjax.checks import check_parts, is_int
from pcjax.learning.gradients import GradFn, Update
from pcjax.networks.network import Network, Params
from pcjax.numerics.widths import widest
from pcjax.optimizers.finite import descend
from pcjax.training.data import Data, Prepare, rows, takes_key


class TrainState(NamedTuple):
    """Everything an epoch needs and changes.

    Attributes:
      params: tuple of L pytrees.
      opt_state: the optimizer's state.
      key: a random key, never changed: epoch `i` shuffles with `fold_in(key, i)`, and
        prepares its batches with `batch_keys(key, i, steps)`.
      epoch: int32 [], the number of finished epochs.
    """

    params: tuple[Params, ...]
    opt_state: Any
    key: jax.Array
    epoch: jax.Array


class EpochMetrics(NamedTuple):
    """What an epoch reports, one entry per training iteration.

    Attributes:
      energy: [steps], mean free energy of the batch after inference.
      loss: [steps], mean loss of the batch before the weights moved.
      rising: [steps], the fraction of the batch whose inference diverged
        (`Info.rising`).

    All are float32, or float64 if the network is: means of half precision would be off
    by up to .4 % in bfloat16, and overflow in float16.
    """

    energy: jax.Array
    loss: jax.Array
    rising: jax.Array


def make_update(grad_fn: GradFn, tx: optax.GradientTransformation) -> Update:
    """One training iteration out of a gradient function and an optimizer.

    A transform that asks for the loss, such as `optax.contrib.reduce_on_plateau` or
    `optax.polyak_sgd`, is given it as `value=`: the mean loss of the feed-forward
    outputs before the weights move, or the energy where `info` has no `loss`.

    Args:
      grad_fn: what `pcjax.value_and_grad` or `pcjax.backprop.value_and_grad` returns.
      tx: any optax transform that needs no more than that. A line search, which asks
        for the loss as a function, does.

    Returns:
      `update(params, opt_state, inputs, targets) -> (params, opt_state, (energy,
      info))`, the signature `pcjax.incremental` has too. What else it is given by
      name, such as a `key=`, goes on to `grad_fn`.

    Raises:
      TypeError: if `tx` is no optax transform.
    """
    check_parts("make_update", tx=tx)

    def update(params, opt_state, inputs, targets, **start):
        (energy, info), grads = grad_fn(params, inputs, targets, **start)
        loss = mean(getattr(info, "loss", energy))
        params, opt_state = descend(tx, grads, opt_state, params, value=loss)
        return params, opt_state, (energy, info)

    return update


def init_state(
    network: Network,
    tx: optax.GradientTransformation,
    key: jax.Array,
    inputs: jax.Array,
) -> TrainState:
    """The state before the first epoch.

    It may be donated: every array of it has a buffer of its own, also where a layer
    keeps its first parameters (`from_nnx` of a ready-made module) or the optimizer
    those it started from (Prodigy, DoG, mechanize), so that these stay usable.

    Args:
      network: L layers, a chain or a graph.
      tx: the optimizer. One that draws noise from a seed, such as `optax.add_noise`,
        draws the same for networks trained side by side, unless its key is made of
        theirs.
      key: a random key, typed or not; it decides the initial weights and the order of
        the data.
      inputs: [B, ...] floats, of which only shape and dtype matter.

    Returns:
      A `TrainState`; `jax.vmap` over keys gives one for several seeds.
    """
    params_key, data_key = jax.random.split(key)
    params = _copy(network.init(params_key, inputs))
    opt_state = _copy(tx.init(params))
    return TrainState(params, opt_state, data_key, jnp.zeros((), jnp.int32))


def _copy(tree):
    return jax.tree.map(lambda x: jnp.copy(x) if isinstance(x, jax.Array) else x, tree)


def epoch_batches(
    key: jax.Array, epoch: jax.Array | int, num_examples: int, batch_size: int
) -> jax.Array:
    """Which examples every training iteration of an epoch takes.

    Args:
      key: that of the `TrainState`.
      epoch: its number, counted from 0.
      num_examples: how many there are.
      batch_size: examples an iteration; the last short batch is dropped.

    Returns:
      int32 [steps, batch_size], each example at most once.

    Raises:
      TypeError: if the numbers of examples are not integers.
      ValueError: if the examples make less than one batch.
    """
    if not (is_int(num_examples) and is_int(batch_size)):
        raise TypeError(
            "epoch: num_examples and batch_size must be ints, got "
            f"{num_examples!r} and {batch_size!r}."
        )
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f"epoch: {num_examples} examples hold no batch of {batch_size}."
        )
    order = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
    steps = num_examples // batch_size
    return order[: steps * batch_size].reshape(steps, batch_size)


def batch_keys(key: jax.Array, epoch: jax.Array | int, steps: int) -> jax.Array:
    """The key that every training iteration of an epoch prepares its batch with.

    Args:
      key: that of the `TrainState`.
      epoch: its number, counted from 0.
      steps: training iterations.

    Returns:
      Keys [steps], other ones than those that shuffle.
    """
    own = jax.random.fold_in(key, np.uint32(2**32 - 1))  # no epoch of that number
    return jax.random.split(jax.random.fold_in(own, epoch), steps)


def make_epoch(
    update: Update, prepare: Prepare, batch_size: int
) -> Callable[[TrainState, Data], tuple[TrainState, EpochMetrics]]:
    """An epoch as one `lax.scan` over a freshly shuffled data set.

    Args:
      update: one training iteration.
      prepare: makes inputs and targets of a batch of raw data; if it has an argument
        `key`, as `augmented` makes it, it is given one.
      batch_size: examples an iteration; the last short batch is dropped.

    Returns:
      `epoch(state, data) -> (state, metrics)`. Compile it with
      `jax.jit(epoch, donate_argnums=0)`, so that the weights are updated in place.
      The same state gives the same bits on the same machine.

    Raises:
      TypeError: by `epoch`, if the batch size is no int.
      ValueError: by `epoch`, if the data hold less than one batch.
    """

    def epoch(state, data):
        batches = epoch_batches(state.key, state.epoch, len(data.images), batch_size)
        keys = {}
        if takes_key(prepare):
            keys = {"key": batch_keys(state.key, state.epoch, len(batches))}

        def iterate(carry, batch):
            (params, opt_state), (index, key) = carry, batch
            inputs, targets = prepare(*rows(data, index), **key)
            params, opt_state, (energy, info) = update(
                params, opt_state, inputs, targets
            )
            measured = widened(energy), mean(info.loss), mean(info.rising)
            metrics = EpochMetrics(*measured)
            return (params, opt_state), metrics

        (params, opt_state), metrics = jax.lax.scan(
            iterate,
            (state.params, state.opt_state),
            (batches, keys),
        )
        return TrainState(params, opt_state, state.key, state.epoch + 1), metrics

    return epoch


def widened(values: jax.Array) -> jax.Array:
    """Floats as float32 at least, to be added up; all else as it is."""
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return values
    return values.astype(widest(values.dtype))


def mean(values: jax.Array) -> jax.Array:
    """The mean [] of all values, added up and kept in float32 at least."""
    return jnp.mean(widened(values))
