"""The table and the figure of `experiments.precision`."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import report
from experiments.common.claims import Claim


def claims(results: dict[str, Any]) -> list[Claim]:
    """Accuracies, and the least cosine of any matrix's gradient to float32's."""
    rows = []
    for row in results["runs"]:
        name = f"{row['rule']}, {row['precision']}"
        final = 100 * report.array(row["test_accuracy"])[:, -1]
        loss = report.array(row["train_loss"])[:, -1].mean()
        least = "; ".join(
            f"{when} {np.min(values):.4f}" for when, values in row["cosines"].items()
        )
        rows += [
            Claim(
                f"{name}: final test accuracy, %; training loss",
                "-",
                f"{report.mean_std(final)}; {loss:.4f}",
            ),
            Claim(f"{name}: least cosine of a gradient to float32's", "-", least),
        ]
    return rows


COLORS = {"float32": "#000000", "bfloat16": "#D55E00", "bfloat16, naive": "#56B4E9"}
LINES = {"BP": "--", "SeqIL-MQ": "-"}


def plot(results: dict[str, Any], folder: Path) -> None:
    """Draws test accuracy against the epoch, and the gradients' angles to float32's."""
    options: dict[str, Any] = {"columns": 2, "figsize": (11, 4.2)}
    with report.figure(folder / "precision.png", **options) as panels:
        left, right = panels[0]
        for row in results["runs"]:
            style = {"color": COLORS[row["precision"]], "ls": LINES[row["rule"]]}
            label = f"{row['rule']}, {row['precision']}"
            mean = 100 * report.array(row["test_accuracy"]).mean(0)
            left.plot(range(1, len(mean) + 1), mean, label=label, **style)
            if row["precision"] == "float32":
                continue
            for marker, (when, values) in zip(
                "os", row["cosines"].items(), strict=True
            ):
                angles = np.degrees(np.arccos(np.clip(values, -1, 1))).mean(0)
                right.plot(angles, marker=marker, label=f"{label}, {when}", **style)
        left.set(xlabel="epoch", ylabel="test accuracy (%)", title=results["dataset"])
        right.set(
            xlabel="weight matrix",
            ylabel="angle of the gradient to float32's (degrees)",
        )
        for panel in (left, right):
            report.whole_numbers(panel)
            panel.legend(frameon=False, fontsize="small")
