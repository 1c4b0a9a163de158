"""The proximal objective along inference (Figures 1 and 8).

python -m experiments.proximal_objective
python -m experiments.proximal_objective --preset cpu --data-dir DIR

`Prox_beta = loss + ||delta theta||^2 / (2 beta)` (eq. 6) is what an update of implicit
SGD minimises. A network is trained; then, at every iteration of the inference of a
test image, the weights are updated by that image alone, from its activities at that
iteration, and the loss after the update and the update's squared norm are measured.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import pcjax
from experiments.common import report
from experiments.common.claims import below, change
from experiments.common.harness import Claim, Experiment, Options, Run, execute
from experiments.common.live import Parts
from experiments.common.options import BatchSize, Iterations, LearningRate, adapted
from experiments.common.tasks import Task, make_task
from experiments.proximal_objective.methods import (
    Name,
    figure_settings,
    select,
    trainer,
)
from experiments.proximal_objective.plots import plot
from experiments.proximal_objective.rank_one import StepRule, own_updates
from pcjax import training
from pcjax.inference.state import InferenceState, Problem, state_energy

BETAS = (0.01, 0.1, 1.0, 10.0, 100.0)
CHUNK = 500  # images that are measured at a time; results do not depend on it


class Measured(NamedTuple):
    """What is measured of N images before the first and after every iteration.

    Attributes:
      loss: [T+1, N], after the image's own update.
      squared_norms: [T+1, L, N], of this update of each layer.
      energy: [T+1, N], the free energy (of the old weights).
    """

    loss: Any
    squared_norms: Any
    energy: Any


@dataclass(frozen=True)
class Size:
    """How much is trained and measured; None takes all test images."""

    iterations: int = 1000
    images: int | None = 10_000
    seeds: int = 5


@dataclass(frozen=True)
class Config(Options, Iterations, BatchSize, LearningRate):
    """Measures the proximal objective along inference."""

    methods: tuple[Name, ...] = ("IL", "IL-MQ", "SeqIL", "SeqIL-MQ")
    """The methods to measure; IL-norm is IL with the normalised step size."""
    betas: tuple[float, ...] = BETAS
    """The weights beta of the objective."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.betas or not all(0 < beta < np.inf for beta in self.betas):
            raise ValueError(
                f"--betas must be one or more positive numbers, got {self.betas}."
            )


def along_inference(
    task: Task,
    method: pcjax.Method,
    params: Any,
    rule: StepRule,
    images: training.Data,
) -> Measured:
    """Measures the own updates of the images at every iteration of their inference.

    The output is fully clamped, all gammas are 1.

    Args:
      task: network, output and what makes inputs of images.
      method: the inference.
      params: of the network, which has dense layers.
      rule: the step sizes of the updates.
      images: N of them.

    Returns:
      What is measured, of the N images.
    """
    count = len(images.labels)
    chunk = min(CHUNK, count)
    problem = Problem(task.network, task.output, pcjax.full_clamp, 1.0, 0.0)

    def measure(_, start):
        # The last chunk is filled up with copies, which are cut off below.
        index = jnp.minimum(start + jnp.arange(chunk), count - 1)
        inputs, targets = task.prepare(*jax.tree.map(lambda rows: rows[index], images))

        def trace(state: InferenceState) -> Measured:
            own = own_updates(task.network, params, state, rule(state))
            return Measured(
                task.output.loss(own.logits, targets),
                own.squared_norms,
                state_energy(problem, state),
            )

        found = pcjax.infer(
            task.network,
            method,
            params,
            inputs,
            targets,
            output=task.output,
            trace=trace,
        )
        return None, found.trace

    _, rows = jax.lax.scan(measure, None, jnp.arange(0, count, chunk))
    # [chunks, T+1, ..., chunk] -> [T+1, ..., N]
    return jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)[..., :count], rows
    )


def measure(config: Config, size: Size, run: Run) -> dict[str, Any]:
    """Trains a network for every method and seed, and measures its test images."""
    kinds = select(config.methods)
    found = adapted(figure_settings(config.dataset_name), config)
    task = make_task("mlp", config.load(), found)
    measurements = {
        name: _measurement(kind, task, found, size, config.betas)
        for name, kind in kinds.items()
    }
    parts: dict[str, list] = {name: [] for name in kinds}
    with Parts(run, size.seeds * len(kinds)) as shown:
        order = itertools.product(range(size.seeds), measurements.items())
        for seed, (name, one) in order:
            key = jax.random.fold_in(jax.random.key(config.seed), seed)
            part = shown.part(f"{name}-{seed}", partial(one, key))
            # Times go to run.json, so that results are repeatable.
            run.seconds[f"{name}-{seed}, by step"] = part.pop("seconds")
            parts[name].append(part)
    measured = {  # [..., seeds]
        name: {
            key: np.stack([report.array(part[key]) for part in of_seeds], axis=-1)
            for key in of_seeds[0]
        }
        for name, of_seeds in parts.items()
    }
    return {
        "dataset": config.dataset_name,
        "settings": found.__dict__,
        "betas": config.betas,
        "images": len(task.test.labels[: size.images]),
        "methods": measured,
    }


