"""What the experiments show: live progress, and the style of their figures."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rich.live
from rich.console import Console, Group
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

# Okabe and Ito's colours, which the colour-blind can tell apart; the backprop runs
# are dashed and the marker tells the optimizer.
STYLES: dict[str, dict[str, Any]] = {
    "BP": {"color": "#000000", "linestyle": "--"},
    "BP-Adam": {"color": "#000000", "linestyle": ":"},
    "IL": {"color": "#56B4E9"},
    "IL-norm": {"color": "#0072B2", "marker": "D"},
    "IL-MQ": {"color": "#56B4E9", "marker": "o"},
    "IL-Adam": {"color": "#0072B2", "marker": "s"},
    "SeqIL": {"color": "#D55E00"},
    "SeqIL-MQ": {"color": "#D55E00", "marker": "o"},
    "SeqIL-Adam": {"color": "#E69F00", "marker": "s"},
    "iPC": {"color": "#009E73", "marker": "^"},
}


class Live:
    """A table of methods that follows the training, above a progress bar.

    Where the output is no terminal, every epoch becomes one line instead. Losses and
    accuracies are medians over the networks of a method. Trainers and records are those
    of `experiments.common.runner`.
    """

    def __init__(self, title: str, methods: Sequence[str], epochs: int) -> None:
        self._title = title
        self._console = Console()
        self._epochs = epochs
        self._rows: dict[str, tuple[str, ...]] = dict.fromkeys(methods, ("",) * 5)
        self._progress = progress_bar(self._console)
        self._task = self._progress.add_task("", total=len(methods) * epochs)
        self._live = rich.live.Live(console=self._console, get_renderable=self._render)

    def __enter__(self) -> "Live":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def status(self, text: str) -> None:
        """Says what is going on beside the bar."""
        self._progress.update(self._task, description=text)

    def resume(self, trainer: Any) -> None:
        """Shows what an earlier run has done."""
        if trainer.records:
            done = len(trainer.records)
            self._progress.update(self._task, advance=done - 1)
            self.update(trainer, trainer.records[-1])

    def update(self, trainer: Any, record: Any) -> None:
        """Shows an epoch that has ended."""
        accuracy = record.test.get("top1")
        self._rows[trainer.name] = (
            f"{record.epoch}/{self._epochs}",
            f"{np.median(record.train_loss):.4f}",
            f"{np.median(record.test['loss']):.4f}",
            "" if accuracy is None else f"{100 * np.median(accuracy):.2f}",
            f"{record.seconds:.2f}",
        )
        self._progress.update(
            self._task, advance=1, description=f"{trainer.name} epoch {record.epoch}"
        )
        if not self._console.is_terminal:
            epoch, train, test, percent, seconds = self._rows[trainer.name]
            print(
                f"{trainer.name:<11} epoch {epoch}  train loss {train}  "
                f"test loss {test}  "
                + (f"test accuracy {percent} %  " if percent else "")
                + f"{seconds} s",
                flush=True,
            )

    def _render(self) -> Group:
        table = Table(
            "method", *(right(h) for h in _LIVE_COLUMNS), box=None, title=self._title
        )
        for name, row in self._rows.items():
            table.add_row(name, *row)
        return Group(table, self._progress)


_LIVE_COLUMNS = ("epoch", "train loss", "test loss", "test acc. %", "s/epoch")


def progress_bar(console: Console | None = None) -> Progress:
    """A bar with what is done, how long it took and how long the rest will take."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console or Console(),
    )


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
    """`mean ± std` of a list, as text."""
    row = scale * array(values)
    if row.size == 1:
        return f"{row.mean():.{digits}f}"
    return f"{row.mean():.{digits}f} ± {std(row):.{digits}f}"


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
