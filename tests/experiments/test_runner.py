"""Training as the experiments do it: against loops, and through SIGKILL."""

import dataclasses
import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pcjax
from experiments import classification
from experiments.common import data, runner, trainer
from experiments.common.folders import UnfinishedError
from experiments.common.harness import Run
from experiments.common.methods import Hyper, select
from experiments.common.settings import settings
from experiments.common.tasks import make_task
from pcjax import training
from pcjax.checkpoints import Checkpoints
from pcjax.optimizers import finite
from tests.tiers import thorough

ROOT = Path(__file__).parents[2]
SMALL = dataclasses.replace(settings("mlp", "digits"), hidden=(16, 16))


@pytest.fixture(scope="module")
def task():
    images = data.load("digits")
    return make_task("mlp", images, SMALL, train_images=320, validation=0.2)


def test_runs_differ_in_seeds_and_rates_as_single_trainings_do(task):
    """Every network of a grid learns as one trained on its own, step by step."""
    (method,) = select(["SeqIL-MQ"])
    hyper = Hyper([1e-3, 4e-3], [0.1, 0.05])
    keys = jax.random.split(jax.random.key(7), 2)
    one = trainer.Trainer(method, task, SMALL, hyper, keys)
    records = [one.epoch() for _ in range(2)]

    @jax.jit
    def start(key, rate):
        return training.init_state(task.network, pcjax.mq(rate), key, task.example())

    @jax.jit
    def update(params, opt_state, batch, rate, eps):
        grad_fn = pcjax.value_and_grad(
            task.network,
            pcjax.sequential(3, lambda t: eps / (1 + t)),
            output=pcjax.softmax,
            clamp=pcjax.soft_clamp(0.01),
        )
        rows = task.train.images[batch], task.train.labels[batch]
        step = training.make_update(grad_fn, pcjax.mq(rate))
        return step(params, opt_state, *task.prepare(*rows))

    @jax.jit
    def order_of(key, epoch):
        key = jax.random.fold_in(key, epoch)
        return jax.random.permutation(key, len(task.train.labels))

    for index, (run_key, rate, eps) in enumerate(zip(keys, *hyper, strict=True)):
        state = start(run_key, rate)
        params, opt_state = state.params, state.opt_state
        for epoch, record in enumerate(records):
            order = np.asarray(order_of(state.key, epoch))
            losses = []
            for batch in order[:256].reshape(8, 32):  # of 260
                params, opt_state, (_, info) = update(
                    params, opt_state, batch, rate, eps
                )
                losses.append(np.asarray(info.loss).mean())
            assert record.train_loss[index] == pytest.approx(np.mean(losses), rel=1e-4)
        for name in ("test", "validation"):
            images, labels = getattr(task, name)
            activity = np.asarray(images, np.float32).reshape(len(images), -1) / 255
            for layer, theta in enumerate(jax.device_get(params)):
                activity = np.maximum(activity, 0) if layer else activity
                activity = activity @ theta["kernel"] + theta["bias"]
            expected = np.mean(np.argmax(activity, 1) == np.asarray(labels))
            found = getattr(records[-1], name)["top1"][index]
            assert found == pytest.approx(expected, abs=0.004)


