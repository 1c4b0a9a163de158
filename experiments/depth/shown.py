"""What the tables of the depth experiment say."""

from typing import Any

import numpy as np

from experiments.common import report
from experiments.common.harness import Claim


def claims(results: dict[str, Any]) -> list[Claim]:
    """Accuracies of a cell, and what its gradients are."""
    rows = []
    for name, cell in results["cells"].items():
        for method, found in cell["methods"].items():
            choice = found["choice"]
            rate = found["rates"][choice["point"]]
            rows.append(
                Claim(
                    f"{name}, {method}: test accuracy, %",
                    "-",
                    f"{report.mean_std(choice['test'], 100)} (rate {rate:.2g}, "
                    f"epochs to BP-Adam's less 1 point: {_to_backprop(cell, method)})",
                )
            )
        seen = cell["methods"]["BP-Adam"]["gradients"]["trained"]
        for rule, like in seen["to_backprop"].items():
            cosine = report.array(like["cosine"])
            rows.append(
                Claim(
                    f"{name}, trained: cosine of {rule} to backprop over the layers",
                    "-",
                    f"{cosine.min():.3f} to {cosine.max():.3f}",
                )
            )
        rows.append(
            Claim(
                f"{name}, trained: largest curvature in errors, in activities",
                "-",
                f"{seen['error_curvature']:.3g}, {seen['activity_curvature']:.3g}; "
                f"equilibrium reached by {seen['settled']:.0%}",
            )
        )
    return rows


def _to_backprop(cell: dict[str, Any], method: str) -> str:
    """The first epoch within a point of the best of BP-Adam."""
    goal = report.array(cell["methods"]["BP-Adam"]["test"]).max() - 0.01
    reached = np.flatnonzero(report.array(cell["methods"][method]["test"]) >= goal)
    return str(reached[0] + 1) if len(reached) else "never"


def times(results: dict[str, Any], seconds: dict[str, Any]) -> list[Claim]:
    """Time of an epoch beside BP-Adam's, and to its accuracy."""
    rows = []
    for name, cell in results["cells"].items():
        epoch = {}
        for method in cell["methods"]:
            part = f"{name}-{method}".replace(" ", "")
            epoch[method] = np.median(seconds[f"{part}, per epoch"][method])
        for method in cell["methods"]:
            reached = _to_backprop(cell, method)
            first = _to_backprop(cell, "BP-Adam")
            ratio = epoch[method] / epoch["BP-Adam"]
            whole = "never"
            if reached != "never":
                whole = f"{ratio * int(reached) / int(first):.2f}"
            rows.append(
                Claim(
                    f"{name}, {method}: time beside BP-Adam's, of an epoch; to within "
                    "a point of its accuracy",
                    "-",
                    f"{ratio:.2f}; {whole}",
                )
            )
    return rows
