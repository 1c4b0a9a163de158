"""The training iterations that are measured: nets, methods and their floors."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import pcjax
from benchmarks import hlo
from pcjax import training
from pcjax.learning.gradients import Update


class Workload(NamedTuple):
    """A net with a batch of data.

    Attributes:
      network: the chain of layers.
      output: its output.
      inputs: [B, ...].
      targets: [B, ...].
      products: floating-point operations of each layer's product on the batch.
    """

    network: pcjax.Network
    output: pcjax.Output
    inputs: jax.Array
    targets: jax.Array
    products: tuple[int, ...]


class Program(NamedTuple):
    """A training iteration.

    Attributes:
      name: such as `SeqIL-MQ T=3`.
      update: what is compiled.
      tx: its optimizer.
      floor: the floating-point operations it cannot do without.
    """

    name: str
    update: Update
    tx: optax.GradientTransformation
    floor: int


OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "SGD": lambda: optax.sgd(1e-3),
    "MQ": lambda: pcjax.mq(1e-5),
    "Adam": lambda: optax.adam(1e-5),
}


def mlp(batch_size: int = 64, width: int = 1024, depth: int = 4) -> Workload:
    """The paper's classifier, 3072-3x1024-10 by default."""
    sizes = [3072, *[width] * (depth - 1), 10]
    return _workload(pcjax.mlp(sizes), pcjax.softmax, (batch_size, 3072), 10)


def conv(
    batch_size: int = 64, side: int = 32, classes: int = 10, **options
) -> Workload:
    """The paper's convolutional net for 32x32 images; `options` of `convnet`."""
    network = pcjax.convnet(classes, **options)
    return _workload(network, pcjax.softmax, (batch_size, side, side, 3), classes)


def vgg5(batch_size: int = 64, width: int = 32) -> Workload:
    """The field's VGG5 for 32x32 images, by default a quarter as wide as published."""
    network = pcjax.vgg(5, 10, width=width)
    return _workload(network, pcjax.softmax, (batch_size, 32, 32, 3), 10)


def autoencoder(batch_size: int = 64) -> Workload:
    """The paper's autoencoder."""
    return _workload(pcjax.autoencoder(), pcjax.sigmoid, (batch_size, 3072), 3072)


def residual(batch_size: int = 64, width: int = 128, depth: int = 64) -> Workload:
    """A deep classifier with skip connections, 3072-63x128-10 by default, of tanh."""
    sizes = [3072, *[width] * (depth - 1), 10]
    network = pcjax.residual_mlp(sizes, jnp.tanh)
    return _workload(network, pcjax.softmax, (batch_size, 3072), 10)


NETS: dict[str, Callable[..., Workload]] = {
    "mlp": mlp,
    "conv": conv,
    "vgg5": vgg5,
    "autoencoder": autoencoder,
    "residual": residual,
}


def _workload(network, output, shape, outputs) -> Workload:
    key = jax.random.key(0)
    inputs = jax.random.uniform(key, shape)
    labels = jnp.arange(shape[0]) % outputs
    targets = inputs if output is pcjax.sigmoid else jax.nn.one_hot(labels, outputs)
    products = []
    activity = jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)
    params = jax.eval_shape(network.init, key, activity)
    for layer, theta in zip(network.layers, params, strict=True):
        # A GPU's products may be inside a vendor's library, where none is counted.
        with jax.default_device(_cpu()):
            compiled = jax.jit(layer.apply).lower(theta, activity).compile()
        products.append(hlo.count(compiled).flops)
        activity = jax.eval_shape(layer.apply, theta, activity)
    return Workload(network, output, inputs, targets, tuple(products))


def _cpu() -> jax.Device:
    try:
        return jax.devices("cpu")[0]
    except RuntimeError:
        raise SystemExit(
            "benchmarks: products are counted in programs for the CPU; JAX_PLATFORMS "
            f"is {os.environ.get('JAX_PLATFORMS')!r}, expected it to name cpu too, as "
            "in cuda,cpu."
        ) from None


def backprop(load: Workload, optimizer: str) -> Program:
    """Backprop: three products a layer, but no gradient of the input."""
    tx = OPTIMIZERS[optimizer]()
    grad_fn = pcjax.backprop.value_and_grad(load.network, output=load.output)
    floor = 3 * sum(load.products) - load.products[0]
    return Program(f"BP-{optimizer}", training.make_update(grad_fn, tx), tx, floor)


_NAMES = {
    "sequential": "SeqIL",
    "simultaneous": "IL",
    "error_based": "ePC",
    "rateless": "ePC-BB",
}


def inference_learning(
    load: Workload, kind: str, num_steps: int, optimizer: str
) -> Program:
    """`simultaneous` (IL), `sequential` (SeqIL) or `error_based` (ePC) inference.

    The floor is 2L + 2T(L-1) products, less those below the front of simultaneous
    inference. `rateless` is error-based, without a rate (ePC-BB); its first step takes
    two passes more.
    """
    tx = OPTIMIZERS[optimizer]()
    if kind == "rateless":
        method = pcjax.error_based(num_steps, pcjax.barzilai_borwein())
    else:
        method = getattr(pcjax, kind)(num_steps, 0.05)
    grad_fn = pcjax.value_and_grad(
        load.network, method, output=load.output, clamp=pcjax.soft_clamp(0.01)
    )
    _, *upper = load.products
    floor = 2 * sum(load.products)
    for t in range(num_steps):
        moving = min(t + 1, len(upper)) if kind == "simultaneous" else len(upper)
        floor += 2 * sum(upper[len(upper) - moving :])
    if kind == "rateless":
        floor += 4 * sum(upper)
    name = _NAMES[kind]
    update = training.make_update(grad_fn, tx)
    return Program(f"{name}-{optimizer} T={num_steps}", update, tx, floor)


def incremental(load: Workload, num_steps: int, optimizer: str) -> Program:
    """iPC: T(3L-1) products, less the last move, which nothing uses."""
    tx = OPTIMIZERS[optimizer]()
    method = pcjax.simultaneous(num_steps, 0.05)
    update = pcjax.incremental(
        load.network, method, tx, output=load.output, clamp=pcjax.soft_clamp(0.01)
    )
    floor = num_steps * (3 * sum(load.products) - load.products[0])
    return Program(f"iPC-{optimizer} T={num_steps}", update, tx, floor)


def programs(load: Workload) -> list[Program]:
    """Everything the kernel benchmark compares; backprop with SGD comes first."""
    return [
        backprop(load, "SGD"),
        backprop(load, "Adam"),
        *(
            inference_learning(load, kind, num_steps, optimizer)
            for kind, counts in (
                ("simultaneous", (1, 3, 15)),
                ("sequential", (1, 3, 6)),
                ("error_based", (1, 3, 6)),
            )
            for num_steps in counts
            for optimizer in OPTIMIZERS
        ),
        inference_learning(load, "rateless", 6, "SGD"),
        incremental(load, 3, "SGD"),
        incremental(load, 3, "Adam"),
    ]


def start(load: Workload, program: Program) -> tuple[Any, Any]:
    """Parameters and optimizer state to begin with."""
    params = load.network.init(jax.random.key(0), load.inputs)
    return params, program.tx.init(params)
