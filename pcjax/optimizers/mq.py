"""Matrix Update Equalization (MQ): one adaptive step size per layer.

Adam keeps two numbers per parameter, MQ one per layer: the running mean `v_l` of
the magnitude of the layer's gradient entries, by which the layer's step is
divided. Updates of all layers then have about the same size, however small the
gradients of the early ones are.

The optimizer is an ordinary optax transform and knows nothing of predictive
coding, so it trains any model, by whatever gradient.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pcjax.numerics.devices import varying_as
from pcjax.numerics.widths import widest
from pcjax.optimizers.grouping import Group, GroupFn, StackedFn, group, mean_magnitudes
from pcjax.optimizers.hyper import (
    KeepsNumbers,
    LearningRate,
    Number,
    PerLayer,
    at,
    check_layers,
    check_number,
    check_range,
    is_non_negative,
    is_positive,
    per_layer,
)

# (alpha_l [num_layers], mean|g_l| [num_layers]) -> v_l [num_layers]
Start = Callable[[jax.Array, jax.Array], jax.Array]


class ScaleByMQState(NamedTuple):
    """All that MQ remembers: `4 (num_layers + 1)` bytes.

    Attributes:
      count: the iteration `b`.
      v: the running mean of `|dF/dW_l|` per layer; float64 if a parameter is.
    """

    count: jax.Array  # type: ignore[assignment]  # [] int32
    v: jax.Array  # [num_layers] float32


def first_gradient(learning_rate: jax.Array, magnitude: jax.Array) -> jax.Array:
    """Starts MQ at the magnitude of the first gradient: `v_l = mean|g_l|`.

    The first update of a layer then has the mean magnitude `alpha_l`, as later ones
    have: `mq(1e-3, start=first_gradient)`.

    Args:
      learning_rate: [num_layers], `alpha_l`; unused.
      magnitude: [num_layers], `mean|g_l|`.

    Returns:
      `magnitude`.
    """
    del learning_rate
    return magnitude


def scale_by_mq(
    learning_rate: LearningRate,
    decay: Number = 0.9999,
    min_step: Number = 1e-3,
    eps: Number = 1e-6,
    group_fn: GroupFn | None = None,
    *,
    start: PerLayer | Start | None = None,
    stacked: StackedFn | None = None,
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

    The paper's start makes the first step `alpha_l / (alpha_l + r) + alpha_min`, about
    1 whatever the learning rate: the first update is the gradient itself, and a lower
    rate does not make it smaller. That suits the paper's nets, whose gradients are
    small; on others it can undo the initial weights. `start=first_gradient` makes the
    first update as large as later ones, by a `v_l` that is the plain mean of the
    magnitudes until `rho` bounds its memory:

        v_l = mean|g_l| where v_l is still 0,    rho_b = min(rho, 1 - 1 / (b + 1))

    so that a layer whose gradient vanishes at first (below weights that are 0) starts
    with the first that does not.

    Numbers may be traced, so that `jax.vmap` runs over grids of them. Under
    `optax.inject_hyperparams` name functions other than schedules in `static_args`.

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
      learning_rate: `alpha_l`, the magnitude that the mean update tends to: a
        number; one value per layer in the order of `jax.tree.leaves`; a mapping of the
        names of all layers to numbers, `{"params/Dense_0": 1e-3, ...}` (see
        `layer_names`); or an optax schedule of `b` that returns any of these (in a
        mapping, schedules may stand for numbers).
      decay: `rho`; the paper uses .9999 for dense and .999 for convolutional nets.
      min_step: `alpha_min`, the step size no layer falls below.
      eps: `r`, keeps the step size finite where the gradient vanishes.
      group_fn: names the layer of a leaf, given its key path (as of
        `jax.tree_util.tree_leaves_with_path`): leaves of equal names share one
        `v_l`. By default a leaf belongs to the innermost container it is in, so a
        kernel goes with its bias; arrays directly in a top-level tuple or list
        are layers of their own. flax's boxes (`nnx.Variable`, `nn.Partitioned`) are
        no containers. `jax.tree_util.keystr` would separate all leaves.
      start: where `v_l` starts. None is the paper's `alpha_l`. A number > 0, one value
        per layer or a mapping is a given `v_l`, in the place of `alpha_l` in
        eq. 30. A function such as `first_gradient`, `(alpha_l, mean|g_l|) -> v_l` on
        arrays [num_layers], is asked in `update` for layers whose `v_l` is 0, as all
        are at first, with `rho_b` as above.
      stacked: says of a leaf, given its key path, whether its leading axis is one of
        layers, as `flax.linen.scan` and `jax.vmap` of an `init` make them: then
        every layer of the stack has a `v_l`. `lambda path: True` where all are. By
        default a stack has one `v_l`, as if it were one layer.

    Returns:
      A `GradientTransformation` with a `ScaleByMQState`. Updates have the sign and
      dtypes of the gradients. Leaves masked by `optax.masked` do not count.

    Raises:
      ValueError: if `decay` is outside [0, 1), a learning rate or `min_step` is
        negative, `eps` or `start` is not positive, the number of learning rates or
        their names are not those of the layers, arrays of one layer are stacked
        otherwise, or gradients have other layers than the parameters had.
      TypeError: if a hyper-parameter is no number or one of half precision, or
        parameters or gradients are not real floats.

    References:
      Alonso, Krichmar & Neftci, "Understanding and Improving Optimization in
      Predictive Coding Networks", 2023, eqs. 7, 8, 29, 30.
    """
    check_number("decay", decay, "in [0, 1)", lambda x: (x >= 0) & (x < 1))
    check_number("min_step", min_step, ">= 0 and finite", is_non_negative)
    check_number("eps", eps, "> 0 and finite", is_positive)
    if not callable(learning_rate):
        check_range("learning_rate", learning_rate, ">= 0 and finite", is_non_negative)
    if start is not None and not callable(start):
        check_range("start", start, "> 0 and finite", is_positive)
    # A start by the gradient is no mean of magnitudes yet, a given one counts as one.
    given = 1 if callable(start) else 2

    def init_fn(params: optax.Params) -> ScaleByMQState:
        layers = group(params, group_fn, stacked)
        types = (jnp.result_type(leaf) for leaf in layers.leaves)
        dtype = widest(*types)
        count = jnp.zeros([], jnp.int32)
        if not layers.groups:  # nothing to train, or optax asks what is per parameter
            return ScaleByMQState(count, jnp.zeros(0, dtype))
        alpha = per_layer("learning_rate", at(count, learning_rate), layers, dtype)
        if callable(start):
            v = jnp.zeros_like(alpha)
        else:
            v = alpha if start is None else per_layer("start", start, layers, dtype)
        # A copy: the state may be donated, the caller's learning rates may not.
        return ScaleByMQState(count, varying_as(params, jnp.array(v)))

    def update_fn(
        updates: optax.Updates,
        state: ScaleByMQState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, ScaleByMQState]:
        del params
        layers = group(updates, group_fn, stacked)
        count, v = state
        check_layers(layers, v)
        if not layers.groups:
            return updates, ScaleByMQState(optax.safe_increment(count), v)
        alpha = per_layer("learning_rate", at(count, learning_rate), layers, v.dtype)
        magnitudes = jnp.concatenate(
            [mean_magnitudes(layers.leaves, g, v.dtype) for g in layers.groups]
        )
        if callable(start):
            asked = per_layer("start", start(alpha, magnitudes), layers, v.dtype)
            v = jnp.where(v > 0, v, asked)
        steps = alpha / (v + eps) + min_step
        steps = steps.astype(v.dtype)  # hyper-parameters may be of a wider type
        # 1 - rho_b. Of a Python float, 1 - decay is formed in double precision.
        weight = jnp.maximum(
            jnp.asarray(1 - decay, v.dtype), 1 / (count.astype(v.dtype) + given)
        )
        v = v + weight * (magnitudes - v)
        scaled = layers.treedef.unflatten(_scale(layers.leaves, layers.groups, steps))
        return scaled, ScaleByMQState(optax.safe_increment(count), v)

    return optax.GradientTransformation(init_fn, update_fn)


