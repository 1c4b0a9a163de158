"""Accuracies beside the paper's, and what the paper says of them."""

import itertools
from typing import Any

import numpy as np

from experiments.classification.paper import PAPER, SEEDS
from experiments.classification.protocols import accuracies, to_backprop
from experiments.common import report
from experiments.common.claims import (
    Claim,
    Difference,
    Sample,
    above,
    all_of,
    below,
    difference,
    not_worse,
    within,
)

LAST = 10  # epochs over which accuracy may swing
MARGIN = 1.0  # points of accuracy that make no difference
PROTOCOLS = {
    "best": "best test epoch",
    "halves": "epoch chosen on half of the test images, judged on the others",
    "final": "last epoch",
}


def claims(results: dict[str, Any]) -> list[Claim]:
    """Every accuracy beside the paper's, and what the paper says of them."""
    rows = []
    for measure in results["best"]:
        for name in results["methods"]:
            rows += _accuracy_rows(results, measure, name)
    return [*rows, *_epoch_rows(results), *_statements(results)]


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
                f"{here}; {each:.3g} s the fastest epoch{shortfall(results)}",
            )
        )
    return rows


def shortfall(results: dict[str, Any]) -> str:
    """` (1 of 5 seeds, 10 of 110 epochs)`: what there is less of than in the paper."""
    if (results["net"], results["dataset"], "top1") not in PAPER:
        return ""
    first = next(iter(results["methods"].values()))
    epochs, seeds = np.shape(first["train_loss"])
    full = results["settings"]["epochs"]
    texts = [
        f"{here:,} of {paper:,} {what}"
        for here, paper, what in (
            (seeds, SEEDS, "seeds"),
            (epochs, full, "epochs"),
            (*results.get("train_images", (0, 0)), "images"),
        )
        if here < paper
    ]
    return f" ({', '.join(texts)})" if texts else ""


def _accuracy_rows(results: dict[str, Any], measure: str, name: str) -> list[Claim]:
    """A method's accuracy by every protocol."""
    found = accuracies(results["methods"][name], measure)
    said = PAPER.get((results["net"], results["dataset"], measure), {}).get(name)
    bold = name in (results["best"][measure]["bold"] or ())
    rows = []
    for protocol, label in PROTOCOLS.items():
        values = getattr(found, protocol)
        if values is None:
            continue
        here = report.mean_std(values) + shortfall(results)
        paper, holds = "-", None
        if protocol == "best":
            here += ", bold" if bold else ""
            if said:
                paper = f"{said[0]:.2f} ± {said[1]:.2f}"
                gap = difference(values, Sample(*said, SEEDS))
                holds = within(gap, MARGIN) if results["full"] else None
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
                f"{shortfall(results)}",
            )
        )
    return rows


def _epoch_rows(results: dict[str, Any]) -> list[Claim]:
    """How many epochs every method takes to BP's final accuracy."""
    return [
        Claim(
            f"{name}, epochs to BP's final accuracy",
            "-",
            f"{'never' if epochs is None else epochs}{shortfall(results)}",
        )
        for name, epochs in to_backprop(results["methods"]).items()
    ]


def _statements(results: dict[str, Any]) -> list[Claim]:
    """The paper's sentences on these runs."""
    curves = results["methods"]
    found = {name: accuracies(rows, "top1") for name, rows in curves.items()}
    rows: list[Claim] = []
    if {"BP", "SeqIL-MQ"} <= set(curves):
        rows += _never_worse(found, results)
        first = {name: _first_loss(curves[name]) for name in ("SeqIL-MQ", "BP")}
        gap = difference(first["SeqIL-MQ"], first["BP"])
        rows.append(
            Claim(
                "SeqIL-MQ reduces the loss more quickly than BP early on",
                "section 6",
                f"training loss of epoch 1: {first['SeqIL-MQ'].mean():.3f}, "
                f"{first['BP'].mean():.3f}; {gap.text(digits=3)}",
                below(gap),
            )
        )
    if {"SeqIL", "SeqIL-MQ"} <= set(curves):
        gap = difference(found["SeqIL-MQ"].best, found["SeqIL"].best)
        rows.append(
            Claim(
                "without an optimizer SeqIL converges to poorer minima than SeqIL-MQ",
                "section 6",
                f"SeqIL-MQ is ahead by {gap.text('points')}"
                + ("" if results["full"] else ", long before convergence"),
                above(gap) if results["full"] else None,
            )
        )
    return rows + _order(found, results)


def _order(found: dict[str, Any], results: dict[str, Any]) -> list[Claim]:
    """Whether methods that the paper tells apart come in its order here."""
    said = PAPER.get((results["net"], results["dataset"], "top1"), {})
    paper = {name: Sample(*said[name], SEEDS) for name in found if name in said}
    apart = [
        (a, b)
        for a, b in itertools.permutations(paper, 2)
        if difference(paper[a], paper[b]).low > 0
    ]
    if not apart or not results["full"]:
        return []
    rows = []
    for protocol, label in PROTOCOLS.items():
        ours = {name: getattr(found[name], protocol) for name in paper}
        if any(values is None for values in ours.values()):
            continue
        verdicts = [above(difference(ours[a], ours[b])) for a, b in apart]
        means = {name: values.mean() for name, values in ours.items()}
        rows.append(
            Claim(
                f"the order of the methods ({label})",
                _ranked({name: known.mean for name, known in paper.items()}),
                f"{_ranked(means)}: of {len(apart)} pairs that the paper tells apart, "
                f"{verdicts.count(True)} are so, {verdicts.count(False)} are not"
                f"{shortfall(results)}",
                all_of(verdicts),
            )
        )
    return rows


def _ranked(values: dict[str, float]) -> str:
    return " > ".join(sorted(values, key=values.__getitem__, reverse=True))


def _never_worse(found: dict[str, Any], results: dict[str, Any]) -> list[Claim]:
    """The paper's statement by every protocol."""
    rows = []
    for protocol, label in PROTOCOLS.items():
        ours, theirs = (getattr(found[name], protocol) for name in ("SeqIL-MQ", "BP"))
        if ours is None or theirs is None:
            continue
        gap = difference(ours, theirs)
        rows.append(
            Claim(
                f"SeqIL-MQ is never significantly worse than BP ({label})",
                "section 6" if protocol == "best" else "-",
                _with_p(gap) + shortfall(results),
                not_worse(gap, MARGIN),
            )
        )
    return rows


def _with_p(gap: Difference) -> str:
    known = not np.isnan(gap.p_value)
    return gap.text("points") + (f", p = {gap.p_value:.2g}" if known else "")


def _first_loss(curves: dict[str, Any]) -> np.ndarray:
    return report.array(curves["train_loss"])[0]
