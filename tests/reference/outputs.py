"""Output links with their losses (section 1), and the clamps of the output activity.

The loss of one example is summed over its features. Its gradient with respect to the
logits is sigma(logits) - target, so the output error h_L - sigma(p_L) is minus it (for
softmax this takes targets that sum to one). A clamp makes h_L of the target, sigma(p_L)
and the activity h_{L-1} below.
"""

import numpy as np


class Softmax:
    """Class probabilities; the loss is the cross-entropy."""

    def link(self, logits):
        return np.exp(logits) / np.sum(np.exp(logits))

    def loss(self, logits, target):
        return -np.sum(target * np.log(self.link(logits)))


class Sigmoid:
    """Pixel intensities; the loss is the binary cross-entropy."""

    def link(self, logits):
        return 1.0 / (1.0 + np.exp(-logits))

    def loss(self, logits, target):
        on, off = np.log(self.link(logits)), np.log(self.link(-logits))
        return -np.sum(target * on + (1.0 - target) * off)


class Linear:
    """Regression; the loss is half the squared error."""

    def link(self, logits):
        return logits

    def loss(self, logits, target):
        return 0.5 * np.sum((target - logits) ** 2)


def error(output, logits, target):
    """e_L = h_L - sigma(p_L)."""
    return target - output.link(logits)


def full_clamp(target, prediction, activity):
    """h_L = y."""
    return target.copy()


def soft_clamp(gamma):
    """Eq. 3: h_L = (y + gamma_L sigma(p_L)) / (1 + gamma_L)."""

    def clamp(target, prediction, activity):
        return (target + gamma * prediction) / (1.0 + gamma)

    return clamp