def _measurement(kind, task, found, size, betas) -> Callable[[jax.Array], dict]:
    """`key -> what is kept of a network`, compiled once for all seeds."""
    images = jax.tree.map(lambda rows: rows[: size.images], task.test)
    tx = kind.method.optimizer(found.learning_rates[kind.method.name], found)

    fit = trainer(kind, task, found, size.iterations)

    @jax.jit
    def look(params, opt_state):
        rule = kind.steps(task.network, tx, opt_state, params)
        return along_inference(task, kind.inference(found), params, rule, images)

    def one(key):
        started = time.perf_counter()
        trained = jax.block_until_ready(fit(key))
        between = time.perf_counter()
        measured = jax.block_until_ready(look(*trained))
        seconds = {
            "training": round(between - started, 2),
            "measurement": round(time.perf_counter() - between, 2),
        }
        return {**summary(measured, betas), "seconds": seconds}

    return one


def summary(measured: Measured, betas: tuple[float, ...]) -> dict[str, np.ndarray]:
    """Averages over the images.

    Returns:
      loss, energy: [T+1].
      squared_norms: [T+1, L].
      objective: [betas, T+1].
      falls: [betas], the fraction of images whose own objective is lower at the end
        than at the start.
    """
    measured = Measured(*(np.asarray(rows, np.float64) for rows in measured))
    total = measured.squared_norms.sum(1)
    objectives = [measured.loss + total / (2 * beta) for beta in betas]
    return {
        **{name: rows.mean(-1) for name, rows in measured._asdict().items()},
        "objective": np.stack([rows.mean(1) for rows in objectives]),
        "falls": np.stack([(rows[-1] < rows[0]).mean() for rows in objectives]),
    }


def claims(results: dict[str, Any]) -> list[Claim]:
    """Whether the objective falls along inference, for every method and beta."""
    rows = []
    for name, found in results["methods"].items():
        for index, beta in enumerate(results["betas"]):
            values = report.array(found["objective"])[index]  # [T+1, seeds]
            share = np.mean(report.array(found["falls"])[index])
            lowest = int(values.mean(1).argmin())
            turn = f", lowest at t = {lowest}" if lowest < len(values) - 1 else ""
            said = _said(name, beta)
            fall = change(values[-1] - values[0])
            judged = "falls" in said
            interval = f"; {fall.text(digits=3)}" if judged else ""
            rows.append(
                Claim(
                    f"{name}, beta = {beta:g}",
                    said,
                    f"{_verdict(values)}: {_change(values)}{turn}; "
                    f"falls for {100 * share:.0f} % of the images{interval}",
                    below(fall) if judged else None,
                )
            )
        rows.append(_balance(name, found))
    return rows


def _said(name: str, beta: float) -> str:
    """What the paper says of a method and beta."""
    if beta >= 100:
        return "falls (Figures 1, 8)"
    if beta == 1 and name in ("IL", "SeqIL", "SeqIL-MQ"):
        return "falls (A.5)"
    return "less reliable (Figure 8)" if beta <= 0.01 else "-"


def _verdict(values: np.ndarray) -> str:
    lower = values[-1] < values[0]
    return "falls" if lower.all() else "mixed" if lower.any() else "rises"


def _change(values: np.ndarray) -> str:
    first, last = values[0], values[-1]
    percent = 100 * (last.mean() / first.mean() - 1)
    return (
        f"{report.mean_std(first, digits=3)} to {report.mean_std(last, digits=3)} "
        f"({percent:+.1f} %)"
    )


def _balance(name: str, found: dict[str, Any]) -> Claim:
    """Which betas the objective falls for: its two terms change as they do for all."""
    norms = report.array(found["squared_norms"]).mean(-1)  # [T+1, L]
    loss = report.array(found["loss"]).mean(-1)
    gain, cost = loss[0] - loss[-1], norms[-1].sum() - norms[0].sum()
    if gain > 0:
        bound = "every beta" if cost <= 0 else f"beta > {cost / (2 * gain):.2g}"
    else:
        bound = "no beta" if cost >= 0 else f"beta < {cost / (2 * gain):.2g}"
    shares = ", ".join(f"{100 * x:.0f}" for x in norms[-1] / norms[-1].sum())
    return Claim(
        f"{name}, falls for",
        "-",
        f"{bound}: loss {loss[0]:.3g} to {loss[-1]:.3g}, squared norm "
        f"{norms[0].sum():.3g} to {norms[-1].sum():.3g} (at the end {shares} % in W0, "
        "W1, ...)",
    )


EXPERIMENT = Experiment(
    name="proximal_objective",
    paper="Figures 1 and 8",
    title="Proximal objective along inference",
    sizes={
        "smoke": Size(iterations=100, images=None, seeds=2),
        "cpu": Size(seeds=2),
        "paper": Size(),
    },
    measure=measure,
    plot=plot,
    claims=claims,
)
main = partial(execute, EXPERIMENT)
