"""pcjax's step, as its own training loop compiles it: jitted, buffers donated."""

import jax
import numpy as np
import optax

import pcjax
from benchmarks import timing
from benchmarks.peers import protocol
from benchmarks.peers.reference import Model
from pcjax import training

_OPTIMIZERS = {"SGD": optax.sgd, "Adam": optax.adam}
_INFERENCE = {
    "simultaneous": pcjax.simultaneous,
    "sequential": pcjax.sequential,
    "error-based": pcjax.error_based,
}


def build(method: protocol.Method) -> protocol.Program:
    network = (
        pcjax.mlp(protocol.SIZES)
        if protocol.NET == "mlp"
        else pcjax.vgg(5, 10, width=protocol.WIDTH, activation=jax.nn.relu)
    )
    inputs, targets = map(jax.numpy.asarray, protocol.batch())
    tx = _OPTIMIZERS[method.optimizer](protocol.LEARNING_RATES[method.optimizer])
    if method.inference == "backprop":
        grad_fn = pcjax.backprop.value_and_grad(network, output=pcjax.softmax)
    else:
        infer = _INFERENCE[method.inference](method.num_steps, protocol.STEP_SIZE)
        grad_fn = pcjax.value_and_grad(network, infer, output=pcjax.softmax)
    step = jax.jit(training.make_update(grad_fn, tx), donate_argnums=(0, 1))
    params = network.init(jax.random.key(0), inputs)
    state = [params, tx.init(params)]

    def run(count: int) -> None:
        for _ in range(count):
            *state[:], _ = step(*state, inputs, targets)
        jax.block_until_ready(state)

    def weights() -> protocol.Weights:
        return [(np.array(p["kernel"]), np.array(p["bias"])) for p in state[0]]

    return protocol.Program(run, weights)


if __name__ == "__main__":
    protocol.serve(
        protocol.Library(
            build,
            Model("pre" if protocol.NET == "mlp" else "post", "softmax cross-entropy"),
            ("jax", "jaxlib", "optax"),
            timing.environment,
            ("mlp", "vgg5"),
        )
    )
