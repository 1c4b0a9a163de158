"""PCX's step as its tutorials write it, for the paper's network.

One jitted function: vmapped forward initialisation, T gradients of the energy in
the free activities, each with a step of optax's SGD, then one gradient in the
weights. The output is clamped and its energy is cross-entropy.
"""

import jax
import numpy as np
import optax
import pcx
import pcx.functional as pxf
import pcx.nn as pxnn
import pcx.predictive_coding as pxc
import pcx.utils as pxu

from benchmarks.peers import protocol
from benchmarks.peers.reference import Model

_OPTIMIZERS = {"SGD": optax.sgd, "Adam": optax.adam}
_PER_EXAMPLE = pxc.VodeParam | pxc.VodeParam.Cache


class Classifier(pxc.EnergyModule):
    """A ReLU network whose every layer predicts a value node."""

    def __init__(self):
        super().__init__()
        shapes = protocol.kernel_shapes()
        self.layers = [
            pxnn.Linear(*shape)
            if len(shape) == 2
            else pxnn.Conv2d(*shape[2:], 3, padding=1)
            for shape in shapes
        ]
        self.pool = pxnn.MaxPool2d(2, 2)
        hidden = [pxc.Vode() for _ in self.layers[1:]]
        self.vodes = [*hidden, pxc.Vode(pxc.ce_energy)]
        self.vodes[-1].h.frozen = True

    def __call__(self, inputs, targets=None):
        activity = inputs
        for layer, vode in zip(self.layers[:-1], self.vodes[:-1], strict=True):
            predicted = jax.nn.relu(layer(activity))
            activity = vode(self.pool(predicted) if predicted.ndim == 3 else predicted)
        self.vodes[-1](self.layers[-1](activity.reshape(-1)))
        if targets is not None:
            self.vodes[-1].set("h", targets)
        return self.vodes[-1].get("u")


@pxf.vmap(pxu.M(_PER_EXAMPLE).to((None, 0)), in_axes=(0, 0), out_axes=0)
def initialise(inputs, targets, *, model):
    return model(inputs, targets)


@pxf.vmap(
    pxu.M(_PER_EXAMPLE).to((None, 0)), in_axes=(0,), out_axes=(None, 0), axis_name="b"
)
def energy(inputs, *, model):
    outputs = model(inputs)
    return jax.lax.psum(model.energy(), "b"), outputs


def _free():
    """The mask of the activities that move; a new one each time, `to` changes it."""
    return pxu.M_hasnot(pxc.VodeParam, frozen=True)


def _gradient(mask, model, inputs):
    with pxu.step(model, clear_params=pxc.VodeParam.Cache):
        differentiate = pxf.value_and_grad(mask.to([False, True]), has_aux=True)
        _, gradient = differentiate(energy)(inputs, model=model)
    return gradient["model"]


def build(method: protocol.Method) -> protocol.Program:
    if method.inference != "simultaneous":
        raise protocol.UnsupportedError(
            "every value node moves at once; a schedule layer by layer is not offered"
        )
    pcx.RKG.seed(0)
    inputs, targets = map(jax.numpy.asarray, protocol.batch())
    if protocol.NET == "vgg5":  # channels come first there
        inputs = inputs.transpose(0, 3, 1, 2)
    model = Classifier()
    # As the tutorials advise, so that the step compiles once.
    with pxu.step(model, pxc.STATUS.INIT, clear_params=pxc.VodeParam.Cache):
        initialise(inputs, targets, model=model)
    rate = protocol.LEARNING_RATES[method.optimizer]
    weights_tx = pxu.Optim(
        lambda: _OPTIMIZERS[method.optimizer](rate), pxu.M(pxnn.LayerParam)(model)
    )
    activities_tx = pxu.Optim(lambda: optax.sgd(protocol.STEP_SIZE))

    @pxf.jit()
    def step(inputs, targets, *, model, weights_tx, activities_tx):
        model.train()
        with pxu.step(model, pxc.STATUS.INIT, clear_params=pxc.VodeParam.Cache):
            initialise(inputs, targets, model=model)
        activities_tx.init(_free()(model))
        for _ in range(method.num_steps):
            activities_tx.step(model, _gradient(_free(), model, inputs))
        activities_tx.clear()
        gradient = _gradient(pxu.M(pxnn.LayerParam), model, inputs)
        weights_tx.step(model, gradient, scale_by=1 / inputs.shape[0])

    def run(count: int) -> None:
        for _ in range(count):
            step(
                inputs,
                targets,
                model=model,
                weights_tx=weights_tx,
                activities_tx=activities_tx,
            )
        jax.block_until_ready([layer.nn.weight.get() for layer in model.layers])

    def weights() -> protocol.Weights:
        return [
            (_kernel(np.array(layer.nn.weight.get())), np.ravel(layer.nn.bias.get()))
            for layer in model.layers
        ]

    return protocol.Program(run, weights)


def _kernel(weight: np.ndarray) -> np.ndarray:
    """[out, in] or [out, in, 3, 3] as `protocol.kernel_shapes` has it."""
    if weight.ndim == 4:
        return weight.transpose(2, 3, 1, 0).copy()
    if protocol.NET == "vgg5":  # of flattened channels, rows and columns
        channels = protocol.CHANNELS[-1]
        side = protocol.IMAGE[0] // 2 ** len(protocol.CHANNELS)
        weight = weight.reshape(-1, channels, side, side).transpose(0, 2, 3, 1)
        weight = weight.reshape(len(weight), -1)
    return weight.T.copy()


if __name__ == "__main__":
    protocol.serve(
        protocol.Library(
            build,
            Model("post", "softmax cross-entropy"),
            ("pcx", "jax", "jaxlib", "equinox", "optax"),
            nets=("mlp", "vgg5"),
        )
    )
