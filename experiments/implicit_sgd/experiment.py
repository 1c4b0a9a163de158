"""How implicit is it? Theorems 1 and 2 of the paper in numbers.

python -m experiments.implicit_sgd
python -m experiments.implicit_sgd --dataset cifar10 --data-dir DIR

Trains a small MLP (half squared error, float64), and compares, example by example, what
the learning rules do to the weights with the true step of implicit SGD.
"""

import dataclasses
import json
import os
import platform
import shlex
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import pcjax
from experiments.common import data
from experiments.implicit_sgd import parts
from experiments.implicit_sgd import plots as implicit_plots
from experiments.implicit_sgd.parts import Size
from experiments.implicit_sgd.rules import SOFT_CLAMP, Problem, sequential
from pcjax import training

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


PRESETS = {
    "cpu": Size(),
    "smoke": Size(
        betas=(1e-2, 1e-1),
        curvatures=(1e-4, 1e-3, 1e-2),
        fit=(1e-4, 1e-2),
        checkpoints=(0, 5),
        examples=2,
        batch=2,
        max_steps=500,
        solver_steps=200,
        followed=20,
    ),
}


@dataclass(frozen=True)
class Config:
    """How implicit is it? Theorems 1 and 2 of the paper in numbers."""

    dataset: str = "digits"
    """digits (built in), or cifar10 and others of experiments.data."""
    data_dir: Path | None = None
    """The folder of prepared TFDS data sets; digits needs none."""
    out: Path = Path("results/implicit_sgd")
    """Where results.json and the figures go."""
    preset: Literal["cpu", "smoke"] = "cpu"
    """How much is measured; smoke takes seconds."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Of the hidden layers. With relu the implicit equation seldom has a solution."""
    hidden: tuple[int, ...] = (32, 32)
    """Sizes of the hidden layers."""
    warm_up: int = 100
    """Training iterations before single steps are looked at; one of the checkpoints."""
    beta: float = 0.1
    """Step size of implicit SGD where only one is looked at."""
    betas: tuple[float, ...] | None = None
    """Step sizes of implicit SGD, in the place of the preset's."""
    learning_rate: float = 1e-3
    """Of the training, which is SeqIL-MQ."""
    seed: int = 0
    """Of weights and data order."""


@lru_cache(maxsize=4)  # the same network twice is compiled for once
def _mlp(sizes: tuple[int, ...], activation: str) -> pcjax.Network:
    return pcjax.mlp(sizes, ACTIVATIONS[activation])


def _network(config: Config, inputs: Any, targets: Any, activation: str) -> Any:
    return _mlp((inputs[0].size, *config.hidden, targets.shape[-1]), activation)


def train(config: Config, size: Size, images: Any) -> tuple[list[Problem], Any, Any]:
    """Trains by SeqIL-MQ, keeping the network at the checkpoints.

    Returns the checkpoints with test examples in them (batch many), and these.
    """
    classes = images.num_classes
    prepare = training.classification(classes, dtype=jnp.float64)
    chosen = np.random.default_rng(config.seed).permutation(len(images.test.images))
    chosen = chosen[: max(size.batch, size.examples)]
    inputs, targets = prepare(
        jnp.asarray(images.test.images[chosen]), jnp.asarray(images.test.labels[chosen])
    )
    inputs = inputs.reshape(len(inputs), -1)
    network = _network(config, inputs, targets, config.activation)
    grad_fn = pcjax.value_and_grad(
        network, sequential(), clamp=pcjax.soft_clamp(SOFT_CLAMP)
    )
    tx = pcjax.mq(config.learning_rate)
    update = jax.jit(training.make_update(grad_fn, tx))
    params = network.init(jax.random.key(config.seed), inputs)
    opt_state = tx.init(params)
    order = np.random.default_rng(config.seed + 1)
    problems = []
    for iteration in range(max(size.checkpoints) + 1):
        if iteration in size.checkpoints:
            problems.append(Problem(network, tx, params, opt_state, inputs, targets))
        batch = order.integers(len(images.train.images), size=64)
        x, y = prepare(
            jnp.asarray(images.train.images[batch]),
            jnp.asarray(images.train.labels[batch]),
        )
        params, opt_state, _ = update(params, opt_state, x.reshape(64, -1), y)
    return problems, inputs, targets


def first(problem: Problem, count: int) -> Problem:
    """The problem with its first examples only."""
    return problem._replace(
        inputs=problem.inputs[:count], targets=problem.targets[:count]
    )


def main(config: Config) -> dict[str, Any]:
    """Measures everything, writes results.json and the figures."""
    started = time.perf_counter()
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(
            f"{config.out} cannot be used: {error}. Name another folder with --out."
        ) from error
    size = PRESETS[config.preset]
    if config.betas:
        size = dataclasses.replace(size, betas=config.betas)
    double = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    try:
        results = measure(config, size)
    finally:
        jax.config.update("jax_enable_x64", double)
    results = {
        "command": shlex.join(
            ["python", "-m", "experiments.implicit_sgd", *sys.argv[1:]]
        ),
        "config": json.loads(json.dumps(dataclasses.asdict(config), default=str)),
        "size": dataclasses.asdict(size),
        "versions": {"pcjax": pcjax.__version__, "jax": jax.__version__},
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} host cores",
        "machine": platform.machine(),
        "seconds": round(time.perf_counter() - started, 1),
        **results,
    }
    (config.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    implicit_plots.plot(results, config.out)
    print(f"Written: {config.out / 'results.json'} and the figures beside it.")
    return results


def measure(config: Config, size: Size) -> dict[str, Any]:
    """All measurements, one after the other."""
    images = data.load(config.dataset, config.data_dir)
    problems, inputs, targets = train(config, size, images)
    warm_up = min(config.warm_up, max(size.checkpoints))
    index = max(i for i, c in enumerate(size.checkpoints) if c <= warm_up)
    warm = problems[index]
    few = first(warm, size.examples)
    results: dict[str, Any] = {"iteration": size.checkpoints[index]}

    def report(name, value):
        print(f"{name}: done", flush=True)
        results[name] = value

    report("theorem1", parts.theorem1(few, size))
    report("during_inference", parts.during_inference(few, size, config.beta))
    report("limit", parts.theorem1_limit(few, size, config.beta))
    report("theorem2", parts.theorem2(few, size))
    report(
        "directions",
        {
            "beta": config.beta,
            "checkpoints": size.checkpoints,
            "single": [
                parts.directions(first(p, size.examples), size, config.beta, False)
                for p in problems
            ],
            "batch": [
                parts.directions(first(p, size.batch), size, config.beta, True)
                for p in problems
            ],
        },
    )
    report("mini_batch", parts.mini_batch(first(warm, size.batch), size))
    untrained = {}
    for name in ACTIVATIONS:
        network = _network(config, inputs, targets, name)
        untrained[name] = network, network.init(jax.random.key(config.seed), inputs)
    report("kinks", parts.kinks(untrained, size, few.inputs, few.targets))
    return results
