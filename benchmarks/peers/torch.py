"""PyTorch's backprop, the yardstick people know: eager, or `--compile`d.

The fast path of each: fused optimizers, gradients set to None, and, compiled, the
forward pass, the loss and with them the backward pass as one `torch.compile`d
function.
"""

import sys
from itertools import pairwise

import torch
from torch import nn

from benchmarks.peers import protocol
from benchmarks.peers.reference import Model

_OPTIMIZERS = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam}


def build(method: protocol.Method) -> protocol.Program:
    if method.inference != "backprop":
        raise protocol.UnsupportedError("PyTorch has backprop alone")
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for shape in pairwise(protocol.SIZES):
        layers += [nn.Linear(*shape), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    inputs, targets = map(torch.from_numpy, protocol.batch())
    labels = targets.argmax(1)
    optimizer = _OPTIMIZERS[method.optimizer](
        model.parameters(), lr=protocol.LEARNING_RATES[method.optimizer], fused=True
    )

    def loss(inputs, labels):
        return nn.functional.cross_entropy(model(inputs), labels)

    if "--compile" in sys.argv:
        loss = torch.compile(loss)

    def run(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            loss(inputs, labels).backward()
            optimizer.step()

    def weights() -> protocol.Weights:
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        return [
            (layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy().copy())
            for layer in linear
        ]

    return protocol.Program(run, weights)


if __name__ == "__main__":
    protocol.serve(
        protocol.Library(
            build,
            Model("pre", "softmax cross-entropy"),
            ("torch",),
            lambda: {"threads": torch.get_num_threads()},
        )
    )
