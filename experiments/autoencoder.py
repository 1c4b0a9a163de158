"""Autoencoders trained by backprop and predictive coding (Figure 6, right).

python -m experiments.autoencoder
python -m experiments.autoencoder --preset cpu --data-dir DIR
"""

import base64
import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.classification.protocols import PROTOCOLS, chosen_on_halves
from experiments.common import report
from experiments.common.claims import (
    UNDECIDED,
    below,
    difference,
    enough,
    missing,
    within,
)
from experiments.common.harness import (
    Claim,
    Experiment,
    Options,
    Run,
    cli,
    execute,
)
from experiments.common.methods import MethodName, select
from experiments.common.options import (
    BatchSize,
    Changes,
    Epochs,
    JpegQuality,
    KeepWeights,
    LearningRate,
    adapted,
    is_papers,
)
from experiments.common.runner import Plan, timeless, train_methods
from experiments.common.settings import settings
from experiments.common.tasks import TrainingSize as Size
from experiments.common.tasks import make_task
from experiments.common.trainer import Trainer

METHODS: tuple[MethodName, ...] = ("BP", "BP-Adam", "SeqIL", "SeqIL-MQ", "SeqIL-Adam")
PICTURES = 8
SEEDS = 5  # of the paper
MARGIN = 0.01  # BCE a pixel that makes no difference: that of BP and BP-Adam here


@dataclass(frozen=True)
class Config(
    Options, Epochs, BatchSize, LearningRate, Changes, JpegQuality, KeepWeights
):
    """Trains autoencoders: reconstruction losses, and reconstructed pictures."""

    methods: tuple[MethodName, ...] = METHODS
    """The methods to train."""


def measure(config: Config, size: Size, run: Run) -> dict[str, Any]:
    """Trains every method over the seeds."""
    found = adapted(settings("autoencoder", config.dataset_name), config)
    images = config.load()
    task = make_task("autoencoder", images, found, train_images=size.train_images)
    pictures = task.test.images[:PICTURES]
    shape = pictures.shape

    def reconstruct(trainer: Trainer) -> dict[str, str]:
        outputs = np.asarray(task.output.link(trainer.logits(pictures)[0]))
        span = found.high - found.low
        pixels = np.clip((outputs - found.low) / span, 0, 1).reshape(shape)
        return {"pictures": encode(np.round(255 * pixels).astype(np.uint8))}

    trained = train_methods(
        run,
        "autoencoder",
        task,
        select(config.methods),
        found,
        jax.random.split(jax.random.key(config.seed), size.seeds),
        Plan(
            epochs=size.epochs,
            extra=reconstruct,
            on_nonfinite=config.on_nonfinite,
            in_turn=config.preset != "paper",
            keep_weights=config.keep_weights,
        ),
    )
    return {
        "dataset": config.dataset_name,
        "full": is_papers(config, size.epochs, found) and size.train_images is None,
        "train_images": [len(task.train.labels), len(images.train.labels)],
        "settings": found.__dict__,
        "pictures": encode(np.asarray(pictures)),
        "methods": timeless(run, "autoencoder", trained),
    }


