"""Trains methods side by side, epoch by epoch, as parts that can be interrupted."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.folders import Run, UnfinishedError
from experiments.common.live import Live
from experiments.common.methods import Hyper, Method
from experiments.common.settings import Settings
from experiments.common.tasks import Task
from experiments.common.trainer import Record, Trainer
from pcjax.optimizers.finite import OnNonFinite

# What is known of a trained method, [epochs, runs] each:
# {"train_loss": ..., "energy": ..., "test": {"loss": ..., "top1": ...}, ...}
Curves = dict[str, Any]


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


class Plan(NamedTuple):
    """How methods are trained.

    Attributes:
      epochs: passes over the training set; None takes those of the settings.
      hyper: `method -> Hyper` of the runs; None takes that of the settings.
      extra: what else to keep of a trained method, in JSON types.
      on_nonfinite: see `Trainer`; None suits grids, where some runs are to fail.
      in_turn: whether methods take turns by the epoch, so that their times are of the
        same minutes; otherwise each is a part of its own, `part-METHOD`, so that of
        a run of many hours what is finished is kept.
      keep_weights: whether the trained weights are kept.
    """

    epochs: int | None = None
    hyper: Callable[[Method], Hyper] | None = None
    extra: Callable[[Trainer], dict] = lambda trainer: {}
    on_nonfinite: OnNonFinite | None = None
    in_turn: bool = True
    keep_weights: bool = False


def train_methods(
    run: Run,
    part: str,
    task: Task,
    methods: Sequence[Method],
    settings: Settings,
    keys: jax.Array,
    plan: Plan | None = None,
) -> dict[str, Curves]:
    """Trains methods as a part of an experiment that can be interrupted.

    Args:
      run: the experiment's output folder.
      part: the part's name.
      task: what they learn.
      methods: how they learn.
      settings: the hyper-parameters.
      keys: a random key of every run, [runs].
      plan: how they are trained.

    Returns:
      For each method by name its `Curves`, with "seconds" [epochs],
      "optimizer_state_bytes" and what `extra` returns besides; with "skip" also
      "refused_steps" [runs]. Where only finished parts are asked for, the others are
      left out, and named in `run.unfinished`.

    Raises:
      NonFiniteError: by "stop", naming method, run, step, quantity and layer.
      UnfinishedError: if only finished parts are asked for, and there is none.
      ValueError: if a part that was found has other epochs or runs, or was finished
        without the weights that are to be kept.
    """
    plan = plan or Plan()
    epochs = plan.epochs or settings.epochs
    plan = plan._replace(epochs=epochs)
    groups = (
        {part: methods}
        if plan.in_turn
        else {f"{part}-{method.name}": [method] for method in methods}
    )
    trained: dict[str, Curves] = {}
    for name, group in groups.items():
        compute = partial(_train, run, part, task, group, settings, keys, plan)
        try:
            found = run.part(name, compute)
        except UnfinishedError:
            run.unfinished += [method.name for method in group]
            continue
        for method in group:
            _check(run, name, method, found, (epochs, len(keys)), plan.keep_weights)
            trained[method.name] = found[method.name]
            shutil.rmtree(run.checkpoints(part) / method.name, ignore_errors=True)
    if not trained:
        raise UnfinishedError(f"No method of {part} is finished in {run.folder}.")
    return trained


def _check(
    run: Run, part: str, method: Method, found: dict, shape: tuple[int, int], keep: bool
) -> None:
    """Refuses a part that is of another length, or lacks what is asked for."""
    name = f"Part {part} in {run.folder}"
    if method.name not in found:
        raise ValueError(f"{name} is of {list(found)}, expected {method.name}.")
    there = np.shape(found[method.name]["train_loss"])
    if there != shape:
        raise ValueError(
            f"{name} has {there[0]} epochs of {there[1]} networks, expected "
            f"{shape[0]} of {shape[1]}."
        )
    if keep and not run.weights(method.name).exists():
        raise ValueError(
            f"{name} was finished without its weights. Leave --keep-weights out, or "
            "name another folder with --out."
        )


def _train(
    run: Run,
    part: str,
    task: Task,
    methods: Sequence[Method],
    settings: Settings,
    keys: jax.Array,
    plan: Plan,
) -> dict[str, Curves]:
    """Trains methods in turn, from their checkpoints if there are any."""
    folder = run.checkpoints(part)
    epochs = plan.epochs or settings.epochs
    trainers: list[Trainer] = []
    try:
        with Live(part, [method.name for method in methods], epochs) as live:
            for method in methods:
                live.status(f"compiling {method.name}")
                chosen = plan.hyper(method) if plan.hyper else method.hyper(settings)
                trainers.append(
                    Trainer(
                        method,
                        task,
                        settings,
                        chosen,
                        keys,
                        folder / method.name,
                        plan.on_nonfinite,
                    )
                )
                live.resume(trainers[-1])
            for trainer, record in train(trainers, epochs):
                live.update(trainer, record)
    finally:
        for trainer in trainers:
            trainer.close()  # also when interrupted: what is on its way arrives
    if plan.keep_weights:
        for trainer in trainers:
            trainer.keep_weights(run.weights(trainer.name))
    skips = plan.on_nonfinite == "skip"
    return {
        trainer.name: {
            **curves(trainer.records),
            "seconds": [record.seconds for record in trainer.records],
            "optimizer_state_bytes": trainer.optimizer_state_bytes,
            **({"refused_steps": trainer.refused()} if skips else {}),
            **plan.extra(trainer),
        }
        for trainer in trainers
    }


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
