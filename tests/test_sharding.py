"""Sharding, in processes of their own: JAX counts its devices once, at its start."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from pcjax.training import sharding
from tests.devices import pair
from tests.tiers import thorough

ROOT = Path(__file__).parents[1]


def _start(*arguments, flags=""):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
    }
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _finish(*processes):
    """Waits for all of them, and leaves none behind."""
    try:
        for process in processes:
            output, _ = process.communicate(timeout=1800)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [[], *thorough([["--all-faults", "-m", "exhaustive"]])]
)
def test_on_eight_virtual_devices(options):
    _finish(
        _start(
            "pytest",
            "-p",
            "no:cacheprovider",
            *options,
            "tests/devices/eight.py",
            flags="--xla_force_host_platform_device_count=8",
        )
    )


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = [tmp_path / f"{rank}.npz" for rank in range(2)]
    _finish(
        *(
            _start("tests.devices.pair", rank, port, file)
            for rank, file in enumerate(files)
        )
    )
    state, data = pair.make_state(), pair.make_data()
    batch = pair.PREPARE(*(x[: pair.BATCH_SIZE] for x in data))
    stepped, _, (energy, _) = jax.jit(pair.UPDATE)(
        state.params, state.opt_state, *batch
    )
    epoch = pair.training.make_epoch(pair.UPDATE, pair.PREPARE, pair.BATCH_SIZE)
    trained, metrics = jax.jit(epoch)(state, data)
    alone = [*jax.tree.leaves(stepped), energy]
    alone += [*jax.tree.leaves((trained.params, trained.opt_state)), *metrics]
    one, other = (list(np.load(file).values()) for file in files)
    assert len(one) == len(alone)
    for mine, theirs, expected in zip(one, other, alone, strict=True):
        np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_allclose(mine, expected, rtol=1e-6, atol=1e-7)
    # What was compared has moved.
    assert not np.allclose(stepped[0]["kernel"], state.params[0]["kernel"], atol=1e-5)


def test_one_device_is_a_mesh_of_one():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    state = pair.make_state()
    placed = sharding.place_state(mesh, state)
    data = sharding.place_data(mesh, pair.make_data())
    results = []
    for prepare, arguments in (
        (pair.PREPARE, (state, pair.make_data())),
        (sharding.split_batches(mesh, pair.PREPARE), (placed, data)),
    ):
        epoch = pair.training.make_epoch(pair.UPDATE, prepare, pair.BATCH_SIZE)
        results.append(jax.jit(epoch)(*arguments)[0].params)
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_what_is_placed_on_one_device_may_be_donated():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    state = {"w": jax.numpy.arange(8.0)}
    placed = sharding.place_state(mesh, state)
    jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(placed)
    assert placed["w"].is_deleted()
    np.testing.assert_array_equal(state["w"], np.arange(8.0))


def test_a_layer_of_just_as_many_features_is_split():
    split = sharding.split_features(16)
    assert [tuple(split(shape)) for shape in ((3, 15), (3, 16), (16,), ())] == [
        (),
        (None, "model"),
        ("model",),
        (),
    ]
