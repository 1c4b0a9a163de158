"""Live progress on the screen, with the time that is left as a number."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import rich.live
from rich.console import Console, Group
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from experiments.common.folders import Run
from experiments.common.report import right

_COLUMNS = ("epoch", "train loss", "test loss", "test acc. %", "s/epoch")


class Live:
    """A table of methods that follows the training, above a progress bar.

    Where the output is no terminal, every epoch becomes one line instead. Losses and
    accuracies are medians over the networks of a method. Trainers and records are those
    of `experiments.common.trainer`.
    """

    def __init__(self, title: str, methods: Sequence[str], epochs: int) -> None:
        self._title = title
        self._console = Console()
        self._epochs = epochs
        self._rows: dict[str, tuple[str, ...]] = dict.fromkeys(methods, ("",) * 5)
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._last = time.perf_counter()
        self._progress = progress(self._console)
        self._task = self._progress.add_task(
            "", total=len(methods) * epochs, left="time left known after an epoch"
        )
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
        self._last = time.perf_counter()  # what was compiled is no epoch's time
        if trainer.records:
            done = len(trainer.records)
            self._seconds[trainer.name] = [r.seconds for r in trainer.records]
            self._progress.update(self._task, advance=done)
            print(
                f"{trainer.name:<11} goes on: {done} of {self._epochs} epochs were "
                "done by an interrupted run",
                flush=True,
            )
            self._show(trainer.name, trainer.records[-1])

    def update(self, trainer: Any, record: Any) -> None:
        """Shows an epoch that has ended."""
        now = time.perf_counter()
        # With evaluation and checkpoint, which are a part of what is to come.
        self._seconds[trainer.name].append(now - self._last)
        self._last = now
        self._show(trainer.name, record)
        left = time_left(self._remaining())
        self._progress.update(
            self._task,
            advance=1,
            description=f"{trainer.name} epoch {record.epoch}",
            left=left,
        )
        if not self._console.is_terminal:
            epoch, train, test, percent, seconds = self._rows[trainer.name]
            print(
                f"{trainer.name:<11} epoch {epoch}  train loss {train}  "
                f"test loss {test}  "
                + (f"test accuracy {percent} %  " if percent else "")
                + f"{seconds} s  {left}",
                flush=True,
            )

    def _show(self, name: str, record: Any) -> None:
        accuracy = record.test.get("top1")
        self._rows[name] = (
            f"{record.epoch}/{self._epochs}",
            f"{np.median(record.train_loss):.4f}",
            f"{np.median(record.test['loss']):.4f}",
            "" if accuracy is None else f"{100 * np.median(accuracy):.2f}",
            f"{record.seconds:.2f}",
        )

    def _remaining(self) -> float:
        """Seconds for the epochs to come, each as long as its method's median one.

        A method that has not begun counts as the mean of the others.
        """
        medians = {name: float(np.median(s)) for name, s in self._seconds.items() if s}
        usual = float(np.mean(list(medians.values())))
        return sum(
            medians.get(name, usual) * (self._epochs - len(self._seconds[name]))
            for name in self._rows
        )

    def _render(self) -> Group:
        table = Table(
            "method", *(right(h) for h in _COLUMNS), box=None, title=self._title
        )
        for name, row in self._rows.items():
            table.add_row(name, *row)
        return Group(table, self._progress)


class Parts:
    """A progress bar over parts that take about the same time, a context manager.

    Args:
      run: the output folder that keeps the parts.
      total: how many there are.
    """

    def __init__(self, run: Run, total: int) -> None:
        self._run, self._total, self._done = run, total, 0
        self._bar = progress(Console())
        self._row = self._bar.add_task("", total=total, left="")
        self._seconds: list[float] = []

    def __enter__(self) -> "Parts":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        """`Run.part`, shown; the parts found in the folder say nothing of the time."""
        self._bar.update(self._row, description=name)

        def timed() -> Any:
            started = time.perf_counter()
            value = jax.block_until_ready(compute())
            self._seconds.append(time.perf_counter() - started)
            return value

        found = self._run.part(name, timed)
        self._done += 1
        mean = float(np.mean(self._seconds)) if self._seconds else 0.0
        left = time_left(mean * (self._total - self._done))
        self._bar.update(self._row, advance=1, left=left)
        return found


def progress(console: Console) -> Progress:
    """A bar with what is done, how long it took and the field `left` of its tasks."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
    )


def time_left(seconds: float) -> str:
    """`41 s left`, `12 min left`, `3.4 h left`."""
    if seconds < 100:
        return f"{seconds:.0f} s left"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min left"
    return f"{seconds / 3600:.1f} h left"
