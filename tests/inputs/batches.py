"""Batches, parameters, activities and weights that do not belong to the network."""

import re

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np

import pcjax
from tests.inputs.draws import (
    KEY,
    NEGATIVE,
    NO_ARRAYS,
    NOT_FLOATS,
    NOT_REAL,
    OUTPUTS,
    SGD,
    Fault,
    got,
    methods,
    other_than,
    problems,
    replaced,
    shape_pattern,
)


@st.composite
def bad_batches(draw, name, p):
    """`(params, inputs, targets)`, one of them bad, and the error of function `name`.

    Messages about the inner workings of a layer start with "network", all others with
    the name of the function.
    """
    _, _, params, inputs, targets, _ = p
    batch = len(inputs)
    index = draw(st.integers(0, len(params) - 1))
    at = re.escape(f"params[{index}]")
    kind = draw(st.sampled_from(BATCH_FAULTS))
    error, where = ValueError, f"^{re.escape(name)}: "
    if kind == "input dtype":
        inputs = inputs.astype(draw(st.sampled_from(NOT_FLOATS)))
        error, message = TypeError, f"inputs must be floats, got {inputs.dtype}"
    elif kind == "target dtype":
        targets = targets.astype(draw(st.sampled_from(NOT_FLOATS)))
        error, message = TypeError, f"targets must be floats, got {targets.dtype}"
    elif kind == "no inputs":
        inputs = draw(st.sampled_from(NO_ARRAYS))
        error = TypeError
        message = f"inputs must be an array of floats, got a {type(inputs).__name__}"
    elif kind == "no targets":
        targets = draw(st.sampled_from(NO_ARRAYS))
        error = TypeError
        message = f"targets must be an array of floats, got a {type(targets).__name__}"
    elif kind == "no batch axis":
        inputs = draw(st.sampled_from([inputs[0], inputs[0, 0]]))
        message = r"inputs must be a batch \[B, \.\.\.\], got " + shape_pattern(inputs)
    elif kind == "no example":
        inputs, targets = inputs[:0], targets[:0]
        message = "inputs must hold at least one example, got " + shape_pattern(inputs)
    elif kind == "input features":
        size = draw(other_than(inputs.shape[1]))
        inputs = np.ones((batch, size), np.float32)
        where, message = "^network: ", f"expects {p.sizes[0]} .*was given {size}"
    elif kind == "target classes":
        targets = np.ones((batch, draw(other_than(p.sizes[-1]))), np.float32)
        message = f"targets have {shape_pattern(targets)}, but the network's outputs"
    elif kind == "target rank":
        targets = draw(st.sampled_from([targets[0], targets[..., None], targets[0, 0]]))
        message = f"targets have {shape_pattern(targets)}, but the network's outputs"
    elif kind == "target count":
        count = draw(other_than(batch, 0))
        targets = np.ones((count, p.sizes[-1]), np.float32)
        message = f"targets have {shape_pattern(targets)}, but the network's outputs"
    elif kind == "params of other depth":
        params = draw(st.sampled_from([params[:-1], (*params, params[-1])]))
        message = (
            f"the network has {len(p.params)} layers, but .* {len(params)} entries"
        )
    elif kind == "params dtype":
        leaf = draw(st.sampled_from(["kernel", "bias"]))
        dtype = draw(st.sampled_from(NOT_FLOATS))
        bad = {**params[index], leaf: np.ones_like(params[index][leaf], dtype)}
        params = replaced(params, index, bad)
        error = TypeError
        message = rf"{at}\['{leaf}'\] must be floats, got {bad[leaf].dtype}"
    elif kind == "params width":
        size = draw(other_than(p.sizes[index + 1]))
        below = p.sizes[index]
        bad = {
            "kernel": np.ones((below, size), np.float32),
            "bias": np.ones(size, np.float32),
        }
        params = replaced(params, index, bad)
        message = rf"params of another network: layer {index} .*{at} holds .*{size}"
    elif kind == "bias that broadcasts":
        bad = {**params[index], "bias": np.ones((1, 1), np.float32)}
        params = replaced(params, index, bad)
        message = rf"params of another network: layer {index} .*{at} holds .*\(1, 1\)"
    elif kind == "params names":
        bad = draw(
            st.sampled_from([{"w": params[index]["kernel"]}, {}, (), None, 3.0, "w"])
        )
        params = replaced(params, index, bad)
        message = rf"params of another network: layer {index} .*{at} holds"
    else:
        params = draw(st.sampled_from([None, 3, {}, params[0]["kernel"]]))
        error = TypeError
        message = f"params must be a tuple or list, got a {type(params).__name__}"
    return (params, inputs, targets), error, where, message


