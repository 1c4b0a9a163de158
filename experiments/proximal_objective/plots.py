"""The figures of `experiments.proximal_objective`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

from experiments.common import report

START = 2.0  # where the curves of Figure 8 start
WIDTH = 0.1  # changes up to this are drawn to a linear scale, larger ones to log


def plot(results: dict[str, Any], folder: Path) -> None:
    """The change of the objective, and the curves as Figures 8 and 1 have them."""
    _panels(
        results,
        folder / "change.png",
        r"Prox$_\beta$ relative to $t = 0$",
        lambda values: values / values[0],
        _ratio_scale,
    )
    _panels(
        results,
        folder / "figure8.png",
        rf"Prox$_\beta$, shifted to {START:g} at $t = 0$",
        lambda values: values - values[0] + START,
        _shifted_scale,
        sharey=True,
    )
    _largest_beta(results, folder / "figure1.png")


def _largest_beta(results: dict[str, Any], path: Path) -> None:
    """The objective of every method with the largest beta."""
    index = int(np.argmax(results["betas"]))
    with report.figure(path) as panels:
        panel = panels[0, 0]
        for name, found in results["methods"].items():
            values = report.array(found["objective"])[index]
            report.band(panel, range(len(values)), values, name)
        panel.set(
            xlabel="inference iteration",
            ylabel=rf"Prox$_\beta$, $\beta$ = {results['betas'][index]:g}",
            title=f"{results['dataset']}, {results['images']} images",
        )
        _log_scale(panel, subs=(1, 3))
        report.whole_numbers(panel)
        report.legend_beside(panel)


def _panels(
    results: dict[str, Any],
    path: Path,
    label: str,
    transform: Callable[[np.ndarray], np.ndarray],
    scale: Callable[[Any], None],
    **options: Any,
) -> None:
    """A panel for every method, a line for every beta."""
    betas = results["betas"]
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.88, len(betas)))
    named = list(results["methods"].items())
    columns = min(2, len(named))
    rows = -(-len(named) // columns)
    with report.figure(path, rows=rows, columns=columns, **options) as panels:
        for panel in panels.flat[len(named) :]:
            panel.set_axis_off()
        for panel, (name, found) in zip(panels.flat, named, strict=False):
            for index, values in enumerate(report.array(found["objective"])):
                report.band(
                    panel,
                    range(len(values)),
                    transform(values),
                    rf"$\beta$ = {betas[index]:g}",
                    color=colors[index],
                    marker="osD^vP*X"[index % 8],
                )
            scale(panel)
            panel.set(title=name, xlabel="inference iteration")
            report.whole_numbers(panel)
        for row in panels:
            row[0].set_ylabel(label)
        report.legend_beside(panels[0, -1])


def _log_scale(panel: Any, subs: tuple[int, ...]) -> None:
    """Logarithmic, with plain numbers at the ticks."""
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=subs))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_locator(NullLocator())


def _ratio_scale(panel: Any) -> None:
    """Logarithmic, more finely divided where less than a decade is to be seen."""
    low, high = panel.get_ylim()
    wide = high > 30 * max(low, 1e-9) or low <= 0
    _log_scale(panel, subs=(1, 3) if wide else (1, 2, 3, 5, 7))
    panel.axhline(1, color="0.5", linewidth=0.8, zorder=0)


def _shifted_scale(panel: Any) -> None:
    """Linear near the start, logarithmic in the distance from it further off."""
    panel.set_yscale(
        "function",
        functions=(
            lambda y: np.arcsinh((y - START) / WIDTH),
            lambda z: WIDTH * np.sinh(z) + START,
        ),
    )
    distances = (0.1, 0.3, 1, 3, 10, 30, 100)
    ticks = [START + sign * d for d in distances for sign in (-1, 1)]
    panel.yaxis.set_major_locator(FixedLocator([START, *ticks]))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.axhline(START, color="0.5", linewidth=0.8, zorder=0)
