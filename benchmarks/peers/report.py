"""What the comparison found: ratios, table, JSON and plot."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from benchmarks.peers.libraries import PCJAX
from benchmarks.peers.protocol import Method

MEASURED, ABSENT, FAILED = "measured", "not offered", "failed"

# Okabe and Ito's colours, which the colour-blind can tell apart.
_COLOURS = {
    PCJAX: "#D55E00",
    "PyTorch": "#999999",
    "PyTorch compiled": "#000000",
    "PCX": "#56B4E9",
    "PCX, new JAX": "#0072B2",
    "FabricPC": "#009E73",
    "ngc-learn": "#CC79A7",
    "JPC": "#E69F00",
}


class Row(NamedTuple):
    """One library's training iteration by one method.

    Attributes:
      peer: its name.
      method: what it ran.
      status: `MEASURED`, `ABSENT` or `FAILED`.
      reason: why it was not measured, or what its check found wrong.
      samples: seconds an iteration, one entry a round.
      checks: what `protocol.check` found.
      versus_backprop: median over that of pcjax's BP-SGD.
      versus_pcjax: median over that of pcjax by the same method.
      paired: median and minimum of the ratios to pcjax by the same method, round by
        round.
    """

    peer: str
    method: Method
    status: str
    reason: str = ""
    samples: tuple[float, ...] = ()
    checks: Mapping[str, Any] | None = None
    versus_backprop: float | None = None
    versus_pcjax: float | None = None
    paired: tuple[float, float] | None = None

    @property
    def median(self) -> float:
        """Seconds."""
        return float(np.median(self.samples))


def complaint(checks: Mapping[str, Any]) -> str:
    """What is wrong with a program by its checks; empty if nothing is."""
    if not all(checks["changed"]):
        return "not all weights move"
    error = checks["update_error"]
    if error is not None and not error < 0.02:
        return f"its update is off the equations by {error:.2g}"
    before, after = checks["loss"]
    if not after < before:
        return f"its loss went from {before:.3g} to {after:.3g}"
    return ""


def compare(rows: Sequence[Row]) -> list[Row]:
    """Fills in the ratios, of what was measured and does the work it claims."""
    base = {
        row.method: row
        for row in rows
        if row.peer == PCJAX and row.status == MEASURED and row.samples
    }
    backprop = next((row for m, row in base.items() if str(m) == "BP-SGD"), None)
    compared = []
    for row in rows:
        same = base.get(row.method)
        if row.status == MEASURED and backprop is not None and same is not None:
            # A round that was cut short has no partner.
            pairs = list(zip(row.samples, same.samples, strict=False))
            paired = [own / other for own, other in pairs]
            row = row._replace(
                versus_backprop=row.median / backprop.median,
                versus_pcjax=row.median / same.median,
                paired=(float(np.median(paired)), min(paired)),
            )
        compared.append(row)
    return compared


def show(rows: Sequence[Row], libraries: Mapping[str, Any], net: str) -> None:
    """Prints the table, grouped by method."""
    right = ("T", "ms", "x BP-SGD", "x pcjax", "paired median", "paired min")
    table = Table(
        "library",
        "version",
        "JAX or torch",
        "method",
        *(Column(header, justify="right") for header in right),
        "note",
        title=f"One training iteration, {net}",
    )
    previous = None
    for row in rows:
        if row.status == ABSENT:
            continue
        if previous not in (None, row.method):
            table.add_section()
        previous = row.method
        library = libraries[row.peer]
        numbers = (
            (
                f"{1e3 * row.median:.2f}",
                _number(row.versus_backprop),
                _number(row.versus_pcjax),
                _number(row.paired and row.paired[0]),
                _number(row.paired and row.paired[1]),
            )
            if row.samples
            else ("-",) * 5
        )
        table.add_row(
            row.peer,
            library["version"],
            library["backend"],
            str(row.method).split(" T=")[0],
            str(row.method.num_steps or "-"),
            *numbers,
            row.reason,
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for note in notes(rows, libraries):
        console.print(note, highlight=False)


def notes(rows: Sequence[Row], libraries: Mapping[str, Any]) -> list[str]:
    """Which libraries did not run and why, and which methods only pcjax has."""
    found = [
        f"{name}: not measured ({library['failure']})"
        for name, library in libraries.items()
        if library["failure"]
    ]
    for method in dict.fromkeys(row.method for row in rows):
        having = {row.peer for row in rows if row.method == method and row.samples}
        if having == {PCJAX}:
            found.append(f"{method}: no other library here offers it")
    return found


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every row with all its samples."""
    return [
        {
            "library": row.peer,
            "method": str(row.method),
            "inference": row.method.inference,
            "T": row.method.num_steps,
            "optimizer": row.method.optimizer,
            "status": row.status,
            "reason": row.reason,
            "median_ms": 1e3 * row.median if row.samples else None,
            "min_ms": 1e3 * min(row.samples) if row.samples else None,
            "ratio_to_pcjax_bp_sgd": row.versus_backprop,
            "ratio_to_pcjax_same_method": row.versus_pcjax,
            "paired_median": row.paired and row.paired[0],
            "paired_min": row.paired and row.paired[1],
            "checks": row.checks,
            "samples_ms": [round(1e3 * sample, 4) for sample in row.samples],
        }
        for row in rows
    ]


