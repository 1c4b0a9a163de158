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
    free_energy,
)
from pcjax.inference.kernel import Method, run
from pcjax.inference.methods import check_start
from pcjax.inference.origin import View
from pcjax.inference.state import InferenceState, Problem, state_energy
from pcjax.networks.network import Network, Params, check_batch
from pcjax.networks.outputs import (
    Clamp,
    Output,
    full_clamp,
    identity,
    losses_of,
    widened,
)
from pcjax.numerics.compiled import hashable, once_compiled
from pcjax.numerics.hooks import call_at
from pcjax.numerics.weights import weigh


class Info(NamedTuple):
    """What a training iteration tells besides energy and gradients.

    Attributes:
      loss: [B], the loss of the feed-forward outputs against the targets.
      logits: [B, ...], the feed-forward outputs before the link.
      initial_energy: [B], the free energy before inference.
      energy: [B], after it; above `initial_energy` if inference diverges (`rising`).
      trace: what `trace` recorded, [T+1, ...]; None without one.
      state: activities, predictions and errors after inference; None of backprop and
        incremental predictive coding.
      equilibrium: the report of `at_equilibrium.value_and_grad`; None of all others.
    """

    loss: jax.Array
    logits: jax.Array
    initial_energy: jax.Array
    energy: jax.Array
    trace: Any = None
    state: InferenceState | None = None
    equilibrium: Any = None

    @property
    def rising(self) -> jax.Array:
        """Bool [B], whether inference diverges.

        That is, whether it raised the free energy by more than rounding (1e-5 of it),
        or has left it not finite. Where gamma or decay is a function, both energies are
        by the weights of their own time: one that grows with t raises the energy of
        inference that does not diverge.
        """
        return ~(self.energy <= (1 + 1e-5) * self.initial_energy)


# (params, inputs, targets) -> ((energy [], info), grads); every learning rule is one.
GradFn = Callable[..., tuple[tuple[jax.Array, Info], Any]]

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
) -> Any:
    """The gradient of the free energy with respect to the weights (eq. 4).

    The activities are held fixed.

    Args:
      network: L layers, a chain or a graph.
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

    return jax.grad(mean_energy)(params)


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
      network: L layers, a chain or a graph.
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
      `grad_fn(params, inputs [B, ...], targets [B, ...], *, hidden=None, key=None) ->
      ((energy, info), grads)`: the mean free energy [] after inference, an `Info`, and
      the mean gradient as a tree like `params`. For `hidden` and `key` see `infer`,
      whose errors it raises. Call it inside of a `jax.jit` of the whole training step.

    Raises:
      TypeError: if network, method, output or a clamp is no such thing.
    """
    check_parts("value_and_grad", network=network, method=method)
    check_parts("value_and_grad", output=output, clamp=clamp)
    if learning_clamp is not None:
        check_parts("value_and_grad", learning_clamp=learning_clamp)
    weights = hashable(gamma), hashable(decay)
    problem = Problem(network, output, clamp, *weights, "value_and_grad")

    def grad_fn(params, inputs, targets, *, hidden=None, key=None):
        check_batch("value_and_grad", network, params, inputs, targets)
        start = check_start("value_and_grad", network, params, inputs, hidden, key)
        parts = (problem, method, learning_clamp, trace)
        value, grads = once_compiled(
            _value_and_grad, parts, (tuple(params), inputs, targets, start)
        )
        return value, like_params(params, grads)

    return grad_fn


def _value_and_grad(
    problem, method, learning_clamp, trace, params, inputs, targets, start
):
    inference, origin, final = run(
        problem, method, params, inputs, targets, trace, start
    )
    state, output, t = inference.state, problem.output, method.num_steps
    output_error = None
    if learning_clamp is not None:
        below = state.activities[problem.network.reads[-1][0]]
        first, logits, labels = widened(origin.logits, state.predictions[-1], targets)
        given = labels, output.link(logits), below
        learned = call_at(
            "learning_clamp", learning_clamp, t, *given, first=output.link(first)
        )
        output_error = output.error(*widened(logits, learned))
    energy = state_energy(problem, state, t)
    info = Info(
        loss=losses_of(output, origin.logits, targets),
        logits=origin.logits,
        initial_energy=state_energy(problem, inference.initial, 0),
        energy=energy,
        trace=inference.trace,
        state=state,
    )
    grads = pulled_gradients(final, output_error)
    return (jnp.mean(energy), info), grads


def pulled_gradients(
    view: View, output_error: jax.Array | None = None
) -> tuple[Params, ...]:
    """`-mean_b gamma_{l+1} (dp_{l+1}/dtheta_l)^T e_{l+1}` for every layer.

    The view's pulls are to be of the params; `output_error` takes the place of `e_L`
    without touching the gammas.
    """
    errors = view.state.errors
    if output_error is not None:
        errors = (*errors[:-1], output_error)
    grads = []
    for pull, gamma, error in zip(view.pulls, view.gammas, errors, strict=True):
        grad, _ = pull(weigh(gamma, error) * (-1 / error.shape[0]))
        grads.append(grad)
    return tuple(grads)


def like_params(params: Sequence[Params], grads: tuple[Params, ...]) -> Any:
    """Gradients of the layers in the list, tuple or NamedTuple that params are."""
    _, structure = jax.tree.flatten(params, is_leaf=lambda x: x is not params)
    return jax.tree.unflatten(structure, grads)
