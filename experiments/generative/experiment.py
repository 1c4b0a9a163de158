"""Decoders on images: completions, memories and samples (beyond the paper).

python -m experiments.generative
python -m experiments.generative --preset cpu --data-dir DIR
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common import report
from experiments.common.claims import below, change
from experiments.common.harness import Claim, Experiment, Options, Run, execute
from experiments.common.options import BatchSize, Epochs
from experiments.generative import measures, models
from experiments.generative.plots import plot

MARGIN = 0.1  # what missing pixels may cost of the reconstruction error


@dataclass(frozen=True)
class Size:
    """How much is trained.

    Attributes:
      seeds: decoders trained with and without missing pixels, in pairs.
      epochs: passes over the training images.
      train_images: how many there are at most.
      test_images: those that are completed and denoised.
      sizes: of latents and hidden layers.
      num_steps: inference iterations of a training iteration.
      batch_size: images of one.
      chain: Langevin iterations.
      stored: how many images a memory stores, one memory for each.
      memory: its latents and hidden layers.
      iterations: training iterations of each memory, of 50 images.
      memory_steps: inference iterations of one; memories are precise, and come to rest
        more slowly.
    """

    seeds: int = 3
    epochs: int = 40
    train_images: int = 50_000
    test_images: int = 1_000
    sizes: tuple[int, ...] = (128, 512)
    num_steps: int = 20
    batch_size: int = 100
    chain: int = 10_000
    stored: tuple[int, ...] = (100, 250, 500, 1000)
    memory: tuple[int, ...] = (512, 1024)
    iterations: int = 3_000
    memory_steps: int = 60


@dataclass(frozen=True)
class Config(Options, Epochs, BatchSize):
    """Trains decoders: completions, denoising, memories, samples; pictures of them."""


SMOKE = Size(
    seeds=1,
    epochs=2,
    train_images=400,
    test_images=20,
    sizes=(8, 16),
    num_steps=5,
    batch_size=50,
    chain=50,
    stored=(20,),
    memory=(8, 16),
    iterations=50,
    memory_steps=20,
)


def cpu(config: Config) -> Size:
    """Minutes on two cores: all digits, or a tenth of a larger set."""
    if config.dataset_name == "digits":
        return Size(
            seeds=6,
            epochs=60,
            test_images=200,
            sizes=(12,),
            num_steps=15,
            batch_size=50,
            chain=30_000,
            stored=(10, 25, 50),
            memory=(16, 64),
            iterations=600,
        )
    return Size(
        seeds=1,
        epochs=8,
        train_images=5_000,
        test_images=200,
        sizes=(64, 256),
        num_steps=15,
        chain=2_000,
        stored=(100, 250, 1000),
        memory=(128, 256),
        iterations=400,
    )


class Task(NamedTuple):
    """Images in [0, 1], flattened, and how much is made of them."""

    size: Size
    train: np.ndarray
    test: np.ndarray
    shape: tuple[int, ...]
    keys: jax.Array

    def trained(self, seed: int, *, missing: bool) -> models.Decoder:
        """A decoder; with half of the pixels missing, each image has its own mask."""
        start, order = jax.random.split(self.keys[seed])
        size, count = self.size, len(self.train)
        seen = measures.masks("random", count, self.shape, seed) if missing else None
        return models.train(
            models.make((*size.sizes, self.train.shape[1]), start),
            self.train,
            order,
            epochs=size.epochs,
            batch_size=size.batch_size,
            num_steps=size.num_steps,
            masks=seen,
        )

    def look(self) -> dict[str, Any]:
        """All that is shown of the first decoder."""
        decoder = self.trained(0, missing=False)
        data = decoder, self.train, self.test, self.shape
        return {
            "whole": measures.reconstruction_error(decoder, self.test),
            "reconstruction": measures.reconstructions(*data),
            "completion": measures.completions(*data),
            "denoising": measures.denoising(*data),
            "samples": measures.samples(
                decoder, self.test, self.shape, self.size.chain
            ),
        }

    def error(self, seed: int, missing: bool) -> float:
        """The reconstruction error on the test images."""
        decoder = self.trained(seed, missing=missing)
        return measures.reconstruction_error(decoder, self.test)

    def recall(self, count: int) -> dict[str, Any]:
        """A memory of so many images."""
        return measures.recall(
            (*self.size.memory, self.train.shape[1]),
            self.train[:count],
            self.shape,
            iterations=self.size.iterations,
            num_steps=self.size.memory_steps,
            key=self.keys[0],
        )


def measure(config: Config, size: Size, run: Run) -> dict[str, Any]:
    """Trains pairs of decoders, looks at the first one, and stores images."""
    images = config.load()
    shape = images.train.images.shape[1:]
    train, test = (
        split.images[:count].reshape(-1, int(np.prod(shape))).astype(np.float32) / 255
        for split, count in (
            (images.train, size.train_images),
            (images.test, size.test_images),
        )
    )
    keys = jax.random.split(jax.random.key(config.seed), size.seeds)
    task = Task(size, train, test, shape, keys)
    looked = run.part("decoder", task.look)
    errors: dict[str, list[float]] = {
        "whole": [looked.pop("whole")],
        "half missing": [],
    }
    for name, found in errors.items():
        missing = name == "half missing"
        for seed in range(len(found), size.seeds):
            part = partial(task.error, seed, missing)
            found.append(run.part(f"{name}-{seed}".replace(" ", "-"), part))
    memories = [run.part(f"memory-{n}", partial(task.recall, n)) for n in size.stored]
    return {
        "dataset": config.dataset_name,
        **looked,
        "missing": errors,
        "memory": memories,
    }


def claims(results: dict[str, Any]) -> list[Claim]:
    """Errors beside those of the mean image and the nearest neighbour, and recall."""
    rows = []

    def beside(what: str, errors: dict[str, float], judged: bool = True) -> None:
        others = [value for name, value in errors.items() if name != "decoder"]
        text = "; ".join(f"{name} {value:.4f}" for name, value in errors.items())
        holds = errors["decoder"] < min(others) if judged else None
        rows.append(Claim(f"{what}: squared error a pixel", "-", text, holds))

    beside("reconstruction", results["reconstruction"]["errors"])
    beside("lower half missing", results["completion"]["half"]["errors"])
    beside("half of the pixels missing", results["completion"]["random"]["errors"])
    beside("denoising", results["denoising"]["errors"])
    whole, missing = (
        report.array(results["missing"][name]) for name in ("whole", "half missing")
    )
    ratio = change(missing / whole - 1)
    rows.append(
        Claim(
            "training with half of the pixels missing: reconstruction error within "
            f"{MARGIN:.0%} of that with all",
            "-",
            "; ".join(
                [report.mean_std(x, digits=5) for x in (missing, whole)]
                + [ratio.text(digits=3)]
            ),
            below(ratio, MARGIN),
        )
    )
    for row in results["memory"]:
        rows.append(
            Claim(
                f"{row['stored']} images stored: error a pixel of what was stored, "
                "shown whole; recalled from the upper half: error of the lower half "
                "below .005; nearest to what was stored; nearest neighbour of the cue",
                "-",
                f"{row['stored_error']:.4f}; {row['recalled']:.0%}; "
                f"{row['recalled_as_nearest']:.0%}; {row['nearest_neighbour']:.0%}",
            )
        )
    return rows


EXPERIMENT = Experiment(
    name="generative",
    paper="beyond the paper",
    title="Completions, memories and samples",
    sizes={"smoke": SMOKE, "cpu": cpu, "paper": Size()},
    measure=measure,
    plot=plot,
    claims=claims,
)
main = partial(execute, EXPERIMENT)
