"""How many passes the equilibrium takes: error of the gradient against passes.

python -m experiments.equilibrium
python -m experiments.equilibrium --preset cpu --dataset digits
python -m experiments.equilibrium --preset cpu --data-dir DIR --nets trained

A pass is one sweep forward and one back, an iteration of any method. The error is that
of the worst layer's weight gradient beside the equilibrium's, to which steps without a
rate and then Newton-CG go. Networks are random ones, and ones trained on the images
by Adam; Newton-CG stands beside the methods with the passes of its products.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import pcjax
from experiments.common.folders import UnfinishedError
from experiments.common.harness import (
    Experiment,
    Options,
    Run,
    execute,
)
from experiments.common.live import Parts
from experiments.common.settings import settings
from experiments.equilibrium import shown
from pcjax import training
from pcjax.training.measures import likeness

BB = pcjax.barzilai_borwein()
STEP = 0.1
METHODS: dict[str, Callable[[int], pcjax.Method]] = {
    "errors, no rate": lambda steps: pcjax.error_based(steps, BB),
    "errors, step 0.1": lambda steps: pcjax.error_based(steps, STEP),
    "activities, no rate": lambda steps: pcjax.simultaneous(steps, BB),
    "simultaneous, step 0.1": lambda steps: pcjax.simultaneous(steps, STEP),
    "sequential, step 0.1": lambda steps: pcjax.sequential(steps, STEP),
}
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}
KINDS = {"plain": pcjax.mlp, "residual": pcjax.residual_mlp}


class Net(NamedTuple):
    """A net whose equilibria are found.

    Attributes:
      activation: the name of one.
      hidden: how many layers.
      trained: by Adam, or random.
      kind: "plain", "residual" or "conv".
    """

    activation: str
    hidden: int
    trained: bool
    kind: str = "plain"


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
      nets: what the equilibria are of.
      width: of hidden layers; an eighth as many channels of convolutions.
      passes: the most of any method.
      batch: images whose equilibria are found.
      updates: steps of Adam of a trained net.
      newton: after how many of its steps Newton-CG is looked at.
    """

    nets: tuple[Net, ...]
    width: int = 64
    passes: int = 1000
    batch: int = 32
    updates: int = 400
    newton: tuple[int, ...] = (1, 2, 4, 8)


_CPU = (
    Net("tanh", 4, False),
    Net("tanh", 10, False),
    Net("tanh", 30, False),
    Net("tanh", 3, True),
    Net("tanh", 9, True),
    Net("relu", 3, True),
    Net("relu", 9, True),
    Net("tanh", 9, True, "residual"),
    Net("tanh", 3, True, "conv"),
)


@dataclass(frozen=True)
class Config(Options):
    """Measures the error of the weight gradient against the passes of inference."""

    nets: tuple[str, ...] = ()
    """Only nets with one of these words in the title, such as trained; or all."""


def train(
    network: pcjax.Network,
    key: jax.Array,
    data: tuple[jax.Array, jax.Array],
    size: Size,
) -> Any:
    """Params after some steps of Adam on backprop's gradient."""
    tx = optax.adam(1e-3)
    update = training.make_update(
        pcjax.backprop.value_and_grad(network, output=pcjax.softmax), tx
    )
    start, order = jax.random.split(key)
    params = network.init(start, data[0][:1])

    def step(state, key):
        rows = jax.random.randint(key, (64,), 0, len(data[0]))
        params, opt_state = state
        params, opt_state, _ = update(params, opt_state, data[0][rows], data[1][rows])
        return (params, opt_state), None

    keys = jax.random.split(order, size.updates)
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
    return params


def worst(grads: Any, exact: Any) -> jax.Array:
    """The relative error of the worst layer."""
    errors = []
    for layer, reference in zip(grads, exact, strict=True):
        have, want = (ravel_pytree(tree)[0] for tree in (layer, reference))
        errors.append(jnp.linalg.norm(have - want) / jnp.linalg.norm(want))
    return jnp.max(jnp.stack(errors))


def paths(
    network: pcjax.Network, params: Any, batch: tuple[jax.Array, jax.Array], size: Size
) -> dict[str, Any]:
    """The equilibrium of a batch, and how every method comes near it."""
    output = pcjax.softmax

    def rest_fn(passes, steps):
        return pcjax.at_equilibrium.value_and_grad(
            network,
            pcjax.error_based(passes, BB),
            output=output,
            tolerance=3e-6,  # about what float32 reaches
            fallback=pcjax.newton_cg(steps),
        )

    (_, info), exact = jax.jit(rest_fn(size.passes, 10))(params, *batch)
    bp_fn = pcjax.backprop.value_and_grad(network, output=output)
    like = likeness(exact, jax.jit(bp_fn)(params, *batch)[1])
    rest = info.equilibrium

    def record(state):
        grads = pcjax.local_gradients(network, params, state.activities, output=output)
        activities = (*state.activities[:-1], batch[1])
        energy = pcjax.free_energy(network, params, activities, output=output)
        return worst(grads, exact), jnp.mean(energy)

    found = {
        name: jax.jit(
            partial(
                pcjax.infer, network, make(size.passes), output=output, trace=record
            )
        )(params, *batch).trace
        for name, make in METHODS.items()
    }

    def newton(steps):
        (_, info), grads = jax.jit(rest_fn(1, steps))(params, *batch)
        return jnp.mean(info.equilibrium.passes), worst(grads, exact)

    return {
        "newton": [newton(steps) for steps in size.newton],
        "passes": rest.passes,
        "residual": rest.residual,
        "converged": rest.converged,
        "kinks": rest.kinks,
        "energy": jnp.mean(rest.energy),
        "initial_energy": jnp.mean(rest.initial_energy),
        "cosine_to_backprop": like.cosine,
        "ratio_to_backprop": like.ratio,
        "errors": {name: trace[0] for name, trace in found.items()},
        "energies": {name: trace[1] for name, trace in found.items()},
    }


