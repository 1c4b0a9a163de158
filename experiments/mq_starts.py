"""Where MQ starts: the paper's alpha, a given v or the first gradient, beside Adam.

python -m experiments.mq_starts
python -m experiments.mq_starts --preset cpu --data-dir DIR

Nets of the paper and others, each by backprop and by sequential inference (SeqIL), each
with every optimizer at every rate, from the same weights through the same batches. The
paper starts v at alpha, so that MQ's first update is the whole gradient; the table says
on which nets that matters, and whether MQ from the first gradient keeps up with Adam.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import pcjax
from experiments.common import report
from experiments.common.data import Dataset
from experiments.common.harness import Claim, Experiment, Options, Run, execute
from experiments.common.options import BatchSize, Epochs
from experiments.mq_starts_nets import NETS, Size
from pcjax import training
from pcjax.learning.gradients import GradFn
from pcjax.optimizers import first_gradient
from pcjax.training import evaluation

WITHIN = 0.02  # of Adam's accuracy


@dataclass(frozen=True)
class Config(Options, Epochs, BatchSize):
    """Compares MQ's starts and Adam on nets of many kinds."""

    nets: tuple[str, ...] = tuple(NETS)
    """Rows of the table."""
    factors: tuple[float, ...] = (1 / 3, 1.0, 3.0)
    """Multiples of the net's learning rate, the same for every optimizer."""
    start: float = 1e-2
    """The given v."""
    decay: float = 0.999
    """rho of MQ."""

    def __post_init__(self) -> None:
        """Refuses nets that there are not, and tables that favour one side."""
        super().__post_init__()
        unknown = sorted(set(self.nets) - set(NETS))
        if unknown or not self.nets:
            raise ValueError(
                f"--nets must be some of {list(NETS)}, got {unknown or 'none'}."
            )
        if not self.factors:
            raise ValueError("--factors must be one number or more, got none.")

    def rates(self, net: str, optimizer: str) -> tuple[float, ...]:
        """The learning rates of an optimizer on a net."""
        base = NETS[net].adam_rate if optimizer == "Adam" else NETS[net].mq_rate
        return tuple(factor * base for factor in self.factors)


# Rules and optimizers.


def _backprop(network: pcjax.Network) -> GradFn:
    return pcjax.backprop.value_and_grad(network, output=pcjax.softmax)


def _seqil(network: pcjax.Network) -> GradFn:
    method = pcjax.sequential(3, lambda t: 0.05 / (1 + t))
    clamp = pcjax.soft_clamp(0.01)
    return pcjax.value_and_grad(network, method, output=pcjax.softmax, clamp=clamp)


RULES = {"BP": _backprop, "SeqIL": _seqil}

# (rate, config) -> optimizer
OPTIMIZERS = {
    "Adam": lambda rate, config: optax.adam(rate),
    "MQ, paper's start": lambda rate, config: pcjax.mq(rate, config.decay),
    "MQ, given v": lambda rate, config: pcjax.mq(
        rate, config.decay, start=config.start
    ),
    "MQ, first gradient": lambda rate, config: pcjax.mq(
        rate, config.decay, start=first_gradient
    ),
}
RECOMMENDED = "MQ, first gradient"


def measure(config: Config, size: Size, run: Run) -> dict[str, Any]:
    """A part for every net, rule and optimizer."""
    images = config.load()
    results: dict[str, Any] = {}
    for net in config.nets:
        network = NETS[net].make(
            images.train.images.shape[1:], images.num_classes, size
        )
        for rule, gradients in RULES.items():
            trainer = Trainer(
                network, gradients(network), NETS[net].low, images, config, size
            )
            for name, optimizer in OPTIMIZERS.items():
                part = f"{net}-{rule}-{name}".replace(" ", "_").replace("'", "")
                rates = config.rates(net, name)
                found = run.part(part, partial(trainer.train_all, optimizer, rates))
                results.setdefault(net, {}).setdefault(rule, {})[name] = found
                best = 100 * np.max(_accuracies(found))
                print(f"{net}, {rule}, {name}: {best:.2f} %", flush=True)
    return {
        "dataset": config.dataset_name,
        "rates": {
            net: {name: config.rates(net, name) for name in OPTIMIZERS}
            for net in config.nets
        },
        "settings": asdict(size),
        "nets": results,
    }


