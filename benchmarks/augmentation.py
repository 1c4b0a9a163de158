"""What random flips and crops cost beside an iteration of VGG5.

python -m benchmarks.augmentation --json FILE
"""

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from benchmarks import timing, workloads
from pcjax import training


@dataclass(frozen=True)
class Config:
    """Times `prepare` with and without augmentation, and backprop's iteration."""

    rounds: int = 20
    """Timed calls of each, in turn."""
    batch_size: int = 64
    """Examples an iteration."""
    width: int = 32
    """Channels of VGG5's first convolution; 128 as published."""
    json: Path | None = None
    """Where the result goes, besides the screen."""


def measure(config: Config) -> dict[str, Any]:
    """Milliseconds of each, and the share of augmentation in both together."""
    load = workloads.vgg5(config.batch_size, config.width)
    program = workloads.backprop(load, "Adam")
    params, opt_state = workloads.start(load, program)
    rng = np.random.default_rng(0)
    images = jax.device_put(rng.integers(0, 256, load.inputs.shape, np.uint8))
    labels = jax.device_put(np.arange(config.batch_size, dtype=np.int32) % 10)
    prepare = training.classification(10)
    both = training.augmented(prepare, training.random_flip, training.padded_crop(4))

    def timed(function, *arguments):
        compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(*arguments))

    seconds = timing.interleave(
        [
            timed(prepare, images, labels),
            timed(both, images, labels, jax.random.key(0)),
            timed(program.update, params, opt_state, load.inputs, load.targets),
        ],
        config.rounds,
    )
    plain, augmented, step = (float(np.median(row)) for row in seconds)
    return {
        "milliseconds": {
            "prepare": 1e3 * plain,
            "prepare with augmentation": 1e3 * augmented,
            program.name: 1e3 * step,
        },
        "share": (augmented - plain) / (augmented + step),
    }


def main(config: Config) -> None:
    """Measures, prints and writes."""
    result = {
        "command": shlex.join(
            ["python", "-m", "benchmarks.augmentation", *sys.argv[1:]]
        ),
        "environment": timing.environment(),
        **measure(config),
    }
    for name, value in result["milliseconds"].items():
        print(f"{name}: {value:.2f} ms")
    print(f"augmentation: {result['share']:.1%} of the iteration")
    if config.json:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config))
