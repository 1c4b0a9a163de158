"""How far a learning rule is from backprop, and from its own equilibrium.

For use inside of a training loop every so many steps: a measurement is one traceable
function of parameters and a batch.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pcjax.checks import check_parts
from pcjax.energy import Weights, decay_weights, energy_terms, error_weights
from pcjax.inference.bb import barzilai_borwein
from pcjax.inference.curvature import largest_curvature
from pcjax.inference.kernel import Method
from pcjax.inference.methods import error_based, simultaneous
from pcjax.inference.state import InferenceState
from pcjax.learning import at_equilibrium, backprop
from pcjax.learning.gradients import GradFn
from pcjax.networks.network import Network, Params
from pcjax.networks.outputs import Clamp, Output, full_clamp, identity, widened


class Likeness(NamedTuple):
    """A gradient beside another, layer by layer.

    Attributes:
      cosine: [L], of the angle between them; 0 where one is 0.
      ratio: [L], how many times as long it is; infinite where the other is 0,
        and no number where both are.
    """

    cosine: jax.Array
    ratio: jax.Array


class Measures(NamedTuple):
    """What `make_measures` measures of a batch.

    Attributes:
      backprop: the rule's gradient beside backprop's.
      equilibrium: beside that of the equilibrium.
      equilibrium_to_backprop: the equilibrium's beside backprop's.
      residual: [B], `||dF/dh||` where the rule's inference ends, relative to that at
        the feed-forward activities; 1 without inference.
      settled: bool [B], whether the equilibrium was reached; without it, `equilibrium`
        compares with where the passes led.
      passes: int32 [B], what the equilibrium took.
      error_curvature: [B], the largest in the coordinates of the errors, at the
        feed-forward activities.
      activity_curvature: [B], the same in those of the activities.
      energy: [L], the mean energy of each layer where inference ends.
    """

    backprop: Likeness
    equilibrium: Likeness
    equilibrium_to_backprop: Likeness
    residual: jax.Array
    settled: jax.Array
    passes: jax.Array
    error_curvature: jax.Array
    activity_curvature: jax.Array
    energy: jax.Array

    @property
    def stable_error_step(self) -> jax.Array:
        """[B], below which steps of `error_based` are stable, `2 / curvature`."""
        return 2 / self.error_curvature

    @property
    def stable_activity_step(self) -> jax.Array:
        """[B], below which steps of `simultaneous` are stable."""
        return 2 / self.activity_curvature


# (params, inputs, targets) -> Measures
Measure = Callable[[Sequence[Params], jax.Array, jax.Array], Measures]


def likeness(grads: Sequence[Params], others: Sequence[Params]) -> Likeness:
    """Cosine and ratio of lengths of two gradients, layer by layer.

    `<g, o> / (||g|| ||o||)` and `||g|| / ||o||`, over all entries of a layer.

    Args:
      grads: of L layers, a pytree each.
      others: the same of another rule.

    Returns:
      Two arrays [L].

    Raises:
      ValueError: if they are not of as many layers and arrays.
    """
    rows = [_compared(*pair) for pair in zip(grads, others, strict=True)]
    return Likeness(*(jnp.stack(column) for column in zip(*rows, strict=True)))


def _compared(one: Params, other: Params) -> tuple[jax.Array, jax.Array]:
    """Cosine and ratio of a layer.

    Each is first divided by its largest entry: gradients of early layers are so small
    that their squares are 0.
    """
    (own, size), (foreign, other_size) = _scaled(one), _scaled(other)
    pairs = zip(own, foreign, strict=True)
    across = sum((jnp.vdot(a, b) for a, b in pairs), jnp.zeros(()))
    norm, other_norm = (
        jnp.sqrt(sum((jnp.vdot(a, a) for a in x), jnp.zeros(())))
        for x in (own, foreign)
    )
    both = norm * other_norm
    cosine = across / jnp.where(both == 0, 1, both)
    return cosine, norm / other_norm * (size / other_size)


def _scaled(tree: Params) -> tuple[list[jax.Array], jax.Array]:
    """The arrays divided by the size of the largest entry, and that size."""
    leaves = [widened(leaf)[0] for leaf in jax.tree.leaves(tree)]
    sizes = [jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves]
    size = jnp.max(jnp.stack([jnp.zeros(()), *sizes]))
    return [leaf / jnp.where(size > 0, size, 1) for leaf in leaves], size


def make_measures(
    network: Network,
    grad_fn: GradFn,
    *,
    output: Output = identity,
    clamp: Clamp = full_clamp,
    gamma: Weights = 1.0,
    decay: Weights = 0.0,
    reference: Method | None = None,
    tolerance: float = 1e-3,
    num_products: int = 8,
) -> Measure:
    """A function that says how far a learning rule is from backprop.

    >>> import pcjax
    >>> network = pcjax.mlp([3, 4, 2])
    >>> params = network.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> grad_fn = pcjax.value_and_grad(network, pcjax.error_based(1, 0.01))
    >>> measure = jax.jit(make_measures(network, grad_fn))
    >>> found = measure(params, jnp.ones((5, 3)), jnp.ones((5, 2)))
    >>> bool((found.backprop.cosine > 0.99).all())
    True

    Args:
      network: L layers, a chain or a graph.
      grad_fn: of `value_and_grad`, `backprop.value_and_grad` or any other rule.
      output: as in training, as for the next three; no function of t.
      clamp: as in training.
      gamma: as in training, numbers.
      decay: as in training, numbers.
      reference: the method that goes to the equilibrium, by default
        `error_based(60, barzilai_borwein())`.
      tolerance: the residual at which an equilibrium counts as reached.
      num_products: see `largest_curvature`.

    Returns:
      `measure(params, inputs, targets) -> Measures`, which costs up to some hundred
      passes. Call it inside of a `jax.jit`.

    Raises:
      TypeError: if network, output or clamp is no such thing.
      ValueError: by `measure`, if the rule's inference ends in several states, as that
        of `pcjax.centred`.
    """
    check_parts("make_measures", network=network, output=output, clamp=clamp)
    weights = {"gamma": gamma, "decay": decay}
    options = {"output": output, "clamp": clamp, **weights}
    if reference is None:
        reference = error_based(60, barzilai_borwein())
    own_fn = at_equilibrium.value_and_grad(
        network, reference, tolerance=tolerance, **options
    )
    bp_fn = backprop.value_and_grad(network, output=output)

    def measure(params, inputs, targets):
        batch = (params, inputs, targets)
        (_, info), grads = grad_fn(*batch)
        (_, own_info), own = own_fn(*batch)
        _, exact = bp_fn(*batch)
        rest = own_info.equilibrium
        hidden = _hidden(info.state, inputs)
        at_end = at_equilibrium.value_and_grad(
            network, simultaneous(1, 0.0), tolerance=tolerance, **options
        )(*batch, hidden=hidden)[0][1].equilibrium
        by_errors, by_activities = (
            largest_curvature(
                network, method, *batch, num_products=num_products, **options
            )
            for method in (error_based(1, 0.0), simultaneous(1, 0.0))
        )
        state = at_end.state if info.state is None else info.state
        return Measures(
            likeness(grads, exact),
            likeness(grads, own),
            likeness(own, exact),
            at_end.residual,
            rest.converged,
            rest.passes,
            by_errors,
            by_activities,
            _energies(network, state, output, gamma, decay),
        )

    return measure


def _hidden(
    state: InferenceState | None, inputs: jax.Array
) -> tuple[jax.Array, ...] | None:
    """The hidden activities of a rule's state, which must be one."""
    if state is None:
        return None
    hidden = state.activities[1:-1]
    if state.activities[0].shape != inputs.shape:
        raise ValueError(
            "make_measures: expected a rule whose inference ends in one state of the "
            f"{len(inputs)} examples, got hidden activities of shapes "
            f"{[h.shape for h in hidden]}. Of pcjax.centred, measure one sign "
            "(pcjax.nudged), or the gradients alone by pcjax.measures.likeness."
        )
    return hidden


def _energies(
    network: Network,
    state: InferenceState,
    output: Output,
    gamma: Weights,
    decay: Weights,
) -> jax.Array:
    """The mean energy of each layer, [L], from the errors that inference carried.

    Made anew of the activities, those of early layers would be below their rounding.
    """
    gammas = error_weights(gamma, state.activities, state.errors)
    decays = decay_weights(decay, state.activities, state.errors)
    return jnp.mean(energy_terms(network, *state, output, gammas, decays), axis=1)
