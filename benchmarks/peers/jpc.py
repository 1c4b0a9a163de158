"""JPC's step out of its own pieces: discrete inference by optax inside one jit.

Its `make_pc_step` integrates the inference by an ODE solver with an adaptive step,
which has no T; this is the custom step its guide describes, unrolled under one
`filter_jit`, with the buffers donated.
"""

import equinox as eqx
import jax
import jpc
import numpy as np
import optax

from benchmarks.peers import protocol
from benchmarks.peers.reference import Model

_OPTIMIZERS = {"SGD": optax.sgd, "Adam": optax.adam}


def build(method: protocol.Method) -> protocol.Program:
    if method.inference != "simultaneous":
        raise protocol.UnsupportedError("its updates move all activities at once")
    sizes = protocol.SIZES
    model = jpc.make_mlp(
        jax.random.key(0),
        input_dim=sizes[0],
        width=sizes[1],
        depth=len(sizes) - 1,
        output_dim=sizes[-1],
        act_fn="relu",
        use_bias=True,
    )
    tx = _OPTIMIZERS[method.optimizer](protocol.LEARNING_RATES[method.optimizer])
    # Its energy is a mean over the batch, and so shrinks an activity's gradient.
    activities_tx = optax.sgd(protocol.STEP_SIZE * protocol.BATCH_SIZE)

    @eqx.filter_jit(donate="all")
    def step(model, opt_state, inputs, targets):
        clamped = {"input": inputs, "output": targets, "loss_id": "ce"}
        activities = jpc.init_activities_with_ffwd(model=model, input=inputs)
        inference_state = activities_tx.init(activities)
        for _ in range(method.num_steps):
            moved = jpc.update_pc_activities(
                params=(model, None),
                activities=activities,
                optim=activities_tx,
                opt_state=inference_state,
                **clamped,
            )
            activities, inference_state = moved["activities"], moved["opt_state"]
        learned = jpc.update_pc_params(
            params=(model, None),
            activities=activities,
            optim=tx,
            opt_state=opt_state,
            **clamped,
        )
        return learned["model"], learned["opt_state"]

    inputs, targets = protocol.batch()
    opt_state = tx.init((eqx.filter(model, eqx.is_array), None))
    state = [model, opt_state]

    def run(count: int) -> None:
        for _ in range(count):
            state[:] = step(*state, inputs, targets)
        jax.block_until_ready(eqx.filter(state, eqx.is_array))

    def weights() -> protocol.Weights:
        leaves = jax.tree.leaves(eqx.filter(state[0], eqx.is_array))
        return [
            (np.array(weight).T.copy(), np.array(bias))
            for weight, bias in zip(leaves[::2], leaves[1::2], strict=True)
        ]

    return protocol.Program(run, weights)


if __name__ == "__main__":
    protocol.serve(
        protocol.Library(
            build,
            Model("pre", "softmax cross-entropy"),
            ("jpc", "jax", "jaxlib", "equinox", "optax"),
        )
    )