BATCH_FAULTS = (
    "input dtype",
    "target dtype",
    "no inputs",
    "no targets",
    "no batch axis",
    "no example",
    "input features",
    "target classes",
    "target rank",
    "target count",
    "params of other depth",
    "params dtype",
    "params width",
    "bias that broadcasts",
    "params names",
    "no params",
)


def batch_function(name, network, method, output, **weights):
    """`function(params, inputs, targets)` of one of BATCH_FUNCTIONS."""
    if name == "infer":
        return lambda *args: pcjax.infer(
            network, method, *args, output=output, **weights
        )
    if name == "value_and_grad":
        return pcjax.value_and_grad(network, method, output=output, **weights)
    if name == "backprop.value_and_grad":
        return pcjax.backprop.value_and_grad(network, output=output)
    update = pcjax.incremental(network, method, SGD, output=output, **weights)
    return lambda params, *args: update(params, (), *args)


BATCH_FUNCTIONS = ("infer", "value_and_grad", "incremental", "backprop.value_and_grad")


@st.composite
def batches(draw, name):
    p = draw(problems())
    function = batch_function(
        name, p.network, draw(methods()), draw(st.sampled_from(OUTPUTS))
    )
    args, kind, where, message = draw(bad_batches(name, p))
    if where == "^network: ":
        where = "layer 0 does not accept an activity of shape .*"
    return Fault(lambda: function(*args), kind, where + message)


@st.composite
def bad_weights(draw, p):
    """`gamma` or `decay` of a wrong number, sign or kind, and its error."""
    name = draw(st.sampled_from(["gamma", "decay"]))
    hidden, batch = len(p.sizes) - 2, len(p.inputs)
    counts = {hidden, hidden + 1} if name == "gamma" else {hidden}
    kind = draw(st.sampled_from(["value", "one value", "number", "batch", "kind"]))
    start = rf"^[a-z_.]+: {name} must "  # of the function that was called
    if kind == "value":
        value = draw(NEGATIVE)
        return {name: value}, ValueError, start + f"be >= 0 and finite, {got(value)}"
    if kind == "one value":
        value = draw(NEGATIVE)
        entries = [1.0] * max(counts)
        entries[draw(st.integers(0, max(0, len(entries) - 1))) :] = [value]
        return {name: entries}, ValueError, start + f"be >= 0 and finite, {got(value)}"
    if kind == "kind":
        value = draw(NOT_REAL)
        entries = [value] * max(1, *counts) if draw(st.booleans()) else value
        return {name: entries}, TypeError, start + f"hold real numbers, {got(value)}"
    if kind == "number":
        count = draw(st.integers(0, 7).filter(lambda n: n not in counts))
        value = draw(st.sampled_from([[0.5] * count, np.full(count, 0.5)]))
        if draw(st.booleans()):
            weights = {name: lambda activities, errors: value}
        else:
            weights = {name: value}
        message = f"be a number or hold one weight .*got {count} weights"
        return weights, ValueError, start + message
    count = max(1, *counts)
    other = draw(other_than(batch, 1, 7))
    value = np.ones((count, other), np.float32)
    message = rf"be a number or hold one weight .*\[{batch}\].*got {count} weights"
    return {name: value}, ValueError, start + message


WEIGHTED = (
    "free_energy",
    "free_energy_per_layer",
    "local_gradients",
    "infer",
    "value_and_grad",
    "incremental",
)


