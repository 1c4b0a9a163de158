"""The figures of the depth experiment."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import report
from experiments.depth.cells import STYLES
from experiments.depth.shown import FEW

RULES = {
    "BP": report.STYLES["BP"],
    "equilibrium": {"color": "#882255", "marker": "*"},
    "IL": report.STYLES["IL"],
    "SeqIL T=1": STYLES["SeqIL T=1"],
    "SeqIL": report.STYLES["SeqIL"],
    "ePC": STYLES["ePC-Adam"],
    "PC": {"color": "#882255", "linestyle": "--"},
}


def plot(results: dict[str, Any], folder: Path) -> None:
    """Test error over depth, likeness by layer, curvature, transfer, batches."""
    cells = list(results["cells"].values())
    groups = list(dict.fromkeys(_group(cell) for cell in cells))
    _error(cells, groups, folder / "error.png")
    for name, when, to in (
        ("likeness_fresh.png", "fresh", "backprop"),
        ("likeness.png", "trained", "backprop"),
        ("likeness_to_equilibrium.png", "trained", "equilibrium"),
    ):
        _likeness(cells, groups, when, to, folder / name)
    _curvature(cells, groups, folder / "curvature.png")
    if results["transfer"]:
        own = [
            c for c in cells if c["kind"] == "residual" and "PC-Adam" in c["methods"]
        ]
        wide = list(results["transfer"].values())
        _transfer([*wide, *own], folder / "transfer.png")
        same = [c for c in own if c["depth"] == wide[0]["depth"]]
        _widths([*wide, *same], folder / "widths.png")
    if results.get("batches"):
        _batches(list(results["batches"].values()), folder / "batches.png")


def _group(cell: dict[str, Any]) -> tuple[str, str]:
    return cell["kind"], cell["parametrisation"]


def _error(cells: Any, groups: Any, path: Path) -> None:
    """Test error of the best rate against the depth, on a logarithmic axis."""
    depths = sorted({cell["depth"] for cell in cells})
    with report.figure(
        path, columns=len(groups), figsize=(2.7 * len(groups) + 1, 3.8), sharey=True
    ) as panels:
        for panel, group in zip(panels[0], groups, strict=True):
            own = [cell for cell in cells if _group(cell) == group]
            for name in own[0]["methods"]:
                found = [cell for cell in own if name in cell["methods"]]
                wrong = [
                    100 * (1 - np.mean(cell["methods"][name]["choice"]["test"]))
                    for cell in found
                ]
                style = {"marker": ".", **report.STYLES.get(name, STYLES.get(name, {}))}
                at = [cell["depth"] for cell in found]
                panel.plot(at, wrong, label=name, **style)
            panel.set(xscale="log", yscale="log", xlabel="layers")
            panel.set_title(", ".join(group))
            panel.set_xlim(depths[0] / 1.4, depths[-1] * 1.4)
            panel.set_xticks(depths, [str(depth) for depth in depths])
            panel.set_xticks([], minor=True)
            report.log_axis(panel.yaxis)
        panels[0, 0].set_ylabel("test error (%)")
        fullest = max(panels[0], key=lambda p: len(p.get_lines()))
        handles, names = fullest.get_legend_handles_labels()
        panels[0, -1].legend(
            handles, names, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False
        )


def _likeness(cells: Any, groups: Any, when: str, to: str, path: Path) -> None:
    """Cosine of every layer, a row for every depth and a column for every kind."""
    depths = sorted({cell["depth"] for cell in cells})
    size = 2.3 * len(groups) + 1.3, 1.9 * len(depths) + 0.5
    with report.figure(
        path, rows=len(depths), columns=len(groups), figsize=size, sharey=True
    ) as panels:
        labels = {}
        for row, depth in zip(panels, depths, strict=True):
            for panel, group in zip(row, groups, strict=True):
                here = [c for c in cells if (*_group(c), c["depth"]) == (*group, depth)]
                if not here:
                    panel.set_axis_off()
                for cell in here:
                    seen = cell["methods"]["BP-Adam"]["gradients"][when][f"to_{to}"]
                    for name, like in seen.items():
                        cosine = report.array(like["cosine"])
                        style = {**RULES[name], "markersize": 3}
                        at = range(1, len(cosine) + 1)
                        (labels[name],) = panel.plot(at, cosine, **style)
                    panel.set_title(f"{', '.join(group)}, {depth}", fontsize=8)
                    panel.set_ylim(-1.05, 1.05)
                    panel.set_xlabel("layer", fontsize=8)
                    report.whole_numbers(panel)
            row[0].set_ylabel(f"cosine to {to}", fontsize=8)
        panels[0, -1].legend(
            labels.values(),
            labels,
            loc="upper left",
            bbox_to_anchor=(1, 1),
            frameon=False,
            fontsize=8,
        )


def _curvature(cells: Any, groups: Any, path: Path) -> None:
    with report.figure(path, columns=2, figsize=(8.6, 3.5)) as panels:
        for panel, what in zip(
            panels[0], ("error_curvature", "activity_curvature"), strict=True
        ):
            for group in groups:
                own = [c for c in cells if _group(c) == group]
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
            own = [c for c in cells if name in c["methods"]]
            test = [100 * np.mean(c["methods"][name]["choice"]["test"]) for c in own]
            style = {**report.STYLES.get(name, STYLES.get(name, {})), "marker": "o"}
            panel.plot([c["batch"] for c in own], test, label=name, **style)
        panel.set(xscale="log", xlabel="images of a step", ylabel="test accuracy (%)")
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.set_xticks([], minor=True)
        panel.legend(frameon=False)


def _widths(cells: Any, path: Path) -> None:
    """The equilibrium's cosine to backprop's gradient, lowest and mean, by width."""
    own = sorted(cells, key=lambda c: c["width"])
    with report.figure(path, columns=2, figsize=(8, 3.5), sharey=True) as panels:
        for panel, when in zip(panels[0], ("fresh", "trained"), strict=True):
            for name in dict.fromkeys(c["parametrisation"] for c in own):
                found = [c for c in own if c["parametrisation"] == name]
                seen = [c["methods"]["BP-Adam"]["gradients"][when] for c in found]
                cosines = [
                    report.array(x["to_backprop"]["equilibrium"]["cosine"])
                    for x in seen
                ]
                at = [c["width"] for c in found]
                (line,) = panel.plot(at, [c.min() for c in cosines], "o-", label=name)
                means = [c.mean() for c in cosines]
                panel.plot(at, means, "o:", color=line.get_color())
            widths = sorted({c["width"] for c in own})
            panel.set(xscale="log", xlabel="width", ylim=(-1.05, 1.05))
            panel.set_xticks(widths, [str(width) for width in widths])
            panel.set_xticks([], minor=True)
            panel.set_title(when)
        panels[0, 0].set_ylabel(
            "cosine of the equilibrium to backprop:\nlowest of a layer; mean (dotted)"
        )
        panels[0, 0].legend(frameon=False)


def _transfer(cells: Any, path: Path) -> None:
    """The training loss at every rate, a line for every width and depth."""
    groups = list(dict.fromkeys(c["parametrisation"] for c in cells))
    with report.figure(path, rows=len(FEW), columns=len(groups)) as panels:
        for row, name in zip(panels, FEW, strict=True):
            for panel, group in zip(row, groups, strict=True):
                for cell in cells:
                    if cell["parametrisation"] == group and name in cell["methods"]:
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
