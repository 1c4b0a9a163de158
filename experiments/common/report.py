"""The style of the experiments' figures and numbers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Column

HUGE = 1e6  # of which nobody reads all digits
NEAR = 3  # times the first loss, up to which a curve is not cut off
FAR = 10  # times the first loss, beyond which a curve is cut off
# Okabe and Ito's colours, which the colour-blind can tell apart; the backprop runs
# are dashed and the marker tells the optimizer.
STYLES: dict[str, dict[str, Any]] = {
    "BP": {"color": "#000000", "linestyle": "--"},
    "BP-Adam": {"color": "#000000", "linestyle": ":"},
    "IL": {"color": "#56B4E9", "linestyle": "-."},
    "IL-norm": {"color": "#0072B2", "marker": "D"},
    "IL-MQ": {"color": "#56B4E9", "marker": "o"},
    "IL-Adam": {"color": "#0072B2", "marker": "s"},
    "SeqIL": {"color": "#CC79A7"},
    "SeqIL-MQ": {"color": "#D55E00", "marker": "o"},
    "SeqIL-Adam": {"color": "#E69F00", "marker": "s"},
    "iPC": {"color": "#009E73", "marker": "^"},
}


def right(header: str) -> Column:
    """A column of numbers."""
    return Column(header, justify="right")


def std(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """The sample standard deviation, 0 where there is but one sample."""
    count = values.shape[axis]
    return values.std(axis, ddof=1) if count > 1 else np.zeros_like(values.mean(axis))


def array(values: Any) -> np.ndarray:
    """Numbers from a JSON file, NaN where they were not finite."""
    return np.array(values, np.float64)


def mean_std(values: Any, scale: float = 1.0, digits: int = 2) -> str:
    """`mean ± std` of a list, as text; what has diverged in powers of ten."""
    row = scale * array(values)
    kind = "e" if np.abs(row).max() >= HUGE else "f"
    if row.size == 1:
        return f"{row.mean():.{digits}{kind}}"
    return f"{row.mean():.{digits}{kind}} ± {std(row):.{digits}{kind}}"


def seeds(count: int) -> str:
    """`1 seed`, `5 seeds`."""
    return "1 seed" if count == 1 else f"{count} seeds"


@contextmanager
def figure(path: Path, rows: int = 1, columns: int = 1, **options) -> Iterator[Any]:
    """A figure's panels, [rows, columns], written to `path` at the end.

    Args:
      path: of the PNG.
      rows: of panels.
      columns: of panels.
      **options: of `matplotlib.pyplot.subplots`.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    options = {"figsize": (4.2 * columns, 3.4 * rows), **options}
    drawn, panels = plt.subplots(
        rows, columns, layout="constrained", squeeze=False, **options
    )
    for panel in panels.flat:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    yield panels
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})
    plt.close(drawn)


def band(panel: Any, x: Any, values: Any, name: str, **style: Any) -> None:
    """A line of means over seeds with a band of one standard deviation.

    Args:
      panel: of matplotlib.
      x: [points].
      values: [points, seeds].
      name: of the method, for label and style.
      **style: of the line, above that of the method.
    """
    options = {
        "markersize": 4,
        "linewidth": 1.6,
        "label": name,
        **STYLES.get(name, {}),
        **style,
    }
    if len(x) > 15:
        options.setdefault("markevery", max(1, len(x) // 10))
    rows = array(values)
    mean, spread = rows.mean(1), std(rows, axis=1)
    (line,) = panel.plot(x, mean, **options)
    panel.fill_between(
        x, mean - spread, mean + spread, color=line.get_color(), alpha=0.13, lw=0
    )


def cut_off(panel: Any, losses: Sequence[Any]) -> None:
    """Ends the y axis not far above where training began if a loss goes far beyond.

    One method that diverges would hide all others, and its own course before that.
    What is at most `NEAR` times the first losses is seen.

    Args:
      panel: of matplotlib.
      losses: what is drawn there, [points, seeds] each.
    """
    values = [array(rows) for rows in losses]
    started = np.concatenate([rows[0] for rows in values])
    seen = np.concatenate([rows.ravel() for rows in values])
    started, seen = (row[np.isfinite(row)] for row in (started, seen))
    if started.size and seen.max() > FAR * started.max():
        low, high = seen.min(), seen[seen <= NEAR * started.max()].max()
        margin = 0.05 * (high - low)
        panel.set_ylim(low - margin, high + margin)


def whole_numbers(panel: Any) -> None:
    """Ticks of the x axis at whole numbers only."""
    panel.xaxis.get_major_locator().set_params(integer=True)


def log_axis(axis: Any) -> None:
    """Ticks of a logarithmic axis at 1, 2, 5, 10, ..., as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def legend_beside(panel: Any, **options: Any) -> None:
    """A legend to the right of a panel."""
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, **options)