def time_ratios(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """How much longer IL takes with the larger T, by library and optimizer.

    A library that stops early, or whose compiler drops iterations, shows here.
    """
    medians: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if row.samples and row.method.inference == "simultaneous":
            key = row.peer, row.method.optimizer
            medians.setdefault(key, {})[row.method.num_steps] = row.median
    found: dict[str, dict[str, float]] = {}
    for (peer, optimizer), by_steps in medians.items():
        if len(by_steps) > 1:
            few, many = min(by_steps), max(by_steps)
            found.setdefault(peer, {})[optimizer] = by_steps[many] / by_steps[few]
    return found


def plot(
    rows: Sequence[Row], libraries: Mapping[str, Any], net: str, path: Path
) -> None:
    """Draws the medians, in multiples of pcjax's BP-SGD, grouped by method."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    drawn = [row for row in rows if row.versus_backprop is not None]
    if not drawn:
        return
    groups = [
        (method, [row for row in drawn if row.method == method])
        for method in dict.fromkeys(row.method for row in drawn)
    ]
    heights = [len(members) + 1.6 for _, members in groups]
    footnotes = notes(rows, libraries)
    height = 0.23 * sum(heights) + 0.9 + 0.17 * len(footnotes)
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(7.2, height), layout="constrained")
        axes = figure.subplots()
        y, ticks, labels = 0.0, [], []
        for method, members in groups:
            axes.text(
                0.0,
                y,
                f" {method}",
                transform=axes.get_yaxis_transform(),
                weight="bold",
                va="center",
            )
            for row in members:
                y -= 1
                _draw(axes, y, row)
                ticks.append(y)
                labels.append(row.peer)
            y -= 1.6
        axes.set_yticks(ticks, labels)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(y + 1.0, 0.8)
        axes.set_xscale("log")
        ratios = [row.versus_backprop or 1.0 for row in drawn]
        axes.set_xlim(min(1, *ratios) * 0.75, max(1, *ratios) * 1.6)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(
            lambda value, _: f"{value:g}" if f"{value:g}"[0] in "25" else ""
        )
        axes.axvline(1, color="#000000", linewidth=0.8, linestyle=":")
        axes.grid(axis="x", which="both", color="#dddddd", linewidth=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_xlabel(
            "time of a training iteration, in those of pcjax's BP-SGD "
            "(median; bar: middle 80 % of rounds)"
            + "".join(f"\n{note}" for note in footnotes)
        )
        axes.set_title(net, fontsize=10)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def _draw(axes: Any, y: float, row: Row) -> None:
    assert row.versus_backprop is not None
    colour = _COLOURS.get(row.peer, "#F0E442")
    own = row.peer == PCJAX
    spread = np.quantile(row.samples, (0.1, 0.9)) / row.median * row.versus_backprop
    axes.plot(spread, (y, y), color=colour, linewidth=3, alpha=0.4)
    axes.plot(
        row.versus_backprop,
        y,
        color=colour,
        marker="D" if own else "o",
        markersize=7 if own else 6,
    )
    axes.annotate(
        f"{row.versus_backprop:.2f}",
        (max(spread[1], row.versus_backprop), y),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        weight="bold" if own else "normal",
    )
