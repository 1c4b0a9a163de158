"""Learning: local weight gradients at the inferred activities (eq. 4)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pcjax.checks import check_parts
from pcjax.energy import (
    Activities,
    Weights,
    check_activities,
    error_weights,
    free_energy,
    weigh,
)
from pcjax.inference.kernel import (
    InferenceState,
    Method,
    Problem,
    Pullback,
    run,
    state_energy,
)
from pcjax.networks.network import Network, Params, check_batch
from pcjax.networks.outputs import Clamp, Output, full_clamp, identity


class Info(NamedTuple):
    """What a training iteration tells besides energy and gradients.

    Attributes:
      loss: [B], the loss of the feed-forward outputs against the targets.
      logits: [B, ...], the feed-forward outputs before the link.
      initial_energy: [B], the free energy before inference.
      energy: [B], after it; above `initial_energy` if inference diverges (`rising`).
      trace: what `trace` recorded, [T+1, ...]; None without one.
    """

    loss: jax.Array
    logits: jax.Array
    initial_energy: jax.Array
    energy: jax.Array
    trace: Any = None

    @property
    def rising(self) -> jax.Array:
        """Bool [B], whether inference diverges.

        That is, whether it raised the free energy by more than rounding (1e-5 of it),
        or has left it not finite.
        """
        return ~(self.energy <= (1 + 1e-5) * self.initial_energy)


# (params, inputs, targets) -> ((energy [], info), grads); every learning rule is one.
GradFn = Callable[
    [Sequence[Params], jax.Array, jax.Array],
    tuple[tuple[jax.Array, Info], tuple[Params, ...]],
]

# (params, opt_state, inputs, targets) -> (params, opt_state, (energy [], info))
Update = Callable[
    [Sequence[Params], Any, jax.Array, jax.Array],
    tuple[tuple[Params, ...], Any, tuple[jax.Array, Info]],
]


def local_gradients(
    network: Network,
    params: Sequence[Params],
    activities: Activities,
    *,
    output: Output = identity,
    gamma: Weights = 1.0,
) -> tuple[Params, ...]:
    """The gradient of the free energy with respect to the weights (eq. 4).

    The activities are held fixed.

    Args:
      network: a chain of L layers.
      params: their parameters.
      activities: `(h_0, ..., h_L)`, each [B, ...].
      output: link and loss of the last layer.
      gamma: see `free_energy`.

    Returns:
      The mean over the batch, a tree like `params` with the sign of a loss
      gradient, as optax expects it.

    Raises:
      TypeError, ValueError: as `free_energy`.
    """
    check_activities("local_gradients", network, params, activities)

    def mean_energy(params):
        return jnp.mean(
            free_energy(network, params, activities, output=output, gamma=gamma)
        )

    return jax.grad(mean_energy)(tuple(params))


def value_and_grad(
    network: Network,
    method: Method,
    *,
    output: Output = identity,
    clamp: Clamp = full_clamp,
    gamma: Weights = 1.0,
    decay: Weights = 0.0,
    learning_clamp: Clamp | None = None,
    trace: Callable[[InferenceState], Any] | None = None,
) -> GradFn:
    """Inference followed by local gradients, in the place of `jax.value_and_grad`.

    >>> import optax, pcjax
    >>> network = pcjax.mlp([3, 4, 2])
    >>> params = network.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> method = pcjax.sequential(3, 0.05)
    >>> grad_fn = value_and_grad(network, method, output=pcjax.softmax)
    >>> (energy, info), grads = grad_fn(params, jnp.ones((5, 3)), jnp.ones((5, 2)) / 2)
    >>> energy.shape, info.loss.shape
    ((), (5,))

    Args:
      network: a chain of L layers.
      method: `simultaneous(...)` or `sequential(...)`.
      output: link and loss of the last layer.
      clamp: `full_clamp` or `soft_clamp(gamma_L)`.
      gamma: see `free_energy`.
      decay: see `free_energy`.
      learning_clamp: the clamp that makes the output activity for the weight
        gradient of the last layer; by default `clamp`. The reference conv nets use
        `full_clamp` here.
      trace: see `infer`.

    Returns:
      `grad_fn(params, inputs [B, ...], targets [B, ...]) -> ((energy, info), grads)`:
      the mean free energy [] after inference, an `Info`, and the mean gradient as
      a tree like `params`. It raises what `infer` raises.

    Raises:
      TypeError: if network, method, output or a clamp is no such thing.
    """
    check_parts("value_and_grad", network=network, method=method)
    check_parts("value_and_grad", output=output, clamp=clamp)
    if learning_clamp is not None:
        check_parts("value_and_grad", learning_clamp=learning_clamp)
    problem = Problem(network, output, clamp, gamma, decay)

    def grad_fn(params, inputs, targets):
        check_batch("value_and_grad", network, params, inputs, targets)
        inference, pullbacks = run(problem, method, params, inputs, targets, trace)
        state, output_error = inference.state, None
        if learning_clamp is not None:
            logits, below = state.predictions[-1], state.activities[-2]
            learned = learning_clamp(targets, output.link(logits), below)
            output_error = output.error(logits, learned)
        energy = state_energy(problem, state)
        logits = inference.initial.predictions[-1]
        info = Info(
            loss=output.loss(logits, targets),
            logits=logits,
            initial_energy=state_energy(problem, inference.initial),
            energy=energy,
            trace=inference.trace,
        )
        grads = pulled_gradients(problem, state, pullbacks, output_error)
        return (jnp.mean(energy), info), grads

    return grad_fn


def pulled_gradients(
    problem: Problem,
    state: InferenceState,
    pullbacks: Sequence[Pullback],
    output_error: jax.Array | None = None,
) -> tuple[Params, ...]:
    """`-mean_b gamma_{l+1} (dp_{l+1}/dtheta_l)^T e_{l+1}` for every layer.

    `pullbacks[l]` is that of `p_{l+1}` with respect to `theta_l`; `output_error`
    takes the place of `e_L` without touching the gammas.
    """
    gammas = error_weights(problem.gamma, state.activities, state.errors)
    errors = state.errors
    if output_error is not None:
        errors = (*errors[:-1], output_error)
    grads = []
    for pull, gamma, error in zip(pullbacks, gammas, errors, strict=True):
        (grad,) = pull(weigh(gamma, error) * (-1 / error.shape[0]))
        grads.append(grad)
    return tuple(grads)
