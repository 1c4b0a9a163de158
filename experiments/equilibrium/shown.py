"""Tables and figures of the passes to equilibria."""

import contextlib
from collections.abc import Iterator, Sequence
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
FIRST = 2  # passes of the Hessian-vector product that gives a first step without a rate


def spent(name: str, iterations: Sequence[int]) -> list[int]:
    """The passes that a method takes for iterations."""
    more = FIRST if name.endswith("no rate") else 0
    return [t + more if t else 0 for t in iterations]


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
            took, row = spent(name, results["passes"]), report.array(errors)
            passes = arrival(took, errors)
            shown = [f"{row[took.index(t)]:.1g}" for t in (10, 20, 40, 80) if t in took]
            rows.append(
                Claim(
                    f"{net}; {name}: passes to an error of {CLOSE:g}",
                    "-",
                    (f"more than {most}" if passes is None else f"{passes}")
                    + f"; error after 10, 20, 40, 80: {', '.join(shown)}",
                )
            )
        newton = found.get("newton", [])
        if newton:
            rows.append(
                Claim(
                    f"{net}; Newton-CG: error after passes, of its products too",
                    "-",
                    "; ".join(
                        f"{error:.1g} after {passes:.0f}" for passes, error in newton
                    ),
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
    """Errors and energies against passes, a panel for every net, and the cosines."""
    nets = results["nets"]

    def took(name):
        return spent(name, results["passes"])[1:]

    with _panels(folder / "passes.png", nets) as panels:
        for panel, found in zip(panels.flat, nets.values(), strict=False):
            for name, errors in found["errors"].items():
                row = report.array(errors)
                panel.plot(took(name), row[1:], label=name, **STYLES[name])
            points = report.array(found.get("newton", [])).reshape(-1, 2)
            panel.plot(*points.T, "kx", label="Newton-CG")
            panel.set(yscale="log", ylim=(1e-7, 30))
        panels[0, 0].set_ylabel("error of the worst layer")
        report.legend_beside(panels[0, -1], fontsize=8)
    with _panels(folder / "energies.png", nets) as panels:
        for panel, found in zip(panels.flat, nets.values(), strict=False):
            rows = {k: report.array(v) for k, v in found["energies"].items()}
            lowest = min(found["energy"], *(np.nanmin(row) for row in rows.values()))
            for name, row in rows.items():
                row = (row - lowest) / (found["initial_energy"] - lowest)
                row[row <= 0] = np.nan
                panel.plot(took(name), row[1:], label=name, **STYLES[name])
            panel.set(yscale="log", ylim=(1e-6, 3))
        panels[0, 0].set_ylabel("energy above the lowest")
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


@contextlib.contextmanager
def _panels(path: Path, nets: dict[str, Any]) -> Iterator[Any]:
    """A figure over passes with a panel for every net."""
    columns = min(5, len(nets))
    rows = -(-len(nets) // columns)
    size = (3.4 * columns, 3.0 * rows)
    with report.figure(path, rows=rows, columns=columns, figsize=size) as panels:
        for panel, net in zip(panels.flat, nets, strict=False):
            panel.set(xscale="log", xlabel="passes")
            panel.set_title(net, fontsize=9)
        for panel in panels.flat[len(nets) :]:
            panel.set_visible(False)
        yield panels
