"""Precisions that are learned: of a layer, a channel or a feature."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pcjax.checks import check_callable, check_float, check_sequence
from pcjax.learning.gradients import GradFn
from pcjax.learning.sampled import state_of
from pcjax.networks.network import Params
from pcjax.numerics.weights import weigh


class Precise(NamedTuple):
    """Parameters with precisions among them, which any optax transform moves.

    Attributes:
      layers: the parameters of the network.
      log_precisions: for each of the L layers, or the L-1 hidden ones, an array that
        broadcasts to the activity of one example: [] is a number for all of it, [C] one
        per channel. That of the output is [] where its loss is no sum over features.
    """

    layers: Sequence[Params]
    log_precisions: Sequence[jax.Array]


def with_precisions(make_grad_fn: Callable[[Any], GradFn]) -> GradFn:
    """Learns the precisions of the errors along with the weights.

    The energy is that of Gaussians with their normalisation (without its constant),

        F = sum_l 1/2 sum_i (Pi_l e_{l,i}^2 - ln Pi_l),   Pi_l = exp(log_precisions[l]),

    whose gradient with respect to the logarithm is `(Pi e^2 - 1) / 2`, so that they
    rest where the variance is the mean squared error, `1 / Pi = <e^2>`. Missing targets
    do not count. Of the output that is so for half the squared error; for other losses
    leave its precision out.

    >>> import pcjax
    >>> network, method = pcjax.decoder([2, 5]), pcjax.sequential(10, 0.1)
    >>> grad_fn = with_precisions(
    ...     lambda gamma: pcjax.value_and_grad(network, method, gamma=gamma)
    ... )
    >>> inputs = pcjax.no_inputs(3)
    >>> layers = network.init(jax.random.key(0), inputs)
    >>> params = Precise(layers, [jnp.zeros(()), jnp.zeros(())])
    >>> _, grads = grad_fn(params, inputs, jnp.ones((3, 5)))
    >>> [slope.shape for slope in grads.log_precisions]
    [(), ()]

    Args:
      make_grad_fn: `gamma -> grad_fn`, such as `value_and_grad` with everything else
        given.

    Returns:
      A gradient function of `Precise` parameters; `energy` and the energies of `info`
      are with the normalisation.

    Raises:
      TypeError: if it is given no function; by the gradient function, if the parameters
        are not `Precise`.
    """
    check_callable("with_precisions", "make_grad_fn", make_grad_fn)

    def grad_fn(params, inputs, targets, **start):
        if not isinstance(params, Precise):
            raise TypeError(
                "with_precisions: params must be a pcjax.Precise of layers and "
                f"log_precisions, got a {type(params).__name__}."
            )
        logs = _checked(params.log_precisions)
        inner = make_grad_fn(tuple(_precision(s) for s in logs))
        (energy, info), grads = inner(params.layers, inputs, targets, **start)
        state = state_of("with_precisions", info)
        errors = state.errors
        seen = [jnp.ones_like(e) for e in errors[:-1]]
        seen.append(1 - jnp.isnan(state.activities[-1]).astype(errors[-1].dtype))

        def normalisation(logs):
            """`-sum_l sum_i ln Pi_l / 2`, [B]."""
            terms = zip(logs, seen, strict=False)
            return sum(-0.5 * _sum(weigh(_leading(s), counts)) for s, counts in terms)

        def total(logs):
            terms = zip(logs, errors, strict=False)
            squares = sum(0.5 * _sum(weigh(_precision(s), e**2)) for s, e in terms)
            return jnp.mean(squares + normalisation(logs))

        slopes = jax.grad(total)(logs)
        slopes = jax.tree.unflatten(jax.tree.structure(params.log_precisions), slopes)
        shift = normalisation(logs)
        info = info._replace(
            energy=info.energy + shift, initial_energy=info.initial_energy + shift
        )
        return (energy + jnp.mean(shift), info), Precise(grads, slopes)

    return grad_fn


def _precision(log: jax.Array) -> jax.Array:
    return jnp.exp(_leading(log))


def _leading(log: jax.Array) -> jax.Array:
    """A number as it is, one per feature as [1, ...]."""
    return log[None] if log.ndim else log


def _sum(values: jax.Array) -> jax.Array:
    return jnp.sum(values, axis=range(1, values.ndim))


def _checked(logs: Sequence[jax.Array]) -> list[jax.Array]:
    check_sequence("with_precisions", "log_precisions", logs)
    for index, log in enumerate(logs):
        check_float("with_precisions", f"log_precisions[{index}]", log)
    return list(logs)
