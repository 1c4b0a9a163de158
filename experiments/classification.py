"""Test accuracies of MLPs and convolutional nets (Table 2, Figures 5 and 6).

python -m experiments.classification
python -m experiments.classification --preset cpu --net conv --data-dir DIR
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import scipy.stats
import tyro

from experiments.common import report
from experiments.common.harness import Claim, Experiment, Options, Run, execute
from experiments.common.methods import select
from experiments.common.runner import timeless, train_methods
from experiments.common.settings import settings
from experiments.common.tasks import TrainingSize as Size
from experiments.common.tasks import make_task

METHODS = ("BP", "BP-Adam", "SeqIL", "SeqIL-MQ", "SeqIL-Adam")

# Table 2: mean and standard deviation of the best test accuracy in %, 5 seeds.
PAPER: dict[tuple[str, str, str], dict[str, tuple[float, float]]] = {
    key: dict(zip(METHODS, values, strict=True))
    for key, values in {
        ("mlp", "svhn_cropped", "top1"): (
            (84.40, 0.12),
            (84.08, 0.13),
            (82.19, 0.70),
            (84.51, 0.17),
            (84.13, 0.15),
        ),
        ("conv", "svhn_cropped", "top1"): (
            (87.82, 0.67),
            (89.02, 0.19),
            (81.55, 0.59),
            (88.67, 0.18),
            (82.76, 0.87),
        ),
        ("mlp", "cifar10", "top1"): (
            (56.55, 0.08),
            (56.15, 0.21),
            (54.24, 0.18),
            (57.70, 0.21),
            (56.21, 0.20),
        ),
        ("conv", "cifar10", "top1"): (
            (67.76, 0.43),
            (67.51, 0.45),
            (50.67, 0.76),
            (67.50, 0.19),
            (59.72, 0.48),
        ),
        ("conv", "tiny_imagenet", "top1"): (
            (23.14, 0.42),
            (25.61, 0.22),
            (13.88, 0.73),
            (23.91, 0.31),
            (18.22, 0.29),
        ),
        ("conv", "tiny_imagenet", "top5"): (
            (47.05, 0.46),
            (50.04, 0.41),
            (33.42, 1.16),
            (47.53, 0.48),
            (39.58, 0.46),
        ),
    }.items()
}
SIGNIFICANT = 0.05  # the level of the two-sample t-test


@dataclass(frozen=True)
class Config(Options):
    """Trains a net with backprop and predictive coding: test accuracies."""

    net: Literal["mlp", "conv"] = "mlp"
    """Which of the paper's nets."""
    methods: tuple[str, ...] = METHODS
    """The methods to train."""


def measure(config: Config, size: Size, run: Run) -> dict[str, Any]:
    """Trains every method over the seeds."""
    found = settings(config.net, config.dataset_name)
    images = config.load()
    task = make_task(config.net, images, found, train_images=size.train_images)
    keys = jax.random.split(jax.random.key(config.seed), size.seeds)
    trained = train_methods(
        run,
        config.net,
        task,
        select(config.methods),
        found,
        keys,
        epochs=size.epochs,
        on_nonfinite=config.on_nonfinite,
        in_turn=config.preset != "paper",
    )
    curves = timeless(run, config.net, trained)
    measures = ("top1", "top5") if images.num_classes > 10 else ("top1",)
    return {
        "net": config.net,
        "dataset": config.dataset_name,
        "full": config.preset == "paper",
        "settings": found.__dict__,
        "best": {name: _best(curves, name) for name in measures},
        "methods": curves,
    }


def _best(curves: dict[str, Any], measure: str) -> dict[str, Any]:
    """Accuracies in % by the paper's protocol, the best test epoch of every seed.

    `bold` are the method of the best mean and those that a two-sample t-test over the
    seeds does not tell from it; None with one seed.
    """
    tests = {
        name: 100 * report.array(found["test"][measure])
        for name, found in curves.items()
    }
    best = {name: values.max(0) for name, values in tests.items()}
    top = max(best, key=lambda name: best[name].mean())
    values = {
        name: float(scipy.stats.ttest_ind(best[top], row).pvalue)
        for name, row in best.items()
        if name != top and len(row) > 1
    }
    return {
        "accuracy": best,
        "epoch": {name: 1 + values.argmax(0) for name, values in tests.items()},
        "final": {name: values[-1] for name, values in tests.items()},
        "p_values_to_best": values,
        "bold": [top, *(n for n, p in values.items() if p >= SIGNIFICANT)]
        if values
        else None,
    }


