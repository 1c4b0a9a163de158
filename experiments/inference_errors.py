"""How errors spread through the layers during inference (Figures 3 and 7).

python -m experiments.inference_errors
python -m experiments.inference_errors --preset cpu --data-dir DIR

Untrained networks see the test images. The mean squared error of every layer is taken
before the first and after every iteration, at the same point of it for both methods.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pcjax
from experiments.common import report
from experiments.common.harness import (
    Claim,
    Experiment,
    Options,
    Run,
    cli,
    execute,
)
from experiments.common.live import Parts
from experiments.common.settings import settings
from pcjax import training

METHODS = {"simultaneous": pcjax.simultaneous, "sequential": pcjax.sequential}
STYLES = {"simultaneous": "IL", "sequential": "SeqIL"}
STEP_SIZE = 0.02
BATCH = 500


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    seeds: int = 10
    images: int = 10_000
    hidden: tuple[int, ...] = (1024, 1024, 1024, 1024)
    num_steps: int = 8


@dataclass(frozen=True)
class Config(Options):
    """Measures the squared errors of all layers during inference."""


def squared_errors(
    network: pcjax.Network,
    method: pcjax.Method,
    params: Any,
    inputs: jax.Array,
    targets: jax.Array,
) -> jax.Array:
    """The mean squared error of every layer, [T+1, L], a mean over batch and units."""

    def record(state):
        return jnp.stack([jnp.mean(error**2) for error in state.errors])

    return pcjax.infer(
        network, method, params, inputs, targets, output=pcjax.softmax, trace=record
    ).trace


def measure(config: Config, size: Size, run: Run) -> dict[str, Any]:
    """Both methods on the same networks and images, one part for every seed."""
    images = config.load()
    classes = images.num_classes
    found = settings("mlp", config.dataset_name)
    prepare = training.classification(classes, low=found.low, high=found.high)
    count = min(size.images, len(images.test.labels))
    batch = min(BATCH, count)
    count -= count % batch
    data = training.device_data(
        images.test.images[:count], images.test.labels[:count], classes
    )
    network = pcjax.mlp([data.images[0].size, *size.hidden, classes])

    @jax.jit
    def average(key):
        inputs, _ = prepare(data.images[:1], data.labels[:1])
        params = network.init(key, inputs)

        def add(_, start):
            rows = [jax.lax.dynamic_slice_in_dim(x, start, batch) for x in data]
            pair = prepare(*rows)
            return None, {
                name: squared_errors(
                    network, make(size.num_steps, STEP_SIZE), params, *pair
                )
                for name, make in METHODS.items()
            }

        _, found = jax.lax.scan(add, None, jnp.arange(count // batch) * batch)
        return jax.tree.map(lambda x: jnp.mean(x, 0), found)

    keys = jax.random.split(jax.random.key(config.seed), size.seeds)
    with Parts(run, len(keys)) as parts:
        rows = [
            parts.part(f"seed-{index}", partial(average, key))
            for index, key in enumerate(keys)
        ]
    return {
        "dataset": config.dataset_name,
        "images": count,
        "layers": len(network.layers),
        "step_size": STEP_SIZE,
        # [seeds, T+1, L] each
        "errors": {name: [row[name] for row in rows] for name in METHODS},
    }


def first_iterations(errors: Any) -> list[int | None]:
    """The iteration at which every layer's error is first above 0, in all seeds."""
    reached = np.all(report.array(errors) > 0, axis=0)
    return [int(row.argmax()) if row.any() else None for row in reached.T]


def claims(results: dict[str, Any]) -> list[Claim]:
    """When errors reach which layer."""
    count = results["layers"]
    first = {name: first_iterations(rows) for name, rows in results["errors"].items()}
    hidden = range(1, count)
    rows = [
        Claim(
            "sequential: every hidden layer has an error after iteration 1",
            "Figure 3",
            f"first non-zero after iterations {first['sequential'][:-1]}",
            all(t == 1 for t in first["sequential"][:-1]),
        ),
        Claim(
            "simultaneous: layer l has none before iteration L - l",
            "Figure 3",
            f"first non-zero after iterations {first['simultaneous'][:-1]}",
            all(first["simultaneous"][layer - 1] == count - layer for layer in hidden),
        ),
    ]
    for name, errors in results["errors"].items():
        last = report.array(errors)[:, -1].mean(0)
        rows.append(
            Claim(
                f"{name}: mean squared error of layers 1 to {count} at the end",
                "Figure 3 (no numbers)",
                ", ".join(f"{value:.1e}" for value in last),
            )
        )
    return rows


def plot(results: dict[str, Any], folder: Path) -> None:
    """A panel for every layer, both methods, against the iteration."""
    count = results["layers"]
    with report.figure(
        folder / "errors.png", columns=count, figsize=(2.9 * count, 2.9)
    ) as panels:
        for layer, panel in enumerate(panels[0]):
            for name, errors in results["errors"].items():
                rows = report.array(errors)[:, :, layer].T
                style = report.STYLES[STYLES[name]]
                # Zero has no place on the axis: the line begins where errors do.
                rows = np.where(rows > 0, rows, np.nan)
                report.band(panel, range(len(rows)), rows, name, marker="o", **style)
            title = "output" if layer == count - 1 else f"layer {layer + 1}"
            scale = "linear" if layer == count - 1 else "log"
            panel.set(xlabel="inference iteration", yscale=scale, title=title)
            panel.set_xlim(-0.3, len(rows) - 0.7)
            report.whole_numbers(panel)
        panels[0, 0].set_ylabel("mean squared error")
        panels[0, -1].legend(frameon=False)


EXPERIMENT = Experiment(
    name="inference_errors",
    paper="Figures 3 and 7",
    title="Squared errors during inference",
    sizes={
        "smoke": Size(seeds=2, images=100, hidden=(32, 32, 32, 32)),
        "cpu": Size(),
        "paper": Size(),
    },
    measure=measure,
    plot=plot,
    claims=claims,
    exact=True,  # which errors are zero
)
main = partial(execute, EXPERIMENT)

if __name__ == "__main__":
    cli(main, Config)
