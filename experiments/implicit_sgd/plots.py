"""The figures of `experiments.implicit_sgd`."""

from pathlib import Path
from typing import Any

import numpy as np

# Okabe and Ito's colours; line and marker tell apart what colour may not.
_STYLES = {
    "IL, corrected weights": ("#009E73", "-", "o"),
    "IL, Theorem 1 as in its proof": ("#0072B2", "-", "s"),
    "IL, Theorem 1 as printed": ("#56B4E9", "--", "D"),
    "IL, γ = 1, full clamp": ("#E69F00", "-", "^"),
    "SeqIL, T = 3": ("#D55E00", "--", "v"),
    "SeqIL-MQ, T = 3": ("#CC79A7", "-.", "P"),
    "BP": ("#000000", ":", "x"),
    "implicit step of the mean loss": ("#0072B2", ":", "*"),
    "mean of Newton steps": ("#666666", "--", "+"),
}


def plot(results: dict[str, Any], out: Path) -> None:
    """Draws every figure into the folder."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    name = f"{results['config']['dataset']}, {results['config']['activation']}"
    for draw in (_theorem1, _inference, _limit, _theorem2, _directions, _mini_batch):
        figure = plt.figure(layout="constrained")
        draw(figure, results, name)
        figure.savefig(out / f"{draw.__name__.strip('_')}.png", dpi=130)
        plt.close(figure)


def _panels(figure: Any, count: int, width: float = 4.2) -> Any:
    figure.set_size_inches(width * count, 3.9)
    axes = figure.subplots(1, count)
    for panel in axes:
        panel.grid(alpha=0.25, which="major")
        panel.spines[["top", "right"]].set_visible(False)
    return axes


def _line(panel: Any, x: Any, row: Any, label: str, style: Any = None, **more) -> None:
    """A median with its quartiles; `row` is a summary or a list of them."""
    if isinstance(row, list):
        row = {key: [entry[key] for entry in row] for key in row[0]}
    color, line, marker = style or _STYLES[label]
    x = np.asarray(x, float)
    median, lower, upper = (
        np.array(row[key], float) for key in ("median", "lower", "upper")
    )
    options = {"markersize": 4.5, "linewidth": 1.5, "label": label, **more}
    panel.plot(x, median, color=color, linestyle=line, marker=marker, **options)
    panel.fill_between(x, lower, upper, color=color, alpha=0.12, linewidth=0)


def _legend(figure: Any, panel: Any, columns: int) -> None:
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False
    )


def _theorem1(figure: Any, results: dict[str, Any], name: str) -> None:
    found = results["theorem1"]
    cosine, distance, gap = _panels(figure, 3)
    for label, rows in found["rules"].items():
        _line(cosine, found["betas"], [row["cosine"] for row in rows], label)
        _line(distance, found["betas"], [row["distance"] for row in rows], label)
        if "gap" in rows[0]:
            _line(gap, found["betas"], [row["gap"] for row in rows], label)
    cosine.set(ylabel="cosine to the proximal update")
    distance.set(ylabel="relative distance to it", yscale="log")
    gap.set(ylabel=r"limit of Theorem 1: $\|\hat h_{L-1}-h_{L-1}^{(b+1)}\|$")
    gap.set_yscale("log")
    for panel in (cosine, distance, gap):
        panel.set(xlabel=r"step size $\beta$ of implicit SGD", xscale="log")
    figure.suptitle(f"Updates at equilibrium against the true proximal update ({name})")
    _legend(figure, cosine, 4)


def _inference(figure: Any, results: dict[str, Any], name: str) -> None:
    found = results["during_inference"]
    panels = _panels(figure, 2, 5.2)
    for label, row in found["rules"].items():
        for panel, key in zip(panels, ("cosine", "distance"), strict=True):
            sparse = {"markevery": 0.12} if len(row["iterations"]) > 8 else {}
            _line(panel, row["iterations"], row[key], label, **sparse)
    panels[0].set(ylabel="cosine to the proximal update")
    panels[1].set(ylabel="relative distance to it", yscale="log")
    for panel in panels:
        panel.set_xscale("symlog", linthresh=1)
        panel.set(xlabel="inference iterations", xlim=(0, None))
    figure.suptitle(rf"As inference proceeds, $\beta$ = {found['beta']} ({name})")
    _legend(figure, panels[0], 3)


def _limit(figure: Any, results: dict[str, Any], name: str) -> None:
    panels = _panels(figure, 2, 5.2)
    found = results["limit"]
    for panel, part in zip(panels, ("static", "small_beta"), strict=True):
        for label, rows in found[part].items():
            if label in _STYLES:
                gap = [row["gap"]["median"] for row in rows]
                _line(panel, gap, [row["distance"] for row in rows], label)
        panel.set(
            xscale="log",
            yscale="log",
            xlabel=r"$\|\hat h_{L-1}-h_{L-1}^{(b+1)}\|$, median",
            ylabel="relative distance to the proximal update",
        )
    beta, alpha = found["static"]["beta"], found["small_beta"]["alpha"]
    panels[0].set_title(
        rf"static $\alpha_l = s\,/\,\|f(\hat h_l)\|^2$, $s \to 1$, $\beta$ = {beta}",
        fontsize=10,
    )
    panels[1].set_title(rf"one static $\alpha$ = {alpha}, $\beta \to 0$", fontsize=10)
    figure.suptitle(f"Towards the limit of Theorem 1 ({name})")
    _legend(figure, panels[0], 2)


def _theorem2(figure: Any, results: dict[str, Any], name: str) -> None:
    found = results["theorem2"]
    figure.set_size_inches(6, 4.2)
    panel = figure.subplots()
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.axvspan(*found["fit"], color="0.93", label="range of the fits")
    styles = {
        "explicit": ("explicit step", ("#D55E00", "-", "o")),
        "newton": ("damped Newton step", ("#0072B2", "--", "s")),
    }
    for key, (label, style) in styles.items():
        slope = found[key]["slope"]["median"]
        text = f"{label}" + ("" if slope is None else f": slope {slope:.2f}")
        # The update is of order beta, so that of the relative distance is one less.
        scale = np.array(found["curvatures"])
        row = {
            part: np.array(found[key]["distance"][part], float) * scale
            for part in ("median", "lower", "upper")
        }
        _line(panel, scale, row, text, style)
    panel.set(
        xscale="log",
        yscale="log",
        xlabel=r"$\beta\,\lambda_{\max}$ of the example's loss",
        ylabel=r"$\|\Delta - \Delta_{\mathrm{implicit}}\|$"
        r" (units of $\|\nabla L\|/\lambda_{\max}$)",
    )
    panel.legend(frameon=False, fontsize=9)
    figure.suptitle(f"Theorem 2 ({name})")


def _directions(figure: Any, results: dict[str, Any], name: str) -> None:
    found = results["directions"]
    pairs = {
        "SeqIL, BP": ("#D55E00", "-", "v"),
        "SeqIL, Newton": ("#D55E00", "--", "v"),
        "IL, BP": ("#E69F00", "-", "^"),
        "IL, Newton": ("#E69F00", "--", "^"),
        "implicit, BP": ("#009E73", "-", "o"),
        "implicit, Newton": ("#009E73", "--", "o"),
    }
    panels = _panels(figure, 2, 5.2)
    for panel, key in zip(panels, ("single", "batch"), strict=True):
        for pair, style in pairs.items():
            label = pair.replace(", ", " and ")
            rows = [row[pair] for row in found[key]]
            _line(panel, found["checkpoints"], rows, label, style)
        panel.set_xscale("symlog", linthresh=10)
        panel.set(xlabel="training iterations", xlim=(0, None))
        panel.set_ylabel("cosine")
    panels[0].set_title("single examples", fontsize=10)
    panels[1].set_title(f"mean over a batch of {results['size']['batch']}", fontsize=10)
    low = min(panel.get_ylim()[0] for panel in panels)
    for panel in panels:
        panel.set_ylim(low, 1.02)
    figure.suptitle(rf"Directions during training, $\beta$ = {found['beta']} ({name})")
    _legend(figure, panels[0], 3)


def _mini_batch(figure: Any, results: dict[str, Any], name: str) -> None:
    found = results["mini_batch"]
    panels = _panels(figure, 2, 5.2)
    for label, rows in found["rows"].items():
        color, line, marker = _STYLES[label]
        for panel, key in zip(panels, ("cosine", "distance"), strict=True):
            values = [row[key] for row in rows]
            panel.plot(
                found["betas"],
                values,
                color=color,
                linestyle=line,
                marker=marker,
                markersize=5,
                linewidth=1.5,
                label=label,
            )
    panels[0].set(ylabel="cosine to the mean proximal update")
    panels[1].set(ylabel="relative distance to it", yscale="log")
    for panel in panels:
        panel.set(xlabel=r"step size $\beta$ of implicit SGD", xscale="log")
    figure.suptitle(f"Eq. 27: means over {results['size']['batch']} examples ({name})")
    _legend(figure, panels[0], 3)
