"""Training in one of two processes, run by `tests/test_sharding.py`.

python -m tests.devices.pair RANK PORT FILE
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import pcjax
from pcjax import training
from pcjax.training import sharding

NETWORK = pcjax.mlp([6, 9, 7, 4])
TX = pcjax.mq(1e-3)
UPDATE = training.make_update(
    pcjax.value_and_grad(NETWORK, pcjax.sequential(3, 0.1), output=pcjax.softmax), TX
)
PREPARE = training.classification(4)
BATCH_SIZE = 6  # an odd number for each process


def make_data():
    """24 random images; every process draws the same."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (24, 6), dtype=np.uint8)
    return training.device_data(images, random.integers(0, 4, 24), 4)


def make_state():
    init = jax.jit(partial(training.init_state, NETWORK, TX))
    return init(jax.random.key(0), jnp.ones((1, 6)))


def main(rank: int, port: str, file: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
    assert jax.process_count() == jax.device_count() == 2
    assert jax.local_device_count() == 1
    mesh = sharding.make_mesh()

    # A step written by hand: each process brings its half of the batch.
    data = make_data()
    state = sharding.place_state(mesh, make_state())
    half = slice(rank * BATCH_SIZE // 2, (rank + 1) * BATCH_SIZE // 2)
    images, labels = (np.asarray(x)[:BATCH_SIZE][half] for x in data)
    batch = sharding.place_batch(
        mesh, PREPARE(jnp.asarray(images), jnp.asarray(labels))
    )
    assert batch[0].shape == (BATCH_SIZE, 6)
    step = jax.jit(UPDATE)
    stepped, _, (energy, _) = step(state.params, state.opt_state, *batch)

    # An epoch over data that every process holds.
    prepare = sharding.split_batches(mesh, PREPARE)
    epoch = jax.jit(training.make_epoch(UPDATE, prepare, BATCH_SIZE), donate_argnums=0)
    state, metrics = epoch(state, sharding.place_data(mesh, data))

    # Everything is replicated, so each process has all of it.
    results = [*jax.tree.leaves(stepped), energy]
    results += [*jax.tree.leaves((state.params, state.opt_state)), *metrics]
    np.savez(file, *[np.asarray(x) for x in results])
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
