"""The proximal objective along inference (Figures 1 and 8).

python -m experiments.proximal_objective
python -m experiments.proximal_objective --preset cpu --data-dir DIR

`Prox_beta = loss + ||delta theta||^2 / (2 beta)` (eq. 6) is what an update of implicit
SGD minimises. A network is trained; then, at every iteration of the inference of a
test image, the weights are updated by that image alone, from its activities at that
iteration, and the loss after the update and the update's squared norm are measured.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import pcjax
from experiments import methods, report
from experiments.harness import Claim, Experiment, Options, Run, execute
from experiments.rank_one import (
    StepRule,
    normalised_steps,
    optimizer_steps,
    own_updates,
)
from experiments.settings import Settings, settings
from experiments.tasks import Task, make_task
from pcjax import training
from pcjax.kernel import InferenceState, Problem, state_energy
from pcjax.normalised import scale_by_squared_norms, squared_norms

BETAS = (0.01, 0.1, 1.0, 10.0, 100.0)
LARGE = 100.0  # the beta of Figure 1, where every method lowers the objective
CHUNK = 500  # images that are measured at a time; results do not depend on it


class Measured(NamedTuple):
    """What is measured of N images: before the first and after every iteration.

    Attributes:
      loss: [T+1, N], after the image's own update.
      squared_norms: [T+1, L, N], of this update of each layer.
      energy: [T+1, N], the free energy (of the old weights).
    """

    loss: jax.Array
    squared_norms: jax.Array
    energy: jax.Array


class Kind(NamedTuple):
    """A method of the figures.

    Attributes:
      method: how it trains.
      inference: its inference, by the settings.
      steps: `(network, tx, opt_state, params) -> StepRule`, of an image's own update.
    """

    method: methods.Method
    inference: Callable[[Settings], pcjax.Method]
    steps: Callable[..., StepRule]


@dataclass(frozen=True)
class Size:
    """How much is trained and measured; None takes all test images."""

    iterations: int = 1000
    images: int | None = 10_000
    seeds: int = 5


@dataclass(frozen=True)
class Config(Options):
    """Measures the proximal objective along inference."""

    methods: tuple[str, ...] = ("IL", "IL-MQ", "SeqIL", "SeqIL-MQ")
    """The methods to measure; IL-norm is IL with the normalised step size."""
    betas: tuple[float, ...] = BETAS
    """The weights beta of the objective."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.betas or not all(0 < beta < np.inf for beta in self.betas):
            raise ValueError(
                f"--betas must be one or more positive numbers, got {self.betas}."
            )


def normalised(network, output, tx, settings, step_size):
    """IL with the step `1 / (mean ||h_l||^2 + 1)` of the authors' baseline."""
    grad_fn = pcjax.value_and_grad(
        network,
        pcjax.simultaneous(settings.il_num_steps, step_size),
        output=output,
        clamp=pcjax.soft_clamp(settings.clamp),
        trace=lambda state: squared_norms(network, state.activities),
    )
    scale = scale_by_squared_norms()

    def update(params, opt_state, inputs, targets):
        value, grads = grad_fn(params, inputs, targets)
        norms = [norm[-1] for norm in value[1].trace]  # after inference
        grads, _ = scale.update(grads, optax.EmptyState(), squared_norms=norms)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    return update


def _simultaneous(found: Settings) -> pcjax.Method:
    return pcjax.simultaneous(found.il_num_steps, found.il_step_size)


def _sequential(found: Settings) -> pcjax.Method:
    return pcjax.sequential(found.num_steps, lambda t: found.step_size / (1 + t))


def _of_optimizer(network, tx, opt_state, params):
    return optimizer_steps(tx, opt_state, params)


def _of_activities(network, tx, opt_state, params):
    return normalised_steps(network)


def _kinds() -> dict[str, Kind]:
    il_norm = methods.Method(
        "IL-norm",
        normalised,
        methods.constant(optax.sgd),
        lambda found: found.il_step_size,
    )
    kinds = {"IL-norm": Kind(il_norm, _simultaneous, _of_activities)}
    for names, inference in (
        (("IL", "IL-MQ"), _simultaneous),
        (("SeqIL", "SeqIL-MQ"), _sequential),
    ):
        for method in methods.select(names):
            kinds[method.name] = Kind(method, inference, _of_optimizer)
    return kinds


def figure_settings(dataset: str) -> Settings:
    """The settings of the paper's MLP on a data set, with those of the two figures."""
    found = settings("mlp", dataset)
    return dataclasses.replace(
        found,
        learning_rates=found.learning_rates | {"IL": 1.0, "SeqIL": 1.0, "IL-norm": 1.0},
        num_steps=5,
        step_size=0.04,
        il_num_steps=20,
        il_step_size=0.01,
    )


