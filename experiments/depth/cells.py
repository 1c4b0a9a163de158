"""What is trained: nets of many depths, and the methods that are to train them."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import optax

import pcjax
from experiments.common.methods import (
    METHODS,
    Method,
    MethodName,
    Optimizer,
    Recipe,
    Rule,
    constant,
    inference_learning,
)
from experiments.common.settings import Settings
from pcjax.networks import Place, parametrised

RATELESS = pcjax.barzilai_borwein()
# The rates of one grid, as multiples of what suits an optimizer at width 32.
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
_BASES = {"BP": 0.2, "IL": 4.0, "SeqIL": 4.0, "SeqIL T=1": 4.0, "SeqIL-MQ": 2e-3}
_ADAM = 1e-3
SMALL = 1e-3  # a step of ePC
TINY = 1e-6  # one within the largest curvatures of 64 layers, 1e4
FEW_STEPS = 5  # of ePC, as published
PASSES = 20  # of PC where gradients are compared
MOST = 60  # to the equilibrium in training
_MUPC = 10.0  # times the rates: muPC's weights are of order 1, not 1/sqrt(N)


@dataclass(frozen=True)
class Cell:
    """A net on the map.

    Attributes:
      kind: "residual", "plain" or "conv".
      parametrisation: "standard" or "muPC".
      depth: L, its weight layers.
      width: of hidden layers.
      batch: images of a step; by default those of the data set's settings.
    """

    kind: str
    parametrisation: str
    depth: int
    width: int
    batch: int | None = None

    @property
    def name(self) -> str:
        """`residual-muPC-64x32`, with a batch of 16 `residual-muPC-64x32-by-16`."""
        by = "" if self.batch is None else f"-by-{self.batch}"
        return f"{self.kind}-{self.parametrisation}-{self.depth}x{self.width}{by}"


PARAMETRISATIONS = {
    "standard": pcjax.standard,
    "muPC": pcjax.mupc,
    "depth-muP": pcjax.depth_mup,
}


def _mlp(make: Callable) -> Callable[[Cell, int, int], pcjax.Network]:
    def network(cell, pixels, classes):
        sizes = [pixels, *[cell.width] * (cell.depth - 1), classes]
        chosen = PARAMETRISATIONS[cell.parametrisation]
        return make(sizes, jnp.tanh, parametrisation=chosen)

    return network


def _conv(cell, pixels, classes):
    """3x3 convolutions of stride 1 without padding, as many as the images allow."""
    del pixels
    count = cell.depth - 1
    chosen = PARAMETRISATIONS[cell.parametrisation]
    convs = [pcjax.conv(cell.width, (3, 3), (1, 1), activation=jnp.tanh)] * count
    layers = (*convs, pcjax.dense(classes))
    return pcjax.Network(
        tuple(
            parametrised(layer, chosen(Place(index, cell.depth, False)))
            for index, layer in enumerate(layers)
        )
    )


NETWORKS = {
    "residual": _mlp(pcjax.residual_mlp),
    "plain": _mlp(pcjax.mlp),
    "conv": _conv,
}


def _one_step(settings: Settings, step_size: jax.Array | float) -> Recipe:
    """SeqIL of a single iteration."""
    return inference_learning(settings, pcjax.sequential(1, step_size))


def _small_errors(num_steps: int) -> Rule:
    """ePC of small steps, of which Adam mends the scale."""

    def rule(settings, step_size):
        del step_size
        return inference_learning(settings, pcjax.error_based(num_steps, SMALL))

    return rule


def _tiny_error(settings: Settings, step_size: jax.Array | float) -> Recipe:
    """ePC of a step so small that activities hardly move, whatever the curvature."""
    del step_size
    return inference_learning(settings, pcjax.error_based(1, TINY))


def _undone(optimizer: Optimizer) -> Optimizer:
    """The optimizer of gradients divided by the tiny step."""

    def make(learning_rate, settings):
        return optax.chain(optax.scale(1 / TINY), optimizer(learning_rate, settings))

    return make


def _mq(learning_rate, settings):
    """MQ of any scale of gradients, whose first step is as long as later ones.

    The last layer's gradient has no factor of the step of inference.
    """
    start = pcjax.first_gradient
    return pcjax.mq(learning_rate, settings.mq_decay, min_step=0.0, start=start)


class AtRest(Recipe):
    """The recipe with gradients at the equilibrium."""

    def grad_fn(self, network, output):
        """The gradient where every example has come to rest, or passes have ended."""
        assert self.inference is not None, "backprop moves no activities"
        return pcjax.at_equilibrium.value_and_grad(
            network, self.inference, output=output, **self.clamps
        )


def _equilibrium(settings: Settings, step_size: jax.Array | float) -> Recipe:
    """PC at its equilibrium, to a residual of 1e-3."""
    del settings, step_size
    return AtRest(pcjax.error_based(MOST, RATELESS))


def _seq(settings: Settings) -> float:
    return settings.step_size


# The names of `OURS`, so that --help lists them.
Name = Literal[
    MethodName,
    "SeqIL T=1",
    "ePC-Adam",
    "ePC-Adam T=5",
    "PC-Adam",
    "ePC-Adam 1e-6",
    "ePC-MQ 1e-6",
]
OURS = (
    *METHODS,
    Method("SeqIL T=1", _one_step, constant(optax.sgd), _seq),
    Method("ePC-Adam", _small_errors(1), constant(optax.adam), _seq),
    Method("ePC-Adam T=5", _small_errors(FEW_STEPS), constant(optax.adam), _seq),
    Method("PC-Adam", _equilibrium, constant(optax.adam), _seq),
    Method("ePC-Adam 1e-6", _tiny_error, _undone(constant(optax.adam)), _seq),
    Method("ePC-MQ 1e-6", _tiny_error, _undone(_mq), _seq),
)
BY_TINY = ("ePC-Adam 1e-6", "ePC-MQ 1e-6")
_EPC = ("ePC-Adam", "ePC-Adam T=5", *BY_TINY)
_BY_ADAM = ("BP-Adam", "SeqIL-MQ", "SeqIL-Adam", "iPC", "PC-Adam", *_EPC)
_STANDARD = ("BP", "IL", "SeqIL T=1", "SeqIL", *_BY_ADAM)
STYLES = {
    "ePC-Adam": {"color": "#0072B2", "marker": "v"},
    "ePC-Adam T=5": {"color": "#0072B2", "marker": "^", "linestyle": "-."},
    "PC-Adam": {"color": "#882255", "marker": "*"},
    "SeqIL T=1": {"color": "#CC79A7", "linestyle": ":"},
    "ePC-Adam 1e-6": {"color": "#0072B2", "marker": "s", "linestyle": "--"},
    "ePC-MQ 1e-6": {"color": "#0072B2", "marker": "o", "linestyle": ":"},
}


def methods(cell: Cell) -> list[Method]:
    """The methods that train a cell; weights of muPC suit Adam and MQ only."""
    names = _STANDARD if cell.parametrisation == "standard" else _BY_ADAM
    return [method for method in OURS if method.name in names]


def rates(cell: Cell, method: Method) -> list[float]:
    """The grid of learning rates."""
    base = _BASES.get(method.name, _ADAM)
    if cell.parametrisation != "standard":
        base *= _MUPC
    return [factor * base for factor in FACTORS]


def compared(settings: Settings) -> dict[str, pcjax.Method]:
    """The methods of inference whose gradients are compared at the same weights."""
    eps = settings.step_size
    return {
        "IL": pcjax.simultaneous(settings.il_num_steps, settings.il_step_size),
        "SeqIL T=1": pcjax.sequential(1, eps),
        "SeqIL": pcjax.sequential(settings.num_steps, lambda t: eps / (1 + t)),
        "ePC": pcjax.error_based(1, SMALL),
        "PC": pcjax.error_based(PASSES, RATELESS),
    }


def sized(settings: Settings, cell: Cell) -> Settings:
    """The settings of a cell: a full clamp, so that the equilibrium is PC's own."""
    return dataclasses.replace(
        settings,
        hidden=(cell.width,) * (cell.depth - 1),
        clamp=0.0,
        batch_size=cell.batch or settings.batch_size,
    )
