"""The figure of `experiments.costs`."""

from pathlib import Path
from typing import Any

from experiments.common import report
from experiments.costs.measures import MEMORY, find, paper

MARKERS = {"BP": "D", "SeqIL": "o", "iPC": "^", "IL": "s"}


def plot(results: dict[str, Any], folder: Path) -> None:
    """Products against L and T beside the paper's formulas; memory of the MLP."""
    chain = results["chain"]
    all_steps = sorted({row["steps"] for row in chain} - {0})
    depths = sorted({row["layers"] for row in chain})
    short = 3 if 3 in all_steps else all_steps[0]
    depth = 4 if 4 in depths else depths[-1]
    chosen = {"BP": 0, "SeqIL": short, "iPC": short, "IL": all_steps[-1]}
    with report.figure(folder / "costs.png", columns=3) as panels:
        by_depth, by_steps, memory = panels[0]
        for method, steps in chosen.items():
            rows = [
                row for row in chain if (row["method"], row["steps"]) == (method, steps)
            ]
            name = f"{method} T={steps}" if steps else method
            _lines(by_depth, rows, [row["layers"] for row in rows], name)
            rows = [
                row
                for row in chain
                if (row["method"], row["layers"]) == (method, depth)
            ]
            if method == "BP":
                rows = [{**rows[0], "at": steps} for steps in all_steps]
            at = [row.get("at", row["steps"]) for row in rows]
            _lines(by_steps, rows, at, method)
        by_depth.plot([], [], ":", color="#666666", label="paper's formula")
        by_depth.set(xlabel="weight matrices L", ylabel="matrix products per iteration")
        by_steps.set(xlabel="inference iterations T", title=f"L = {depth}")
        for panel in (by_depth, by_steps):
            panel.set_ylim(0)
            report.whole_numbers(panel)
        by_depth.legend(frameon=False, fontsize=8)
        _memory(memory, next(iter(results["nets"].items())))


def _lines(panel: Any, rows: list[dict], at: list[int], label: str) -> None:
    """Counts as marks on a line, and the paper's formula as a dotted line."""
    method = rows[0]["method"]
    style = {**report.STYLES[method], "marker": MARKERS[method], "linestyle": "-"}
    counts = [row["products"] for row in rows]
    panel.plot(at, counts, label=label, markersize=4, linewidth=1.4, **style)
    said = [paper(method, row["layers"], row["steps"]) for row in rows]
    panel.plot(at, said, ":", color=style["color"], linewidth=1.4)


def _memory(panel: Any, net: tuple[str, list[dict]]) -> None:
    """Bars of what a compiled iteration holds, in multiples of the parameters."""
    name, rows = net
    sizes = [find(rows, method)["bytes"] for method in MEMORY]
    parts = {
        "parameters": [1.0 for _ in sizes],
        "optimizer state": [s["optimizer"] / s["parameters"] for s in sizes],
        "gradients, activities, batch": [
            (s["peak"] - s["optimizer"]) / s["parameters"] - 1 for s in sizes
        ],
    }
    left = [0.0] * len(sizes)
    colours = ("#0072B2", "#E69F00", "#BBBBBB")
    for (label, widths), colour in zip(parts.items(), colours, strict=True):
        panel.barh(list(MEMORY), widths, left=left, color=colour, label=label)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    panel.invert_yaxis()
    panel.set(xlabel="bytes / bytes of the parameters M", title=f"{name}, batch of 64")
    panel.grid(visible=False, axis="y")
    panel.set_axisbelow(True)
    # Beside the two short bars.
    panel.legend(
        fontsize=8, frameon=False, loc="center right", bbox_to_anchor=(1.02, 0.4)
    )
