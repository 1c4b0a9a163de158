"""Single-example layers p_{l+1} = g_l(theta_l, h_l) with hand-derived pull-backs.

Each layer has `params` (nested dicts of arrays) and, for e shaped like p_{l+1},

    forward(h)          g(theta, h)
    pull_input(h, e)    J^T e with J = dg/dh
    pull_params(h, e)   J_theta^T e with J_theta = dg/dtheta, shaped like params
    decay(h)            ||f(h)||^2 / 2, f the function that g applies to its input
    decay_gradient(h)   f'(h) f(h)
"""

from dataclasses import dataclass, replace

import numpy as np


class Identity:
    """f(h) = h."""

    def value(self, h):
        return h

    def derivative(self, h):
        return np.ones_like(h)


class Relu:
    """f(h) = max(h, 0); the derivative at 0 is taken as 0."""

    def value(self, h):
        return np.maximum(h, 0.0)

    def derivative(self, h):
        return np.where(h > 0, 1.0, 0.0)


class Tanh:
    """f(h) = tanh(h)."""

    def value(self, h):
        return np.tanh(h)

    def derivative(self, h):
        return 1.0 - np.tanh(h) ** 2


@dataclass
class Layer:
    """What layers share; f, the function of the input, is the identity by default."""

    params: dict

    def activation(self):
        return Identity()

    def decay(self, h):
        return 0.5 * np.sum(self.activation().value(h) ** 2)

    def decay_gradient(self, h):
        f = self.activation()
        return f.derivative(h) * f.value(h)

    def with_params(self, params):
        return replace(self, params=params)


@dataclass
class Dense(Layer):
    """Pre-activation layout, g = f(h) W + b, W [in, out]; h is flattened in C order."""

    f: object = None

    def activation(self):
        return self.f or Identity()

    def forward(self, h):
        f_h = self.activation().value(h).reshape(-1)
        return f_h @ self.params["kernel"] + self.params["bias"]

    def pull_input(self, h, e):
        through_kernel = (self.params["kernel"] @ e).reshape(h.shape)
        return self.activation().derivative(h) * through_kernel

    def pull_params(self, h, e):
        f_h = self.activation().value(h).reshape(-1)
        return {"kernel": np.outer(f_h, e), "bias": e.copy()}


@dataclass
class Conv(Layer):
    """Post-activation layout, g = relu(conv(h)), no padding.

    h is [H, W, C], the kernel [kh, kw, C, out] is slid (not flipped) with one stride
    for both directions, and `post` is applied to the outcome. f is the identity.
    """

    stride: int = 1
    post: object = None

    def windows(self, h):
        """Yields the position of every output pixel with the slices of h it sees."""
        kh, kw = self.params["kernel"].shape[:2]
        for row in range((h.shape[0] - kh) // self.stride + 1):
            for column in range((h.shape[1] - kw) // self.stride + 1):
                top, left = row * self.stride, column * self.stride
                yield row, column, slice(top, top + kh), slice(left, left + kw)

    def convolve(self, h):
        kh, kw, _, out = self.params["kernel"].shape
        height = (h.shape[0] - kh) // self.stride + 1
        width = (h.shape[1] - kw) // self.stride + 1
        result = np.empty((height, width, out))
        for row, column, rows, columns in self.windows(h):
            for channel in range(out):
                kernel = self.params["kernel"][:, :, :, channel]
                bias = self.params["bias"][channel]
                result[row, column, channel] = np.sum(h[rows, columns] * kernel) + bias
        return result

    def post_activation(self):
        return self.post or Identity()

    def forward(self, h):
        return self.post_activation().value(self.convolve(h))

    def pull_input(self, h, e):
        e = self.post_activation().derivative(self.convolve(h)) * e
        result = np.zeros_like(h)
        for row, column, rows, columns in self.windows(h):
            for channel in range(e.shape[-1]):
                kernel = self.params["kernel"][:, :, :, channel]
                result[rows, columns] += e[row, column, channel] * kernel
        return result

    def pull_params(self, h, e):
        e = self.post_activation().derivative(self.convolve(h)) * e
        kernel = np.zeros_like(self.params["kernel"])
        for row, column, rows, columns in self.windows(h):
            for channel in range(e.shape[-1]):
                kernel[:, :, :, channel] += e[row, column, channel] * h[rows, columns]
        return {"kernel": kernel, "bias": e.sum(axis=(0, 1))}


@dataclass
class Residual(Layer):
    """A dense block with a skip connection, g = h + tanh(h W1 + b1) W2 + b2.

    params is {"hidden": {"kernel": W1, "bias": b1}, "out": {"kernel": W2, "bias": b2}}.
    f is the identity.
    """

    def hidden(self, h):
        return np.tanh(
            h @ self.params["hidden"]["kernel"] + self.params["hidden"]["bias"]
        )

    def pull_hidden(self, h, e):
        """e pulled back to the argument of tanh; 1 - tanh^2 is its derivative."""
        return (1.0 - self.hidden(h) ** 2) * (self.params["out"]["kernel"] @ e)

    def forward(self, h):
        out = self.params["out"]
        return h + self.hidden(h) @ out["kernel"] + out["bias"]

    def pull_input(self, h, e):
        return e + self.params["hidden"]["kernel"] @ self.pull_hidden(h, e)

    def pull_params(self, h, e):
        inner = self.pull_hidden(h, e)
        return {
            "hidden": {"kernel": np.outer(h, inner), "bias": inner},
            "out": {"kernel": np.outer(self.hidden(h), e), "bias": e.copy()},
        }
