"""A grid of learning rates and step sizes in one program, chosen twice.

python -m experiments.tune
python -m experiments.tune --preset cpu --data-dir DIR --methods SeqIL-MQ BP

Every method is trained with every point of the grid and every seed at once. Reported
side by side: the paper's protocol, which picks the rate and the epoch by the test set
itself, and the honest one, which picks both by images held out of the training set.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.classification.protocols import to_backprop
from experiments.classification.sentences import MARGIN
from experiments.common import grid, report
from experiments.common.claims import difference, enough, not_worse
from experiments.common.harness import (
    Claim,
    Experiment,
    Options,
    Run,
    cli,
    execute,
)
from experiments.common.methods import Hyper, Method, MethodName, select
from experiments.common.options import (
    BatchSize,
    Changes,
    Epochs,
    adapted,
    refuse_non_positive,
)
from experiments.common.runner import Plan, constantly, timeless, train_methods
from experiments.common.settings import Net, Settings, settings
from experiments.common.tasks import TrainingSize as Size
from experiments.common.tasks import make_task

BACKPROP = ("BP", "BP-Adam")  # have no inference whose steps could have a size


@dataclass(frozen=True)
class Config(Options, Epochs, BatchSize, Changes):
    """Searches learning rates and step sizes by the test set and by validation."""

    net: Net = "mlp"
    """Which of the paper's nets."""
    methods: tuple[MethodName, ...] = (
        "BP",
        "BP-Adam",
        "SeqIL",
        "SeqIL-MQ",
        "SeqIL-Adam",
    )
    """The methods to tune."""
    rates: tuple[float, ...] = ()
    """Learning rates; by default the factors below times that of the settings."""
    factors: tuple[float, ...] = (1 / 3, 1.0, 3.0)
    """Multiples of the settings' learning rate."""
    step_sizes: tuple[float, ...] = ()
    """Step sizes of inference; by default that of the settings alone."""
    held_out: float = 0.1
    """The part of the training images that is held out for validation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rates", "factors", "step_sizes"):
            refuse_non_positive(name, *getattr(self, name))
        if not (self.rates or self.factors):
            raise ValueError("--factors must not be empty where no --rates are given.")
        if not 0 < self.held_out < 1:
            raise ValueError(
                f"--held-out must be between 0 and 1, got {self.held_out}."
            )


def measure(config: Config, size: Size, run: Run) -> dict[str, Any]:
    """A part for every method."""
    found = adapted(settings(config.net, config.dataset_name), config)
    images = config.load()
    task = make_task(
        config.net,
        images,
        found,
        train_images=size.train_images,
        validation=config.held_out,
    )
    keys = jax.random.split(jax.random.key(config.seed), size.seeds)
    kind = "loss" if config.net == "autoencoder" else "top1"
    results = {}
    for method in select(config.methods):
        points = _points(config, method, found)
        hyper, repeated = grid.runs(points, keys)
        trained = train_methods(
            run,
            method.name,
            task,
            [method],
            found,
            repeated,
            Plan(epochs=size.epochs, hyper=constantly(hyper)),
        )
        curves = timeless(run, method.name, trained)[method.name]
        protocols = _protocols(curves, kind, len(points))
        results[method.name] = {
            "points": [point._asdict() for point in points],
            "protocols": protocols,
            # The curves of the rate that the honest protocol chooses.
            **_of_point(curves, protocols["validation"]["point"], len(points)),
            # Best epoch of every point, mean over seeds.
            "best": {
                name: _best(curves[name][kind], kind, len(points))
                for name in ("test", "validation")
            },
        }
    return {
        "dataset": config.dataset_name,
        "net": config.net,
        "measure": kind,
        "settings": dataclasses.asdict(found),
        "methods": results,
    }


def _points(config: Config, method: Method, found: Settings) -> list[Hyper]:
    own = method.hyper(found)
    rates = config.rates or [factor * own.learning_rate for factor in config.factors]
    sizes = () if method.name in BACKPROP else config.step_sizes
    return grid.points(rates, sizes or (own.step_size,))


def _protocols(curves: dict, kind: str, count: int) -> dict[str, Any]:
    test = curves["test"][kind]
    return {
        name: grid.choose(by, test, count, higher_is_better=kind != "loss")._asdict()
        for name, by in (
            ("best test epoch", test),
            ("validation", curves["validation"][kind]),
        )
    }


def _of_point(curves: dict, point: int, count: int) -> dict[str, Any]:
    """Training loss and tests of a point, [epochs, seeds] each."""

    def take(values: Any) -> np.ndarray:
        return report.array(values).reshape(len(values), count, -1)[:, point]

    tests = {name: take(values) for name, values in curves["test"].items()}
    return {"train_loss": take(curves["train_loss"]), "test": tests}


def _best(values: Any, kind: str, count: int) -> np.ndarray:
    rows = report.array(values).reshape(len(values), count, -1)
    # An epoch that diverged is not the best one, as in the choice.
    return (np.fmin if kind == "loss" else np.fmax).reduce(rows).mean(-1)


def claims(results: dict[str, Any]) -> list[Claim]:
    """Both protocols side by side, and SeqIL-MQ against backprop by the honest one."""
    rows = []
    for name, found in results["methods"].items():
        for protocol, choice in found["protocols"].items():
            rows.append(_chosen(results, name, protocol, choice))
    return rows if results["measure"] == "loss" else [*rows, *_against(results)]


def _chosen(
    results: dict[str, Any], name: str, protocol: str, choice: dict[str, Any]
) -> Claim:
    scale, digits = (1.0, 4) if results["measure"] == "loss" else (100.0, 2)
    unit = "BCE a pixel" if results["measure"] == "loss" else "accuracy, %"
    points = results["methods"][name]["points"]
    point = points[choice["point"]]
    rates = {row["learning_rate"] for row in points}
    edge = len(rates) > 1 and point["learning_rate"] in (min(rates), max(rates))
    eps = "" if name in BACKPROP else f" eps {point['step_size']:.3g},"
    return Claim(
        f"{name}, chosen by {protocol}: test {unit}",
        "-",
        f"{report.mean_std(choice['test'], scale, digits)} "
        f"(rate {point['learning_rate']:.3g}{', the edge of the grid' if edge else ''},"
        f"{eps} epochs {choice['epochs']})",
    )


def times(results: dict[str, Any], seconds: dict[str, Any]) -> list[Claim]:
    """Seconds of training to BP's final accuracy, rates chosen by validation.

    All points and seeds of a method share its epochs; the fastest counts.
    """
    methods = results["methods"]
    if results["measure"] == "loss" or not _has_curves(methods):
        return []
    rows = []
    for name, epochs in to_backprop(methods).items():
        measured = seconds.get(f"{name}, per epoch", {}).get(name)
        if not measured:
            continue
        seeds = report.array(methods[name]["test"]["top1"]).shape[1]
        runs = seeds * len(methods[name]["points"])
        each = min(measured) / runs
        here = f"{epochs * each:.0f} s" if epochs else "never"
        rows.append(
            Claim(
                f"{name}, seconds of training to BP's final accuracy, rates chosen by "
                "validation",
                "-",
                f"{here}; {each:.3g} s a network, the fastest epoch of {runs} together",
            )
        )
    return rows


def _has_curves(methods: dict[str, Any]) -> bool:
    """Whether those of the chosen rates were kept; older versions kept none."""
    return all("train_loss" in found for found in methods.values())


def _against(results: dict[str, Any]) -> list[Claim]:
    """Accuracy, and epochs to BP's last, with rates and epochs chosen by validation."""
    methods = results["methods"]
    if not _has_curves(methods):
        return []
    rows = [
        Claim(
            f"{name}, epochs to BP's final accuracy, rates chosen by validation",
            "-",
            "never" if epochs is None else f"{epochs}",
        )
        for name, epochs in to_backprop(methods).items()
    ]
    for other in BACKPROP:
        if {"SeqIL-MQ", other} <= set(methods):
            ours, theirs = (
                100 * report.array(methods[name]["protocols"]["validation"]["test"])
                for name in ("SeqIL-MQ", other)
            )
            gap = difference(ours, theirs)
            rows.append(
                Claim(
                    f"SeqIL-MQ is not worse than {other}, rates and epochs chosen by "
                    "validation",
                    "section 6, by the test set",
                    gap.text("points"),
                    enough(results, ["SeqIL-MQ", other], not_worse(gap, MARGIN)),
                )
            )
    return rows


