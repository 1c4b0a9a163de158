"""The mean magnitude of the updates of every weight matrix (Figure 2).

python -m experiments.update_magnitudes --dataset cifar10 --data-dir DIR

Without an optimizer the updates of the first matrices are far smaller than those of
the last; MQ makes them equal with one scalar a matrix, Adam with two numbers a
weight. A network is trained with each; after the warm-up, `mean |W_new - W_old|` is
averaged over the iterations.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from experiments import data, report, runner
from experiments.methods import METHODS, SETTINGS, Method, Settings
from pcjax import training


@dataclass(frozen=True)
class Config:
    """Measures the magnitude of the updates of every weight matrix."""

    dataset: str = "digits"
    """digits (built in), cifar10, svhn_cropped, mnist or fashion_mnist."""
    data_dir: Path | None = None
    """The folder of prepared TFDS data sets; digits needs none."""
    iterations: int = 1000
    """Training iterations; the paper's figure has 10,000."""
    warmup: int = 200
    """Iterations that are not averaged; the paper's figure leaves out 1,000."""
    methods: tuple[str, ...] = ("SeqIL", "SeqIL-MQ", "SeqIL-Adam")
    """The methods to compare."""
    seed: int = 0
    """Decides all randomness."""
    out: Path = Path("out/update_magnitudes")
    """Where summary.json and magnitudes.png go."""


def measure(
    method: Method, task: runner.Task, settings: Settings, config: Config
) -> np.ndarray:
    """The averaged magnitude of the updates of every weight matrix, [L]."""
    tx = method.optimizer(settings.learning_rates[method.name], settings)
    update = method.rule(task.network, task.output, tx, settings)
    key = jax.random.key(config.seed)
    inputs, _ = task.prepare(task.train.images[:1], task.train.labels[:1])
    state = training.init_state(task.network, tx, key, inputs)

    @jax.jit
    def train(state):
        def iterate(carry, key):
            params, opt_state = carry
            index = jax.random.randint(
                key, (settings.batch_size,), 0, len(task.train.images)
            )
            batch = task.prepare(task.train.images[index], task.train.labels[index])
            moved, opt_state, _ = update(params, opt_state, *batch)
            magnitudes = [
                jnp.mean(jnp.abs(new["kernel"] - old["kernel"]))
                for new, old in zip(moved, params, strict=True)
            ]
            return (moved, opt_state), jnp.stack(magnitudes)

        keys = jax.random.split(state.key, config.iterations)
        return jax.lax.scan(iterate, (state.params, state.opt_state), keys)[1]

    return np.asarray(train(state))[config.warmup :].mean(0)


def main(config: Config) -> None:
    """Measures every method, prints a table and writes the results."""
    known = {method.name: method for method in METHODS}
    unknown = sorted(set(config.methods) - set(known))
    if unknown or not 0 <= config.warmup < config.iterations:
        raise SystemExit(
            f"expected methods of {list(known)} and a warm-up shorter than the "
            f"iterations, got {unknown}, {config.warmup} and {config.iterations}."
        )
    try:
        images = data.load(config.dataset, config.data_dir)
    except (ValueError, data.DatasetError) as error:
        raise SystemExit(str(error)) from error
    settings = SETTINGS[config.dataset]
    task = runner.mlp_task(images, settings)
    layers = len(task.network.layers)
    table = Table(
        "method", *(f"W{index}" for index in range(layers)), "largest/smallest"
    )
    summary = report.provenance(config, settings) | {"methods": []}
    config.out.mkdir(parents=True, exist_ok=True)
    for name in config.methods:
        magnitudes = measure(known[name], task, settings, config)
        ratio = float(magnitudes.max() / magnitudes.min())
        summary["methods"].append(
            {
                "name": name,
                "magnitudes": magnitudes.tolist(),
                "largest_to_smallest": ratio,
                "last_to_first": float(magnitudes[-1] / magnitudes[0]),
            }
        )
        table.add_row(name, *(f"{m:.2e}" for m in magnitudes), f"{ratio:.1f}")
        (config.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    Console().print(table)
    plot(summary, config.out / "magnitudes.png")


def plot(summary: dict, path: Path) -> None:
    """Draws the magnitudes of every method against the matrix."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4.6, 3.4), layout="constrained")
    for row in summary["methods"]:
        axes.plot(row["magnitudes"], label=row["name"], **report.STYLES[row["name"]])
    axes.set(
        xlabel="weight matrix",
        ylabel="mean absolute update",
        yscale="log",
        title=summary["config"]["dataset"],
        xticks=range(len(summary["methods"][0]["magnitudes"])),
    )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Config))