def title(net: Net) -> str:
    """`tanh, 4 hidden layers, random`."""
    kind = "" if net.kind == "plain" else f"{net.kind}, "
    how = "trained" if net.trained else "random"
    return f"{kind}{net.activation}, {net.hidden} hidden layers, {how}"


def select(nets: tuple[Net, ...], words: tuple[str, ...]) -> tuple[Net, ...]:
    """Those with one of the words in their title; all without words."""
    titles = [title(net) for net in nets]
    for word in words:
        if not any(word in name for name in titles):
            raise ValueError(f"--nets: no net has {word!r} in its title: {titles}.")
    pairs = zip(nets, titles, strict=True)
    return tuple(
        net for net, name in pairs if not words or any(w in name for w in words)
    )


def make_network(net: Net, size: Size, pixels: int, classes: int) -> pcjax.Network:
    """The net of the layers it says."""
    activation = ACTIVATIONS[net.activation]
    if net.kind != "conv":
        sizes = [pixels, *[size.width] * net.hidden, classes]
        return KINDS[net.kind](sizes, activation)
    channels = max(2, size.width // 8)
    conv = pcjax.conv(channels, (3, 3), (1, 1), activation=activation)
    return pcjax.Network((*[conv] * net.hidden, pcjax.dense(classes)))


def measure(config: Config, size: Size, run: Run) -> dict[str, Any]:
    """A part for every net."""
    chosen = select(size.nets, config.nets)
    images = config.load()
    classes = images.num_classes
    found = settings("mlp", config.dataset_name)
    prepare = training.classification(classes, low=found.low, high=found.high)

    def put(split):
        data = training.device_data(
            split.images[:10_000], split.labels[:10_000], classes
        )
        return prepare(*data)

    train_data, test_data = put(images.train), put(images.test)

    def of_net(net):
        def shaped(data):
            inputs, targets = data
            flat = inputs.reshape(len(inputs), -1)
            return inputs if net.kind == "conv" else flat, targets

        batch = tuple(x[: size.batch] for x in shaped(test_data))
        network = make_network(net, size, batch[0][0].size, classes)
        key = jax.random.key(config.seed)
        if net.trained:
            learn = jax.jit(partial(train, network, size=size))
            params = learn(key, data=shaped(train_data))
        else:
            params = scaled(jax.jit(network.init)(key, batch[0]))
        return paths(network, params, batch, size)

    nets = {}
    with Parts(run, len(chosen)) as parts:
        for net in chosen:
            name = title(net)
            try:
                nets[name] = parts.part(name.replace(", ", "-"), partial(of_net, net))
            except UnfinishedError:
                run.unfinished.append(name)
    if not nets:
        raise UnfinishedError(f"No net is finished in {run.folder}.")
    passes = shown_passes(size.passes)
    for found in nets.values():
        for kind in ("errors", "energies"):
            found[kind] = {
                name: [row[t] for t in passes] for name, row in found[kind].items()
            }
    return {"dataset": config.dataset_name, "passes": passes, "nets": nets}


def shown_passes(most: int) -> list[int]:
    """0 to 100 one by one, then in steps of a thirtieth."""
    steps = [*range(101), *(round(100 * (31 / 30) ** k) for k in range(1, 200))]
    return [t for t in steps if t <= most]


def scaled(params: Any) -> Any:
    """Weights of variance 1 / fan in, without biases: the signal keeps its size."""
    return tuple(
        {"kernel": np.sqrt(3) * theta["kernel"], "bias": 0 * theta["bias"]}
        for theta in params
    )


EXPERIMENT = Experiment(
    name="equilibrium",
    paper="beyond the paper",
    title="Passes to the equilibrium",
    sizes={
        "smoke": Size(
            (Net("tanh", 2, False), Net("relu", 2, True)),
            width=16,
            passes=100,
            batch=8,
            updates=20,
            newton=(1, 4),
        ),
        "cpu": Size(_CPU),
        "paper": Size(
            (*_CPU, Net("tanh", 30, True)),
            width=512,
            passes=5000,
            batch=128,
            updates=4000,
        ),
    },
    measure=measure,
    plot=shown.plot,
    claims=shown.claims,
    free=("nets",),
)
main = partial(execute, EXPERIMENT)
