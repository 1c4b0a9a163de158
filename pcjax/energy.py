"""The free energy (eq. 1) and its prediction errors.

Plain maths: whatever the inference and learning kernels compute is a derivative
of `free_energy`, and the tests hold them to it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pcjax.checks import (
    check_float,
    check_non_negative,
    check_parts,
    check_real,
    check_sequence,
)
from pcjax.networks.network import (
    Network,
    Params,
    check_inputs,
    check_params,
    explain,
)
from pcjax.networks.outputs import Output, identity, losses_of, softmax, widened
from pcjax.numerics.hooks import call_at
from pcjax.numerics.weights import is_zero, scaled, weigh

# A number, one value per layer, [layers, B], one per feature of a layer, or a function
# (activities, errors) -> one of these, called at every inference iteration; it may have
# an argument `t`, the number of iterations made so far (int32 []).
Weights = Any
Activities = Sequence[jax.Array]
Errors = tuple[jax.Array, ...]


def prediction_errors(
    network: Network,
    params: Sequence[Params],
    activities: Activities,
    *,
    output: Output = identity,
) -> Errors:
    """The local errors `e_l = h_l - p_l`, and `e_L = h_L - sigma(p_L)`.

    Args:
      network: L layers, a chain or a graph.
      params: their parameters.
      activities: `(h_0, ..., h_L)`, each [B, ...]; `h_0` is the input.
      output: link and loss of the last layer.

    Returns:
      `(e_1, ..., e_L)`, each shaped like its activity.

    Raises:
      TypeError: if activities or parameters are not floats, or network or output is
        no such thing.
      ValueError: if they do not fit the network, or there is no example.
    """
    check_parts("prediction_errors", output=output)
    predictions = _predict(network, params, activities, "prediction_errors")
    return errors_of(activities, predictions, output)


def free_energy(
    network: Network,
    params: Sequence[Params],
    activities: Activities,
    *,
    output: Output = identity,
    gamma: Weights = 1.0,
    decay: Weights = 0.0,
) -> jax.Array:
    """The free energy F of each example (eq. 1), [B].

    `F = gamma_L loss(p_L, h_L) + sum_{l=1}^{L-1} (gamma_l / 2 ||h_l - p_l||^2
    + decay_l / 2 ||f(h_l)||^2)`

    >>> import pcjax
    >>> network = pcjax.mlp([3, 2, 1])
    >>> params = network.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> inputs, targets = jnp.ones((5, 3)), jnp.ones((5, 1))
    >>> hidden, _ = pcjax.feedforward(network, params, inputs)
    >>> free_energy(network, params, (inputs, hidden, targets)).shape
    (5,)

    Args:
      network: L layers, a chain or a graph.
      params: their parameters.
      activities: `(h_0, ..., h_L)`, each [B, ...]; `h_0` is the input, `h_L` the
        clamped output.
      output: link and loss of the last layer.
      gamma: the weights of the errors: a number for all hidden layers; L-1 numbers
        for them; L numbers, the last one for the output loss (1 otherwise); [L-1,
        B] or [L, B]; or a function `(activities, errors)` of one of these. In a tuple,
        each may be one per feature or channel, [1, ...] or [B, ...], that of the output
        if its loss is a sum over features.
      decay: the weights of `||f(h_l)||^2 / 2`: a number, L-1 numbers, [L-1, B] or a
        function.

    Returns:
      [B], in nats for the softmax and sigmoid outputs.

    Raises:
      TypeError: if activities or parameters are not floats, weights not real, or
        network or output is no such thing.
      ValueError: if they do not fit the network, there is no example, or weights are
        of a wrong number, negative or infinite (those of a function may be negative:
        see `theorem1`).
    """
    layers = free_energy_per_layer(
        network, params, activities, output=output, gamma=gamma, decay=decay
    )
    return jnp.sum(layers, axis=0)


def free_energy_per_layer(
    network: Network,
    params: Sequence[Params],
    activities: Activities,
    *,
    output: Output = identity,
    gamma: Weights = 1.0,
    decay: Weights = 0.0,
) -> jax.Array:
    """The terms of `free_energy`, [L, B]: row l-1 holds those of `h_l`.

    Arguments and errors are those of `free_energy`.
    """
    check_parts("free_energy", output=output)
    predictions = _predict(network, params, activities, "free_energy")
    errors = errors_of(activities, predictions, output)
    gammas = error_weights(gamma, activities, errors)
    check_output_weight("free_energy", gammas[-1], output)
    decays = decay_weights(decay, activities, errors)
    return energy_terms(
        network, activities, predictions, errors, output, gammas, decays
    )


def errors_of(
    activities: Activities, predictions: Sequence[jax.Array], output: Output
) -> Errors:
    """The errors of activities whose predictions are known."""
    *hidden, logits = predictions
    return (
        *(h - p for h, p in zip(activities[1:-1], hidden, strict=True)),
        output.error(*widened(logits, activities[-1])),
    )


def energy_terms(
    network: Network,
    activities: Activities,
    predictions: Sequence[jax.Array],
    errors: Errors,
    output: Output,
    gammas: Sequence[jax.Array | float],
    decays: Sequence[jax.Array | float],
) -> jax.Array:
    """Eq. 1 term by term from what inference has at hand, [L, B]."""
    terms = []
    for index, (h, e, gamma, decay) in enumerate(
        zip(activities[1:-1], errors[:-1], gammas, decays, strict=False), start=1
    ):
        term = 0.5 * _weighted_norm(gamma, e)
        if not is_zero(decay):
            values = network.activation(index)(h)
            term += 0.5 * _weighted_norm(decay, values)
        terms.append(term)
    last = _weighted_loss(gammas[-1], output, *widened(predictions[-1], activities[-1]))
    return jnp.stack([*terms, last])


def error_weights(
    gamma: Weights,
    activities: Activities,
    errors: Errors,
    t: Any = None,
    function: str = "free_energy",
) -> list[jax.Array | float]:
    """`[gamma_1, ..., gamma_L]`, each a number or [B]; `t` as of `call_at`."""
    count = len(errors)
    signed = callable(gamma)
    if signed:
        gamma = call_at("gamma", gamma, t, activities, errors)
    checked = partial(_per_layer, function, "gamma", gamma, activities, signed)
    if _is_scalar(gamma) or len(gamma) == count - 1:
        return [*checked(count - 1), 1.0]
    return checked(count)


def decay_weights(
    decay: Weights,
    activities: Activities,
    errors: Errors,
    t: Any = None,
    function: str = "free_energy",
) -> list[jax.Array | float]:
    """`[decay_1, ..., decay_{L-1}]`, each a number or [B]; `t` as of `call_at`."""
    signed = callable(decay)
    if signed:
        decay = call_at("decay", decay, t, activities, errors)
    return _per_layer(function, "decay", decay, activities, signed, len(errors) - 1)


def _weighted_norm(weight: jax.Array | float, values: jax.Array) -> jax.Array:
    """`weight * ||values||^2`, [B], or the sum with a weight per feature."""
    (values,) = widened(values)
    axes = range(1, values.ndim)
    if jnp.ndim(weight) < 2:
        return scaled(weight, jnp.sum(values**2, axis=axes))
    return jnp.sum(weigh(weight, values**2), axis=axes)


def _weighted_loss(weight, output, logits, targets) -> jax.Array:
    """`weight * loss`, [B]; with a weight per feature each is a loss of its own."""
    if jnp.ndim(weight) < 2:
        return scaled(weight, losses_of(output, logits, targets))
    losses = output.loss(logits.reshape(-1, 1), targets.reshape(-1, 1))
    parts = weigh(weight, losses.reshape(logits.shape))
    return jnp.sum(parts, axis=range(1, logits.ndim))


def check_output_weight(function: str, weight: Any, output: Output) -> None:
    """Refuses a weight per feature of a loss that is no sum over features."""
    classes = output == softmax or getattr(output.loss, "axes", None)
    if classes and jnp.ndim(weight) > 1:
        raise ValueError(
            f"{function}: gamma of the output holds a weight per feature, of shape "
            f"{jnp.shape(weight)}; the loss is no sum over them: expected [] or [B]."
        )


def _is_scalar(value: Weights) -> bool:
    return not isinstance(value, list | tuple) and np.ndim(value) == 0


def _per_layer(
    function: str,
    name: str,
    value: Weights,
    activities: Activities,
    signed: bool,
    count: int,
) -> list[jax.Array | float]:
    """One weight per layer, each a number or [B]; negative only if `signed`."""
    check = value if isinstance(value, list | tuple) else [value]
    for entry in check:
        (check_real if signed else check_non_negative)(function, name, entry)
    if _is_scalar(value):
        return [value] * count
    batch = activities[0].shape[0]
    weights = list(value)
    shapes = [jnp.shape(weight) for weight in weights]
    above = activities[1:] if name == "gamma" else ()
    if len(weights) != count or not all(
        shape in ((), (batch,)) or _per_feature(shape, above[index : index + 1])
        for index, shape in enumerate(shapes)
    ):
        counts = f"{count}" if name == "decay" else f"{len(activities) - 2}"
        raise ValueError(
            f"{function}: {name} must be a number or hold one weight (or one per "
            f"example, [{batch}]) for each of the {counts} hidden layers"
            + ("" if name == "decay" else " and, if wished, the output")
            + f"; got {len(weights)} weights of shapes {shapes}."
        )
    return weights


def _per_feature(shape: tuple[int, ...], own: Activities) -> bool:
    """Whether it is that of weights for the features of this activity, if any."""
    return any(
        1 < len(shape) <= h.ndim
        and shape[0] in (1, len(h))
        and all(n in (1, m) for n, m in zip(shape[:0:-1], h.shape[:0:-1], strict=False))
        for h in own
    )


def check_activities(
    function: str, network: Network, params: Sequence[Params], activities: Activities
) -> None:
    """Refuses activities and parameters that cannot be of the network."""
    check_parts(function, network=network)
    count = len(network.layers)
    check_sequence(function, "activities", activities)
    check_sequence(function, "params", params)
    if len(activities) != count + 1 or len(params) != count:
        raise ValueError(
            f"{function}: a network of {count} layers has {count + 1} activities and "
            f"{count} params, got {len(activities)} and {len(params)}."
        )
    check_inputs(function, network, activities[0])
    for index, activity in enumerate(activities[1:], start=1):
        check_float(function, f"activities[{index}]", activity)
    check_params(function, network, params, activities[0])


def _predict(
    network: Network, params: Sequence[Params], activities: Activities, function: str
) -> list[jax.Array]:
    """`[p_1, ..., p_L]` from the activities, checked against them."""
    check_activities(function, network, params, activities)
    predictions = []
    for index, layer in enumerate(network.layers):
        below = [activities[i] for i in network.reads[index]]
        prediction = explain(index, below, layer.apply, params[index], *below)
        above = activities[index + 1]
        if prediction.shape != above.shape:
            raise ValueError(
                f"{function}: layer {index} predicts shape {prediction.shape}, but "
                f"activities[{index + 1}] has shape {above.shape}."
            )
        predictions.append(prediction)
    return predictions
