"""The optimizer MQ (section 4, eqs. 7 and 8), in the sense in which it is meant.

For each layer, |grad_l| being averaged over its weights and bias together,

    step_l = alpha_l / (v_l + r) + alpha_min
    theta_l <- theta_l - step_l grad_l                         (with the old v_l)
    v_l <- rho_b v_l + (1 - rho_b) mean|grad_l|,   rho_b = min(rho, 1 - 1 / (b + 2))

for b = 0, 1, ..., starting from v_l = alpha_l.
"""

import numpy as np

from tests.reference.learning import combine


def leaves(tree):
    """All arrays of a nested dict."""
    if isinstance(tree, dict):
        return [leaf for child in tree.values() for leaf in leaves(child)]
    return [tree]


def mean_magnitude(gradient):
    """Mean absolute entry of a layer's gradient, weights and bias pooled."""
    entries = np.concatenate([np.abs(leaf).reshape(-1) for leaf in leaves(gradient)])
    return entries.mean()


class MQ:
    """MQ over a list of layers; `alpha(b, l)` is the rate of layer l at step b."""

    def __init__(self, alpha, num_layers, rho=0.9999, alpha_min=1e-3, r=1e-6):
        self.alpha, self.rho, self.alpha_min, self.r = alpha, rho, alpha_min, r
        self.v = [alpha(0, i) for i in range(num_layers)]
        self.b = 0

    def update(self, gradients):
        """What is to be added to the parameters, and the state's move to b + 1."""
        rho = min(self.rho, 1.0 - 1.0 / (self.b + 2))
        updates = []
        for i, gradient in enumerate(gradients):
            step = self.alpha(self.b, i) / (self.v[i] + self.r) + self.alpha_min
            updates.append(combine(lambda g, step=step: -step * g, gradient))
            self.v[i] = rho * self.v[i] + (1 - rho) * mean_magnitude(gradient)
        self.b += 1
        return updates
