"""Which libraries are compared, what is installed for them and in which order.

Every library has its own virtual environment, made with the Python that runs the
benchmark and CPU builds of everything.
"""

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.peers.protocol import Method


class Environment(NamedTuple):
    """A virtual environment.

    Attributes:
      installs: the arguments of one `pip install` after another.
      python: the oldest version that will do.
    """

    installs: tuple[tuple[str, ...], ...]
    python: tuple[int, int] = (3, 11)


class Peer(NamedTuple):
    """A library, or one way to use it.

    Attributes:
      name: as the table shows it.
      module: the program that runs in its environment, and its arguments.
      environment: a key of `ENVIRONMENTS`; None runs in this environment.
      step: what one training iteration is there.
      nets: those it is written for.
    """

    name: str
    module: tuple[str, ...]
    environment: str | None
    step: str
    nets: tuple[str, ...] = ("mlp",)


ENVIRONMENTS = {
    "torch": Environment((("torch==2.13.0", "numpy>=2.0"),), (3, 10)),
    # Its metadata allow no JAX from 0.5 on.
    "pcx": Environment((("pcx==0.6.3", "jax==0.4.38", "equinox==0.11.12"),)),
    # The same release against its metadata, because it is faster so.
    "pcx-new-jax": Environment(
        (
            ("jax==0.10.2", "equinox==0.13.8", "optax==0.2.8"),
            ("--no-deps", "pcx==0.6.3"),
        )
    ),
    "fabricpc": Environment((("fabricpc==0.6.0", "jax==0.10.2", "optax==0.2.8"),)),
    # From 3.2.2 on it asks for packages that need Python 3.12.
    "ngclearn": Environment((("ngclearn==3.2.1", "jax==0.10.2"),)),
    # Not on PyPI: build a wheel from its repository (commit 7d6cc05) and name the
    # folder it is in by PIP_FIND_LINKS. Its metadata allow no JAX after 0.5.2.
    "jpc": Environment((("jpc==1.0.0", "jax==0.5.2"),)),
}

PCJAX = "pcjax"

PEERS = (
    Peer(
        PCJAX,
        ("benchmarks.peers.pcjax",),
        None,
        "training.make_update, jitted and donated; softmax cross-entropy",
        ("mlp", "vgg5"),
    ),
    Peer(
        "PyTorch",
        ("benchmarks.peers.torch",),
        "torch",
        "eager autograd, fused optimizer; softmax cross-entropy",
    ),
    Peer(
        "PyTorch compiled",
        ("benchmarks.peers.torch", "--compile"),
        "torch",
        "torch.compile of model and loss, fused optimizer; softmax cross-entropy",
    ),
    Peer(
        "PCX",
        ("benchmarks.peers.pcx",),
        "pcx",
        "the tutorials' jitted step, unrolled; softmax cross-entropy",
        ("mlp", "vgg5"),
    ),
    Peer(
        "PCX, new JAX",
        ("benchmarks.peers.pcx",),
        "pcx-new-jax",
        "the same on the newest JAX, against its metadata; softmax cross-entropy",
        ("mlp", "vgg5"),
    ),
    Peer(
        "FabricPC",
        ("benchmarks.peers.fabricpc",),
        "fabricpc",
        "make_train_step, jitted and donated; softmax cross-entropy",
        ("mlp", "vgg5"),
    ),
    Peer(
        "ngc-learn",
        ("benchmarks.peers.ngclearn",),
        "ngclearn",
        "its processes scanned, jitted as one and donated; squared error",
    ),
    Peer(
        "JPC",
        ("benchmarks.peers.jpc",),
        "jpc",
        "update_pc_activities unrolled, filter_jit, donated; softmax cross-entropy",
    ),
)


def _methods(*num_steps: int) -> tuple[Method, ...]:
    """What is compared; simultaneous inference with these numbers of iterations."""
    kinds = (
        ("backprop", 0),
        *(("simultaneous", count) for count in num_steps),
        ("sequential", 3),
        ("error-based", 5),
    )
    return tuple(
        Method(kind, count, optimizer)
        for kind, count in kinds
        for optimizer in ("SGD", "Adam")
    )


# Simultaneous inference reaches the first layer of VGG5 in its fourth iteration; shifts
# are above the rounding of activities, which some libraries need, a few later.
METHODS = {"mlp": _methods(3, 15), "vgg5": _methods(8, 12)}


def select(names: Sequence[str], net: str = "mlp") -> list[Peer]:
    """The peers of these names (all without any) that have the net, pcjax first.

    Raises:
      ValueError: if there is no peer of a name that has it.
    """
    known = {peer.name.lower(): peer for peer in PEERS if net in peer.nets}
    unknown = [name for name in names if name.lower() not in known]
    if unknown:
        raise ValueError(
            f"peers: there is no {', '.join(unknown)} with {net}; there are "
            f"{', '.join(peer.name for peer in known.values())}."
        )
    wanted = {PCJAX, *(name.lower() for name in names or known)}
    return [peer for name, peer in known.items() if name in wanted]