def train(kind: Kind, task: Task, found: Settings, iterations: int, key: jax.Array):
    """Trains a network: `(params, opt_state)` after so many iterations."""
    tx = kind.method.optimizer(found.learning_rates[kind.method.name], found)
    step_size = kind.method.step_size(found)
    update = kind.method.rule(task.network, task.output, tx, found, step_size)
    state = training.init_state(task.network, tx, key, task.example())
    count, size = len(task.train.images), min(found.batch_size, len(task.train.images))
    steps = count // size  # of an epoch; a last short batch is dropped
    epochs = [
        jax.random.permutation(jax.random.fold_in(state.key, epoch), count)
        for epoch in range(-(-iterations // steps))
    ]
    order = jnp.concatenate([epoch[: steps * size] for epoch in epochs])

    def iterate(carry, index):
        batch = task.prepare(*jax.tree.map(lambda rows: rows[index], task.train))
        *carry, _ = update(*carry, *batch)
        return tuple(carry), None

    batches = order.reshape(-1, size)[:iterations]
    return jax.lax.scan(iterate, (state.params, state.opt_state), batches)[0]


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
    kinds = _select(config.methods)
    found = figure_settings(config.dataset_name)
    task = make_task("mlp", config.load(), found)
    measurements = {
        name: _measurement(kind, task, found, size, config.betas)
        for name, kind in kinds.items()
    }
    parts: dict[str, list] = {name: [] for name in kinds}
    for seed in range(size.seeds):
        key = jax.random.fold_in(jax.random.key(config.seed), seed)
        for name, one in measurements.items():
            part = run.part(f"{name}-{seed}", partial(one, key))
            # Times go to run.json, so that results are repeatable.
            run.seconds[f"{name}-{seed}, by step"] = part.pop("seconds")
            parts[name].append(part)
    measured = {  # [..., seeds]
        name: {
            key: np.stack([report.array(part[key]) for part in found_], axis=-1)
            for key in found_[0]
        }
        for name, found_ in parts.items()
    }
    return {
        "dataset": config.dataset_name,
        "settings": found.__dict__,
        "betas": config.betas,
        "images": min(size.images or np.inf, len(task.test.labels)),
        "methods": measured,
    }


def _select(names: tuple[str, ...]) -> dict[str, Kind]:
    known = _kinds()
    unknown = sorted(set(names) - set(known))
    if unknown or not names:
        raise ValueError(
            f"expected one or more methods of {list(known)}, got {unknown or 'none'}."
        )
    return {name: known[name] for name in names}


def _measurement(kind, task, found, size, betas) -> Callable[[jax.Array], dict]:
    """`key -> what is kept of a network`, compiled once for all seeds."""
    images = jax.tree.map(lambda rows: rows[: size.images], task.test)
    tx = kind.method.optimizer(found.learning_rates[kind.method.name], found)

    @jax.jit
    def fit(key):
        return train(kind, task, found, size.iterations, key)

    @jax.jit
    def look(params, opt_state):
        rule = kind.steps(task.network, tx, opt_state, params)
        return along_inference(task, kind.inference(found), params, rule, images)

    def one(key):
        started = time.perf_counter()
        trained = jax.block_until_ready(fit(key))
        between = time.perf_counter()
        rows = [np.asarray(x, np.float64) for x in look(*trained)]
        seconds = {"training": between - started, "measurement": None}
        seconds["measurement"] = time.perf_counter() - between
        return {**summary(Measured(*rows), betas), "seconds": seconds}

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
        objective, falls = (
            report.array(found["objective"]),
            report.array(found["falls"]),
        )
        for beta, values, share in zip(results["betas"], objective, falls, strict=True):
            first, last = values[0].mean(), values[-1].mean()
            rows.append(
                Claim(
                    f"{name}, beta = {beta:g}: Prox falls along inference",
                    "falls" if beta >= LARGE else "-",
                    f"{report.mean_std(values[0], digits=3)} to "
                    f"{report.mean_std(values[-1], digits=3)} "
                    f"({100 * (last / first - 1):+.1f} %); "
                    f"of {100 * share.mean():.0f} % of the images",
                    bool((values[-1] < values[0]).all()),
                )
            )
    return rows


def plot(results: dict[str, Any], folder: Path) -> None:
    """Change in percent, the curves of Figure 8, and those of Figure 1."""


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

if __name__ == "__main__":
    main(tyro.cli(Config))
