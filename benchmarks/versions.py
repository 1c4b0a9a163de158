"""Is a training iteration slower than in an earlier version?

git worktree add ../before COMMIT
python -m benchmarks.versions --before ../before --net conv --rounds 40

Both versions have a process of their own, in the environment of this one, and are
called in turn. What they run is built of public names only.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from benchmarks import timing

Net = Literal["mlp", "conv", "autoencoder", "residual"]


@dataclass(frozen=True)
class Config:
    """Times SeqIL-MQ T=3 of this checkout and of another one, interleaved."""

    before: Path
    """The checkout of the earlier version."""
    net: Net = "mlp"
    """The paper's nets, or 64 residual layers of 128, with batches of 64."""
    rounds: int = 30
    """Timed calls of both."""
    json: Path | None = None
    """Where the result goes, besides the screen."""


_WORKER = """
import sys
import jax, jax.numpy as jnp
import pcjax
from pcjax import training

net = sys.argv[1]
networks = {
    "mlp": lambda: pcjax.mlp([3072, 1024, 1024, 1024, 10]),
    "conv": lambda: pcjax.convnet(10),
    "autoencoder": lambda: pcjax.autoencoder(),
    "residual": lambda: pcjax.residual_mlp([3072, *[128] * 63, 10], jnp.tanh),
}
network = networks[net]()
output = pcjax.sigmoid if net == "autoencoder" else pcjax.softmax
inputs = jax.random.uniform(
    jax.random.key(0), (64, 32, 32, 3) if net == "conv" else (64, 3072)
)
labels = jax.nn.one_hot(jnp.arange(64) % 10, 10)
targets = inputs if net == "autoencoder" else labels
tx = pcjax.mq(1e-5)
grad_fn = pcjax.value_and_grad(
    network, pcjax.sequential(3, 0.05), output=output, clamp=pcjax.soft_clamp(0.01)
)
params = network.init(jax.random.key(0), inputs)
arrays = params, tx.init(params), inputs, targets
update = jax.jit(training.make_update(grad_fn, tx)).lower(*arrays).compile()
print(pcjax.__file__, flush=True)
for _ in sys.stdin:
    jax.block_until_ready(update(*arrays))
    print("done", flush=True)
"""


class Version:
    """A process that makes a training iteration whenever it is told to."""

    def __init__(self, checkout: Path, net: str) -> None:
        """Starts the process."""
        self._checkout = checkout
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, net],
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self) -> "Version":
        """Waits until its program is compiled."""
        found = Path(self._line())
        if self._checkout not in found.parents:
            raise SystemExit(
                f"versions: {self._checkout} holds no pcjax; found {found}."
            )
        return self

    def step(self) -> None:
        """One iteration."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        self._line()

    def end(self) -> None:
        """Ends the process."""
        self._process.terminate()
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise SystemExit("versions: a version failed, as it says above.")
        return line


def measure(before: Path, net: Net, rounds: int) -> np.ndarray:
    """Seconds, [2, rounds], of the earlier version and of this one."""
    here = Path(__file__).resolve().parents[1]
    with contextlib.ExitStack() as stack:
        versions = []
        for checkout in (before, here):
            versions.append(Version(checkout.resolve(), net))
            stack.callback(versions[-1].end)
        steps = [version.start().step for version in versions]
        return timing.interleave(steps, rounds)


def main(config: Config) -> None:
    """Prints the ratios and writes them."""
    seconds = measure(config.before, config.net, config.rounds)
    median, least = timing.ratios(seconds[1], seconds[0])
    commits = [_commit(path) for path in (config.before, Path(__file__).parent)]
    print(
        f"{config.net}, SeqIL-MQ T=3: {commits[1]} over {commits[0]}: median of the "
        f"ratios {median:.3f}, ratio of the minima {least:.3f}"
    )
    if config.json:
        result = {
            "command": shlex.join(
                ["python", "-m", "benchmarks.versions", *sys.argv[1:]]
            ),
            "environment": timing.environment(),
            "commits": commits,
            "net": config.net,
            "median_ratio": median,
            "minimum_ratio": least,
            "milliseconds": (1e3 * seconds).round(3).tolist(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        config.json.write_text(json.dumps(result, indent=1) + "\n")


def _commit(checkout: Path) -> str:
    found = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    main(tyro.cli(Config))
