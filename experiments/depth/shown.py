"""What the tables of the depth experiment say."""

from typing import Any

import numpy as np

from experiments.common import report
from experiments.common.harness import Claim

FEW = ("BP-Adam", "PC-Adam")  # what is trained of widths and batches


def claims(results: dict[str, Any]) -> list[Claim]:
    """Accuracies of a cell, and what its gradients are."""
    rows = []
    for name, cell in results["cells"].items():
        for method, found in cell["methods"].items():
            choice = found["choice"]
            rate = found["rates"][choice["point"]]
            edge = choice["point"] in (0, len(found["rates"]) - 1)
            rows.append(
                Claim(
                    f"{name}, {method}: test accuracy, %",
                    "-",
                    f"{report.mean_std(choice['test'], 100)} (rate {rate:.2g}"
                    f"{', at the edge of the grid' if edge else ''}, "
                    f"epochs to BP-Adam's less 1 point: {_to_backprop(cell, method)})",
                )
            )
            if found.get("own"):
                cosines = [report.array(x["cosine"]) for x in found["own"].values()]
                rows.append(
                    Claim(
                        f"{name}, {method}: cosine to backprop over the layers, fresh; "
                        "trained",
                        "-",
                        "; ".join(f"{c.min():.3f} to {c.max():.3f}" for c in cosines),
                    )
                )
        seen = cell["methods"]["BP-Adam"]["gradients"]["trained"]
        for rule, residual in seen["residuals"].items():
            like = [
                report.array(seen[to][rule]["cosine"])
                for to in ("to_backprop", "to_equilibrium")
                if rule in seen[to]
            ]
            rows.append(
                Claim(
                    f"{name}, trained: cosine of {rule} over the layers, to backprop; "
                    "to the equilibrium; ||dF/dh|| beside that of the forward pass",
                    "-",
                    "; ".join(f"{c.min():.3f} to {c.max():.3f}" for c in like)
                    + f"; {residual:.2g}",
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
    return [*rows, *_beside(results)]


def _beside(results: dict[str, Any]) -> list[Claim]:
    """What is told of other widths, and of steps of few and of many images."""
    rows = []
    for name, cell in results.get("transfer", {}).items():
        cosines = [
            report.array(seen["to_backprop"]["equilibrium"]["cosine"])
            for seen in cell["methods"]["BP-Adam"]["gradients"].values()
        ]
        rows.append(
            Claim(
                f"{name}: cosine of the equilibrium to backprop over the layers, "
                "fresh; trained",
                "-",
                "; ".join(f"{c.min():.3f} to {c.max():.3f}" for c in cosines),
            )
        )
    for name, cell in results.get("batches", {}).items():
        for method, found in cell["methods"].items():
            test = report.mean_std(found["choice"]["test"], 100)
            rate = found["rates"][found["choice"]["point"]]
            what = f"{name}, {method}: test accuracy, %"
            rows.append(Claim(what, "-", f"{test} (rate {rate:.2g})"))
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
            epoch[method] = np.min(seconds[f"{part}, per epoch"][method])
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
        if cell["depth"] >= DEEP:
            rows.append(_reached(name, cell, epoch))
    return rows


DEEP = 64


def _reached(name: str, cell: dict[str, Any], epoch: dict[str, float]) -> Claim:
    """Whether a method trains it to within a point of BP-Adam at under twice the time.

    Time is that of an epoch, as all have the same number of them.
    """
    tests = {
        method: float(np.mean(report.array(found["choice"]["test"])))
        for method, found in cell["methods"].items()
    }
    enough = [
        method
        for method, test in tests.items()
        if not method.startswith("BP")
        and test > tests["BP-Adam"] - 0.01
        and epoch[method] < 2 * epoch["BP-Adam"]
    ]
    return Claim(
        f"{name}: a method within a point of BP-Adam at less than twice its time",
        "-",
        ", ".join(enough) or "none",
        bool(enough),
    )