@st.composite
def weights(draw, name):
    p = draw(problems())
    bad, kind, message = draw(bad_weights(p))
    if name == "local_gradients" and "decay" in bad:
        bad, message = (
            {"gamma": [-1.0]},
            r"^free_energy: gamma must be >= 0 and finite, got -1\.0",
        )
        kind = ValueError
    if name in BATCH_FUNCTIONS:
        method = draw(methods())

        def call():
            function = batch_function(name, p.network, method, pcjax.identity, **bad)
            # Weights are refused once the predictions are there; none need be made.
            return jax.eval_shape(function, p.params, p.inputs, p.targets)
    else:
        function = getattr(pcjax, name)

        def call():
            return jax.eval_shape(
                lambda *args: function(p.network, *args, **bad), p.params, p.activities
            )

    return Fault(call, kind, message)


ACTIVITY_FAULTS = ("count", "width", "examples", "rank", "dtype", "no array", "none")


@st.composite
def activities(draw, name):
    """Activities or parameters that do not fit the network."""
    p = draw(problems())
    own = name in ("prediction_errors", "local_gradients")
    start = f"^{name if own else 'free_energy'}: "
    function = getattr(pcjax, name)
    layers = len(p.params)
    kind = draw(st.sampled_from((*ACTIVITY_FAULTS, "params")))
    index = draw(st.integers(1, layers))
    error, params, values = ValueError, p.params, p.activities
    good = values[index]
    if kind == "params":
        (params, _, _), error, _, message = draw(
            bad_batches(name, p).filter(lambda x: x[0][0] is not p.params)
        )
        if isinstance(params, tuple) and len(params) != layers:
            message = f"{layers} params, got {layers + 1} and {len(params)}"
    elif kind == "count":
        values = draw(st.sampled_from([values[:-1], (*values, values[-1]), ()]))
        message = f"{layers + 1} activities .*got {len(values)} and {layers}"
    elif kind == "none":
        values = draw(st.sampled_from([None, 2, good]))
        error = TypeError
        message = f"activities must be a tuple or list, got a {type(values).__name__}"
    elif kind == "dtype":
        bad = good.astype(draw(st.sampled_from(NOT_FLOATS)))
        values = replaced(values, index, bad)
        error, message = TypeError, rf"activities\[{index}\] must be floats, got"
    elif kind == "no array":
        values = replaced(values, index, draw(st.sampled_from(NO_ARRAYS)))
        error, message = TypeError, rf"activities\[{index}\] must be an array of floats"
    else:
        if kind == "width":
            bad = np.ones((len(good), draw(other_than(good.shape[1]))), np.float32)
        elif kind == "examples":
            bad = np.ones((draw(other_than(len(good))), good.shape[1]), np.float32)
        else:
            bad = draw(st.sampled_from([good[0], good[..., None], good[0, 0]]))
        values = replaced(values, index, bad)
        if name == "local_gradients":
            start = "^free_energy: "
        message = (
            rf"layer {index - 1} predicts shape .*activities\[{index}\] has "
            + shape_pattern(bad)
        )
    return Fault(
        lambda: function(p.network, params, values), error, f"(?s){start}.*({message})"
    )


ON_ACTIVITIES = (
    "free_energy",
    "free_energy_per_layer",
    "prediction_errors",
    "local_gradients",
)


@st.composite
def feedforwards(draw):
    p = draw(problems())
    (params, inputs, targets), kind, _, message = draw(bad_batches("feedforward", p))
    hypothesis.assume(targets is p.targets or len(p.inputs[:0]) == len(inputs))
    start = "^(feedforward|network): "
    if "expects" in message:
        message = "layer 0 does not accept"
    call = draw(
        st.sampled_from(
            [
                lambda: pcjax.feedforward(p.network, params, inputs),
                lambda: p.network.apply(params, inputs),
            ]
        )
    )
    return Fault(call, kind, f"(?s){start}.*({message})")


@st.composite
def inits(draw):
    p = draw(problems())
    (_, inputs, _), kind, where, message = draw(
        bad_batches("network.init", p).filter(lambda x: x[0][1] is not p.inputs)
    )
    if where == "^network: ":
        where = "layer 0 does not accept an activity of shape .*"
    return Fault(lambda: p.network.init(KEY, inputs), kind, where + message)
