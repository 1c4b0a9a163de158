"""The benchmark's figure: accuracies by epoch and algorithm, and cosines by layer."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import report
from experiments.pcx_benchmark.statements import honest

# Colours by what is learned from: grey backprop, blue the clamp, orange nudges.
STYLES: dict[str, dict[str, Any]] = {
    "BP-CE": {"color": "#000000", "linestyle": "--"},
    "BP-SE": {"color": "#777777", "linestyle": "--"},
    "CE": {"color": "#0072B2"},
    "SE": {"color": "#56B4E9"},
    "PN": {"color": "#E69F00", "marker": "^"},
    "NN": {"color": "#E69F00", "marker": "v"},
    "CN-sign": {"color": "#D55E00", "marker": "o", "markerfacecolor": "white"},
    "CN": {"color": "#D55E00", "marker": "o"},
    "iPC": {"color": "#009E73", "marker": "s"},
    "SeqIL": {"color": "#CC79A7"},
    "SeqIL-MQ": {"color": "#CC79A7", "marker": "D"},
    "ePC": {"color": "#117733"},
    "PC-rest": {"color": "#882255", "linestyle": "-."},
}


def plot(results: dict[str, Any], folder: Path) -> None:
    """Draws accuracy.png."""
    methods = results["methods"]
    with report.figure(folder / "accuracy.png", columns=3) as panels:
        curve, ranking, layers = panels[0]
        for name, curves in methods.items():
            rows = 100 * report.array(curves["test"]["top1"])
            report.band(curve, range(1, len(rows) + 1), rows, name, **STYLES[name])
            if "cosine" in curves:
                cosine = report.array(curves["cosine"])
                report.band(
                    layers, range(1, len(cosine) + 1), cosine, name, **STYLES[name]
                )
        curve.set(xlabel="epoch", ylabel="test accuracy (%)")
        curve.set_title(f"{results['dataset']}, {results['net']}")
        _ranking(ranking, methods)
        layers.set(xlabel="layer", ylabel="cosine to backprop's gradient")
        for panel in (curve, layers):
            report.whole_numbers(panel)
        handles, labels = curve.get_legend_handles_labels()  # backprop is there alone
        report.legend_beside(layers, handles=handles, labels=labels)


def _ranking(panel: Any, methods: dict[str, Any]) -> None:
    """Every seed's accuracy by the honest protocol, the best method on top."""
    found = {name: honest(curves) for name, curves in methods.items()}
    ranked = sorted(found, key=lambda name: np.mean(found[name]))
    for place, name in enumerate(ranked):
        values, color = found[name], STYLES[name]["color"]
        panel.plot(values, [place] * len(values), "o", color=color, alpha=0.5, ms=4)
        panel.plot([np.mean(values)], [place], "|", color=color, ms=16, mew=2)
    panel.set_yticks(range(len(ranked)), ranked)
    panel.set(xlabel="test accuracy (%), epoch chosen on the other half")
