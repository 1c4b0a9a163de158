"""Trains methods side by side, epoch by epoch, over several seeds at once."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import pcjax
from experiments.data import Dataset
from experiments.methods import Method, Settings
from pcjax import training


class Task(NamedTuple):
    """What is trained on what."""

    network: pcjax.Network
    output: pcjax.Output
    prepare: training.Prepare
    measure: training.Measure
    train: training.Data
    test: training.Data


def mlp_task(images: Dataset, settings: Settings) -> Task:
    """Classification of a data set by a fully connected net."""
    classes = images.num_classes
    pixels = images.train.images[0].size
    return Task(
        network=pcjax.mlp([pixels, *settings.hidden, classes]),
        output=pcjax.softmax,
        prepare=training.classification(classes),
        measure=training.classification_measures(pcjax.softmax),
        train=training.device_data(*images.train, classes),
        test=training.device_data(*images.test, classes),
    )


class Record(NamedTuple):
    """One epoch of one method.

    Attributes:
      epoch: 1, 2, ...
      seconds: wall-clock time of the training epoch, all seeds together, without
        compilation and evaluation.
      energy: [seeds], mean free energy of the training batches.
      train_loss: [seeds], mean loss of the training batches.
      test: measures of the test set, each [seeds].
    """

    epoch: int
    seconds: float
    energy: np.ndarray
    train_loss: np.ndarray
    test: Any


class Trainer:
    """One method in training: `epoch()` goes on by one epoch and reports it.

    Attributes:
      name: of the method.
      records: the epochs so far.
      compile_seconds: what it took to trace and compile epoch and evaluation.
      optimizer_state_bytes: memory of the optimizer's state, for one seed.
    """

    def __init__(
        self, method: Method, task: Task, settings: Settings, keys: jax.Array
    ) -> None:
        self.name = method.name
        self.records: list[Record] = []
        tx = method.optimizer(settings.learning_rates[method.name], settings)
        update = method.rule(task.network, task.output, tx, settings)
        example = jax.eval_shape(
            task.prepare, *jax.tree.map(lambda x: x[:1], task.train)
        )
        inputs = jnp.zeros(example[0].shape, example[0].dtype)

        def init(key):
            return training.init_state(task.network, tx, key, inputs)

        started = time.perf_counter()
        self._state = jax.jit(jax.vmap(init))(keys)
        epoch = training.make_epoch(update, task.prepare, settings.batch_size)
        evaluate = training.make_evaluation(task.network, task.prepare, task.measure)
        self._epoch = _compile(epoch, self._state, task.train, donate_argnums=0)
        self._evaluate = _compile(evaluate, self._state.params, task.test)
        self._train, self._test = task.train, task.test
        self.compile_seconds = time.perf_counter() - started
        self.optimizer_state_bytes = sum(
            leaf.size * leaf.dtype.itemsize // len(keys)
            for leaf in jax.tree.leaves(self._state.opt_state)
        )

    def epoch(self) -> Record:
        """Trains one epoch and evaluates."""
        started = time.perf_counter()
        self._state, metrics = self._epoch(self._state, self._train)
        jax.block_until_ready(self._state)
        seconds = time.perf_counter() - started
        test = jax.device_get(self._evaluate(self._state.params, self._test))
        energy, loss = (np.asarray(metric).mean(1) for metric in metrics)
        record = Record(len(self.records) + 1, seconds, energy, loss, test)
        self.records.append(record)
        return record


def _compile(function: Callable, state: Any, data: Any, **options) -> Callable:
    """Compiles `function(state, data)` over a leading axis of seeds of the state."""

    def one(state, data):
        result = function(jax.tree.map(lambda x: x[0], state), data)
        return jax.tree.map(lambda x: x[None], result)

    seeds = len(jax.tree.leaves(state)[0])
    # XLA transposes every weight gradient of a batched product over one network.
    mapped = one if seeds == 1 else jax.vmap(function, in_axes=(0, None))
    return jax.jit(mapped, **options).lower(state, data).compile()


def train(trainers: list[Trainer], epochs: int) -> Iterator[tuple[Trainer, Record]]:
    """Trains all methods for some epochs in turn, yielding every epoch.

    Methods take turns, so that their times are of the same minutes of the machine.
    """
    for _ in range(epochs):
        for trainer in trainers:
            yield trainer, trainer.epoch()
