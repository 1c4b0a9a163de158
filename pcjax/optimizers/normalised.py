"""The normalised step of Alonso et al. (2022): `alpha_l = 1 / ||f(h_l)||^2`.

For a single example it makes the local prediction exact: after the update
`alpha_l e_{l+1} f(h_l)^T` layer l predicts `h_{l+1}` from `h_l`. Here `f(h_l)` includes
the constant 1 that the bias multiplies, so that `||f(h_l)||^2` has 1 added.

    weights = normalised_weights(network)
    grads = local_gradients(network, params, activities, gamma=weights)

are the mean over the examples of the normalised steps, for `optax.sgd(1.0)`.
`scale_by_squared_norms` is the optax form, which knows the batch mean only, and
`normalise` does the same to a gradient function, for any optimizer and training loop:

    grad_fn = normalise(network, pcjax.value_and_grad(network, method))
    update = training.make_update(grad_fn, optax.sgd(1.0))
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pcjax.energy import Activities, Errors
from pcjax.networks.network import Network, check_chain


def squared_norms(
    network: Network, activities: Activities, *, bias: bool = True
) -> list[jax.Array]:
    """`||f(h_l)||^2`, plus 1 for the bias, of l = 0..L-1.

    >>> import pcjax
    >>> network = pcjax.mlp([2, 3, 1])
    >>> h = (jnp.array([[3.0, 4.0]]), jnp.array([[-1.0, 1.0, 2.0]]), jnp.ones((1, 1)))
    >>> [float(norm[0]) for norm in squared_norms(network, h)]
    [26.0, 6.0]

    Args:
      network: a chain of L dense layers.
      activities: `(h_0, ..., h_L)`, each [B, ...].
      bias: whether the layers have a bias, an extra column of W for an extra 1 in f.

    Returns:
      L arrays [B].

    Raises:
      ValueError: if the network is a graph (one whose layers read one activity each is
        a chain), the activities are not as many as the network's, or a layer predicts
        anything but [B, n], so that it is not dense.
    """
    check_chain("squared_norms", network)
    count = len(network.layers)
    if len(activities) != count + 1:
        raise ValueError(
            f"squared_norms: a network of {count} layers has {count + 1} activities, "
            f"got {len(activities)}."
        )
    norms = []
    for index, layer in enumerate(network.layers):
        if activities[index + 1].ndim != 2:
            raise ValueError(
                "squared_norms: expected dense layers, which predict [B, n], but "
                f"layer {index} predicts shape {activities[index + 1].shape}."
            )
        values = layer.activation(activities[index])
        norms.append(jnp.sum(values**2, axis=range(1, values.ndim)) + bool(bias))
    return norms


def normalised_step_size(squared_norm: jax.Array) -> jax.Array:
    """The step size `1 / ||f(h_l)||^2`, [B], of the squared norms [B]."""
    return 1 / squared_norm


def normalised_weights(
    network: Network, *, bias: bool = True
) -> Callable[[Activities, Errors], list[jax.Array]]:
    """Weights that turn `local_gradients` into minus the mean of normalised steps.

    Args:
      network: a chain of L dense layers.
      bias: see `squared_norms`.

    Returns:
      A function for the argument `gamma` of `local_gradients`: every example's
      error is divided by its own `||f(h_l)||^2`. It raises what `squared_norms` does.
    """

    def weights(activities: Activities, errors: Errors) -> list[jax.Array]:
        del errors
        norms = squared_norms(network, activities, bias=bias)
        return [normalised_step_size(norm) for norm in norms]

    return weights


def normalise(
    network: Network, grad_fn: Callable[..., Any], *, bias: bool = True
) -> Callable[..., Any]:
    """A gradient function whose gradients are normalised steps for `optax.sgd(1.0)`.

    Args:
      network: a chain of L dense layers.
      grad_fn: what `pcjax.value_and_grad` returns.
      bias: see `squared_norms`.

    Returns:
      `grad_fn` with layer l's gradient divided by the batch mean of `||f(h_l)||^2` at
      the activities that inference ends with.

    Raises:
      ValueError: by what is returned, if there was no inference (backprop), or as
        `squared_norms`.
    """
    scale = scale_by_squared_norms()

    def normalised(*args: Any, **kwargs: Any) -> Any:
        (energy, info), grads = grad_fn(*args, **kwargs)
        if info.state is None:
            raise ValueError(
                "normalise: expected a grad_fn that infers activities, as "
                "pcjax.value_and_grad makes it; this one's info holds no state."
            )
        norms = squared_norms(network, info.state.activities, bias=bias)
        scaled, _ = scale.update(grads, optax.EmptyState(), squared_norms=norms)
        return (energy, info), scaled

    return normalised


def scale_by_squared_norms() -> optax.GradientTransformationExtraArgs:
    """Divides layer l's gradient by the batch mean of `||f(h_l)||^2`.

    Returns:
      A transform whose `update` takes `squared_norms=`: L numbers or arrays [B], as
      `squared_norms` gives them. It has no state. For one example it is exactly the
      normalised step; the authors' program uses the batch mean, too.
    """

    def init(params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: Sequence[Any],
        state: optax.EmptyState,
        params: Any = None,
        *,
        squared_norms: Sequence[jax.Array] | None = None,
        **extra: Any,
    ) -> tuple[tuple[Any, ...], optax.EmptyState]:
        del params, extra
        if squared_norms is None or len(squared_norms) != len(updates):
            raise ValueError(
                f"scale_by_squared_norms: update needs squared_norms= of the "
                f"{len(updates)} layers, got "
                f"{None if squared_norms is None else len(squared_norms)}."
            )
        scaled = []
        for gradient, norms in zip(updates, squared_norms, strict=True):
            step = 1 / jnp.mean(norms)
            scaled.append(
                jax.tree.map(lambda g, a=step: a.astype(g.dtype) * g, gradient)
            )
        return tuple(scaled), state

    return optax.GradientTransformationExtraArgs(init, update)