def claims(results: dict[str, Any]) -> list[Claim]:
    """Every accuracy beside the paper's, and what the paper says of them."""
    rows = []
    for measure, found in results["best"].items():
        paper = PAPER.get((results["net"], results["dataset"], measure), {})
        for name, best in found["accuracy"].items():
            said, here = paper.get(name), report.mean_std(best)
            final = report.mean_std(found["final"][name])
            bold = ", bold" if name in (found["bold"] or ()) else ""
            close = said and abs(np.mean(best) - said[0]) <= 1
            rows.append(
                Claim(
                    f"{name}, best {measure} test accuracy, %",
                    f"{said[0]:.2f} ± {said[1]:.2f}" if said else "-",
                    f"{here} (final {final}){bold}",
                    bool(close) if said and results["full"] else None,
                )
            )
    return rows + _statements(results)


def _statements(results: dict[str, Any]) -> list[Claim]:
    """The paper's sentences on these runs."""
    best = {k: report.array(v) for k, v in results["best"]["top1"]["accuracy"].items()}
    curves = results["methods"]
    rows = []
    if {"BP", "SeqIL-MQ"} <= set(best):
        gap = best["SeqIL-MQ"].mean() - best["BP"].mean()
        test = scipy.stats.ttest_ind(best["SeqIL-MQ"], best["BP"])
        rows.append(
            Claim(
                "SeqIL-MQ is never significantly worse than BP",
                "section 6",
                f"{gap:+.2f} points, p = {test.pvalue:.2g}",
                bool(gap > 0 or test.pvalue >= SIGNIFICANT),
            )
        )
        first = {
            name: report.array(found["train_loss"])[0].mean()
            for name, found in curves.items()
        }
        rows.append(
            Claim(
                "SeqIL-MQ reduces the loss more quickly than BP early on",
                "section 6",
                f"training loss of epoch 1: {first['SeqIL-MQ']:.3f}, {first['BP']:.3f}",
                bool(first["SeqIL-MQ"] < first["BP"]),
            )
        )
    if {"SeqIL", "SeqIL-MQ"} <= set(best):
        gap = best["SeqIL-MQ"].mean() - best["SeqIL"].mean()
        rows.append(
            Claim(
                "without an optimizer SeqIL converges to poorer minima than SeqIL-MQ",
                "section 6",
                f"SeqIL-MQ is {gap:+.2f} points ahead"
                + ("" if results["full"] else ", long before convergence"),
                bool(gap > 0) if results["full"] else None,
            )
        )
    return rows


def plot(results: dict[str, Any], folder: Path) -> None:
    """Test accuracy, test loss and training loss against the epoch."""
    panels_of = (
        ("test accuracy (%)", lambda c: 100 * report.array(c["test"]["top1"])),
        ("test loss (nats)", lambda c: c["test"]["loss"]),
        ("training loss (nats)", lambda c: c["train_loss"]),
    )
    with report.figure(folder / "curves.png", columns=3) as panels:
        for panel, (label, values) in zip(panels[0], panels_of, strict=True):
            for name, curves in results["methods"].items():
                rows = values(curves)
                report.band(panel, range(1, len(rows) + 1), rows, name)
            panel.set(xlabel="epoch", ylabel=label)
            report.whole_numbers(panel)
        panels[0, 0].set_title(f"{results['dataset']}, {results['net']}")
        report.legend_beside(panels[0, -1])


def _cpu(config: Config) -> Size:
    """About ten minutes on two cores; convolutions cost more."""
    if config.net == "mlp":
        return Size(epochs=10, seeds=3, train_images=20_000)
    if config.dataset_name == "tiny_imagenet":
        return Size(epochs=5, seeds=2, train_images=8_000)
    return Size(epochs=8, seeds=2, train_images=10_000)


EXPERIMENT = Experiment(
    name="classification",
    paper="Table 2, Figures 5 and 6",
    title="Best test accuracy",
    sizes={
        "smoke": Size(epochs=2, seeds=2, train_images=640),
        "cpu": _cpu,
        "paper": Size(),
    },
    measure=measure,
    plot=plot,
    claims=claims,
)
main = partial(execute, EXPERIMENT)

if __name__ == "__main__":
    main(tyro.cli(Config))