class Trainer:
    """A network and a rule, compiled once for all optimizers and rates."""

    def __init__(
        self,
        network: pcjax.Network,
        grad_fn: GradFn,
        low: float,
        images: Dataset,
        config: Config,
        size: Size,
    ) -> None:
        """Puts the data on the device; nothing is compiled yet."""
        self._config, self._size = config, size
        prepare = training.classification(images.num_classes, low=low)
        train = images.train
        chosen = slice(size.train_images)
        self._train, self._test = (
            training.device_data(*split, images.num_classes)
            for split in ((train.images[chosen], train.labels[chosen]), images.test)
        )

        def gradient(params, index):
            (_, info), grads = grad_fn(params, *prepare(*_rows(self._train, index)))
            return jnp.mean(info.loss), grads

        measures = evaluation.classification_measures(pcjax.softmax)
        self._init = jax.jit(network.init)
        self._gradient = jax.jit(gradient)
        self._evaluate = jax.jit(evaluation.make_evaluation(network, prepare, measures))
        self._example = prepare(*_rows(self._train, jnp.zeros(1, jnp.int32)))[0]

    def train_all(self, optimizer: Callable, rates: Sequence[float]) -> dict[str, Any]:
        """Trains with every rate and seed: accuracies [rates, seeds], and losses."""

        # One program for all rates.
        def step(rate, params, opt_state, grads):
            tx = optimizer(rate, self._config)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        self._step = jax.jit(step, donate_argnums=(1, 2))
        rows = [
            [self._train_one(optimizer, rate, seed) for seed in range(self._size.seeds)]
            for rate in rates
        ]
        return {
            name: [[entry[name] for entry in row] for row in rows]
            for name in rows[0][0]
        }

    def _train_one(self, optimizer, rate, seed):
        key = jax.random.fold_in(jax.random.key(self._config.seed), seed)
        params_key, data_key = jax.random.split(key)
        params = self._init(params_key, self._example)
        opt_state = optimizer(rate, self._config).init(params)
        losses: list[list[jax.Array]] = []
        total = len(self._train.images)
        for epoch in range(self._size.epochs):
            losses.append([])
            for index in training.epoch_batches(
                data_key, epoch, total, self._size.batch_size
            ):
                loss, grads = self._gradient(params, index)
                params, opt_state = self._step(rate, params, opt_state, grads)
                losses[-1].append(loss)
        curve = np.array(jax.device_get(losses), np.float64)
        return {
            "accuracy": float(self._evaluate(params, self._test).top1),
            "epoch_losses": curve.mean(1),
            "second_loss": curve[0, 1],  # that after one update
            "highest_loss": curve.max(),
        }


def _rows(data: training.Data, index: jax.Array) -> training.Data:
    return jax.tree.map(lambda x: x[index], data)


def _accuracies(found: dict[str, Any]) -> np.ndarray:
    """The mean accuracy of every rate."""
    return report.array(found["accuracy"]).mean(1)


def claims(results: dict[str, Any]) -> list[Claim]:
    """Every net's best rate by optimizer, and whether MQ keeps up with Adam."""
    rows = []
    for net, rules in results["nets"].items():
        for rule, optimizers in rules.items():
            best = {name: _accuracies(found) for name, found in optimizers.items()}
            for name, values in best.items():
                behind = best["Adam"].max() - values.max()
                highest = report.array(optimizers[name]["highest_loss"])
                rate = results["rates"][net][name][int(values.argmax())]
                rows.append(
                    Claim(
                        f"{net} by {rule}: {name}, accuracy in %",
                        "-",
                        f"{100 * values.max():.2f} (rate {rate:.1g}; highest loss of a "
                        "batch, by rate: "
                        + ", ".join(f"{x:.3g}" for x in highest.max(1))
                        + ")",
                        bool(behind <= WITHIN) if name == RECOMMENDED else None,
                    )
                )
    return rows


def plot(results: dict[str, Any], folder: Path) -> None:
    """Accuracy against the rate, a panel for every net and rule."""
    nets = results["nets"]
    styles = {
        "Adam": {"color": "#000000", "linestyle": ":", "marker": "s"},
        "MQ, paper's start": {"color": "#D55E00", "marker": "^"},
        "MQ, given v": {"color": "#56B4E9", "marker": "D"},
        "MQ, first gradient": {"color": "#009E73", "marker": "o"},
    }
    with report.figure(
        folder / "mq_starts.png",
        rows=len(RULES),
        columns=len(nets),
        figsize=(3.1 * len(nets), 2.8 * len(RULES)),
        sharey="col",
    ) as panels:
        for column, (net, rules) in enumerate(nets.items()):
            for panel, (rule, optimizers) in zip(
                panels[:, column], rules.items(), strict=True
            ):
                for name, found in optimizers.items():
                    values = 100 * _accuracies(found)
                    panel.plot(
                        results["rates"][net][name],
                        values,
                        label=name,
                        markersize=5,
                        alpha=0.85,
                        **styles[name],
                    )
                panel.set(xscale="log", title=f"{net}, {rule}")
                panel.xaxis.set_minor_formatter("")
        for panel in panels[-1]:
            panel.set_xlabel("learning rate")
        for panel in panels[:, 0]:
            panel.set_ylabel("test accuracy (%)")
        report.legend_beside(panels[0, -1])


EXPERIMENT = Experiment(
    name="mq_starts",
    paper="section 4, eq. 30",
    title="Where MQ starts, and on which nets it matters",
    sizes={
        "smoke": Size(1, 1, 320, 32, (8, 16, 32), 8, 1, 32),
        "cpu": Size(4, 1, 5_000, 256, (16, 32, 64), 16, 2),
        "paper": Size(),
    },
    measure=measure,
    plot=plot,
    claims=claims,
)
main = partial(execute, EXPERIMENT)

if __name__ == "__main__":
    main(tyro.cli(Config))
