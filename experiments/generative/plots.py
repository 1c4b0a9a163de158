"""Pictures of what decoders make, and how much memories recall."""

from pathlib import Path
from typing import Any

from experiments.common import report
from experiments.generative.measures import decode


def plot(results: dict[str, Any], folder: Path) -> None:
    """Grids of pictures, and the fraction recalled against the number stored."""
    completion = results["completion"]
    grids = {
        "reconstructions": results["reconstruction"]["pictures"],
        "interpolations": results["reconstruction"]["between"],
        "half": completion["half"]["pictures"],
        "random": completion["random"]["pictures"],
        "denoising": results["denoising"]["pictures"],
        "samples": results["samples"]["pictures"],
        "memory": results["memory"][0]["pictures"],
    }
    for name, rows in grids.items():
        _grid(rows, folder / f"{name}.png")
    with report.figure(folder / "recall.png", figsize=(4.8, 3.4)) as panels:
        panel, rows = panels[0, 0], results["memory"]
        stored = [row["stored"] for row in rows]
        for key, label, style in (
            (
                "recalled",
                "error below .005 a pixel",
                {"color": "#D55E00", "marker": "o"},
            ),
            (
                "recalled_as_nearest",
                "nearest to what was stored",
                {"color": "#0072B2", "marker": "s"},
            ),
            (
                "nearest_neighbour",
                "nearest neighbour",
                {"color": "#000000", "linestyle": "--"},
            ),
        ):
            panel.plot(stored, [100 * row[key] for row in rows], label=label, **style)
        panel.set(
            xlabel="images stored",
            ylabel="recalled from the upper half (%)",
            title=results["dataset"],
            xscale="log",
            ylim=(-5, 105),
        )
        panel.set_xticks(stored, [f"{n:,}" for n in stored])
        panel.minorticks_off()
        panel.legend(frameon=False)


def _grid(rows: dict[str, str], path: Path) -> None:
    """Strips of pictures below each other, with their names."""
    size = (6.4, 0.8 * len(rows))
    with report.figure(path, len(rows), 1, figsize=size) as panels:
        for panel, (name, strip) in zip(panels[:, 0], rows.items(), strict=True):
            panel.imshow(decode(strip), cmap="gray", vmin=0, vmax=255, aspect="equal")
            panel.grid(visible=False)
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
            panel.set_ylabel(name, rotation=0, ha="right", va="center")
