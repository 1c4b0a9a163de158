"""When splitting a batch pays: arithmetic from counts and data-sheet figures."""

from dataclasses import dataclass
from typing import NamedTuple

import jax

from benchmarks import workloads


@dataclass(frozen=True)
class Hardware:
    """Data-sheet peaks of an H100 SXM, none of them measured here."""

    rate: float = 494.5e12
    """Floating-point operations a second of one device: TF32 without sparsity."""
    memory: float = 3.35e12
    """Bytes a second it reads from its memory: HBM3."""
    bandwidth: float = 450e9
    """Bytes a second it sends while it receives as many: NVLink."""
    latency: float = 2e-5
    """Seconds of the smallest all-reduce; assumed, not of the data sheet."""


class Payoff(NamedTuple):
    """The arithmetic of one net and method.

    Attributes:
      program: method and optimizer.
      width: units of each of the three hidden layers.
      parameters: of the net.
      flops_per_example: of the products that a step cannot do without.
      all_reduce_microseconds: of the gradient.
      speedups: over one device, by the size of the whole batch.
    """

    program: str
    width: int
    parameters: int
    flops_per_example: float
    all_reduce_microseconds: float
    speedups: dict[int, float]


def step_seconds(
    flops_per_example: float, batch_size: float, hardware: Hardware
) -> float:
    """The time of a step's products on one device.

    Each product takes two operations per weight and example, and reads the weight's
    four bytes once; the longer of the two counts.
    """
    return flops_per_example * max(batch_size / hardware.rate, 2 / hardware.memory)


def all_reduce_seconds(size: float, devices: int, hardware: Hardware) -> float:
    """The time of a ring all-reduce, in which a device sends `2 (n-1)/n` of the bytes.

    Nothing is sent if there is one device.
    """
    if devices == 1:
        return 0.0
    share = 2 * (devices - 1) / devices
    return hardware.latency + share * size / hardware.bandwidth


def speedup(
    flops_per_example: float,
    parameters: int,
    batch_size: int,
    devices: int,
    hardware: Hardware,
) -> float:
    """One device's time over that of several, if sending overlaps with nothing."""
    alone = step_seconds(flops_per_example, batch_size, hardware)
    split = step_seconds(flops_per_example, batch_size / devices, hardware)
    return alone / (split + all_reduce_seconds(4 * parameters, devices, hardware))


def payoffs(
    devices: int,
    hardware: Hardware,
    widths: tuple[int, ...] = (1024, 4096, 16384),
    batch_sizes: tuple[int, ...] = (64, 512, 4096, 32768),
) -> list[Payoff]:
    """The speed-ups for the paper's classifier and wider ones."""
    rows = []
    for width in widths:
        load = workloads.mlp(1, width)
        params = jax.eval_shape(load.network.init, jax.random.key(0), load.inputs)
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        sending = 1e6 * all_reduce_seconds(4 * size, devices, hardware)
        for program in programs(load):
            flops = program.floor
            gains = {
                batch: speedup(flops, size, batch, devices, hardware)
                for batch in batch_sizes
            }
            rows.append(Payoff(program.name, width, size, flops, sending, gains))
    return rows


def programs(load: workloads.Workload) -> list[workloads.Program]:
    """The methods compared: few products an iteration, more, and many."""
    return [
        workloads.backprop(load, "SGD"),
        workloads.inference_learning(load, "sequential", 3, "MQ"),
        workloads.inference_learning(load, "simultaneous", 15, "SGD"),
    ]
