"""Free energy (eq. 1) and inference (eqs. 2 and 3) of one example.

`layers[l]` maps activity h_l to prediction p_{l+1}. `gamma` is a number (for the hidden
layers), L-1 numbers (hidden layers 1..L-1), L numbers (the last one weighs the output
loss, otherwise 1), or a function of (activities, (e_1, ..., e_L)) that returns one of
these. `decay` is a number, L-1 numbers, or such a function. The index i in the code is
the paper's l.
"""

import numpy as np

from tests.reference import outputs


def feedforward(layers, x):
    """[None, p_1, ..., p_L], each prediction made from the prediction below."""
    predictions = [None]
    h = x
    for layer in layers:
        h = layer.forward(h)
        predictions.append(h)
    return predictions


def predict(layers, activities):
    """[None, p_1, ..., p_L], each prediction made from the activity below."""
    return [None] + [layer.forward(activities[i]) for i, layer in enumerate(layers)]


def prediction_errors(output, activities, predictions):
    """[None, e_1, ..., e_L]: e_l = h_l - p_l, and h_L - sigma(p_L) at the output."""
    last = len(activities) - 1
    errors = [None]
    for i in range(1, last):
        errors.append(activities[i] - predictions[i])
    errors.append(outputs.error(output, predictions[last], activities[last]))
    return errors


def resolve(weights, activities, errors, output_weight):
    """One weight per layer, indexed by l = 0..L (None for the input layer)."""
    last = len(activities) - 1
    if callable(weights):
        weights = weights(activities, errors[1:])
    if np.ndim(weights) == 0:
        weights = [weights] * (last - 1)
    weights = [float(weight) for weight in weights]
    if len(weights) == last - 1:
        weights.append(output_weight)
    assert len(weights) == last
    return [None, *weights]


def resolve_both(gamma, decay, activities, errors):
    """gamma_l and gamma_decay_l for i = 0..L; the output activity does not decay."""
    return (
        resolve(gamma, activities, errors, output_weight=1.0),
        resolve(decay, activities, errors, output_weight=0.0),
    )


def free_energy_per_layer(layers, output, activities, gamma=1.0, decay=0.0):
    """Eq. 1, term by term: [F_1, ..., F_L], F_L being the output loss.

    F_l = gamma_l / 2 ||e_l||^2 + gamma_decay_l / 2 ||f(h_l)||^2 for the hidden layers.
    """
    last = len(layers)
    predictions = predict(layers, activities)
    errors = prediction_errors(output, activities, predictions)
    gammas, decays = resolve_both(gamma, decay, activities, errors)
    terms = []
    for i in range(1, last):
        error_term = gammas[i] / 2 * np.sum(errors[i] ** 2)
        terms.append(error_term + decays[i] * layers[i].decay(activities[i]))
    loss = output.loss(predictions[last], activities[last])
    return [*terms, gammas[last] * loss]


def free_energy(layers, output, activities, gamma=1.0, decay=0.0):
    """Eq. 1 of one example."""
    return sum(free_energy_per_layer(layers, output, activities, gamma, decay))


def activity_gradient(layer, h, e, e_above, gamma, gamma_above, decay):
    """dF/dh_l, minus the bracket of eq. 2.

    -(gamma_{l+1} J_l^T e_{l+1} - gamma_l e_l - gamma_decay_l f'(h_l) f(h_l))
    """
    from_above = gamma_above * layer.pull_input(h, e_above)
    return -(from_above - gamma * e - decay * layer.decay_gradient(h))


def simultaneous(layers, output, activities, gamma, decay, move):
    """All errors from the old activities, then every hidden layer moves (Jacobi)."""
    last = len(layers)
    errors = prediction_errors(output, activities, predict(layers, activities))
    gammas, decays = resolve_both(gamma, decay, activities, errors)
    moved = list(activities)
    for i in range(1, last):
        gradient = activity_gradient(
            layers[i],
            activities[i],
            errors[i],
            errors[i + 1],
            gammas[i],
            gammas[i + 1],
            decays[i],
        )
        moved[i] = move(i, activities[i], gradient)
    return moved


def sequential(layers, output, activities, gamma, decay, move):
    """Hidden layers move one after the other, l = L-1 down to 1 (Gauss-Seidel).

    Each uses the h_{l+1} that has just moved, and h_l and h_{l-1} that have not. gamma
    and decay are those of the start of the iteration.
    """
    last = len(layers)
    errors = prediction_errors(output, activities, predict(layers, activities))
    gammas, decays = resolve_both(gamma, decay, activities, errors)
    moved = list(activities)
    for i in range(last - 1, 0, -1):
        current = prediction_errors(output, moved, predict(layers, moved))
        gradient = activity_gradient(
            layers[i],
            moved[i],
            current[i],
            current[i + 1],
            gammas[i],
            gammas[i + 1],
            decays[i],
        )
        moved[i] = move(i, moved[i], gradient)
    return moved


class GradientDescent:
    """h -= eps_t dF/dh; `step_size` is a number or a function of the iteration t."""

    def __init__(self, step_size):
        self.step_size = step_size

    def start(self):
        """Forgets what an earlier example left behind."""

    def update(self, t, i, h, gradient):
        eps = self.step_size(t) if callable(self.step_size) else self.step_size
        return h - eps * gradient


class Momentum:
    """Heavy ball: m <- mu m + dF/dh, then h -= rate m, with m = 0 at the start."""

    def __init__(self, rate, mu):
        self.rate, self.mu = rate, mu

    def start(self):
        self.m = {}

    def update(self, t, i, h, gradient):
        self.m[i] = self.mu * self.m.get(i, 0.0) + gradient
        return h - self.rate * self.m[i]


class Adam:
    """Adam with bias correction; iteration t = 0 is its first step."""

    def __init__(self, rate, beta1=0.9, beta2=0.999, eps=1e-8):
        self.rate, self.beta1, self.beta2, self.eps = rate, beta1, beta2, eps

    def start(self):
        self.m, self.v = {}, {}

    def update(self, t, i, h, gradient):
        b1, b2 = self.beta1, self.beta2
        self.m[i] = b1 * self.m.get(i, 0.0) + (1 - b1) * gradient
        self.v[i] = b2 * self.v.get(i, 0.0) + (1 - b2) * gradient**2
        m_hat = self.m[i] / (1 - b1 ** (t + 1))
        v_hat = self.v[i] / (1 - b2 ** (t + 1))
        return h - self.rate * m_hat / (np.sqrt(v_hat) + self.eps)


def set_output(layers, output, activities, target, clamp):
    """The activities with h_L set by the clamp from the current sigma(p_L)."""
    logits = layers[-1].forward(activities[-2])
    h_output = clamp(target, output.link(logits), activities[-2])
    return [*activities[:-1], h_output]


def initialize(layers, output, x, target, clamp):
    """Hidden activities are the feed-forward values, so all hidden errors are 0."""
    activities = [x, *feedforward(layers, x)[1:]]
    return set_output(layers, output, activities, target, clamp)


def infer(
    layers, output, x, target, sweep, num_steps, optimizer, clamp, gamma=1.0, decay=0.0
):
    """Activities before the first and after each of the `num_steps` iterations.

    `sweep` is `simultaneous` or `sequential`. The output activity is re-set by the
    clamp after every iteration, the last included.
    """
    optimizer.start()
    history = [initialize(layers, output, x, target, clamp)]
    for t in range(num_steps):

        def move(i, h, gradient, t=t):
            return optimizer.update(t, i, h, gradient)

        moved = sweep(layers, output, history[-1], gamma, decay, move)
        history.append(set_output(layers, output, moved, target, clamp))
    return history
