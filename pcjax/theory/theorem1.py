"""Theorem 1: the energy weights under which inference learning is implicit SGD.

All are functions that inference calls at every iteration, for dense networks with
half squared error (`pcjax.identity`):

    weights = proximal_weights(network, normalised_step_size, beta=1.0)
    rest = infer_to_equilibrium(network, method, params, inputs, targets,
                                **weights._asdict())
    update = inference_step(network, params, rest.state.activities,
                            normalised_step_size)

`theorem1_weights` is the theorem as printed, `lemma1_weights` what its proof uses, and
`proximal_weights` what follows when the proof is carried out with the loss's
dependence on the hidden layers kept. Throughout, `||f(h_l)||^2` includes the 1 that
multiplies the bias. See docs/theory.md for the derivations.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pcjax.checks import check_non_negative
from pcjax.energy import Activities, Errors
from pcjax.learning.gradients import local_gradients
from pcjax.networks.network import Network, Params, check_chain, feedforward
from pcjax.networks.outputs import Clamp, Output, identity
from pcjax.optimizers.normalised import squared_norms
from pcjax.theory.proximal import check_positive

# alpha_l: a number, a function of ||f(h_l)||^2 [B], or one of these for each layer.
StepSizes = Any
EnergyWeight = Callable[[Activities, Errors], list[jax.Array]]


class EnergyWeights(NamedTuple):
    """What `infer` and `infer_to_equilibrium` take, by these names.

    Attributes:
      gamma: L weights [B]; the last one weighs the output error in the update of
        `h_{L-1}`.
      decay: L-1 weights [B], of either sign.
      clamp: the soft clamp (eq. 3) with the theorem's `gamma_L`.
    """

    gamma: EnergyWeight
    decay: EnergyWeight
    clamp: Clamp


def theorem1_weights(
    network: Network, step_sizes: StepSizes, beta: Any, *, bias: bool = True
) -> EnergyWeights:
    """The weights of Theorem 1 as printed.

    `gamma_l = alpha_{l-1}^2 ||f(h_{l-1})||^2`, `decay_l = alpha_l^2 ||e_{l+1}||^2` and
    `gamma_L = alpha_{L-1} (1/beta + ||f(h_{L-1})||^2) - 1`, which both clamps the
    output and weighs its error. `gamma_L > -1` always, and negative where alpha is
    small; the paper takes it for positive.

    Args:
      network: a chain of L dense layers.
      step_sizes: `alpha_l`: a number, a function of `||f(h_l)||^2` [B] (see
        `normalised_step_size`), or a sequence of L of these.
      beta: the step size of implicit SGD, > 0, traced or not.
      bias: whether the layers have a bias.

    Returns:
      Gamma, decay and clamp.

    Raises:
      ValueError: if the network is a graph, beta is not positive, a step size is
        negative, their number is not L, or (by the weights) a layer is not dense.
    """
    check_chain("theorem1_weights", network)
    alphas = _step_sizes("theorem1_weights", network, step_sizes)
    check_positive("theorem1_weights", "beta", beta)

    def output_gamma(alpha, norm):
        return alpha * (1 / beta + norm) - 1

    return _weights(network, alphas, _squared, output_gamma, 1, output_gamma, bias)


def lemma1_weights(
    network: Network, step_sizes: StepSizes, beta: Any, *, bias: bool = True
) -> EnergyWeights:
    """The weights that the proof of Theorem 1 works with (eq. 22).

    Those of `theorem1_weights`, but for the weight of the output error in the update
    of `h_{L-1}`: `alpha_{L-1}^2 ||f(h_{L-1})||^2` like that of any other layer.
    Arguments and errors are those of `theorem1_weights`.
    """
    check_chain("lemma1_weights", network)
    alphas = _step_sizes("lemma1_weights", network, step_sizes)
    check_positive("lemma1_weights", "beta", beta)

    def clamp_gamma(alpha, norm):
        return alpha * (1 / beta + norm) - 1

    return _weights(network, alphas, _squared, _squared, 1, clamp_gamma, bias)


def proximal_weights(
    network: Network, step_sizes: StepSizes, beta: Any, *, bias: bool = True
) -> EnergyWeights:
    """Weights whose equilibrium is the proximal update, where one can be.

    `gamma_l = alpha_{l-1}`, also for the output error, and
    `decay_l = -alpha_l^2 ||e_{l+1}||^2`; the clamp is that of Theorem 1. With
    `normalised_step_size` the equilibria are exactly the stationary points of the
    proximal objective. With static step sizes they are if
    `alpha_l ||f(h_l)||^2 = 1` there for l < L-1, and up to a relative error that
    vanishes with beta otherwise.

    Arguments and errors are those of `theorem1_weights`.
    """
    check_chain("proximal_weights", network)
    alphas = _step_sizes("proximal_weights", network, step_sizes)
    check_positive("proximal_weights", "beta", beta)

    def gamma(alpha, norm):
        return alpha * jnp.ones_like(norm)

    def clamp_gamma(alpha, norm):
        return alpha * (1 / beta + norm) - 1

    return _weights(network, alphas, gamma, gamma, -1, clamp_gamma, bias)


def inference_step(
    network: Network,
    params: Sequence[Params],
    activities: Activities,
    step_sizes: StepSizes,
    *,
    output: Output = identity,
    bias: bool = True,
) -> tuple[Params, ...]:
    """The weight change of inference learning, `alpha_l e_{l+1} f(h_l)^T` (eq. 4).

    Args:
      network: a chain of L dense layers.
      params: their parameters.
      activities: `(h_0, ..., h_L)`, each [B, ...], after inference.
      step_sizes: see `theorem1_weights`.
      output: link and loss of the last layer.
      bias: whether the layers have a bias.

    Returns:
      `theta' - theta`, a tree like `params`: the mean over the batch of the examples'
      own steps (eq. 27, left-hand side). No gamma enters.

    Raises:
      ValueError: if the network is a graph or the arguments do not fit each other.
    """
    check_chain("inference_step", network)
    alphas = _step_sizes("inference_step", network, step_sizes)

    def weights(activities, errors):
        del errors
        norms = squared_norms(network, activities, bias=bias)
        return [alpha(norm) for alpha, norm in zip(alphas, norms, strict=True)]

    grads = local_gradients(network, params, activities, output=output, gamma=weights)
    return jax.tree.map(jnp.negative, grads)


def limit_gap(
    network: Network,
    params: Sequence[Params],
    update: Sequence[Params],
    activities: Activities,
) -> jax.Array:
    """Theorem 1's own limit: `||h_hat_{L-1} - h_{L-1}^{(b+1)}||`.

    Args:
      network: a chain of L >= 2 layers.
      params: their parameters before the update.
      update: the change of the parameters.
      activities: `(h_0, ..., h_L)`, each [1, ...], that the update was made from.

    Returns:
      [], the distance of the last hidden activity from its feed-forward value after
      the update.

    Raises:
      ValueError: if the network is a graph, there is more than one example or no
        hidden layer.
    """
    check_chain("limit_gap", network)
    if activities[0].shape[0] != 1 or len(network.layers) < 2:
        raise ValueError(
            "limit_gap: Theorem 1 is about one example and a hidden layer, got "
            f"activities of {activities[0].shape[0]} examples in a network of "
            f"{len(network.layers)} layers. Use jax.vmap over examples."
        )
    updated = jax.tree.map(jnp.add, tuple(params), tuple(update))
    feedforward_activity = feedforward(network, updated, activities[0])[-2]
    return jnp.linalg.norm((activities[-2] - feedforward_activity).ravel())


def _squared(alpha: jax.Array, norm: jax.Array) -> jax.Array:
    return alpha**2 * norm


def _step_sizes(
    function: str, network: Network, step_sizes: StepSizes
) -> list[Callable[[jax.Array], jax.Array]]:
    """`alpha_l` as functions of `||f(h_l)||^2` [B], l = 0..L-1."""
    count = len(network.layers)
    given = step_sizes
    if callable(given) or (
        not isinstance(given, list | tuple) and jnp.ndim(given) == 0
    ):
        given = [given] * count
    if len(given) != count:
        raise ValueError(
            f"{function}: expected one step size or one for each of the {count} "
            f"layers, got {len(given)}."
        )
    for entry in given:
        if not callable(entry):
            check_non_negative(function, "step_sizes", entry)

    def constant(value):
        return lambda norm: jnp.broadcast_to(jnp.asarray(value, norm.dtype), norm.shape)

    return [entry if callable(entry) else constant(entry) for entry in given]


def _weights(
    network, alphas, hidden_gamma, output_gamma, decay_sign, clamp_gamma, bias
) -> EnergyWeights:
    """Puts the functions `(alpha_l, ||f(h_l)||^2) -> weight` of a variant together."""

    def gamma(activities, errors):
        del errors
        norms = squared_norms(network, activities, bias=bias)
        functions = [hidden_gamma] * (len(norms) - 1) + [output_gamma]
        return [
            function(alpha(norm), norm)
            for function, alpha, norm in zip(functions, alphas, norms, strict=True)
        ]

    def decay(activities, errors):
        norms = squared_norms(network, activities, bias=bias)
        return [
            decay_sign * alpha(norm) ** 2 * jnp.sum(error**2, axis=1)
            for alpha, norm, error in zip(
                alphas[1:], norms[1:], errors[1:], strict=True
            )
        ]

    def clamp(targets, outputs, activity):
        values = network.layers[-1].activation(activity)
        norm = jnp.sum(values**2, axis=range(1, values.ndim)) + bool(bias)
        weight = clamp_gamma(alphas[-1](norm), norm)[:, None]
        return (targets + weight * outputs) / (1 + weight)

    return EnergyWeights(gamma, decay, clamp)