def plot(results: dict[str, Any], folder: Path) -> None:
    """The best epoch of every point against the learning rate, by either set."""
    methods = results["methods"]
    scale = 1 if results["measure"] == "loss" else 100
    colors = [report.STYLES[name]["color"] for name in ("SeqIL", "IL", "iPC", "BP")]
    with report.figure(
        folder / "grid.png", columns=len(methods), figsize=(3.1 * len(methods), 3.2)
    ) as panels:
        for panel, (name, found) in zip(panels[0], methods.items(), strict=True):
            rates = np.array([point["learning_rate"] for point in found["points"]])
            steps = np.array([point["step_size"] for point in found["points"]])
            several = len(set(steps)) > 1
            for index, eps in enumerate(dict.fromkeys(steps)):
                for kind, line in (("test", "-"), ("validation", ":")):
                    values = scale * report.array(found["best"][kind])[steps == eps]
                    panel.plot(
                        rates[steps == eps],
                        values,
                        line,
                        marker="o",
                        markersize=4,
                        color=colors[index % len(colors)],
                        label=f"eps {eps:g}, {kind}" if several else kind,
                    )
            panel.set(xscale="log", xlabel="learning rate", title=name)
            ticks = sorted(set(rates))
            panel.set_xticks(ticks, [f"{rate:.2g}" for rate in ticks])
            panel.set_xticks([], minor=True)
        label = "loss" if results["measure"] == "loss" else "accuracy (%)"
        panels[0, 0].set_ylabel(f"best {label}")
        # Backprop has one line of each kind, other methods one for every step size.
        lines = {x.get_label(): x for panel in panels[0] for x in panel.get_lines()}
        report.legend_beside(panels[0, -1], handles=[*lines.values()])


EXPERIMENT = Experiment(
    name="tune",
    paper="the grid searches of A.5",
    title="Rates chosen by the test set and by validation",
    sizes={
        "smoke": Size(seeds=2, epochs=2, train_images=640),
        "cpu": Size(seeds=2, epochs=4, train_images=5_000),
        "paper": Size(),
    },
    measure=measure,
    plot=plot,
    claims=claims,
    times=times,
    free=("methods",),
)
main = partial(execute, EXPERIMENT)

if __name__ == "__main__":
    cli(main, Config)
