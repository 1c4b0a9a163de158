"""One training iteration in NumPy and float64, which every library is held to.

Written out from the equations and not from any library, so that a step which skips
iterations, layers or examples is found out.
"""

from typing import NamedTuple

import numpy as np

Weights = list[tuple[np.ndarray, np.ndarray]]  # [(W [in, out], b [out]), ...]


class Model(NamedTuple):
    """How a library lays out a ReLU network.

    Attributes:
      layout: `pre`, where activities are what goes into the ReLU, or `post`, where
        they are what comes out of it.
      loss: `softmax cross-entropy` or `squared error` (half of it).
    """

    layout: str
    loss: str


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def _predict(model: Model, weights: Weights, activities: list) -> tuple[list, list]:
    """What goes into every product, and what comes out of it."""
    sources = [
        _relu(h) if model.layout == "pre" and index else h
        for index, h in enumerate(activities[: len(weights)])
    ]
    return sources, [h @ w + b for h, (w, b) in zip(sources, weights, strict=True)]


def _output_error(model: Model, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    if model.loss == "squared error":
        return targets - logits
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return targets - exponentials / exponentials.sum(1, keepdims=True)


def _feedforward(model: Model, weights: Weights, inputs: np.ndarray) -> list:
    activities = [inputs.astype(np.float64)]
    for index in range(len(weights)):
        _, products = _predict(model, weights[: index + 1], activities)
        last = index == len(weights) - 1
        post = model.layout == "post" and not last
        activities.append(_relu(products[-1]) if post else products[-1])
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
    count = len(weights)
    if inference == "backprop":
        sources, products = _predict(model, weights, activities)
        signals = [_output_error(model, products[-1], targets)]
        for index in range(count - 1, 0, -1):
            back = signals[0] @ weights[index][0].T * (products[index - 1] > 0)
            signals.insert(0, back)
        return _local(sources, signals)
    hidden = range(1, count)
    if inference == "error-based":
        activities = _by_errors(
            model, weights, activities, targets, num_steps, step_size
        )
        num_steps = 0
    for _ in range(num_steps):
        if inference == "simultaneous":
            moves = _moves(model, weights, activities, targets)
            for index in hidden:
                activities[index] = activities[index] + step_size * moves[index]
        else:  # from last to first, each reading the activity above as it now is
            for index in reversed(hidden):
                move = _moves(model, weights, activities, targets)[index]
                activities[index] = activities[index] + step_size * move
    sources, _, signals = _errors(model, weights, activities, targets)
    return _local(sources, signals)


def _by_errors(
    model: Model,
    weights: Weights,
    activities: list,
    targets: np.ndarray,
    num_steps: int,
    step_size: float,
) -> list:
    """Activities after descent in the hidden errors, from which they are rebuilt."""
    activities = list(activities)
    errors = [np.zeros_like(h) for h in activities[1:-1]]
    for _ in range(num_steps):
        products = _predict(model, weights, activities)[1]
        signal = _output_error(model, products[-1], targets)
        for index in reversed(range(len(errors))):
            signal = signal @ weights[index + 1][0].T
            if model.layout == "pre":
                signal = signal * (activities[index + 1] > 0)
            errors[index] = errors[index] - step_size * (errors[index] - signal)
            if model.layout == "post":
                signal = signal * (products[index] > 0)
        for index, error in enumerate(errors):
            product = _predict(model, weights, activities)[1][index]
            predicted = _relu(product) if model.layout == "post" else product
            activities[index + 1] = predicted + error
    return activities


def _errors(
    model: Model, weights: Weights, activities: list, targets: np.ndarray
) -> tuple[list, list, list]:
    """What goes into the products, the hidden errors, and all errors as they reach
    the products."""
    sources, products = _predict(model, weights, activities)
    output = _output_error(model, products[-1], targets)
    if model.layout == "pre":
        pairs = zip(activities[1:-1], products[:-1], strict=True)
        errors = [h - product for h, product in pairs]
        return sources, errors, [*errors, output]
    pairs = zip(activities[1:-1], products[:-1], strict=True)
    errors = [h - _relu(product) for h, product in pairs]
    pairs = zip(errors, products[:-1], strict=True)
    return sources, errors, [*(e * (product > 0) for e, product in pairs), output]


def _moves(
    model: Model, weights: Weights, activities: list, targets: np.ndarray
) -> dict[int, np.ndarray]:
    """Minus the energy's gradient in every hidden activity."""
    _, errors, signals = _errors(model, weights, activities, targets)
    moves = {}
    for index, error in enumerate(errors, 1):
        back = signals[index] @ weights[index][0].T
        if model.layout == "pre":
            back = back * (activities[index] > 0)
        moves[index] = back - error
    return moves


def _local(sources: list, signals: list) -> Weights:
    batch_size = len(sources[0])
    return [
        (-source.T @ signal / batch_size, -signal.mean(0))
        for source, signal in zip(sources, signals, strict=True)
    ]
