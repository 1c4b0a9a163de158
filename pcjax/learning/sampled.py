"""Learning from samples: gradients averaged along a chain (MCPC)."""

from typing import Any

import jax
import jax.numpy as jnp

from pcjax.checks import check_callable, check_count
from pcjax.inference.state import InferenceState
from pcjax.learning.gradients import GradFn, Info
from pcjax.numerics.compiled import once_compiled


def averaged(
    grad_fn: GradFn, num_samples: int, *, warm_up: GradFn | None = None
) -> GradFn:
    """The mean of the gradients at several states of one chain per example.

    With a method that samples the posterior, `pcjax.langevin`, this is Monte Carlo
    predictive coding. Since all latents h are integrated out,

        d log p(x) / dtheta = -E_{h ~ p(h | x)} dF(h, x) / dtheta,

    the mean of local gradients over samples is the gradient of minus the log
    likelihood of the data. Inference is run `num_samples` times, each time from where
    it ended; its `num_steps` are the iterations from one sample to the next. With
    `num_samples=1` it is `grad_fn`.

    >>> import pcjax
    >>> network = pcjax.decoder([2, 5])
    >>> chain = pcjax.value_and_grad(network, pcjax.langevin(10, 0.1))
    >>> map_fn = pcjax.value_and_grad(network, pcjax.sequential(20, 0.1))
    >>> grad_fn = averaged(chain, 8, warm_up=map_fn)

    Args:
      grad_fn: what `value_and_grad` returns.
      num_samples: samples of every example, >= 1.
      warm_up: another such function whose inference goes ahead of the chain, such as
        the descent to the most probable latents; its gradients are not used.

    Returns:
      A gradient function. Energies are means over the samples, the rest of `info` is
      that of the last one, but `initial_energy` and `loss` of the first. It has the
      errors of `grad_fn`.

    Raises:
      TypeError: if one of them is no function.
      ValueError: if `num_samples` is no int >= 1.
    """
    check_callable("averaged", "grad_fn", grad_fn)
    check_count("averaged", "num_samples", num_samples)
    if warm_up is not None:
        check_callable("averaged", "warm_up", warm_up)

    def sample(params, inputs, targets, hidden, key, index):
        own = {} if key is None else {"key": jax.random.fold_in(key, index)}
        start = own if hidden is None else own | {"hidden": hidden}
        return grad_fn(params, inputs, targets, **start)

    def run(params, inputs, targets, hidden, key):
        if warm_up is not None:
            (_, info), _ = warm_up(params, inputs, targets, hidden=hidden, key=key)
            hidden = state_of("averaged", info).activities[1:-1]
        data = (params, inputs, targets)
        (energy, first), grads = sample(*data, hidden, key, 0)

        def iterate(carry, index):
            info, sums = carry
            hidden = state_of("averaged", info).activities[1:-1]
            (energy, info), grads = sample(*data, hidden, key, index)
            new = (energy, info.energy), grads
            return (info, jax.tree.map(jnp.add, sums, new)), None

        carry: Any = first, ((energy, first.energy), grads)
        steps = jnp.arange(1, num_samples)
        (last, sums), _ = jax.lax.scan(iterate, carry, steps)
        (energy, energies), grads = jax.tree.map(lambda x: x / num_samples, sums)
        info = last._replace(
            energy=energies, initial_energy=first.initial_energy, loss=first.loss
        )
        return (energy, info), grads

    def averaged_fn(params, inputs, targets, *, hidden=None, key=None):
        return once_compiled(run, (), (params, inputs, targets, hidden, key))

    return averaged_fn


def state_of(function: str, info: Info) -> InferenceState:
    """The state where inference ended, refused if there was no inference."""
    if info.state is None:
        raise ValueError(
            f"{function}: the gradient function keeps no state of inference (backprop, "
            "incremental); expected one of pcjax.value_and_grad."
        )
    return info.state
