"""One method in training, many networks at once.

The networks of a program differ in their random keys (seeds) and in what `Hyper` holds
(a grid), along one axis of runs; an accelerator trains them in batched products, a CPU
one after the other. After an epoch the state can be checkpointed; a
trainer that finds checkpoints goes on from them, and gives the same numbers to the bit.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import pcjax
from experiments.common.folders import plain
from experiments.common.methods import Hyper, Method
from experiments.common.refusals import mean_of_kept, raise_if_refused
from experiments.common.settings import Settings
from experiments.common.tasks import Task
from pcjax import training
from pcjax.checkpoints import Checkpoints
from pcjax.optimizers import finite
from pcjax.optimizers.finite import OnNonFinite
from pcjax.training import evaluation

CHECKPOINT_SECONDS = 20.0  # at least so long between checkpoints of a trainer


class Record(NamedTuple):
    """One epoch of one method.

    Attributes:
      epoch: 1, 2, ...
      seconds: wall-clock time of the training epoch, all runs together, without
        compilation and evaluation.
      energy: [runs], mean free energy of the training batches.
      train_loss: [runs], mean loss of the training batches.
      rising: [runs], the fraction of training examples whose inference diverged.
      test: measures of the test set by name, each [runs].
      halves: the same of its images of even and of odd index, [2, runs]: an epoch
        chosen on one half can be judged on the other.
      validation: measures of the validation set; None without one.
    """

    epoch: int
    seconds: float
    energy: np.ndarray
    train_loss: np.ndarray
    rising: np.ndarray
    test: dict[str, np.ndarray]
    halves: dict[str, np.ndarray]
    validation: dict[str, np.ndarray] | None


class Trainer:
    """One method in training: `epoch()` goes on by one epoch and reports it.

    Attributes:
      name: of the method.
      records: the epochs so far, those before an interruption included.
      compile_seconds: what it took to trace and compile an epoch.
      optimizer_state_bytes: memory of the optimizer's state, for one run.
    """

    def __init__(
        self,
        method: Method,
        task: Task,
        settings: Settings,
        hyper: Hyper,
        keys: jax.Array,
        folder: Path | None = None,
        on_nonfinite: OnNonFinite | None = None,
    ) -> None:
        """Compiles, and goes on from the checkpoints in `folder` if there are any.

        Args:
          method: how it learns.
          task: what it learns.
          settings: the hyper-parameters that all runs share.
          hyper: those that differ, numbers or [runs] each.
          keys: a random key of every run, [runs].
          folder: where checkpoints go; None makes none.
          on_nonfinite: what happens to a step that is not finite; None takes it, and
            the numbers of that run are NaN from then on.
        """
        self.name = method.name
        self._method, self._settings = method, settings
        self._on_nonfinite = on_nonfinite
        self.records: list[Record] = []
        self._task = task
        self._batch_size = min(settings.batch_size, len(task.train.images))
        runs = len(keys)
        self._hyper = Hyper(*(jnp.broadcast_to(jnp.float32(x), runs) for x in hyper))
        self._data = _evaluated(task)
        self._state: training.TrainState  # [runs] in every leaf
        started = time.perf_counter()
        self._compile(keys)
        self.compile_seconds = time.perf_counter() - started
        self.optimizer_state_bytes = sum(
            leaf.size * leaf.dtype.itemsize // runs
            for leaf in jax.tree.leaves(self._optimizer_state(self._state))
        )
        fingerprint = plain(
            {"method": method.name, "settings": dataclasses.asdict(settings)}
            | self._hyper._asdict()
        )
        self._checkpoints = folder and Checkpoints(folder, fingerprint=fingerprint)
        self._saved = time.perf_counter()
        if self._checkpoints and (found := self._checkpoints.restore(self._state)):
            self._state = found.state
            self.records = [_record(entry) for entry in found.record]

    def _compile(self, keys: jax.Array) -> None:
        """Makes the state of every run, and the program of an epoch."""
        task, example = self._task, self._task.example()

        def optimizer_state(hyper, params):
            return self._rule(hyper)[1].init(params)

        def epoch(hyper, state, data):
            update, _ = self._rule(hyper, state.epoch)
            return training.make_epoch(update, task.prepare, self._batch_size)(
                state, data
            )

        begun = start(task.network, keys, example)
        opt_state = jax.jit(jax.vmap(optimizer_state))(self._hyper, begun.params)
        self._state = begun._replace(opt_state=opt_state)
        self._epoch = _compile(
            epoch, (self._hyper, self._state), task.train, donate_argnums=1
        )

    def _rule(self, hyper: Hyper, epoch: jax.Array | int = 0) -> tuple[Any, Any]:
        """The training iteration of an epoch and its optimizer."""
        tx = self._method.optimizer(hyper.learning_rate, self._settings)
        if self._on_nonfinite:
            tx = finite.guard(tx, self._on_nonfinite)
        recipe = self._method.rule(self._settings, hyper.step_size)
        return recipe._replace(epoch=epoch).update(
            self._task.network, self._task.output, tx
        ), tx

    def epoch(self) -> Record:
        """Trains one epoch and evaluates."""
        started = time.perf_counter()
        self._state, metrics = self._epoch(self._hyper, self._state, self._task.train)
        jax.block_until_ready(self._state)
        seconds = time.perf_counter() - started
        if self._on_nonfinite == "stop":
            raise_if_refused(
                self._method,
                self._task,
                self._settings,
                self._batch_size,
                self._hyper,
                self._state,
            )
        energy, loss, rising = (self._mean(np.asarray(metric)) for metric in metrics)
        measured = {name: self._measure(data) for name, data in self._data.items()}
        halves = [measured.pop(name) for name in ("even", "odd")]
        weights = [len(self._data[name].images) for name in ("even", "odd")]
        halved = {name: np.stack([half[name] for half in halves]) for name in halves[0]}
        test = {
            name: np.average(rows, axis=0, weights=weights)
            for name, rows in halved.items()
        }
        epoch = len(self.records) + 1
        validation = measured.get("validation")
        record = Record(epoch, seconds, energy, loss, rising, test, halved, validation)
        # As JSON has it, so that an interrupted run cannot differ from another.
        self.records.append(_record(plain(record._asdict())))
        self._save()
        return self.records[-1]

    def _measure(self, data: training.Data) -> dict[str, np.ndarray]:
        """The measures of a data set by name, each [runs]."""
        task = self._task
        evaluate = _evaluation(task.network, task.prepare, task.measure)
        values = jax.device_get(evaluate(self._state.params, data))
        named = values._asdict() if hasattr(values, "_asdict") else {"loss": values}
        return {name: np.asarray(row, np.float64) for name, row in named.items()}

    def _save(self) -> None:
        now = time.perf_counter()
        if self._checkpoints and now - self._saved > CHECKPOINT_SECONDS:
            records = [plain(record._asdict()) for record in self.records]
            self._checkpoints.save(len(records), self._state, records)
            self._saved = now

    def keep_weights(self, folder: Path) -> None:
        """Writes the params of every run, as a checkpoint of its own in `folder/RUN`.

        They are saved under the number of epochs, with the name of the method, the
        settings and the measures of the last epoch as the record.
        """
        about = {
            "method": self.name,
            "settings": dataclasses.asdict(self._settings),
            "epoch": len(self.records),
        }
        for run in range(jnp.size(self._hyper.learning_rate)):
            params = jax.tree.map(lambda x, run=run: x[run], self._state.params)
            with Checkpoints(folder / str(run)) as checkpoints:
                if checkpoints.restore(params) is None:
                    checkpoints.save(len(self.records), params, plain(about))

    def refused(self) -> list[int] | None:
        """How many steps of every run were refused; None if none was to be."""
        if self._on_nonfinite is None:
            return None
        return np.asarray(self._state.opt_state.refused).tolist()

    def _mean(self, metric: np.ndarray) -> np.ndarray:
        """The mean [runs] over steps, of which those left out are not counted."""
        return mean_of_kept(metric) if self._on_nonfinite == "skip" else metric.mean(1)

    def _optimizer_state(self, state: training.TrainState) -> Any:
        """The optimizer's own state, without that of the guard."""
        guarded = self._on_nonfinite is not None
        return state.opt_state.inner_state if guarded else state.opt_state

    @property
    def params(self) -> Any:
        """The params as they now are, [runs] in every leaf."""
        return self._state.params

    def logits(self, images: jax.Array) -> np.ndarray:
        """The logits [runs, B, ...] of raw images [B, ...] as the weights now are."""
        network, prepare = self._task.network, self._task.prepare
        inputs, _ = prepare(images, jnp.zeros(len(images), jnp.int32))
        apply = jax.jit(jax.vmap(network.apply, in_axes=(0, None)))
        return np.asarray(apply(self._state.params, inputs))

    def close(self) -> None:
        """Waits for checkpoints on their way to the disk."""
        if self._checkpoints:
            self._checkpoints.close()


