"""ngc-learn's predictive coding circuit, its compiled processes under one `jax.jit`.

The circuit is the library's discriminative one: rate cells, Gaussian error cells,
Hebbian synapses, and feedback synapses that hold the transposed weights. Its
processes are pure functions of the state, here scanned and jitted together, which is
faster than running them one after the other. The output's loss is squared error, the
only one its predictive coding circuits have.
"""

import logging

import jax
import jax.numpy as jnp
import numpy as np
from ngclearn import Context, MethodProcess
from ngclearn.components import (
    GaussianErrorCell,
    HebbianSynapse,
    RateCell,
    StaticSynapse,
)
from ngclearn.utils.distribution_generator import DistributionGenerator
from ngcsimlib.global_state import stateManager

from benchmarks.peers import protocol
from benchmarks.peers.reference import Model

_COUNT = len(protocol.SIZES) - 1


def _chain(name: str, *methods):
    process = MethodProcess(name)
    for method in methods:
        process = process >> method
    return process


def _cell(name: str, size: int, tau_m: float, hidden: bool) -> RateCell:
    return RateCell(
        name,
        n_units=size,
        tau_m=tau_m if hidden else 0.0,
        act_fx="relu" if hidden else "identity",
        batch_size=protocol.BATCH_SIZE,
    )


def _error(name: str, size: int) -> GaussianErrorCell:
    return GaussianErrorCell(name, n_units=size, batch_size=protocol.BATCH_SIZE)


class Circuit:
    """Cells `z0..zL`, errors `e1..eL`, synapses `W1..WL` up and `E2..EL` down.

    `q0..qL`, `Q1..QL` and `eq` are a second circuit that only feeds forward, from
    whose activities inference starts.
    """

    def __init__(self, name: str, optimizer: str):
        sizes = list(enumerate(protocol.SIZES))
        with Context(name):
            self.cells = [
                _cell(f"z{i}", n, 1 / protocol.STEP_SIZE, 0 < i < _COUNT)
                for i, n in sizes
            ]
            self.errors = [_error(f"e{i}", n) for i, n in sizes[1:]]
            self.synapses = [_plastic(i, optimizer) for i in range(_COUNT)]
            self.feedback = [_static(f"E{i + 1}", i, True) for i in range(1, _COUNT)]
            self.forward_cells = [
                _cell(f"q{i}", n, 0.0, 0 < i < _COUNT) for i, n in sizes
            ]
            self.forward_synapses = [
                _static(f"Q{i + 1}", i, False) for i in range(_COUNT)
            ]
            self.forward_error = _error("eq", protocol.SIZES[-1])
            self._wire()
            upwards = [self.forward_cells[0]]
            for pair in zip(self.forward_synapses, self.forward_cells[1:], strict=True):
                upwards += pair
            parts = [*self.feedback, *self.cells, *self.synapses, *self.errors]
            resting = [*self.cells, *self.errors, *self.forward_cells]
            self.reset = _chain("reset", *(part.reset for part in resting))
            self.project = _chain(
                "project",
                *(part.advance_state for part in [*upwards, self.forward_error]),
            )
            self.advance = _chain("advance", *(part.advance_state for part in parts))
            self.evolve = _chain("evolve", *(part.evolve for part in self.synapses))

    def _wire(self) -> None:
        for index, synapse in enumerate(self.synapses):
            below, above = self.cells[index : index + 2]
            error = self.errors[index]
            below.zF >> synapse.inputs
            synapse.outputs >> error.mu
            above.z >> error.target
            below.zF >> synapse.pre
            error.dmu >> synapse.post
            if index:
                error.dmu >> self.feedback[index - 1].inputs
                self.feedback[index - 1].outputs >> below.j
                self.errors[index - 1].dtarget >> below.j_td
            below, above = self.forward_cells[index : index + 2]
            below.zF >> self.forward_synapses[index].inputs
            self.forward_synapses[index].outputs >> above.j
        self.forward_cells[-1].z >> self.forward_error.mu


