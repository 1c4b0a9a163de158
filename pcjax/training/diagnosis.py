"""What went non-finite in a training iteration: the quantity, the layer, and when.

The iteration is repeated with its states watched, once `pcjax.finite.guard` has refused
it and weights and optimizer state are those before it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pcjax.energy import Weights
from pcjax.inference.kernel import Method
from pcjax.inference.methods import infer
from pcjax.inference.state import InferenceState
from pcjax.learning import backprop
from pcjax.learning.gradients import value_and_grad
from pcjax.learning.incremental import incremental
from pcjax.networks.network import Network, Params, feedforward
from pcjax.networks.outputs import Clamp, Output, full_clamp, identity
from pcjax.optimizers.finite import fits
from pcjax.training.epoch import mean

_MADE = ("gradient", "optimizer state", "update")  # in a step, in this order
_FORWARD = " in the feed-forward pass"
_OF_LAYERS = ("parameter", "gradient", "update", "new parameter")


class NonFinite(NamedTuple):
    """What first went non-finite in a training iteration.

    Attributes:
      quantity: "parameter", "input", "target", "activity", "error", "gradient",
        "optimizer state", "update" or "new parameter", in the order in which an
        iteration makes them; within inference, an activity before its error.
      layers: its layers, of all that went at once: l of `h_l` or `e_l` (1..L), and l
        of `theta_l` (0..L-1) for parameters, gradients and updates. Empty for inputs,
        targets and the optimizer state.
      iteration: of inference, 0 being its start, the feed-forward pass or `hidden`, and
        t the state that t iterations have made; None if it was not in inference.
      leaves: key paths of what was not finite, in the tree that holds it; `("hidden",)`
        at a start from there.
    """

    quantity: str
    layers: tuple[int, ...]
    iteration: int | None
    leaves: tuple[str, ...]

    def __str__(self) -> str:
        where = ""
        if self.layers:
            plural = "s" if len(self.layers) > 1 else ""
            where = f" of layer{plural} {', '.join(map(str, self.layers))}"
        elif any(self.leaves):
            where = f" at {', '.join(self.leaves)}"
        when = {
            None: "",
            0: " at the start from hidden" if self.leaves else _FORWARD,
        }.get(self.iteration, f" in inference iteration {self.iteration}")
        return f"{self.quantity}{where} not finite{when}"


def diagnose(
    network: Network,
    method: Method | None,
    params: Sequence[Params],
    inputs: jax.Array,
    targets: jax.Array,
    *,
    tx: optax.GradientTransformation | None = None,
    opt_state: Any = None,
    output: Output = identity,
    clamp: Clamp = full_clamp,
    gamma: Weights = 1.0,
    decay: Weights = 0.0,
    learning_clamp: Clamp | None = None,
    weights_move: bool = False,
    hidden: Sequence[jax.Array] | None = None,
    key: jax.Array | None = None,
) -> NonFinite | None:
    """Repeats a training iteration and names what first went non-finite in it.

    It is for the host, after the fact: it compiles programs of its own.

    Args:
      network: L layers, a chain or a graph.
      method: the method of inference; None for backprop.
      params: the parameters before the iteration.
      inputs: its batch.
      targets: the targets of the batch.
      tx: the optimizer, without its guard; without one, the iteration ends with the
        gradients.
      opt_state: its state before the iteration, the `inner_state` of the guard's.
      output: as in training.
      clamp: as in training.
      gamma: as in training.
      decay: as in training.
      learning_clamp: as in training.
      weights_move: whether the iteration is that of `pcjax.incremental`. Of its later
        iterations only the gradients and what the optimizer makes of them are seen; a
        gradient of layer l is not finite if `e_{l+1}` is not.
      hidden: the activities that inference started from, as `infer` takes them; only
        of inference before learning.
      key: the random key that the iteration was given, see `infer`; backprop draws
        nothing by it.

    Returns:
      What was not finite, or None if everything is.

    Raises:
      TypeError: as `infer`.
      ValueError: as `infer`, or if `weights_move` comes without `method` and `tx`, or
        `hidden` with `weights_move` or without `method`.
    """
    if weights_move and (method is None or tx is None):
        raise ValueError("diagnose: weights_move needs the method and tx of training.")
    if hidden is not None and (method is None or weights_move):
        raise ValueError(
            "diagnose: hidden is of inference before learning, which starts from it; "
            f"got it with {'weights_move' if weights_move else 'method=None'}."
        )
    params = tuple(params)
    options = {"output": output, "clamp": clamp, "gamma": gamma, "decay": decay}
    for quantity, tree in (
        ("parameter", params),
        ("input", inputs),
        ("target", targets),
    ):
        found = _find(quantity, tree)
        if found and not (quantity == "target" and _left_out(output, targets)):
            return found
    if weights_move:
        return _diagnose_incremental(
            network, method, tx, params, opt_state, inputs, targets, options, key
        )
    start = {"hidden": hidden, "key": key}
    found = _in_inference(network, method, params, inputs, targets, options | start)
    if found:
        return found
    if method is None:
        grad_fn = backprop.value_and_grad(network, output=output)
    else:
        grad_fn = value_and_grad(
            network, method, learning_clamp=learning_clamp, **options
        )
        grad_fn = partial(grad_fn, **start)
    (_, info), grads = jax.jit(grad_fn)(params, inputs, targets)
    return _find("gradient", grads) or _in_step(
        tx, grads, opt_state, params, mean(info.loss)
    )


def _left_out(output: Output, targets: jax.Array) -> bool:
    """Whether what is not finite are missing values, of which the output sees none."""
    return bool(all_finite(output.error(jnp.zeros_like(targets), targets)))


class _Watch(NamedTuple):
    """What an optimizer was given and made at its first step that was not finite."""

    inner_state: Any
    step: jax.Array  # int32 [], of the steps so far
    first: jax.Array  # int32 [], -1 if all were finite
    finite: Any  # (gradients, inner state, updates): bool [] for every leaf


def _watched(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer, remembering its first step that was not finite."""
    inner = optax.with_extra_args_support(tx)

    def update_fn(updates, state, params=None, **extra):
        new, inner_state = inner.update(updates, state.inner_state, params, **extra)
        finite = (
            jax.tree.map(fits, updates),
            jax.tree.map(_finite_or_kept, inner_state, state.inner_state),
            jax.tree.map(all_finite, new),
        )
        starts = (state.first < 0) & ~jnp.all(jnp.array(jax.tree.leaves(finite)))
        kept = jax.tree.map(partial(jnp.where, starts), finite, state.finite)
        first = jnp.where(starts, state.step, state.first)
        return new, _Watch(inner_state, state.step + 1, first, kept)

    return optax.GradientTransformationExtraArgs(tx.init, update_fn)