def test_a_diverged_run_is_reported_and_disturbs_no_other(task):
    (method,) = select(["SeqIL"])
    keys = jnp.stack([jax.random.key(0)] * 2)
    one = trainer.Trainer(method, task, SMALL, Hyper([1.0, 1e9], 0.05), keys)
    # Two runs as well, for which all but the epoch is compiled already.
    alone = trainer.Trainer(method, task, SMALL, Hyper(1.0, 0.05), keys)
    for _ in range(2):
        record, single = one.epoch(), alone.epoch()
    assert np.isnan(record.train_loss[1])
    assert record.train_loss[0] == pytest.approx(single.train_loss[0], rel=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere products batch")
def test_on_a_cpu_a_run_among_others_is_that_run_to_the_bit():
    """So that seeds can be added, and a grid be read at one point."""
    wide = dataclasses.replace(SMALL, hidden=(256, 256))
    task = make_task("mlp", data.load("digits"), wide, train_images=320)
    (method,) = select(["SeqIL-MQ"])
    keys = jax.random.split(jax.random.key(3), 3)
    several = trainer.Trainer(method, task, wide, Hyper([1e-5, 3e-5, 1e-4], 0.1), keys)
    alone = trainer.Trainer(method, task, wide, Hyper(3e-5, 0.1), keys[1:2])
    for _ in range(2):
        records = several.epoch(), alone.epoch()
    assert records[0].train_loss[1] == records[1].train_loss[0]
    for all_runs, one in zip(
        *map(jax.tree.leaves, (several.params, alone.params)), strict=True
    ):
        np.testing.assert_array_equal(all_runs[1], one[0])


@pytest.mark.parametrize("name", ["SeqIL", "iPC", *thorough(["BP", "IL-MQ"])])
def test_a_diverging_run_stops_and_says_why(task, name):
    (method,) = select([name])
    keys = jax.random.split(jax.random.key(0), 2)
    usual = method.hyper(SMALL)
    hyper = Hyper([usual.learning_rate, 1e25], [usual.step_size, 1e8])
    one = trainer.Trainer(method, task, SMALL, hyper, keys, on_nonfinite="stop")
    with pytest.raises(finite.NonFiniteError) as error:
        one.epoch()
    message = str(error.value)
    assert message.startswith(f"{name}, run 2 of 2, epoch 1, training iteration ")
    assert error.value.found.quantity in ("activity", "error", "gradient")
    assert str(error.value.found) in message
    if name == "iPC":  # five steps a batch, of the states that 0 to 4 iterations left
        of_step = error.value.found.quantity == "gradient"
        assert error.value.found.iteration == error.value.step % 5 + of_step
    weights = jax.tree.leaves(one._state.params)
    assert all(np.all(np.isfinite(leaf)) for leaf in weights)


def _poisoned(task):
    """The task with a NaN in one image of the training set, the eighth."""

    def prepare(images, labels):
        inputs, targets = task.prepare(images, labels)
        # A single image of the training set is poisoned.
        poisoned = jnp.all(images == task.train.images[7:8], axis=(1, 2, 3))
        poisoned = poisoned.reshape(-1, *[1] * (inputs.ndim - 1))
        return jnp.where(poisoned, jnp.nan, inputs), targets

    return task._replace(prepare=prepare)


@pytest.mark.parametrize("name", ["BP-Adam", *thorough(["SeqIL-MQ", "iPC"])])
def test_the_batch_that_fails_is_found_again(task, name):
    (method,) = select([name])
    keys = jax.random.split(jax.random.key(0), 2)
    one = trainer.Trainer(
        method, _poisoned(task), SMALL, method.hyper(SMALL), keys, on_nonfinite="stop"
    )
    orders = (training.epoch_batches(key, 0, 260, 32) for key in one._state.key)
    bad = min(np.flatnonzero(np.any(np.asarray(x) == 7, axis=1))[0] for x in orders)
    with pytest.raises(finite.NonFiniteError, match=rf"iteration {bad + 1} ") as error:
        one.epoch()
    assert error.value.found.quantity == "input"


def test_a_step_that_is_not_finite_can_be_left_out(task, tmp_path):
    methods = select(["SeqIL-MQ", "iPC"])
    keys = jax.random.split(jax.random.key(0), 2)
    arguments = Run(tmp_path, {}), "part", _poisoned(task), methods, SMALL, keys
    plan = runner.Plan(epochs=4, on_nonfinite="skip")
    trained = runner.train_methods(*arguments, plan)
    # 256 of 260 images are trained on in an epoch; iPC makes five steps of each batch.
    for name, steps in (("SeqIL-MQ", 1), ("iPC", 5)):
        refused = np.array(trained[name]["refused_steps"])
        assert np.all((refused >= 3 * steps) & (refused <= 4 * steps))
        for curve in (trained[name]["train_loss"], trained[name]["test"]["loss"]):
            assert np.all(np.diff(curve, axis=0) < 0)


def test_a_trainer_goes_on_from_its_checkpoint(task, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    (method,) = select(["SeqIL-Adam"])
    keys = jax.random.split(jax.random.key(1), 2)
    arguments = method, task, SMALL, method.hyper(SMALL), keys

    def strip(records):  # arrays compare by their bytes
        return json.dumps([r._replace(seconds=0) for r in records], default=repr)

    whole = trainer.Trainer(*arguments)
    for _ in range(4):
        whole.epoch()
    first = trainer.Trainer(*arguments, tmp_path)
    first.epoch(), first.epoch()
    first.close()
    second = trainer.Trainer(*arguments, tmp_path)
    assert len(second.records) == 2
    second.epoch(), second.epoch()
    second.close()
    assert strip(second.records) == strip(whole.records)
    images = task.test.images[:5]
    assert (second.logits(images) == whole.logits(images)).all()


SCRIPT = """
import pathlib
import sys

import jax

from experiments import classification

from experiments.common import trainer

# The same programs again and again: compiled once.
jax.config.update("jax_compilation_cache_dir", sys.argv[2])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
trainer.CHECKPOINT_SECONDS = 0
out, epochs, methods = pathlib.Path(sys.argv[1]), int(sys.argv[3]), tuple(sys.argv[4:])
config = classification.Config(methods=methods, epochs=epochs, seeds=2, out=out)
classification.main(config)
"""


BOTH = ("BP-Adam", "SeqIL-MQ")


def _go_on(folder, epochs, names=BOTH):
    """The script in this process, in which nothing kills it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
        classification.main(
            classification.Config(methods=names, epochs=epochs, seeds=2, out=folder)
        )
    return (folder / "results.json").read_bytes()


def _start(folder, epochs, names=BOTH):
    compiled = folder.parent / "compiled"
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(compiled), str(epochs), *names],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.exhaustive
@pytest.mark.faults
@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(tmp_path, faults):
    """Each kill falls anywhere between the first line shown and a second later."""
    kills, dice = 20, random.Random(0)
    whole = _go_on(tmp_path / "undisturbed", 20)
    survived = run = 0
    while survived < kills:
        folder = tmp_path / f"killed-{run}"
        while True:
            kept = [x for x in folder.glob("checkpoints/*/*/*") if x.name.isdigit()]
            process = _start(folder, 20)
            text, killed = "", False
            for line in process.stdout:
                text += line
                if "epoch" in line and survived < kills and not killed:
                    time.sleep(dice.uniform(0, 1))
                    killed = process.poll() is None
                    process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            if process.returncode == -signal.SIGKILL:
                survived += 1
            else:
                break
        assert "Written" in text, text
        assert not kept or "goes on" in text or "finished before" in text, text
        assert (folder / "results.json").read_bytes() == whole
        run += 1
    faults.report("SIGKILL at a random moment of training", kills, survived, kills)


LINES = ("SeqIL-MQ    epoch 2/12", "BP-Adam     epoch 6/12")


@pytest.mark.parametrize("lines", [LINES[:1], *thorough([pytest.param(LINES)])])
@pytest.mark.slow
def test_a_killed_run_gives_the_same_results_to_the_bit(tmp_path, lines, capsys):
    """Killed after each of the lines, and then not."""
    names = BOTH if len(lines) > 1 else BOTH[1:]
    whole = _go_on(tmp_path / "undisturbed", 12, names)
    killed = tmp_path / "killed"
    for line in lines:
        process = _start(killed, 12, names)
        for shown in process.stdout:
            if shown.startswith(line):
                break
        process.send_signal(signal.SIGKILL)  # the next epoch has begun
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        assert not (killed / "results.json").exists()
    capsys.readouterr()
    assert _go_on(killed, 12, names) == whole
    output = capsys.readouterr().out
    assert "epoch 1/12" not in output  # it went on
    assert "epoch 12/12" in output
    assert "Written" in output, output
    assert not (killed / "checkpoints").exists()


def test_curves_are_what_the_records_hold(task, tmp_path):
    run = Run(tmp_path, {})
    methods = select(["BP", "SeqIL-MQ"])
    keys = jax.random.split(jax.random.key(0), 2)
    plan = runner.Plan(epochs=3)
    trained = runner.train_methods(run, "part", task, methods, SMALL, keys, plan)
    assert list(trained) == ["BP", "SeqIL-MQ"]
    found = trained["SeqIL-MQ"]
    assert np.shape(found["train_loss"]) == np.shape(found["test"]["top1"]) == (3, 2)
    assert np.shape(found["validation"]["loss"]) == (3, 2)
    assert found["optimizer_state_bytes"] == 4 * 4
    assert len(found["seconds"]) == 3
    without = runner.timeless(run, "part", trained)
    assert "seconds" not in without["BP"]
    assert run.seconds["part, per epoch"]["BP"] == trained["BP"]["seconds"]


def _train(folder, task, names, **options):
    """Trains methods, each as a part of its own, with a header of them."""
    finished_only = options.pop("finished_only", False)
    header = {"config": {"methods": names}, "size": {"seeds": 2}}
    run = Run(folder, header, free=("methods",), finished_only=finished_only)
    plan = runner.Plan(epochs=2, in_turn=False)._replace(**options)
    keys = jax.random.split(jax.random.key(0), 2)
    return run, runner.train_methods(run, "mlp", task, select(names), SMALL, keys, plan)


def test_parts_of_runs_of_other_methods_finish_as_one(task, tmp_path, capsys):
    one, two, both = (tmp_path / name for name in ("one", "two", "both"))
    _, first = _train(one, task, ["BP"])
    _, second = _train(two, task, ["SeqIL-MQ"])
    (both / "parts").mkdir(parents=True)
    for part in (one / "parts" / "mlp-BP.json", two / "parts" / "mlp-SeqIL-MQ.json"):
        (both / "parts" / part.name).write_bytes(part.read_bytes())
    capsys.readouterr()
    run, merged = _train(both, task, ["BP", "SeqIL-MQ"])
    assert merged == first | second
    assert "epoch" not in capsys.readouterr().out  # nothing was trained
    run, some = _train(both, task, ["BP", "SeqIL-MQ", "SeqIL"], finished_only=True)
    assert some == merged
    assert run.unfinished == ["SeqIL"]
    run.close()
    assert (both / "parts" / "mlp-BP.json").exists()  # there is more to do
    with pytest.raises(UnfinishedError, match="No method of mlp is finished"):
        _train(tmp_path / "none", task, ["BP"], finished_only=True)
    with pytest.raises(ValueError, match="has 2 epochs of 2 networks, expected 3 of 2"):
        _train(both, task, ["BP"], epochs=3)
    run, _ = _train(both, task, ["BP"])
    run.close()
    assert (both / "parts").exists()  # of SeqIL-MQ, which this run has not asked for
    run, _ = _train(both, task, ["BP", "SeqIL-MQ"])
    run.close()
    assert not (both / "parts").exists()


def test_weights_are_kept_on_request(task, tmp_path):
    """pcjax.checkpoints reads them, and flax's own layers compute with them."""
    names = ["SeqIL-MQ"]
    last = {}

    def seen(one):
        images = task.test.images[:5]
        last["logits"] = one.logits(images)
        return {}

    _train(tmp_path, task, names, keep_weights=True, extra=seen)
    inputs, _ = task.prepare(task.test.images[:5], task.test.labels[:5])
    template = task.network.init(jax.random.key(9), inputs)
    for seed in range(2):
        folder = tmp_path / "weights" / "SeqIL-MQ" / str(seed)
        with Checkpoints(folder) as checkpoints:
            found = checkpoints.restore(template)
        assert (found.step, found.record["method"]) == (2, "SeqIL-MQ")
        hidden = inputs.reshape(5, -1)
        for index, params in enumerate(found.state):
            layer = nn.Dense(len(params["bias"]))
            hidden = layer.apply(
                {"params": params}, nn.relu(hidden) if index else hidden
            )
        np.testing.assert_allclose(hidden, last["logits"][seed], rtol=1e-4, atol=1e-5)
    _train(tmp_path / "without", task, names)
    with pytest.raises(ValueError, match="was finished without its weights"):
        _train(tmp_path / "without", task, names, keep_weights=True)


@pytest.mark.slow
def test_ctrl_c_ends_with_one_line_that_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-m", "experiments.classification", "--epochs", "9999"]
    # Shells start background jobs with interrupts ignored, and what is ignored is
    # inherited: a handler here gives the process the default.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [*command, "--methods", "BP", "--out", str(tmp_path / "out")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, ours)
    try:
        for line in process.stdout:
            if "epoch 3/9999" in line:
                assert re.search(r"  \d[\d.]* (s|min|h) left$", line.rstrip())
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.count("\n") == 1, errors
    assert errors.startswith(
        f"Interrupted. Finished parts and the last checkpoints are kept in "
        f"{tmp_path / 'out'};"
    )
    assert "to go on: python -m experiments.classification --epochs 9999 " in errors
