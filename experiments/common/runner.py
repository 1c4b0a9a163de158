"""Trains methods side by side, epoch by epoch, many networks at once.

The networks of a program differ in their random keys (seeds) and in what `Hyper` holds
(a grid), along one axis of runs. After an epoch the state can be checkpointed; a
trainer that finds checkpoints goes on from them, and gives the same numbers to the bit.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.harness import Run, plain
from experiments.common.methods import Hyper, Method
from experiments.common.refusals import mean_of_kept, raise_if_refused
from experiments.common.report import Live
from experiments.common.settings import Settings
from experiments.common.tasks import Task
from pcjax import training
from pcjax.checkpoints.checkpoints import Checkpoints
from pcjax.optimizers import finite
from pcjax.optimizers.finite import OnNonFinite
from pcjax.training import evaluation

CHECKPOINT_SECONDS = 20.0  # at least so long between checkpoints of a trainer

# What is known of a trained method, [epochs, runs] each:
# {"train_loss": ..., "energy": ..., "test": {"loss": ..., "top1": ...}, ...}
Curves = dict[str, Any]


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
      compile_seconds: what it took to trace and compile epoch and evaluation.
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
        example = task.example()

        def make(hyper):
            tx = method.optimizer(hyper.learning_rate, settings)
            if on_nonfinite:
                tx = finite.guard(tx, on_nonfinite)
            recipe = method.rule(settings, hyper.step_size)
            return recipe.update(task.network, task.output, tx), tx

        def init(hyper, key):
            return training.init_state(task.network, make(hyper)[1], key, example)

        def epoch(hyper, state, data):
            update, _ = make(hyper)
            return training.make_epoch(update, task.prepare, self._batch_size)(
                state, data
            )

        def evaluate(state, data):
            measure = evaluation.make_evaluation(
                task.network, task.prepare, task.measure
            )
            return measure(state.params, data)

        started = time.perf_counter()
        self._state = jax.jit(jax.vmap(init))(self._hyper, keys)
        self._epoch = _compile(
            epoch, (self._hyper, self._state), task.train, donate_argnums=1
        )
        halves = [jax.tree.map(lambda x, k=k: x[k::2], task.test) for k in range(2)]
        self._data = {"even": halves[0], "odd": halves[1]}
        if task.validation is not None:
            self._data["validation"] = task.validation
        sizes = {len(data.images): data for data in self._data.values()}
        self._evaluate = {
            size: _compile(evaluate, (self._state,), data)
            for size, data in sizes.items()
        }
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
        evaluate = self._evaluate[len(data.images)]
        values = jax.device_get(evaluate(self._state, data))
        named = values._asdict() if hasattr(values, "_asdict") else {"loss": values}
        return {name: np.asarray(row, np.float64) for name, row in named.items()}

    def _save(self) -> None:
        now = time.perf_counter()
        if self._checkpoints and now - self._saved > CHECKPOINT_SECONDS:
            records = [plain(record._asdict()) for record in self.records]
            self._checkpoints.save(len(records), self._state, records)
            self._saved = now

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


def _compile(function: Callable, runs: tuple, data: Any, **options) -> Callable:
    """Compiles `function(*runs, data)` over a leading axis of the runs' trees."""

    def one(*arguments):
        *runs, data = arguments
        result = function(*jax.tree.map(lambda x: x[0], runs), data)
        return jax.tree.map(lambda x: x[None], result)

    # XLA transposes every weight gradient of a batched product over one network.
    single = len(jax.tree.leaves(runs)[0]) == 1
    axes = (*(0 for _ in runs), None)
    mapped = one if single else jax.vmap(function, in_axes=axes)
    return jax.jit(mapped, **options).lower(*runs, data).compile()


def _record(entry: dict) -> Record:
    """A record as JSON keeps it; what was not finite is NaN."""

    def array(value):
        if isinstance(value, dict):
            return {name: array(row) for name, row in value.items()}
        return None if value is None else np.array(value, np.float64)

    fields = {name: array(value) for name, value in entry.items()}
    return Record(**fields | {"epoch": entry["epoch"], "seconds": entry["seconds"]})


