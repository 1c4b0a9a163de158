"""Matrix Update Equalization (MQ): one adaptive step size per layer.

Adam keeps two numbers per parameter, MQ one per layer: the running mean `v_l` of
the magnitude of the layer's gradient entries, by which the layer's step is
divided. Updates of all layers then have about the same size, however small the
gradients of the early ones are.

The optimizer is an ordinary optax transform and knows nothing of predictive
coding, so it trains any model, by whatever gradient.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import GetAttrKey, SequenceKey

from pcjax.numerics.reductions import sum_magnitudes

KeyPath = tuple[Any, ...]
# Where a leaf sits in the tree -> the layer it belongs to.
GroupFn = Callable[[KeyPath], Hashable]
Number = float | jax.Array  # possibly traced
# A number, a schedule of the iteration b, or one value per layer.
LearningRate = Number | Sequence[Number] | Callable[[jax.Array], Any]


class ScaleByMQState(NamedTuple):
    """All that MQ remembers: `4 (num_layers + 1)` bytes.

    Attributes:
      count: the iteration `b`.
      v: the running mean of `|dF/dW_l|` per layer; float64 if a parameter is.
    """

    count: jax.Array  # type: ignore[assignment]  # [] int32
    v: jax.Array  # [num_layers] float32


def scale_by_mq(
    learning_rate: LearningRate,
    decay: Number = 0.9999,
    min_step: Number = 1e-3,
    eps: Number = 1e-6,
    group_fn: GroupFn | None = None,
) -> optax.GradientTransformation:
    """Scales the gradient of each layer by its MQ step size.

    With `g_l = dF/dW_l` at iteration `b = 0, 1, ...`, the update is `step_l g_l`,
    formed with the old `v_l`, which then moves towards the mean magnitude of the
    gradient's entries:

        step_l = alpha_l / (v_l + r) + alpha_min                          (eq. 7)
        v_l   <- rho_b v_l + (1 - rho_b) mean|g_l|                        (eqs. 8, 29)
        rho_b  = min(rho, 1 - 1 / (b + 2)),    v_l = alpha_l at the start (eq. 30)

    The paper prints the second and third line with a slip of sign and with the
    roles of `rho` and `1 - rho` exchanged, which would make `v_l` about minus the
    gradient; this is the corrected form. The mean runs over all entries of the
    layer's weights and bias together, as if the bias were one more column of `W_l`.

    Numbers may be traced, so that `jax.vmap` runs over grids of them. Under
    `optax.inject_hyperparams` name `group_fn` in `static_args`.

    >>> import jax.numpy as jnp
    >>> params = ({"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)},)
    >>> tx = scale_by_mq(learning_rate=0.5, min_step=0.0, eps=1e-12)
    >>> state = tx.init(params)
    >>> print(state.v)
    [0.5]
    >>> updates, state = tx.update(params, state)  # any gradient; the mean is 6 / 8
    >>> print(updates[0]["kernel"][0], state.v)  # v = 0.5 * 0.5 + 0.5 * 6 / 8
    [1. 1.] [0.625]

    Args:
      learning_rate: `alpha_l`, the magnitude that the mean update tends to; a
        number, an optax schedule of `b`, or one value per layer in the order of
        `jax.tree.leaves` (a schedule may return one per layer, too).
      decay: `rho`; the paper uses .9999 for dense and .999 for convolutional nets.
      min_step: `alpha_min`, the step size no layer falls below.
      eps: `r`, keeps the step size finite where the gradient vanishes.
      group_fn: names the layer of a leaf, given its key path (as of
        `jax.tree_util.tree_leaves_with_path`): leaves of equal names share one
        `v_l`. By default a leaf belongs to the innermost container it is in, so a
        kernel goes with its bias; arrays directly in a top-level tuple or list
        are layers of their own. `jax.tree_util.keystr` would separate all leaves.

    Returns:
      A `GradientTransformation` with a `ScaleByMQState`. Updates have the sign and
      dtypes of the gradients. Leaves masked by `optax.masked` do not count.

    Raises:
      ValueError: if `decay` is outside [0, 1), a learning rate or `min_step` is
        negative, `eps` is not positive, the number of learning rates is not that
        of the layers, or gradients have other layers than the parameters had.
      TypeError: if a hyper-parameter is no number, or parameters or gradients are
        not real floats.

    References:
      Alonso, Krichmar & Neftci, "Understanding and Improving Optimization in
      Predictive Coding Networks", 2023, eqs. 7, 8, 29, 30.
    """
    _check_number("decay", decay, "in [0, 1)", lambda x: (x >= 0) & (x < 1))
    _check_number("min_step", min_step, ">= 0 and finite", _is_non_negative)
    _check_number("eps", eps, "> 0 and finite", lambda x: (x > 0) & (x < np.inf))
    if not callable(learning_rate):
        _check_range(
            "learning_rate", learning_rate, ">= 0 and finite", _is_non_negative
        )
    group_fn = group_fn or _parent_path

    def alpha(count: jax.Array, layers: Sequence[Hashable], dtype: Any) -> jax.Array:
        """The learning rates [num_layers] at iteration `count`."""
        if not layers:  # nothing to train, or optax looking for what is per parameter
            return jnp.zeros(0, dtype)
        rate = learning_rate(count) if callable(learning_rate) else learning_rate
        rate = jnp.asarray(rate, dtype)
        if rate.shape not in ((), (len(layers),)):
            raise ValueError(
                f"scale_by_mq: learning_rate has shape {rate.shape}; expected a single "
                f"number or shape ({len(layers)},), one value for each of the layers "
                f"{_names(layers)}."
            )
        return jnp.broadcast_to(rate, (len(layers),))

    def init_fn(params: optax.Params) -> ScaleByMQState:
        leaves, _, layers = _group(params, group_fn)
        dtype = jnp.result_type(jnp.float32, *(jnp.result_type(x) for x in leaves))
        count = jnp.zeros([], jnp.int32)
        # A copy: the state may be donated, the caller's learning rates may not.
        return ScaleByMQState(count, jnp.array(alpha(count, list(layers), dtype)))

    def update_fn(
        updates: optax.Updates,
        state: ScaleByMQState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, ScaleByMQState]:
        del params
        gradients, treedef, layers = _group(updates, group_fn)
        count, v = state
        if v.shape != (len(layers),):
            raise ValueError(
                f"scale_by_mq: gradients of {len(layers)} layers {_names(layers)}, but "
                f"the state was made by init for {v.size} layers (v has shape "
                f"{v.shape}); expected the tree that init was given."
            )
        steps = alpha(count, list(layers), v.dtype) / (v + eps) + min_step
        steps = steps.astype(v.dtype)  # hyper-parameters may be of a wider type
        scaled = list(gradients)
        means = []
        for step, members in zip(steps, layers.values(), strict=True):
            for leaf in members:
                gradient = gradients[leaf]
                dtype = jnp.result_type(gradient)
                scaled[leaf] = (step * gradient).astype(dtype)
            total = sum(sum_magnitudes(gradients[leaf], v.dtype) for leaf in members)
            size = sum(np.size(gradients[leaf]) for leaf in members)
            means.append(total / max(size, 1))
        # 1 - rho_b. Of a Python float, 1 - decay is formed in double precision.
        weight = jnp.maximum(
            jnp.asarray(1 - decay, v.dtype), 1 / (count.astype(v.dtype) + 2)
        )
        v = v + weight * (jnp.asarray(means, v.dtype) - v)
        return treedef.unflatten(scaled), ScaleByMQState(optax.safe_increment(count), v)

    return optax.GradientTransformation(init_fn, update_fn)


def mq(
    learning_rate: LearningRate,
    decay: Number = 0.9999,
    min_step: Number = 1e-3,
    eps: Number = 1e-6,
    group_fn: GroupFn | None = None,
) -> optax.GradientTransformation:
    """Matrix Update Equalization, the optimizer made for predictive coding.

    `W_l <- W_l - (alpha_l / (v_l + r) + alpha_min) dF/dW_l`; see `scale_by_mq`
    for `v_l`, the arguments and what is refused.

    The optimizer stands alone: it trains an ordinary flax model by backprop.

    >>> import flax.linen as nn
    >>> model = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(1)])
    >>> inputs = jnp.linspace(-1, 1, 16)[:, None]
    >>> params = model.init(jax.random.key(0), inputs)
    >>> tx = mq(learning_rate=3e-3)
    >>> opt_state = tx.init(params)
    >>> def loss(params):
    ...     return jnp.mean((model.apply(params, inputs) - inputs**2) ** 2)
    >>> @jax.jit
    ... def train_step(params, opt_state):
    ...     updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
    ...     return optax.apply_updates(params, updates), opt_state
    >>> before = loss(params)
    >>> for _ in range(200):
    ...     params, opt_state = train_step(params, opt_state)
    >>> bool(loss(params) < 0.1 * before)
    True
    >>> opt_state[0].v.shape  # one scalar for each of the two layers
    (2,)

    With nnx it is `nnx.Optimizer(model, mq(1e-3), wrt=nnx.Param)`.

    Args:
      learning_rate: `alpha_l`, a number, an optax schedule, or one per layer.
      decay: `rho`.
      min_step: `alpha_min`.
      eps: `r`.
      group_fn: key path of a leaf -> name of its layer; by default its parent.

    Returns:
      A `GradientTransformation` whose updates are to be added to the parameters.

    Raises:
      ValueError, TypeError: as `scale_by_mq`.

    References:
      Alonso, Krichmar & Neftci, "Understanding and Improving Optimization in
      Predictive Coding Networks", 2023, eqs. 7, 8, 29, 30.
    """
    return optax.chain(
        scale_by_mq(learning_rate, decay, min_step, eps, group_fn), optax.scale(-1.0)
    )


def _parent_path(path: KeyPath) -> KeyPath:
    """Names the default layer of a leaf: the container it is in."""
    if path and path[-1] == GetAttrKey("value"):
        path = path[:-1]  # flax boxes: an nnx.Variable, linen's Partitioned
    if len(path) == 1 and isinstance(path[0], SequenceKey):
        return path  # a network whose layer is a bare array
    return path[:-1]


def _group(
    tree: Any, group_fn: GroupFn
) -> tuple[list[Any], jax.tree_util.PyTreeDef, dict[Hashable, list[int]]]:
    """Flattens a tree: its leaves, and which of them belong to each layer."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    layers: dict[Hashable, list[int]] = {}
    for index, (path, leaf) in enumerate(leaves):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"scale_by_mq: the leaf at '{jax.tree_util.keystr(path)}' has dtype "
                f"{jnp.result_type(leaf)}; expected real floats. Exclude leaves that "
                "are not trained with optax.masked."
            )
        layers.setdefault(group_fn(path), []).append(index)
    return [leaf for _, leaf in leaves], treedef, layers


def _names(layers: Iterable[Hashable]) -> str:
    """Returns the layers' names for messages: `[0], [1]['Dense_0']`."""
    return ", ".join(
        (jax.tree_util.keystr(layer) or "the whole tree")
        if isinstance(layer, tuple)
        else str(layer)
        for layer in layers
    )


def _is_non_negative(x: np.ndarray) -> np.ndarray:
    return (x >= 0) & (x < np.inf)


def _check_number(
    name: str, value: Any, expected: str, is_valid: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Refuses what is no single number, or not as `expected`."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    if several or np.ndim(value) > 0:
        raise ValueError(
            f"scale_by_mq: {name} must be a single number, got {value}; only "
            "learning_rate may hold one value per layer."
        )
    _check_range(name, value, expected, is_valid)


def _check_range(
    name: str, value: Any, expected: str, is_valid: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Refuses entries that are no numbers or not as `expected`; traced ones pass."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
        return
    array = np.asarray(value)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (np.floating, np.integer)):
        raise TypeError(f"scale_by_mq: {name} must be a number, got {value!r}.")
    if not np.all(is_valid(array)):
        raise ValueError(f"scale_by_mq: {name} must be {expected}, got {value}.")
