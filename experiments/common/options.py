"""What experiments can be asked for, and what that changes of sizes and settings.

`Options` is for all of them. What only those that train can be asked for is a class of
one field each: an experiment's `Config` inherits what it can do.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.common import data, jpeg
from experiments.common.settings import Settings

Preset = Literal["smoke", "cpu", "paper"]
# What does not decide the results, so that a run may go on with other values of it.
NEUTRAL = (
    "out",
    "data_dir",
    "on_nonfinite",
    "replace",
    "finished_only",
    "keep_weights",
)
_COUNTS = ("seeds", "epochs", "iterations", "batch_size")


@dataclass(frozen=True)
class Options:
    """What every experiment can be asked for."""

    preset: Preset = "smoke"
    """smoke: seconds, on digits. cpu: minutes on two cores, on CIFAR-10. paper: the
    paper's epochs, seeds and grids, for a GPU."""
    dataset: str | None = None
    """digits (built in), cifar10, cifar100, svhn_cropped, tiny_imagenet, ...; by
    default digits for smoke and cifar10 for the others."""
    data_dir: Path | None = None
    """The folder of prepared TFDS data sets; digits needs none."""
    seeds: int | None = None
    """Networks trained, each with its own weights and order of data; by default what
    the preset says."""
    seed: int = 0
    """Decides all randomness."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What happens to a training step that is not finite: the run stops and says what
    went wrong, or the step is left out. Grids, timings and the measures of Figures 1,
    2, 8 and 9 have no guard: there such a run shows as NaN."""
    out: Path | None = None
    """Where results and figures go; by default out/EXPERIMENT/PRESET-DATASET."""
    replace: bool = False
    """Runs anew where the folder holds a finished run, or one of other settings."""
    finished_only: bool = False
    """Reports the parts of an interrupted run that are finished, and runs nothing."""

    def __post_init__(self) -> None:
        if self.replace and self.finished_only:
            raise ValueError(
                "--replace runs anew, --finished-only runs nothing: give one of them."
            )
        for name in _COUNTS:
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise ValueError(f"{_flag(name)} must be at least 1, got {value}.")
        refuse_no_quality(getattr(self, "jpeg_quality", None))
        refuse_non_positive("learning_rate", getattr(self, "learning_rate", None))

    @property
    def dataset_name(self) -> str:
        """The data set that is meant."""
        return self.dataset or ("digits" if self.preset == "smoke" else "cifar10")

    def load(self) -> data.Dataset:
        """Loads the data set."""
        images = data.load(self.dataset_name, self.data_dir)
        quality = getattr(self, "jpeg_quality", None)
        return images if quality is None else jpeg.recompressed(images, quality)


@dataclass(frozen=True)
class Epochs:
    """For experiments that train by epochs."""

    epochs: int | None = None
    """Passes over the training set; by default what the preset says."""


@dataclass(frozen=True)
class Iterations:
    """For experiments that train by iterations."""

    iterations: int | None = None
    """Training iterations; by default what the preset says."""


@dataclass(frozen=True)
class BatchSize:
    """For experiments that train."""

    batch_size: int | None = None
    """Examples a training iteration; by default the paper's."""


@dataclass(frozen=True)
class LearningRate:
    """For experiments that train at given rates."""

    learning_rate: float | None = None
    """The learning rate of all methods named; by default each has the paper's."""


@dataclass(frozen=True)
class Changes:
    """For experiments that train with the paper's settings."""

    set: dict[str, float] | None = None
    """Numbers in the place of the paper's, by their names in
    experiments.common.settings: `--set pc_decay 3e-5 clamp 0.1`."""


@dataclass(frozen=True)
class JpegQuality:
    """For experiments whose outcome may hang on lossy copies of a data set."""

    jpeg_quality: int | None = None
    """Trains and tests on the images as JPEG files of this quality, 1 to 100, leave
    them; by default on those of the data set."""


@dataclass(frozen=True)
class KeepWeights:
    """For experiments whose trained networks may be of use."""

    keep_weights: bool = False
    """Keeps the trained weights, in OUT/weights/METHOD/SEED; they can be read with
    pcjax.checkpoints and are params as flax has them."""


def refuse_non_positive(name: str, *values: float | None) -> None:
    """Refuses numbers that are not positive and finite; None is no number.

    Raises:
      ValueError: naming the option.
    """
    for value in values:
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{_flag(name)} must be positive, got {value}.")


def refuse_no_quality(quality: int | None) -> None:
    """Refuses what is no quality of JPEG files; None is no JPEG.

    Raises:
      ValueError: naming the option.
    """
    if quality is not None and not 1 <= quality <= 100:
        raise ValueError(f"--jpeg-quality must be 1 to 100, got {quality}.")


def resized(size: Any, config: Any) -> Any:
    """The size with what the command line says in its place, for every net alike.

    A batch size that is none of the size's is one of the settings', see `adapted`.
    """
    for name in _COUNTS:
        asked = getattr(config, name, None)
        if asked is not None and (name != "batch_size" or hasattr(size, name)):
            old = getattr(size, name)
            new = (asked,) * len(old) if isinstance(old, tuple) else asked
            size = dataclasses.replace(size, **{name: new})
    return size


def adapted(settings: Settings, config: Any) -> Settings:
    """The settings with what the command line says in their place.

    Raises:
      ValueError: if a number is not one of the settings', or no such number.
    """
    changes: dict[str, Any] = {}
    if getattr(config, "batch_size", None) is not None:
        changes["batch_size"] = config.batch_size
    if (rate := getattr(config, "learning_rate", None)) is not None:
        changes["learning_rates"] = dict.fromkeys(settings.learning_rates, rate)
    changes |= _numbers(settings, getattr(config, "set", None) or {})
    return dataclasses.replace(settings, **changes)


def _numbers(settings: Settings, asked: dict[str, float]) -> dict[str, Any]:
    """The numbers that are asked for, in the types of the settings."""
    known = {
        name: type(value)
        for name, value in dataclasses.asdict(settings).items()
        if isinstance(value, int | float)
    }
    for name, value in asked.items():
        if name not in known:
            raise ValueError(f"--set: expected some of {[*known]}, got {name!r}.")
        if not math.isfinite(value) or (value < 0 and name not in ("low", "high")):
            raise ValueError(f"--set: {name} must be >= 0 and finite, got {value}.")
        if known[name](value) != value:
            kind = known[name].__name__
            raise ValueError(f"--set: {name} must be of type {kind}, got {value}.")
    return {name: known[name](value) for name, value in asked.items()}


def is_papers(config: Any, epochs: int | None, settings: Settings) -> bool:
    """Whether a run is the paper's: its preset, rates, images and length.

    Args:
      config: of an experiment that trains.
      epochs: that are trained; None for those of the settings.
      settings: of the net and data set.
    """
    asked = ("batch_size", "learning_rate", "set", "jpeg_quality")
    own = all(getattr(config, name, None) is None for name in asked)
    long = epochs is None or epochs >= settings.epochs
    return config.preset == "paper" and own and long


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