def _kernel(index: int):
    bound = protocol.SIZES[index] ** -0.5
    return DistributionGenerator.uniform(low=-bound, high=bound)


def _plastic(index: int, optimizer: str) -> HebbianSynapse:
    rate = protocol.LEARNING_RATES[optimizer]
    return HebbianSynapse(
        f"W{index + 1}",
        shape=protocol.SIZES[index : index + 2],
        # The synapse sums over the batch, which Adam does not notice.
        eta=rate / protocol.BATCH_SIZE if optimizer == "SGD" else rate,
        weight_init=_kernel(index),
        bias_init=DistributionGenerator.constant(value=0.0),
        w_bound=0.0,
        sign_value=-1.0,
        optim_type=optimizer.lower(),
        batch_size=protocol.BATCH_SIZE,
        key=jax.random.key(index),
    )


def _static(name: str, index: int, down: bool) -> StaticSynapse:
    shape = protocol.SIZES[index : index + 2]
    return StaticSynapse(
        name,
        shape=shape[::-1] if down else shape,
        weight_init=_kernel(index),
        bias_init=None if down else DistributionGenerator.constant(value=0.0),
        batch_size=protocol.BATCH_SIZE,
        key=jax.random.key(index),
    )


def _make_step(circuit: Circuit, num_steps: int):
    """`step(state, inputs, targets) -> state` of the pure processes."""

    def process(which, state):
        keywords = which.pack_keywords(row_seed=0, t=0.0, dt=1.0)
        return which.run.compiled(state, keywords)[0]

    def step(state, inputs, targets):
        def put(compartment, value):
            state[compartment.target] = value

        state = process(circuit.reset, dict(state))
        for own, copy in zip(circuit.synapses, circuit.forward_synapses, strict=True):
            put(copy.weights, state[own.weights.target])
            put(copy.biases, state[own.biases.target])
        for own, copy in zip(circuit.synapses[1:], circuit.feedback, strict=True):
            put(copy.weights, state[own.weights.target].T)
        for cells in (circuit.cells, circuit.forward_cells):
            put(cells[0].j, inputs)
        put(circuit.cells[-1].j, targets)
        put(circuit.forward_error.target, targets)
        state = process(circuit.project, state)
        pairs = zip(circuit.cells, circuit.forward_cells, strict=True)
        for cell, forward in list(pairs)[1:-1]:
            put(cell.z, state[forward.z.target])
        error, last = circuit.forward_error, circuit.errors[-1]
        put(last.dmu, state[error.dmu.target])
        put(last.dtarget, state[error.dtarget.target])
        state, _ = jax.lax.scan(
            lambda state, _: (process(circuit.advance, state), None),
            state,
            length=num_steps,
        )
        return process(circuit.evolve, state)

    return step


def build(method: protocol.Method) -> protocol.Program:
    if method.inference != "simultaneous":
        raise protocol.UnsupportedError("every cell of a circuit advances at once")
    name = f"{method.optimizer}{method.num_steps}"
    circuit = Circuit(name, method.optimizer)
    inputs, targets = map(jnp.asarray, protocol.batch())
    step = jax.jit(_make_step(circuit, method.num_steps), donate_argnums=0)
    # Compartments share their first arrays, and every circuit's are in one state.
    own = {k: v for k, v in stateManager.state.items() if k.startswith(f"{name}:")}
    state = [jax.tree.map(lambda x: jnp.array(x, copy=True), own)]

    def run(count: int) -> None:
        for _ in range(count):
            state[0] = step(state[0], inputs, targets)
        jax.block_until_ready(state)

    def weights() -> protocol.Weights:
        return [
            (
                np.array(state[0][synapse.weights.target]),
                np.array(state[0][synapse.biases.target])[0],
            )
            for synapse in circuit.synapses
        ]

    return protocol.Program(run, weights)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    protocol.serve(
        protocol.Library(
            build,
            Model("pre", "squared error"),
            ("ngclearn", "ngcsimlib", "jax", "jaxlib"),
        )
    )