def _evaluated(task: Task) -> dict[str, training.Data]:
    """What is evaluated after an epoch: the halves of the test set, and validation."""
    halves = [jax.tree.map(lambda x, k=k: x[k::2], task.test) for k in range(2)]
    found = {"even": halves[0], "odd": halves[1]}
    if task.validation is not None:
        found["validation"] = task.validation
    return found


@partial(jax.jit, static_argnums=0)
def start(
    network: pcjax.Network, keys: jax.Array, example: jax.Array
) -> training.TrainState:
    """The state of every run, [runs], but for the optimizer: the same of all methods.

    It is a program of its own, compiled once for a network, because to compile the
    random numbers takes longer than to compile a training iteration.
    """

    def one(key):
        return training.init_state(network, optax.identity(), key, example)

    return jax.vmap(one)(keys)


@lru_cache(maxsize=16)
def _evaluation(
    network: pcjax.Network, prepare: training.Prepare, measure: evaluation.Measure
) -> Callable:
    """`(params of all runs, data) -> measures`, compiled once for all methods."""
    evaluate = evaluation.make_evaluation(network, prepare, measure)
    return jax.jit(_over_runs(evaluate))


def _compile(function: Callable, runs: tuple, data: Any, **options) -> Callable:
    """Compiles `function(*runs, data)` over a leading axis of the runs' trees."""
    return jax.jit(_over_runs(function), **options).lower(*runs, data).compile()


def _over_runs(function: Callable) -> Callable:
    """`function(*runs, data)` over a leading axis of the runs' trees."""

    def mapped(*arguments):
        *runs, data = arguments
        # XLA's batched products are slower than single ones on a CPU, and over a single
        # network everywhere: it transposes their weight gradients.
        one = len(jax.tree.leaves(runs[0])[0]) == 1
        if one or jax.default_backend() == "cpu":
            return jax.lax.map(lambda run: function(*run, data), tuple(runs))
        return jax.vmap(function, in_axes=(*(0 for _ in runs), None))(*runs, data)

    return mapped


def _record(entry: dict) -> Record:
    """A record as JSON keeps it; what was not finite is NaN."""

    def array(value):
        if isinstance(value, dict):
            return {name: array(row) for name, row in value.items()}
        return None if value is None else np.array(value, np.float64)

    fields = {name: array(value) for name, value in entry.items()}
    return Record(**fields | {"epoch": entry["epoch"], "seconds": entry["seconds"]})