def mq(
    learning_rate: LearningRate,
    decay: Number = 0.9999,
    min_step: Number = 1e-3,
    eps: Number = 1e-6,
    group_fn: GroupFn | None = None,
    *,
    start: PerLayer | Start | None = None,
    stacked: StackedFn | None = None,
) -> optax.GradientTransformation:
    """Matrix Update Equalization, the optimizer made for predictive coding.

    `W_l <- W_l - (alpha_l / (v_l + r) + alpha_min) dF/dW_l`; see `scale_by_mq`
    for `v_l`, the arguments and what is refused.

    `v_l` starts at `alpha_l`, as the paper has it: the first update is the gradient
    itself, however low the learning rate (`mq(1e-5)`: -1 for a gradient of ones).
    Away from the paper's nets start it at the first gradient's magnitude,
    `mq(1e-4, start=first_gradient)`. No start replaces a search of the rate: entries
    of an update are as unequal as those of the gradient, so that rates of Adam do not
    carry over. `python -m experiments.mq_starts` compares starts, rates and Adam.

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
      learning_rate: `alpha_l`, a number, an optax schedule, or one per layer in order
        or by name.
      decay: `rho`.
      min_step: `alpha_min`.
      eps: `r`.
      group_fn: key path of a leaf -> name of its layer; by default its parent.
      start: where `v_l` starts: None (at `alpha_l`), values, or `first_gradient`.
      stacked: key path of a leaf -> whether its leading axis is one of layers.

    Returns:
      A `GradientTransformation` whose updates are to be added to the parameters.

    Raises:
      ValueError, TypeError: as `scale_by_mq`.

    References:
      Alonso, Krichmar & Neftci, "Understanding and Improving Optimization in
      Predictive Coding Networks", 2023, eqs. 7, 8, 29, 30.
    """
    scale = scale_by_mq(
        learning_rate,
        decay,
        min_step,
        eps,
        group_fn,
        start=start,
        stacked=stacked,
    )
    return optax.chain(scale, optax.scale(-1.0))


for _factory in (mq, scale_by_mq):
    _factory.__signature__ = KeepsNumbers.from_callable(_factory)  # type: ignore


def _scale(
    leaves: Sequence[Any], groups: Sequence[Group], steps: jax.Array
) -> list[Any]:
    """The leaves times the steps [num_layers] of their layers, in their own dtypes."""
    scaled = list(leaves)
    first = 0
    for layer in groups:
        count = 1 if layer.size is None else layer.size
        own = steps[first : first + count]
        first += count
        for member in layer.members:
            leaf = leaves[member]
            ones = (1,) * (jnp.ndim(leaf) - 1)
            shape = () if layer.size is None else (count, *ones)
            wide = own.reshape(shape) * jnp.asarray(leaf).astype(own.dtype)
            scaled[member] = wide.astype(jnp.result_type(leaf))
    return scaled
