"""The figures of the depth experiment."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import report
from experiments.depth.cells import STYLES
from experiments.depth.shown import FEW

RULES = {
    "equilibrium": {"color": "#882255", "marker": "*"},
    "IL": report.STYLES["IL"],
    "SeqIL T=1": STYLES["SeqIL T=1"],
    "SeqIL": report.STYLES["SeqIL"],
    "ePC": STYLES["ePC-Adam"],
    "PC": {"color": "#882255", "linestyle": "--"},
}


def plot(results: dict[str, Any], folder: Path) -> None:
    """Accuracy over depth, likeness to backprop by layer, curvature, transfer."""
    cells = list(results["cells"].values())
    groups = list(dict.fromkeys((c["kind"], c["parametrisation"]) for c in cells))
    _accuracy(cells, groups, folder / "accuracy.png")
    _likeness(cells, folder / "likeness.png")
    _curvature(cells, groups, folder / "curvature.png")
    if results["transfer"]:
        own = [
            c for c in cells if c["kind"] == "residual" and "PC-Adam" in c["methods"]
        ]
        _transfer([*results["transfer"].values(), *own], folder / "transfer.png")
    if results.get("batches"):
        _batches(list(results["batches"].values()), folder / "batches.png")


def _accuracy(cells: Any, groups: Any, path: Path) -> None:
    with report.figure(
        path, columns=len(groups), figsize=(3.5 * len(groups), 3.6)
    ) as panels:
        for panel, group in zip(panels[0], groups, strict=True):
            own = [c for c in cells if (c["kind"], c["parametrisation"]) == group]
            depths = [c["depth"] for c in own]
            for name in own[0]["methods"]:
                test = [
                    100 * np.mean(c["methods"][name]["choice"]["test"]) for c in own
                ]
                style = {"marker": ".", **report.STYLES.get(name, STYLES.get(name, {}))}
                panel.plot(depths, test, label=name, **style)
            panel.set(xscale="log", xlabel="layers", title=", ".join(group))
            panel.set_xticks(depths, [str(depth) for depth in depths])
            panel.set_xticks([], minor=True)
            panel.set_ylim(0, 100)
        panels[0, 0].set_ylabel("test accuracy (%)")
        fullest = max(panels[0], key=lambda p: len(p.get_lines()))
        handles, names = fullest.get_legend_handles_labels()
        panels[0, -1].legend(
            handles, names, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False
        )


def _likeness(cells: Any, path: Path) -> None:
    """Cosine to backprop of every layer, a row before and one after training."""
    with report.figure(
        path, rows=2, columns=len(cells), figsize=(2.2 * len(cells), 5.2)
    ) as panels:
        for row, when in zip(panels, ("fresh", "trained"), strict=True):
            for panel, cell in zip(row, cells, strict=True):
                seen = cell["methods"]["BP-Adam"]["gradients"][when]["to_backprop"]
                for name, like in seen.items():
                    cosine = report.array(like["cosine"])
                    style = {**RULES[name], "markersize": 3}
                    panel.plot(range(1, len(cosine) + 1), cosine, label=name, **style)
                title = (
                    f"{cell['kind']}, {cell['parametrisation']}, {cell['depth']} layers"
                )
                panel.set_title(title, fontsize=8)
                panel.set_ylim(-1.05, 1.05)
                report.whole_numbers(panel)
            row[0].set_ylabel(f"cosine to backprop, {when}")
        for panel in panels[1]:
            panel.set_xlabel("layer")
        panels[0, 0].legend(frameon=False, fontsize=7)


def _curvature(cells: Any, groups: Any, path: Path) -> None:
    with report.figure(path, columns=2, figsize=(8.6, 3.5)) as panels:
        for panel, what in zip(
            panels[0], ("error_curvature", "activity_curvature"), strict=True
        ):
            for group in groups:
                own = [c for c in cells if (c["kind"], c["parametrisation"]) == group]
                for when, line in (("fresh", ":"), ("trained", "-")):
                    values = [
                        c["methods"]["BP-Adam"]["gradients"][when][what] for c in own
                    ]
                    panel.plot(
                        [c["depth"] for c in own],
                        report.array(values),
                        line,
                        marker="o",
                        markersize=4,
                        color=f"C{groups.index(group)}",
                        label=f"{', '.join(group)}, {when}",
                    )
            panel.set(xscale="log", yscale="log", xlabel="layers")
            report.log_axis(panel.xaxis)
        panels[0, 0].set_ylabel("largest curvature in the errors")
        panels[0, 1].set_ylabel("in the activities")
        report.legend_beside(panels[0, 1], fontsize=8)


def _batches(cells: Any, path: Path) -> None:
    """Test accuracy at the best rate against the images of a step."""
    with report.figure(path) as panels:
        panel = panels[0, 0]
        sizes = [c["batch"] for c in cells]
        for name in FEW:
            test = [100 * np.mean(c["methods"][name]["choice"]["test"]) for c in cells]
            style = {**report.STYLES.get(name, STYLES.get(name, {})), "marker": "o"}
            panel.plot(sizes, test, label=name, **style)
        panel.set(xscale="log", xlabel="images of a step", ylabel="test accuracy (%)")
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.set_xticks([], minor=True)
        panel.legend(frameon=False)


def _transfer(cells: Any, path: Path) -> None:
    """The training loss at every rate, a line for every width and depth."""
    groups = list(dict.fromkeys(c["parametrisation"] for c in cells))
    with report.figure(path, rows=len(FEW), columns=len(groups)) as panels:
        for row, name in zip(panels, FEW, strict=True):
            for panel, group in zip(row, groups, strict=True):
                for cell in cells:
                    if cell["parametrisation"] == group:
                        found = cell["methods"][name]
                        panel.plot(
                            found["rates"],
                            report.array(found["last_train_loss"]),
                            marker="o",
                            markersize=4,
                            label=f"{cell['depth']} layers of {cell['width']}",
                        )
                panel.set(xscale="log", yscale="log", title=f"{name}, {group}")
            row[0].set_ylabel("training loss, last epoch")
        for panel in panels[-1]:
            panel.set_xlabel("learning rate")
        panels[0, 0].legend(frameon=False, fontsize=8)