def encode(pictures: np.ndarray) -> str:
    """Pictures uint8 [N, H, W, C] side by side as a PNG, in base64."""
    from PIL import Image

    strip = np.concatenate(list(pictures), axis=1)
    file = io.BytesIO()
    Image.fromarray(strip[..., 0] if strip.shape[-1] == 1 else strip).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def decode(text: str) -> np.ndarray:
    """The strip [H, N W, ...] that `encode` made."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(text))) as file:
        return np.asarray(file)


def claims(results: dict[str, Any]) -> list[Claim]:
    """Losses after the first and the best epoch, and what the paper says of them.

    Of Figure 6 the paper has no numbers.
    """
    loss = {
        name: report.array(found["test"]["loss"])
        for name, found in results["methods"].items()
    }
    rows = [
        Claim(
            f"{name}, test loss (BCE a pixel): epoch 1; best; last",
            "-",
            f"{report.mean_std(values[0], digits=4)}; "
            f"{report.mean_std(values.min(0), digits=4)}; "
            f"{report.mean_std(values[-1], digits=4)}"
            f"{missing(results, [name], SEEDS)}",
        )
        for name, values in loss.items()
    ]
    rows += [
        Claim(
            f"{name}, test loss (BCE a pixel), {PROTOCOLS['halves']}",
            "-",
            f"{report.mean_std(_on_halves(found['halves']['loss']), digits=4)}"
            f"{missing(results, [name], SEEDS)}",
        )
        for name, found in results["methods"].items()
        if "halves" in found  # not in runs of before
    ]
    pairs = [
        (ours, theirs)
        for ours in ("SeqIL", "SeqIL-MQ", "SeqIL-Adam")
        for theirs in ("BP", "BP-Adam")
        if {ours, theirs} <= set(loss)
    ]
    for ours, theirs in pairs:
        a, b = loss[ours][0], loss[theirs][0]
        gap = difference(a, b)
        rows.append(
            Claim(
                f"{ours} reduces the loss faster than {theirs} early on",
                "section 6",
                f"after epoch 1: {a.mean():.4f}, {b.mean():.4f}; {gap.text(digits=4)}"
                f"{missing(results, [ours, theirs], SEEDS)}",
                enough(results, [ours, theirs], below(gap)),
            )
        )
    return rows + [
        _similar(results, loss, *pair) for pair in pairs if pair[0] != "SeqIL"
    ]


def _on_halves(loss: Any) -> np.ndarray:
    """[epochs, 2, runs] -> [runs]."""
    return -chosen_on_halves(-report.array(loss))


def _similar(
    results: dict[str, Any], loss: dict[str, Any], ours: str, theirs: str
) -> Claim:
    """Whether a method ends where backprop does, short runs being long before that."""
    a, b = (loss[name].min(0) for name in (ours, theirs))
    gap = difference(a, b)
    long = min(map(len, loss.values())) >= results["settings"]["epochs"]
    full = results.get("full", long)  # not said by runs of before
    return Claim(
        f"{ours} converges to a reconstruction loss similar to {theirs}'s",
        "section 6",
        f"best {a.mean():.4f}, {b.mean():.4f}; {gap.text(digits=4)}"
        f"{missing(results, [ours, theirs], SEEDS)}",
        enough(results, [ours, theirs], within(gap, MARGIN)) if full else UNDECIDED,
    )


def plot(results: dict[str, Any], folder: Path) -> None:
    """The losses against the epoch, and a grid of reconstructed pictures."""
    methods = results["methods"]
    with report.figure(folder / "curves.png", columns=2) as panels:
        for panel, (label, values) in zip(
            panels[0],
            (
                ("test loss (BCE a pixel)", lambda c: c["test"]["loss"]),
                ("training loss (BCE an image)", lambda c: c["train_loss"]),
            ),
            strict=True,
        ):
            for name, curves in methods.items():
                rows = values(curves)
                report.band(panel, range(1, len(rows) + 1), rows, name)
            report.cut_off(panel, [values(curves) for curves in methods.values()])
            panel.set(xlabel="epoch", ylabel=label)
            report.whole_numbers(panel)
        panels[0, 0].set_title(f"{results['dataset']}, autoencoder")
        report.legend_beside(panels[0, -1])
    rows = {"input": results["pictures"]}
    rows |= {name: found["pictures"] for name, found in methods.items()}
    size = (6.4, 0.75 * len(rows))
    with report.figure(folder / "pictures.png", len(rows), 1, figsize=size) as panels:
        for panel, (name, strip) in zip(panels[:, 0], rows.items(), strict=True):
            panel.imshow(decode(strip), cmap="gray", vmin=0, vmax=255, aspect="equal")
            panel.grid(visible=False)
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
            panel.set_ylabel(name, rotation=0, ha="right", va="center")


EXPERIMENT = Experiment(
    name="autoencoder",
    paper="Figure 6, right",
    title="Reconstruction loss",
    sizes={
        "smoke": Size(epochs=2, seeds=2, train_images=640),
        "cpu": Size(epochs=5, seeds=2, train_images=20_000),
        "paper": Size(),
    },
    measure=measure,
    plot=plot,
    claims=claims,
    free=("methods",),
)
main = partial(execute, EXPERIMENT)

if __name__ == "__main__":
    cli(main, Config)
