"""Accuracies beside the paper's, and what the paper says of them."""

from typing import Any

from experiments.classification.paper import PAPER, SEEDS
from experiments.classification.protocols import (
    PROTOCOLS,
    accuracies,
    best_epochs,
    epochs_of_runs,
    to_backprop,
)
from experiments.classification.sentences import MARGIN, sentences, shortfall
from experiments.common import report
from experiments.common.claims import (
    Claim,
    Sample,
    difference,
    enough,
    no_longer,
    times_as_long,
    within,
)

LAST = 10  # epochs over which accuracy may swing


def claims(results: dict[str, Any]) -> list[Claim]:
    """Every accuracy beside the paper's, and what the paper says of them."""
    rows = []
    for measure in results["best"]:
        bold = best_epochs(results["methods"], measure)["bold"] or ()
        for name in results["methods"]:
            rows += _accuracy_rows(results, measure, name, bold=name in bold)
    return [*rows, *_epoch_rows(results), *sentences(results)]


def times(results: dict[str, Any], seconds: dict[str, Any]) -> list[Claim]:
    """Seconds of training to BP's final accuracy, every epoch as long as the fastest.

    All do the same work: what an epoch took more was the machine's other work, which
    methods that did not take turns met unequally.
    """
    measured = seconds.get(f"{results['net']}, per epoch", {})
    if "BP" not in measured:
        return []
    rows = []
    for name, epochs in to_backprop(results["methods"]).items():
        each = min(measured[name])
        here = f"{epochs * each:.0f} s" if epochs else "never"
        rows.append(
            Claim(
                f"{name}, seconds of training to BP's final accuracy",
                "-",
                f"{here}; {each:.3g} s the fastest epoch{shortfall(results, name)}",
            )
        )
    return [*rows, *_as_fast(results, measured)]


def _as_fast(results: dict[str, Any], measured: dict[str, Any]) -> list[Claim]:
    """What is said of Figure 10, of runs that went to the end."""
    methods = results["methods"]
    if not results["full"] or not {"SeqIL-MQ", "BP"} <= methods.keys():
        return []
    level = report.array(methods["BP"]["test"]["top1"])[-1].mean()
    ours, theirs = (
        epochs_of_runs(level, methods[name]["test"]["top1"]) * min(measured[name])
        for name in ("SeqIL-MQ", "BP")
    )
    return [
        Claim(
            "SeqIL-MQ's training time to BP's final accuracy matches BP's",
            "section 9, Figure 10",
            f"{times_as_long(ours, theirs)}{shortfall(results, 'SeqIL-MQ', 'BP')}",
            enough(results, ["SeqIL-MQ", "BP"], no_longer(ours, theirs)),
        )
    ]


def _accuracy_rows(
    results: dict[str, Any], measure: str, name: str, *, bold: bool
) -> list[Claim]:
    """A method's accuracy by every protocol."""
    found = accuracies(results["methods"][name], measure)
    said = PAPER.get((results["net"], results["dataset"], measure), {}).get(name)
    rows = []
    for protocol, label in PROTOCOLS.items():
        values = getattr(found, protocol)
        if values is None:
            continue
        here = report.mean_std(values) + shortfall(results, name)
        paper, holds = "-", None
        if protocol == "best":
            here += ", bold" if bold else ""
            if said:
                paper = f"{said[0]:.2f} ± {said[1]:.2f}"
                gap = difference(values, Sample(*said, SEEDS))
                if results["full"]:
                    here += f"; {gap.text('points')}"
                    holds = enough(results, [name], within(gap, MARGIN))
        rows.append(
            Claim(f"{name}, {measure} test accuracy, %, {label}", paper, here, holds)
        )
    curve = 100 * report.array(results["methods"][name]["test"][measure])
    if len(curve) >= 2 * LAST:
        last = curve[-LAST:]
        rows.append(
            Claim(
                f"{name}, {measure} test accuracy, %, last {LAST} epochs",
                "-",
                f"{last.mean():.2f}, from {last.min():.2f} to {last.max():.2f}"
                f"{shortfall(results, name)}",
            )
        )
    return rows


def _epoch_rows(results: dict[str, Any]) -> list[Claim]:
    """How many epochs every method takes to BP's final accuracy."""
    return [
        Claim(
            f"{name}, epochs to BP's final accuracy",
            "-",
            f"{'never' if epochs is None else epochs}{shortfall(results, name)}",
        )
        for name, epochs in to_backprop(results["methods"]).items()
    ]
