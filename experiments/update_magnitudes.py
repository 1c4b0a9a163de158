"""The mean magnitude of the updates of every weight matrix (Figures 2 and 9).

python -m experiments.update_magnitudes
python -m experiments.update_magnitudes --preset cpu --net conv --data-dir DIR

Without an optimizer the updates of the first matrices are far smaller than those of
the last; MQ makes them alike with one scalar a matrix, Adam with two numbers a
weight. A network is trained with each; after the warm-up, `mean |W_new - W_old|` is
averaged over the iterations.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import methods, report
from experiments.common.claims import above, difference
from experiments.common.harness import (
    Claim,
    Experiment,
    Options,
    Run,
    cli,
    execute,
)
from experiments.common.live import Parts
from experiments.common.methods import Method
from experiments.common.options import BatchSize, Iterations, LearningRate, adapted
from experiments.common.settings import Settings, settings
from experiments.common.tasks import Task, make_task
from experiments.common.trainer import start

METHODS = ("IL", "IL-MQ", "IL-Adam", "SeqIL", "SeqIL-MQ", "SeqIL-Adam")


@dataclass(frozen=True)
class Size:
    """How much is trained."""

    seeds: int = 5
    iterations: int = 10_000
    warm_up: int = 1_000


@dataclass(frozen=True)
class Config(Options, Iterations, BatchSize, LearningRate):
    """Measures the magnitude of the updates of every weight matrix."""

    net: Literal["mlp", "conv"] = "mlp"
    """Which of the paper's nets."""


def measure(config: Config, size: Size, run: Run) -> dict[str, Any]:
    """Trains with every method and averages the updates, a part for each seed."""
    found = adapted(settings(config.net, config.dataset_name), config)
    task = make_task(config.net, config.load(), found)
    # The normalised step is one of dense layers.
    chosen = [methods.NORMALISED] if config.net == "mlp" else []
    chosen += methods.select(METHODS)
    if size.iterations <= size.warm_up:
        raise ValueError(
            f"--iterations must be above the {size.warm_up} of the warm-up, got "
            f"{size.iterations}."
        )
    keys = jax.random.split(jax.random.key(config.seed), size.seeds)
    found_of: dict[str, list] = {}
    with Parts(run, len(chosen) * len(keys)) as parts:
        for method in chosen:
            train = trainer(method, task, found, size)
            found_of[method.name] = [
                parts.part(f"{method.name}-{index}", partial(train, key))
                for index, key in enumerate(keys)
            ]
    return {
        "dataset": config.dataset_name,
        "net": config.net,
        "settings": dataclasses.asdict(found),
        "iterations": size.iterations,
        "warm_up": size.warm_up,
        "magnitudes": found_of,  # [seeds, L] each
        "ratios": {name: ratios(rows) for name, rows in found_of.items()},
    }


def trainer(method: Method, task: Task, settings: Settings, size: Size) -> Any:
    """A function `key -> mean magnitudes [L]` of a whole training, compiled once."""
    # The normalised step takes no rate.
    tx = method.optimizer(settings.learning_rates.get(method.name, 1.0), settings)
    step_size = method.step_size(settings)
    recipe = method.rule(settings, step_size)
    update = recipe.update(task.network, task.output, tx)
    images, labels = task.train

    @jax.jit
    def train(begun):
        def iterate(carry, t):
            params, opt_state, total = carry
            index = jax.random.randint(
                jax.random.fold_in(begun.key, t),
                (settings.batch_size,),
                0,
                len(images),
            )
            moved, opt_state, _ = update(
                params, opt_state, *task.prepare(images[index], labels[index])
            )
            magnitudes = [
                jnp.mean(jnp.abs(new["kernel"] - old["kernel"]))
                for new, old in zip(moved, params, strict=True)
            ]
            counted = t >= size.warm_up
            return (moved, opt_state, total + counted * jnp.stack(magnitudes)), None

        total = jnp.zeros(len(task.network.layers))
        carry = begun.params, tx.init(begun.params), total
        (_, _, total), _ = jax.lax.scan(iterate, carry, jnp.arange(size.iterations))
        return total / (size.iterations - size.warm_up)

    def run(key):
        begun = start(task.network, key[None], task.example())
        return train(jax.tree.map(lambda x: x[0], begun))

    return run


def ratios(magnitudes: Sequence[Sequence[float]]) -> list[float]:
    """Largest over smallest magnitude of the matrices, for every seed."""
    rows = report.array(magnitudes)
    return (rows.max(1) / rows.min(1)).tolist()


def claims(results: dict[str, Any]) -> list[Claim]:
    """The ratios of every method, and by how much MQ and Adam lower them."""
    found = {name: report.array(rows) for name, rows in results["ratios"].items()}
    rows = [
        Claim(
            f"{name}: mean absolute update of the matrices; largest / smallest",
            "figures, no numbers",
            ", ".join(
                f"{value:.1e}"
                for value in report.array(results["magnitudes"][name]).mean(0)
            )
            + f"; {report.mean_std(values, digits=1)}",
        )
        for name, values in found.items()
    ]
    pairs = [("IL-norm", "IL-MQ"), ("IL", "IL-MQ"), ("IL", "IL-Adam")]
    pairs += [("SeqIL", "SeqIL-MQ"), ("SeqIL", "SeqIL-Adam")]
    for plain, optimized in pairs:
        if plain in found:
            factor = found[plain].mean() / found[optimized].mean()
            gap = difference(np.log10(found[plain]), np.log10(found[optimized]))
            rows.append(
                Claim(
                    f"the ratio falls from {plain} to {optimized}",
                    "section 4",
                    f"{factor:.1f} times smaller; log10: {gap.text()}",
                    above(gap),
                )
            )
    return rows


def plot(results: dict[str, Any], folder: Path) -> None:
    """The magnitudes of every method against the matrix."""
    groups = [
        [name for name in results["magnitudes"] if name.startswith(kind)]
        for kind in ("IL", "SeqIL")
    ]
    with report.figure(folder / "magnitudes.png", columns=2, sharey=True) as panels:
        for panel, names in zip(panels[0], groups, strict=True):
            for name in names:
                rows = report.array(results["magnitudes"][name]).T
                report.band(panel, range(len(rows)), rows, name)
            panel.set(xlabel="weight matrix", yscale="log", xticks=range(len(rows)))
            panel.legend(frameon=False)
        panels[0, 0].set_ylabel("mean absolute update")
        panels[0, 0].set_title(f"{results['dataset']}, {results['net']}")


def _cpu(config: Config) -> Size:
    """About ten minutes on two cores; convolutions cost more."""
    iterations, warm_up = (1_000, 200) if config.net == "mlp" else (500, 100)
    return Size(seeds=1, iterations=iterations, warm_up=warm_up)


EXPERIMENT = Experiment(
    name="update_magnitudes",
    paper="Figures 2 and 9",
    title="Mean absolute updates",
    sizes={
        "smoke": Size(seeds=2, iterations=150, warm_up=50),
        "cpu": _cpu,
        "paper": Size(),
    },
    measure=measure,
    plot=plot,
    claims=claims,
)
main = partial(execute, EXPERIMENT)

if __name__ == "__main__":
    cli(main, Config)
