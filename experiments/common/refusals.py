"""Training steps that the guard refused: the error that names them, and the means."""

import jax
import numpy as np

from experiments.common.methods import Hyper, Method
from experiments.common.settings import Settings
from experiments.common.tasks import Task
from pcjax import training
from pcjax.optimizers.finite import NonFiniteError
from pcjax.training.data import takes_key


def mean_of_kept(metric: np.ndarray) -> np.ndarray:
    """The mean [runs] of what is finite in [runs, steps]; NaN where nothing is."""
    kept = np.isfinite(metric)
    total, count = np.where(kept, metric, 0).sum(1), kept.sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def raise_if_refused(
    method: Method,
    task: Task,
    settings: Settings,
    batch_size: int,
    hyper: Hyper,
    state: training.TrainState,
) -> None:
    """Raises the first refused step of any run as an error that names the cause.

    The batch of that step is repeated from the state before it. Of incremental
    inference, whose weights move T times a batch, that is the state in the middle of
    the batch: the iteration named is that of the refused step, quantity and layers are
    those that fail when the batch is begun anew.

    Args:
      method: how it learned.
      task: what it learned.
      settings: the hyper-parameters that all runs share.
      batch_size: of training.
      hyper: those that differ, [runs] each.
      state: after the epoch, [runs] in every leaf, its optimizer guarded by "stop".

    Raises:
      NonFiniteError: if a step was refused.
    """
    firsts = np.asarray(state.opt_state.first_refused)
    if np.all(firsts < 0):
        return
    run = int(np.argmin(np.where(firsts < 0, np.inf, firsts)))
    step, name = int(firsts[run]), f"{method.name}, run {run + 1} of {len(firsts)}"
    state, hyper = jax.tree.map(lambda x: x[run], (state, hyper))
    recipe = method.rule(settings, hyper.step_size)
    total = len(task.train.images)
    batch, step_of_batch = divmod(step, recipe.steps)
    epoch, index = divmod(batch, total // batch_size)
    batches = training.epoch_batches(state.key, epoch, total, batch_size)
    key = {}
    if takes_key(task.prepare):
        key = {"key": training.batch_keys(state.key, epoch, len(batches))[index]}
    found = recipe.diagnose(
        task.network,
        task.output,
        method.optimizer(hyper.learning_rate, settings),
        (state.params, state.opt_state.inner_state),
        *task.prepare(*jax.tree.map(lambda x: x[batches[index]], task.train), **key),
    )
    if found and recipe.weights_move and found.iteration is not None:
        # Step k is made of the state that k iterations have left.
        of_state = found.quantity in ("activity", "error")
        found = found._replace(iteration=step_of_batch + (not of_state))
    raise NonFiniteError(
        f"{name}, epoch {epoch + 1}, training iteration {index + 1} (step {step}): "
        f"{found or 'the gradient is not finite'}. Nothing of it went into the "
        "weights. Lower the learning rate or the step size.",
        step,
        found,
    )
