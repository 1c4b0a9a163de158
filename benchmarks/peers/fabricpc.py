"""FabricPC's step: its own trainer's, with the buffers donated as its loop does.

`make_train_step` leaves the donation to the caller; its internal loop donates the
parameters and drops the activities, which the outer `jax.jit` here does too.
"""

from itertools import pairwise

import jax
import numpy as np
import optax
from fabricpc import setup_jax
from fabricpc.core.activations import (
    ReLUActivation,
    SoftmaxActivation,
)
from fabricpc.core.energy import CrossEntropyEnergy, GaussianEnergy
from fabricpc.core.inference import InferenceSGD
from fabricpc.core.inference_epc import EPCInference
from fabricpc.core.topology import Edge
from fabricpc.graph_assembly import TaskMap, graph
from fabricpc.graph_initialization import initialize_params
from fabricpc.nodes import ConvNode, IdentityNode, Linear
from fabricpc.training import make_train_step

from benchmarks.peers import protocol
from benchmarks.peers.reference import Model

_OPTIMIZERS = {"SGD": optax.sgd, "Adam": optax.adam}
_INFERENCE = {"error-based": EPCInference}  # all others move the latents


class PooledConv(ConvNode):
    """Its convolution with ReLU and max pool as one node; its own pool is a node that
    has a latent, which is another network."""

    @staticmethod
    def initialize_params(key, node_shape, input_shapes, weight_init, config=None):
        height, width, channels = node_shape
        unpooled = (2 * height, 2 * width, channels)
        return ConvNode.initialize_params(
            key, unpooled, input_shapes, weight_init, config
        )

    @staticmethod
    def predict(params, inputs, state, node_info):
        del state, node_info
        ((edge, below),) = inputs.items()
        product = jax.lax.conv_general_dilated(
            below,
            params.weights[edge],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        tile = (1, 2, 2, 1)
        return jax.lax.reduce_window(
            jax.nn.relu(product + params.biases["b"]),
            -jax.numpy.inf,
            jax.lax.max,
            tile,
            tile,
            "VALID",
        ), None


def _network(inference: str, num_steps: int):
    """The graph, and the names of its weighted nodes from first to last."""
    shape = protocol.SIZES[:1] if protocol.NET == "mlp" else protocol.IMAGE
    nodes = [IdentityNode(shape=shape, name="inputs")]
    shapes = protocol.kernel_shapes()
    for index, kernel in enumerate(shapes, 1):
        last = index == len(shapes)
        name = f"layer{index}"
        if len(kernel) == 4:
            shape = (shape[0] // 2, shape[1] // 2, kernel[-1])
            nodes.append(PooledConv(shape=shape, name=name, kernel_size=(3, 3)))
            continue
        node = Linear(
            shape=kernel[1:],
            name=name,
            activation=SoftmaxActivation() if last else ReLUActivation(),
            energy=CrossEntropyEnergy() if last else GaussianEnergy(),
            flatten_input=protocol.NET == "vgg5",
        )
        nodes.append(node)
    structure = graph(
        nodes=nodes,
        edges=[
            Edge(source=below, target=above.slot("in"))
            for below, above in pairwise(nodes)
        ],
        task_map=TaskMap(x=nodes[0], y=nodes[-1]),
        inference=_INFERENCE.get(inference, InferenceSGD)(
            eta_infer=protocol.STEP_SIZE, infer_steps=num_steps
        ),
    )
    return structure, [node.name for node in nodes[1:]]


def build(method: protocol.Method) -> protocol.Program:
    if method.inference == "sequential":
        raise protocol.UnsupportedError("its solvers move all latents at once")
    structure, names = _network(method.inference, method.num_steps or 1)
    algorithm = "backprop" if method.inference == "backprop" else "pc"
    tx = _OPTIMIZERS[method.optimizer](protocol.LEARNING_RATES[method.optimizer])
    inner = make_train_step(structure, tx, algorithm=algorithm)
    step = jax.jit(lambda *arguments: inner(*arguments)[:2], donate_argnums=(0, 1))
    inputs, targets = map(jax.numpy.asarray, protocol.batch())
    key = jax.random.key(0)
    params = initialize_params(structure, key)
    state = [params, tx.init(params)]

    def run(count: int) -> None:
        for _ in range(count):
            state[:] = step(*state, {"x": inputs, "y": targets}, key)
        jax.block_until_ready(state)

    def weights() -> protocol.Weights:
        found = []
        for name in names:
            node = state[0].nodes[name]
            (weight,) = node.weights.values()
            found.append((np.array(weight), np.ravel(node.biases["b"])))
        return found

    return protocol.Program(run, weights)


if __name__ == "__main__":
    setup_jax()
    protocol.serve(
        protocol.Library(
            build,
            Model("post", "softmax cross-entropy"),
            ("fabricpc", "jax", "jaxlib", "optax"),
            nets=("mlp", "vgg5"),
        )
    )