def _diagnose_incremental(
    network, method, tx, params, opt_state, inputs, targets, options, key
):
    """The first of the T iterations whose state or step is not finite."""
    one = method._replace(num_steps=1)
    of_start = options | {"key": key}
    if found := _in_inference(network, one, params, inputs, targets, of_start):
        return found
    update = incremental(network, method, _watched(tx), **options)
    zero = jnp.zeros((), jnp.int32)
    finite = jax.tree.map(lambda _: jnp.array(True), (params, opt_state, params))
    start = _Watch(opt_state, zero, zero - 1, finite)
    new, watch, _ = jax.jit(update)(params, start, inputs, targets, key=key)
    for quantity, flags in zip(_MADE, watch.finite, strict=True):
        if found := _find(quantity, flags):
            return found._replace(iteration=int(watch.first) + 1)
    return _find("new parameter", new)


def _in_inference(network, method, params, inputs, targets, options):
    """The first activity or error, in time, that is not finite."""
    activities: Sequence[jax.Array]
    if method is None:
        activities = feedforward(network, params, inputs)
        return _of_layers("activity", [not all_finite(h) for h in activities], 0)

    def observe(state: InferenceState):
        *hidden, _ = state.activities[1:]
        return [
            [~all_finite(x) for x in values]
            for values in ((*hidden, state.predictions[-1]), state.errors)
        ]

    run = partial(infer, network, method, trace=observe, **options)
    rows = jax.device_get(jax.jit(run)(params, inputs, targets).trace)
    for t in range(method.num_steps + 1):
        for quantity, flags in zip(("activity", "error"), rows, strict=True):
            if found := _of_layers(quantity, [flag[t] for flag in flags], t):
                given = t == 0 and options.get("hidden") is not None
                return found._replace(leaves=("hidden",)) if given else found
    return None


def _in_step(tx, grads, opt_state, params, loss):
    """What an optimizer makes of finite gradients that is not finite."""
    if tx is None:
        return None
    update = jax.jit(optax.with_extra_args_support(tx).update)
    updates, state = update(grads, opt_state, params, value=loss)
    new = optax.apply_updates(params, updates)
    return (
        _find("optimizer state", jax.tree.map(_finite_or_kept, state, opt_state))
        or _find("update", updates)
        or _find("new parameter", new)
    )


def _of_layers(quantity, flags, iteration):
    layers = tuple(index + 1 for index, flag in enumerate(flags) if flag)
    return NonFinite(quantity, layers, iteration, ()) if layers else None


def _find(quantity: str, tree: Any) -> NonFinite | None:
    """Names the leaves of a tree that are not finite, and their layers in a tuple."""
    is_fine = fits if quantity == "gradient" else all_finite
    paths = [
        path
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if not (leaf if leaf.dtype == bool else is_fine(leaf))
    ]
    if not paths:
        return None
    layers = sorted({path[0].idx for path in paths}) if quantity in _OF_LAYERS else ()
    names = tuple(jax.tree_util.keystr(path) for path in paths)
    return NonFinite(quantity, tuple(layers), None, names)


def _finite_or_kept(leaf: jax.Array, before: jax.Array) -> jax.Array:
    """Whether all is finite but for infinities that an optimizer starts with."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.array(True)
    return jnp.all(jnp.isfinite(leaf) | (leaf == before))


def all_finite(leaf: jax.Array) -> jax.Array:
    """Whether all entries are finite, as those of integers and keys are."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.array(True)
    return jnp.all(jnp.isfinite(leaf))
