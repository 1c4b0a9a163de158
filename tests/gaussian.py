"""A hierarchy of linear-Gaussian latents, and conditioning, in NumPy alone.

`z ~ N(mu, 1/g_1)`, `h ~ N(z V + c, 1/g_2)`, `x ~ N(h W + b, 1/g_3)`.
"""

import jax
import jax.numpy as jnp
import numpy as np

import pcjax
from pcjax.networks import linear

SIZES, GAMMA = (2, 3, 5), (1.5, 2.0, 3.0)
NETWORK = pcjax.decoder(SIZES, linear, learned_prior=True)

_rng = np.random.default_rng(0)
PARAMS = (
    {"mean": _rng.normal(size=2)},
    {"kernel": _rng.normal(size=(2, 3)), "bias": _rng.normal(size=3)},
    {"kernel": _rng.normal(size=(3, 5)) / 2, "bias": _rng.normal(size=5)},
)
TARGETS = _rng.normal(size=(4, 5))
MASK = np.array(
    [
        [True, True, False, True, False],
        [False, True, True, True, True],
        [True, False, False, False, False],
        [False, False, False, False, False],
    ]
)


def arrays():
    """Parameters and targets in double precision; to be called with x64."""
    return jax.tree.map(jnp.asarray, PARAMS), jnp.asarray(TARGETS)


def joint():
    """Mean [10] and covariance [10, 10] of (z, h, x) together."""
    (mu, first, second), (g1, g2, g3) = PARAMS, GAMMA
    v, w = first["kernel"], second["kernel"]
    h = mu["mean"] @ v + first["bias"]
    mean = np.concatenate([mu["mean"], h, h @ w + second["bias"]])
    # Every variable as a sum of independent noises.
    rows = np.zeros((10, 10))
    rows[:2] = np.concatenate([np.eye(2), v, v @ w], axis=1)
    rows[2:5] = np.concatenate([np.zeros((3, 2)), np.eye(3), w], axis=1)
    rows[5:, 5:] = np.eye(5)
    noise = np.repeat([1 / g1, 1 / g2, 1 / g3], SIZES)
    return mean, rows.T @ (noise[:, None] * rows)


def condition(x, seen):
    """Mean [10] and covariance [10, 10] given the elements of x that are seen."""
    mean, spread = joint()
    known = np.concatenate([np.zeros(5, bool), seen])
    gain = spread[:, known] @ np.linalg.inv(spread[np.ix_(known, known)])
    return mean + gain @ (x[seen] - mean[known]), spread - gain @ spread[known]


def check_samples(samples, mean, spread, sigmas=3.0):
    """Holds mean and covariance to the expected ones by their standard errors."""
    away = deviations(samples, mean, spread)
    assert np.abs(away).max() < sigmas, away


def deviations(samples, mean, spread):
    """Entries of mean and covariance of [N, n] samples, in standard errors."""
    count, variance = len(samples), np.diag(spread)
    centred = samples - mean
    found = centred.T @ centred / count
    error = np.sqrt((np.outer(variance, variance) + spread**2) / count)
    own = (samples.mean(0) - mean) / np.sqrt(variance / count)
    upper = np.triu_indices(len(mean))
    return np.concatenate([own, ((found - spread) / error)[upper]])
