"""Weight gradients (eq. 4), back-propagation, and incremental predictive coding (iPC).

Gradients have the sign of a loss gradient: subtracting them lowers the objective.
"""

from tests.reference import inference, outputs


def combine(function, *trees):
    """`function` of the corresponding leaves of nested dicts."""
    if isinstance(trees[0], dict):
        return {k: combine(function, *(tree[k] for tree in trees)) for k in trees[0]}
    return function(*trees)


def batch_mean(gradients):
    """Mean over examples; `gradients` holds one list of L trees per example."""

    def mean(*leaves):
        return sum(leaves) / len(leaves)

    return [combine(mean, *trees) for trees in zip(*gradients, strict=True)]


def energy_gradient(layers, output, activities, gamma=1.0, output_target=None):
    """Eq. 4 for one example: dF/dtheta_l = -gamma_{l+1} J_theta^T e_{l+1}.

    With `output_target`, the last layer's error is taken against it instead of h_L.
    gamma is held fixed where it is a function of the activities and errors.
    """
    last = len(layers)
    predictions = inference.predict(layers, activities)
    errors = inference.prediction_errors(output, activities, predictions)
    gammas = inference.resolve(gamma, activities, errors, output_weight=1.0)
    if output_target is not None:
        errors[last] = outputs.error(output, predictions[last], output_target)
    gradients = []
    for i in range(last):
        ascent = layers[i].pull_params(activities[i], errors[i + 1])
        gradients.append(combine(lambda a, g=gammas[i + 1]: -g * a, ascent))
    return gradients


def backprop_gradient(layers, output, x, target):
    """Gradient of the loss of one example by the chain rule, last layer first."""
    predictions = inference.feedforward(layers, x)
    values = [x, *predictions[1:]]
    delta = output.link(predictions[-1]) - target
    gradients = []
    for i in range(len(layers) - 1, -1, -1):
        gradients.insert(0, layers[i].pull_params(values[i], delta))
        delta = layers[i].pull_input(values[i], delta)
    return gradients


def descend(layers, gradients, rate):
    """The layers after a step of plain gradient descent on their parameters."""
    return [
        layer.with_params(combine(lambda p, g: p - rate * g, layer.params, gradient))
        for layer, gradient in zip(layers, gradients, strict=True)
    ]


def incremental(
    layers, output, xs, targets, sweep, step_sizes, rate, clamp, gammas, decays
):
    """iPC on a batch: weights take a step at every inference iteration.

    Activities and weights both step from the state of the start of the iteration: the
    weights along the batch mean of F's gradient at those activities. Predictions, and
    the output activity that the clamp makes of them, then follow from the new weights.

    `step_sizes` holds eps_t of the T iterations, `gammas` and `decays` one entry per
    example. Returns the final layers and T+1 entries (layers, activities per example).
    """
    batch = range(len(xs))
    activities = [
        inference.initialize(layers, output, xs[b], targets[b], clamp) for b in batch
    ]
    history = [(layers, activities)]
    for eps in step_sizes:

        def move(i, h, gradient, eps=eps):
            return h - eps * gradient

        gradient = batch_mean(
            [energy_gradient(layers, output, activities[b], gammas[b]) for b in batch]
        )
        moved = [
            sweep(layers, output, activities[b], gammas[b], decays[b], move)
            for b in batch
        ]
        layers = descend(layers, gradient, rate)
        activities = [
            inference.set_output(layers, output, moved[b], targets[b], clamp)
            for b in batch
        ]
        history.append((layers, activities))
    return layers, history
