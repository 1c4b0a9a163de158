"""Tables and figures of the passes to equilibria."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import report
from experiments.common.harness import Claim

STYLES = {
    "errors, no rate": {"color": "#D55E00"},
    "errors, step 0.1": {"color": "#D55E00", "linestyle": ":"},
    "activities, no rate": {"color": "#0072B2"},
    "simultaneous, step 0.1": {"color": "#0072B2", "linestyle": ":"},
    "sequential, step 0.1": {"color": "#009E73", "linestyle": "--"},
}
CLOSE = 1e-3  # an error that counts as arrived


def arrival(passes: Sequence[int], errors: Any) -> int | None:
    """The passes after which the error stays below `CLOSE`; None if it does not."""
    late = np.flatnonzero(~(report.array(errors) < CLOSE))
    first = int(late[-1]) + 1 if len(late) else 0
    return passes[first] if first < len(errors) else None


def claims(results: dict[str, Any]) -> list[Claim]:
    """The passes to 1e-3 of all methods, and what the equilibrium is like."""
    rows, most = [], results["passes"][-1]
    for net, found in results["nets"].items():
        for name, errors in found["errors"].items():
            passes, row = arrival(results["passes"], errors), report.array(errors)
            shown = [f"{row[t]:.1g}" for t in (10, 20, 40, 80) if t < len(row)]
            rows.append(
                Claim(
                    f"{net}; {name}: passes to an error of {CLOSE:g}",
                    "-",
                    (f"more than {most}" if passes is None else f"{passes}")
                    + f"; error after 10, 20, 40, 80: {', '.join(shown)}",
                )
            )
        cosine = report.array(found["cosine_to_backprop"])
        rows.append(
            Claim(
                f"{net}; equilibrium: cosine to backprop, worst and best layer",
                "-",
                f"{cosine.min():.2f} to {cosine.max():.2f}; "
                f"{np.mean(found['converged']):.0%} of the examples converged, "
                f"{np.mean(found['kinks']):.0%} at kinks, "
                f"{np.median(found['passes']):.0f} passes (median)",
            )
        )
    return rows


def plot(results: dict[str, Any], folder: Path) -> None:
    """A panel for every net: error of the worst layer against passes."""
    nets = results["nets"]
    columns = min(4, len(nets))
    rows = -(-len(nets) // columns)
    with report.figure(
        folder / "passes.png",
        rows=rows,
        columns=columns,
        figsize=(3.4 * columns, 3.0 * rows),
    ) as panels:
        for panel, (net, found) in zip(panels.flat, nets.items(), strict=False):
            for name, errors in found["errors"].items():
                row = report.array(errors)
                passes = results["passes"]
                panel.plot(passes[1:], row[1:], label=name, **STYLES[name])
            panel.set(xscale="log", yscale="log", xlabel="passes", ylim=(1e-7, 30))
            panel.set_title(net, fontsize=9)
        for panel in panels.flat[len(nets) :]:
            panel.set_visible(False)
        panels[0, 0].set_ylabel("error of the worst layer")
        report.legend_beside(panels[0, -1], fontsize=8)
    with report.figure(folder / "cosine.png", figsize=(5.4, 3.6)) as panels:
        panel = panels[0, 0]
        for net, found in nets.items():
            cosine = report.array(found["cosine_to_backprop"])
            panel.plot(
                np.linspace(0, 1, len(cosine)), cosine, marker="o", ms=3, label=net
            )
        panel.axhline(0, color="black", lw=0.6)
        panel.set(
            xlabel="layer, from the first (0) to the last (1)",
            ylabel="cosine of equilibrium to backprop",
        )
        report.legend_beside(panel, fontsize=8)
