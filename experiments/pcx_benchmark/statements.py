"""Accuracies beside the published ones, and the order of the methods."""

from typing import Any

import numpy as np

from experiments.classification.protocols import (
    PROTOCOLS,
    accuracies,
    chosen_on_halves,
)
from experiments.common import report
from experiments.common.claims import Claim, above, difference
from experiments.pcx_benchmark.published import ACCURACIES, ORDER

SOURCE = "second-hand"


def claims(results: dict[str, Any]) -> list[Claim]:
    """Every accuracy by every protocol, the orders, and how near backprop each is."""
    methods = results["methods"]
    said = ACCURACIES.get((results["dataset"], results["net"]), {})
    rows = []
    for name, curves in methods.items():
        found = accuracies(curves, "top1")
        for protocol, label in PROTOCOLS.items():
            published = said.get(name) if protocol == "best" else None
            rows.append(
                Claim(
                    f"{name}, test accuracy, %, {label}",
                    f"{published} ({SOURCE})" if published else "-",
                    report.mean_std(getattr(found, protocol)) + _skipped(curves),
                )
            )
    return [*rows, *_orders(results), *_cosines(methods)]


def honest(curves: dict[str, Any]) -> np.ndarray:
    """Accuracy in %, [runs], of the epoch chosen on half of the test images."""
    return chosen_on_halves(100 * report.array(curves["halves"]["top1"]))


def _skipped(curves: dict[str, Any]) -> str:
    """How many steps were not finite and left out."""
    count = int(np.sum(curves.get("refused_steps", 0)))
    return f" ({count} steps not finite, left out)" if count else ""


def _orders(results: dict[str, Any]) -> list[Claim]:
    """How far a method is ahead of another, by the honest protocol.

    It is judged where the same net on the same data is published.
    """
    halves = {name: honest(curves) for name, curves in results["methods"].items()}
    ranked = sorted(halves, key=lambda name: -np.mean(halves[name]))
    rows = [
        Claim(
            f"order of the methods ({PROTOCOLS['halves']})",
            "-",
            ", ".join(f"{name} {np.mean(halves[name]):.1f}" for name in ranked),
        )
    ]
    for better, worse, dataset, said in ORDER:
        same = (results["net"], results["dataset"]) == ("vgg5", dataset)
        if {better, worse} <= set(halves):
            gap = difference(halves[better], halves[worse])
            rows.append(
                Claim(
                    f"{better} is ahead of {worse}",
                    f"{said}, VGG5 on {dataset} ({SOURCE})",
                    gap.text("points"),
                    above(gap) if same else None,  # nothing is said of other nets
                )
            )
    return rows


def _cosines(methods: dict[str, Any]) -> list[Claim]:
    """The cosine to backprop of the first, the last and the worst layer."""
    rows = []
    for name, curves in methods.items():
        if "cosine" not in curves:  # backprop's own
            continue
        mean = report.array(curves["cosine"]).mean(1)  # over the runs
        text = f"{mean[0]:.3f}, {mean[-1]:.3f}, {mean.min():.3f}"
        if "residual" in curves:
            left = float(report.array(curves["residual"]).mean())
            text += f"; ||dF/dh|| is down to {left:.1g} of it"
            if not np.isfinite(left):  # NaN in JSON is null
                text = "not finite for all examples of a batch"
        rows.append(
            Claim(
                f"{name}, cosine to backprop of the first, last and worst layer",
                "-",
                text,
            )
        )
    return rows


def times(results: dict[str, Any], seconds: dict[str, Any]) -> list[Claim]:
    """Seconds of the fastest epoch, all seeds together.

    Algorithms do not take turns, so that they met other work of the machine unequally:
    ratios of their times are those of `benchmarks.kernels`.
    """
    return [
        Claim(
            f"{name}, seconds of the fastest epoch, all seeds",
            "-",
            f"{min(seconds[f'{name}, per epoch'][name]):.3g}",
        )
        for name in results["methods"]
        if f"{name}, per epoch" in seconds
    ]
