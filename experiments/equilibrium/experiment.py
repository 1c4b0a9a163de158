"""How many passes the equilibrium takes: error of the gradient against passes.

python -m experiments.equilibrium
python -m experiments.equilibrium --preset cpu --dataset digits
python -m experiments.equilibrium --preset cpu --data-dir DIR

A pass is one sweep forward and one back, an iteration of any method. The error is that
of the worst layer's weight gradient beside the equilibrium's, to which steps without a
rate and then Newton-CG go. Networks are random ones, and ones trained on the images
by Adam.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

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


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
      nets: (activation, hidden layers, trained) each.
      width: of hidden layers.
      passes: the most of any method.
      batch: images whose equilibria are found.
      updates: steps of Adam of a trained net.
    """

    nets: tuple[tuple[str, int, bool], ...]
    width: int = 64
    passes: int = 1000
    batch: int = 32
    updates: int = 400


_CPU = (
    ("tanh", 4, False),
    ("tanh", 10, False),
    ("tanh", 30, False),
    ("tanh", 3, True),
    ("tanh", 9, True),
    ("relu", 3, True),
    ("relu", 9, True),
)


@dataclass(frozen=True)
class Config(Options):
    """Measures the error of the weight gradient against the passes of inference."""


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
    own_fn = pcjax.at_equilibrium.value_and_grad(
        network,
        pcjax.error_based(size.passes, BB),
        output=output,
        tolerance=3e-6,  # about what float32 reaches
        fallback=pcjax.newton_cg(10),
    )
    (_, info), exact = jax.jit(own_fn)(params, *batch)
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
    return {
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


def title(net: tuple[str, int, bool]) -> str:
    """`tanh, 4 hidden layers, random`."""
    activation, hidden, trained = net
    return f"{activation}, {hidden} hidden layers, {'trained' if trained else 'random'}"


def measure(config: Config, size: Size, run: Run) -> dict[str, Any]:
    """A part for every net."""
    images = config.load()
    classes = images.num_classes
    found = settings("mlp", config.dataset_name)
    prepare = training.classification(classes, low=found.low, high=found.high)

    def put(split):
        data = training.device_data(
            split.images[:10_000], split.labels[:10_000], classes
        )
        inputs, targets = prepare(*data)
        return inputs.reshape(len(inputs), -1), targets

    train_data, test_data = put(images.train), put(images.test)
    batch = tuple(x[: size.batch] for x in test_data)

    def of_net(net):
        activation, hidden, trained = net
        sizes = [batch[0].shape[1], *[size.width] * hidden, classes]
        network = pcjax.mlp(sizes, ACTIVATIONS[activation])
        key = jax.random.key(config.seed)
        if trained:
            params = jax.jit(partial(train, network, size=size))(key, data=train_data)
        else:
            params = scaled(jax.jit(network.init)(key, batch[0]))
        return paths(network, params, batch, size)

    nets = {}
    with Parts(run, len(size.nets)) as parts:
        for net in size.nets:
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
            (("tanh", 2, False), ("relu", 2, True)),
            width=16,
            passes=100,
            batch=8,
            updates=20,
        ),
        "cpu": Size(_CPU),
        "paper": Size(
            (*_CPU, ("tanh", 30, True)), width=512, passes=5000, batch=128, updates=4000
        ),
    },
    measure=measure,
    plot=shown.plot,
    claims=shown.claims,
)
main = partial(execute, EXPERIMENT)
