"""One training iteration in NumPy and float64, which every library is held to.

Written out from the equations and not from any library, so that a step which skips
iterations, layers or examples is found out.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

# [(W [in, out] or [3, 3, in, out], b [out]), ...]
Weights = list[tuple[np.ndarray, np.ndarray]]
# A cotangent of a layer's outputs -> those of its inputs, of W and of b.
Pull = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


class Model(NamedTuple):
    """How a library lays out a ReLU network.

    Attributes:
      layout: `pre`, where activities are what goes into the ReLU, or `post`, where
        they are what comes out of it (and of the pool after it).
      loss: `softmax cross-entropy` or `squared error` (half of it).
    """

    layout: str
    loss: str


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def _dense(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, Pull]:
    flat = x.reshape(len(x), -1)

    def pull(g):
        return (g @ w.T).reshape(x.shape), flat.T @ g, g.sum(0)

    return flat @ w + b, pull


def _conv(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, Pull]:
    """A 3 x 3 convolution that keeps height and width; tap by tap."""
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [
        (place, np.s_[:, place[0] : place[0] + height, place[1] : place[1] + width])
        for place in np.ndindex(w.shape[:2])
    ]

    def pull(g):
        to_x, to_w = np.zeros_like(padded), np.zeros_like(w)
        for place, window in taps:
            to_x[window] += g @ w[place].T
            to_w[place] = np.tensordot(padded[window], g, axes=((0, 1, 2), (0, 1, 2)))
        return to_x[:, 1:-1, 1:-1], to_w, g.sum((0, 1, 2))

    return sum(padded[window] @ w[place] for place, window in taps) + b, pull


def _max_pool(x: np.ndarray) -> tuple[np.ndarray, Callable]:
    """The largest of 2 x 2; of equal ones all, which are zeros of a ReLU."""
    batch, height, width, channels = x.shape
    tiles = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    largest = tiles.max((2, 4), keepdims=True)

    def pull(g):
        return ((tiles == largest) * g.reshape(largest.shape)).reshape(x.shape)

    return largest.reshape(batch, height // 2, width // 2, channels), pull


def _layer(
    model: Model, weights: Weights, index: int, below: np.ndarray
) -> tuple[np.ndarray, Pull]:
    """What a layer predicts from the activity below, and its transposed derivative."""
    w, b = weights[index]
    pre = model.layout == "pre"
    multiply = _dense if w.ndim == 2 else _conv
    product, pull = multiply(_relu(below) if pre and index else below, w, b)
    if pre:

        def through_relu(g):
            to_source, *rest = pull(g)
            return (to_source * (below > 0) if index else to_source, *rest)

        return product, through_relu
    if index == len(weights) - 1:
        return product, pull
    if w.ndim == 2:
        return _relu(product), lambda g: pull(g * (product > 0))
    pooled, unpool = _max_pool(_relu(product))
    return pooled, lambda g: pull(unpool(g) * (product > 0))


def _output_error(model: Model, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    if model.loss == "squared error":
        return targets - logits
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return targets - exponentials / exponentials.sum(1, keepdims=True)


def _feedforward(
    model: Model,
    weights: Weights,
    inputs: np.ndarray,
    errors: list[np.ndarray] | None = None,
) -> list:
    """Every activity, with errors added to the predictions of the hidden ones."""
    none = np.zeros(())
    activities = [inputs.astype(np.float64)]
    for index, error in enumerate([*(errors or [none] * (len(weights) - 1)), none]):
        prediction, _ = _layer(model, weights, index, activities[-1])
        activities.append(prediction + error)
    return activities


def loss(
    model: Model, weights: Weights, inputs: np.ndarray, targets: np.ndarray
) -> float:
    """The mean loss of the feed-forward outputs."""
    logits = _feedforward(model, weights, inputs)[-1]
    if model.loss == "squared error":
        return float(0.5 * np.mean(np.sum((targets - logits) ** 2, 1)))
    shifted = logits - logits.max(1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return float(-np.mean(np.sum(targets * log_softmax, 1)))


def gradients(
    model: Model,
    weights: Weights,
    inputs: np.ndarray,
    targets: np.ndarray,
    inference: str,
    num_steps: int,
    step_size: float,
) -> Weights:
    """The mean gradient of the free energy after inference, or of the loss.

    Inference starts from the feed-forward activities with the output clamped to the
    targets. Backprop is the limit of errors carried down at once.
    """
    activities = _feedforward(model, weights, inputs)
    activities[-1] = targets.astype(np.float64)
    hidden = range(1, len(weights))
    if inference == "backprop":
        pulls, _ = _errors(model, weights, activities)
        return _local(pulls, _carried(model, weights, activities))
    if inference == "error-based":
        errors = [np.zeros_like(activity) for activity in activities[1:-1]]
        for _ in range(num_steps):
            signals = _carried(model, weights, activities)
            errors = [
                e - step_size * (e - signal)
                for e, signal in zip(errors, signals[:-1], strict=True)
            ]
            activities[1:-1] = _feedforward(model, weights, inputs, errors)[1:-1]
        num_steps = 0
    for _ in range(num_steps):
        if inference == "simultaneous":
            moves = _moves(model, weights, activities)
            for index in hidden:
                activities[index] = activities[index] + step_size * moves[index]
        else:  # from last to first, each reading the activity above as it now is
            for index in reversed(hidden):
                move = _moves(model, weights, activities)[index]
                activities[index] = activities[index] + step_size * move
    return _local(*_errors(model, weights, activities))


def _errors(
    model: Model, weights: Weights, activities: list
) -> tuple[list[Pull], list[np.ndarray]]:
    """The transposed derivatives and the errors of all layers; the last one's is that
    of the loss."""
    pulls, errors = [], []
    for index, (below, above) in enumerate(pairwise(activities)):
        prediction, pull = _layer(model, weights, index, below)
        last = index == len(weights) - 1
        pulls.append(pull)
        errors.append(
            _output_error(model, prediction, above) if last else above - prediction
        )
    return pulls, errors


def _carried(model: Model, weights: Weights, activities: list) -> list[np.ndarray]:
    """The output's error as backprop carries it to every layer's outputs."""
    pulls, errors = _errors(model, weights, activities)
    signals = [errors[-1]]
    for pull in reversed(pulls[1:]):
        signals.insert(0, pull(signals[0])[0])
    return signals


def _moves(model: Model, weights: Weights, activities: list) -> dict[int, np.ndarray]:
    """Minus the energy's gradient in every hidden activity."""
    pulls, errors = _errors(model, weights, activities)
    return {
        index: pulls[index](errors[index])[0] - errors[index - 1]
        for index in range(1, len(weights))
    }


def _local(pulls: list[Pull], signals: list[np.ndarray]) -> Weights:
    pulled = [pull(g)[1:] for pull, g in zip(pulls, signals, strict=True)]
    return [(-to_w / len(signals[0]), -to_b / len(signals[0])) for to_w, to_b in pulled]