def train(trainers: Sequence[Trainer], epochs: int) -> Iterator[tuple[Trainer, Record]]:
    """Trains all methods to the given epoch in turn, yielding every epoch.

    Methods take turns, so that their times are of the same minutes of the machine.
    """
    for epoch in range(1, epochs + 1):
        for trainer in trainers:
            if len(trainer.records) < epoch:
                yield trainer, trainer.epoch()


def curves(records: Sequence[Record]) -> Curves:
    """What the records hold but the seconds, each [epochs, runs]."""

    def stack(rows):
        if isinstance(rows[0], dict):
            return {name: stack([row[name] for row in rows]) for name in rows[0]}
        return np.stack(rows)

    return {
        name: stack([getattr(record, name) for record in records])
        for name in ("train_loss", "energy", "rising", "test", "halves", "validation")
        if getattr(records[0], name) is not None
    }


def train_methods(
    run: Run,
    part: str,
    task: Task,
    methods: Sequence[Method],
    settings: Settings,
    keys: jax.Array,
    *,
    epochs: int | None = None,
    hyper: Callable[[Method], Hyper] | None = None,
    extra: Callable[[Trainer], dict] = lambda trainer: {},
    on_nonfinite: OnNonFinite | None = None,
    in_turn: bool = True,
) -> dict[str, Curves]:
    """Trains methods as a part of an experiment that can be interrupted.

    Args:
      run: the experiment's output folder.
      part: the part's name.
      task: what they learn.
      methods: how they learn.
      settings: the hyper-parameters.
      keys: a random key of every run, [runs].
      epochs: passes over the training set; by default those of the settings.
      hyper: `method -> Hyper` of the runs; by default that of the settings.
      extra: what else to keep of a trained method, in JSON types.
      on_nonfinite: see `Trainer`; None suits grids, where some runs are to fail.
      in_turn: whether methods take turns by the epoch, so that their times are of the
        same minutes; otherwise each is a part of its own, `part-METHOD`, so that of
        a run of many hours what is finished is kept.

    Returns:
      For each method by name its `Curves`, with "seconds" [epochs],
      "optimizer_state_bytes" and what `extra` returns besides; with "skip" also
      "refused_steps" [runs].

    Raises:
      NonFiniteError: by "stop", naming method, run, step, quantity and layer.
    """
    epochs = epochs or settings.epochs
    skips = on_nonfinite == "skip"

    def compute(methods):
        folder = run.checkpoints(part)
        with Live(part, [method.name for method in methods], epochs) as live:
            trainers = []
            for method in methods:
                live.status(f"compiling {method.name}")
                chosen = hyper(method) if hyper else method.hyper(settings)
                trainers.append(
                    Trainer(
                        method,
                        task,
                        settings,
                        chosen,
                        keys,
                        folder / method.name,
                        on_nonfinite,
                    )
                )
                live.resume(trainers[-1])
            for trainer, record in train(trainers, epochs):
                live.update(trainer, record)
        for trainer in trainers:
            trainer.close()
        return {
            trainer.name: {
                **curves(trainer.records),
                "seconds": [record.seconds for record in trainer.records],
                "optimizer_state_bytes": trainer.optimizer_state_bytes,
                **({"refused_steps": trainer.refused()} if skips else {}),
                **extra(trainer),
            }
            for trainer in trainers
        }

    groups = {part: methods} if in_turn else {f"{part}-{m.name}": [m] for m in methods}
    trained: dict[str, Curves] = {}
    for name, group in groups.items():
        trained |= run.part(name, partial(compute, group))
    shutil.rmtree(run.checkpoints(part), ignore_errors=True)
    return trained


def constantly(hyper: Hyper) -> Callable[[Method], Hyper]:
    """The same hyper-parameters for every method."""
    return lambda method: hyper


def timeless(run: Run, part: str, trained: dict[str, Curves]) -> dict[str, Curves]:
    """The curves without seconds, which go to run.json: results are then repeatable."""
    run.seconds[f"{part}, per epoch"] = {
        name: found["seconds"] for name, found in trained.items()
    }
    return {
        name: {key: value for key, value in found.items() if key != "seconds"}
        for name, found in trained.items()
    }
