"""Public functions in every place: with NumPy arrays un-jitted, and under transforms.

Each is called with arrays of NumPy, and traced in one program under `jit`, `remat`,
`scan`, `vmap` and `shard_map`, one around the other; the results must agree. So must
those of each place alone with those of a call as it stands, which takes longer.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import pcjax
from pcjax import (
    backprop,
    evaluation,
    finite,
    measures,
    newton,
    normalised,
    proximal,
    theorem1,
    training,
)
from pcjax.inference import equilibrium
from pcjax.optimizers import first_gradient
from tests import problems
from tests.test_docs import _public
from tests.tiers import thorough

NETWORK = pcjax.mlp([3, 4, 2], jnp.tanh)
LINEAR = pcjax.mlp([3, 4, 2], activation=pcjax.networks.linear)
CASE = problems.make(NETWORK, (3,), batch=4)
SOFT = {"output": pcjax.softmax, "clamp": pcjax.soft_clamp(0.1)}
METHOD = pcjax.sequential(2, 0.1)
GRAPH = problems.make(
    pcjax.Network(
        (
            pcjax.dense(4, jnp.tanh),
            pcjax.dense(4),
            pcjax.add(pcjax.from_linen(nn.Dense(4)), pcjax.skip()),
            pcjax.from_nnx(lambda rngs: nnx.Linear(4, 2, rngs=rngs)),
        ),
        reads=((0,), (1,), (2, 1), (3,)),
    ),
    (3,),
)
IMAGES_NET = problems.make(
    pcjax.Network(
        (
            pcjax.conv(3, (1, 1), (1, 1)),
            *pcjax.convnet(2, features=(2,), kernel_sizes=(2,)).layers,
        )
    ),
    (3, 3, 2),
)
DECODER = pcjax.Network((pcjax.prior(3, learned=True), pcjax.dense(2, jnp.tanh)))
SCALING = pcjax.mupc(pcjax.networks.Place(3, 5, skips=True))
RESIDUAL = problems.make(
    pcjax.Network(
        (
            *pcjax.residual_mlp([3, 4, 4, 4], parametrisation=pcjax.mupc).layers,
            pcjax.residual(
                pcjax.networks.parametrised(pcjax.dense(4, jnp.tanh), SCALING)
            ),
            pcjax.dense(2),
        )
    ),
    (3,),
)
POOLED = problems.make(
    pcjax.Network(
        (
            pcjax.conv(3, (3, 3), (1, 1), padding=(1, 1), pool=pcjax.max_pool()),
            pcjax.conv(2, (1, 1), (1, 1), pool=pcjax.average_pool()),
        )
    ),
    (4, 4, 2),
)
CODER = problems.make(pcjax.autoencoder([6, 3, 6]), (6,))
IMAGES = np.arange(4 * 3, dtype=np.uint8).reshape(4, 3) * 20
LABELS = np.array([0, 1, 1, 0])


def energies(params, inputs, targets):
    activities = pcjax.feedforward(NETWORK, params, inputs)
    states = (inputs, *activities[:-1], targets)
    functions = (
        pcjax.free_energy,
        pcjax.free_energy_per_layer,
        pcjax.prediction_errors,
        pcjax.local_gradients,
    )
    return [function(NETWORK, params, states) for function in functions]


def inference(*arrays):
    start = [jnp.zeros((4, 4))]
    return (
        pcjax.infer(NETWORK, METHOD, *arrays, trace=lambda s: s.errors, **SOFT),
        pcjax.infer(NETWORK, pcjax.simultaneous(2, 0.1), *arrays, hidden=start),
        pcjax.infer(NETWORK, pcjax.error_based(2, optimizer=optax.adam(0.1)), *arrays),
    )


def equilibria(*arrays):
    return (
        equilibrium.infer_to_equilibrium(
            NETWORK, METHOD._replace(num_steps=5), *arrays, tolerance=1e-2
        ),
        equilibrium.linear_equilibrium(LINEAR, *arrays, clamp_gamma=0.1),
    )


def gradients(*arrays):
    learn = pcjax.value_and_grad(
        NETWORK, METHOD, learning_clamp=pcjax.full_clamp, **SOFT
    )
    return (
        learn(*arrays),
        backprop.value_and_grad(NETWORK)(*arrays),
        normalised.normalise(NETWORK, learn)(*arrays)[1],
    )


def layers_of_all_kinds(_, inputs, targets):
    images = jnp.tile(inputs[:, :, None, None], (1, 1, 3, 2))
    flat = jnp.concatenate([inputs, inputs], 1)
    return (
        pcjax.value_and_grad(GRAPH.network, METHOD)(GRAPH.params, inputs, targets),
        pcjax.feedforward(*IMAGES_NET[:2], images),
        pcjax.feedforward(*CODER[:2], flat),
    )


def steps(params, inputs, targets):
    """Training iterations of optimizers with states of all kinds."""
    tx = finite.guard(pcjax.mq(1e-2, start=first_gradient))
    update = training.make_update(pcjax.value_and_grad(NETWORK, METHOD), tx)
    found = update(params, tx.init(params), inputs, targets)
    tx = optax.chain(pcjax.scale_by_mq(1e-2), optax.scale(-1.0))
    update = pcjax.incremental(NETWORK, METHOD, tx)
    return found, update(params, tx.init(params), inputs, targets)


def epochs(params, inputs, targets):
    data = training.Data(IMAGES, LABELS)
    prepare = training.classification(2)
    tx = pcjax.mq(1e-2)
    update = training.make_update(backprop.value_and_grad(NETWORK), tx)
    state = training.init_state(NETWORK, tx, jax.random.key(0), inputs)
    state = state._replace(params=params, opt_state=tx.init(params))
    state, metrics = training.make_epoch(update, prepare, 2)(state, data)
    measure = evaluation.classification_measures(pcjax.softmax)
    evaluate = evaluation.make_evaluation(NETWORK, prepare, measure, batch_size=3)
    per_pixel = evaluation.reconstruction_measures(pcjax.identity)
    return (
        state._replace(key=None),
        metrics,
        training.rows(data, training.epoch_batches(jax.random.key(1), 0, 4, 2)[0]),
        training.reconstruction()(IMAGES, LABELS),
        per_pixel(NETWORK.apply(params, inputs), targets, LABELS),
        evaluate(params, data),
    )


def newton_steps(params, inputs, targets):
    loss = proximal.example_loss(NETWORK, inputs[:1], targets[:1])
    solve = partial(newton.newton_step, beta=0.1, tolerance=1e-3, max_steps=3)
    step = solve(loss, params)
    return (
        step,
        proximal.mean_over_examples(solve, NETWORK, params, inputs, targets),
        proximal.proximal_objective(loss, params, step.update, 0.1),
        proximal.compare(params, step.update),
    )


def implicit_step(params, inputs, targets):
    loss = proximal.batch_loss(NETWORK, inputs, targets)
    return proximal.proximal_step(loss, params, 0.1, tolerance=1e-3, max_steps=3)


def theorem(params, inputs, targets):
    size = normalised.normalised_step_size
    states = (inputs, *pcjax.feedforward(NETWORK, params, inputs)[:-1], targets)
    errors = pcjax.prediction_errors(NETWORK, params, states)
    found = []
    for make in (
        theorem1.theorem1_weights,
        theorem1.lemma1_weights,
        theorem1.proximal_weights,
    ):
        weights = make(NETWORK, size, 0.5)
        found += [weights.gamma(states, errors), weights.decay(states, errors)]
    update = theorem1.inference_step(NETWORK, params, states, size)
    one = [h[:1] for h in states]
    norms = normalised.squared_norms(NETWORK, states)
    scale = normalised.scale_by_squared_norms()
    gamma = normalised.normalised_weights(NETWORK)
    return (
        found,
        theorem1.limit_gap(NETWORK, params, update, one),
        pcjax.infer(NETWORK, METHOD, params, inputs, targets, **weights._asdict()),
        pcjax.local_gradients(NETWORK, params, states, gamma=gamma),
        scale.update(update, scale.init(params), squared_norms=norms),
    )


def nudges(*arrays):
    rule = partial(pcjax.value_and_grad, NETWORK, METHOD)
    return (
        pcjax.nudged(rule, -0.3)(*arrays),
        pcjax.centred(rule, 0.3, clamp=pcjax.free_nudge)(*arrays),
        pcjax.nudge(0.3)(arrays[2], arrays[2], arrays[2], first=arrays[2]),
    )


def relatives(*arrays):
    learn = pcjax.value_and_grad(NETWORK, METHOD, gamma=pcjax.decaying(0.5))
    spiking = {"gamma": pcjax.spiking(0.1), "learning_gamma": pcjax.spiking(0.1)}
    return (
        learn(*arrays)[1],
        pcjax.forward_update(NETWORK, METHOD, **spiking)(*arrays)[1],
        pcjax.z_il(NETWORK)(*arrays)[1],
        pcjax.augmented_lagrangian(NETWORK, 3, 0.1)(*arrays)[1],
    )


def without_a_rate(*arrays):
    method = pcjax.error_based(5, pcjax.barzilai_borwein())
    learn = pcjax.at_equilibrium.value_and_grad(
        NETWORK, method, tolerance=1e-2, fallback=pcjax.newton_cg(2, cg_steps=2)
    )
    found = measures.make_measures(NETWORK, learn, num_products=2)(*arrays)
    return (
        learn(*arrays)[1],
        pcjax.largest_curvature(NETWORK, method, *arrays, num_products=2),
        found.backprop,
        measures.likeness(arrays[0], arrays[0]),
    )


def generative(_, inputs, targets):
    """Of data with a missing value, by a decoder whose latent is held in part."""
    theta = DECODER.init(jax.random.key(0), pcjax.no_inputs(1))
    data = pcjax.observed(targets, np.tile([True, False], (4, 1)))
    batch = pcjax.no_inputs(4), data
    hidden = pcjax.ancestral(DECODER, theta, batch[0], key=jax.random.key(1))[:-1]
    known = {"output": pcjax.masked(pcjax.identity)}
    held = pcjax.held(METHOD, [np.tile([True, False, False], (4, 1))])
    rule = partial(pcjax.value_and_grad, DECODER, METHOD, **known)
    chain = pcjax.value_and_grad(DECODER, pcjax.langevin(3, 0.1), **known)
    params = pcjax.Precise(theta, [jnp.zeros(()), jnp.zeros(())])
    amortiser = pcjax.mlp([2, 3])
    both = pcjax.Amortised(theta, amortiser.init(jax.random.key(2), targets))
    free = pcjax.free_output(DECODER)
    return (
        pcjax.infer(DECODER, held, theta, *batch, hidden=hidden, **known).state,
        free.apply(free.init(jax.random.key(0), batch[0]), batch[0]),
        pcjax.averaged(chain, 2, warm_up=rule())(theta, *batch, key=jax.random.key(3)),
        pcjax.with_precisions(lambda gamma: rule(gamma=gamma))(params, *batch)[1],
        pcjax.amortised(rule(), DECODER, amortiser)(both, *batch)[1],
        training.generation()(IMAGES, LABELS),
    )


def more_nets(_, inputs, targets):
    """Nets of the kinds that have no place in the others, and augmented images."""
    images = jnp.tile(inputs[:, :1, None, None], (1, 4, 4, 2))
    augment = training.augmented(
        training.classification(2),
        training.random_flip,
        training.padded_crop(1),
        training.random_crop(3, 3),
    )
    pixels = np.arange(4 * 4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 4, 3)
    both = pcjax.bidirectional([3, 4, 2])
    return (
        pcjax.feedforward(*RESIDUAL[:2], inputs),
        pcjax.feedforward(*POOLED[:2], images),
        both.apply(both.init(jax.random.key(0), inputs), inputs),
        augment(pixels, LABELS, key=training.batch_keys(jax.random.key(0), 0, 1)[0]),
    )


CALLS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        energies,
        inference,
        equilibria,
        gradients,
        layers_of_all_kinds,
        steps,
        epochs,
        newton_steps,
        implicit_step,
        theorem,
        nudges,
        relatives,
        without_a_rate,
        generative,
        more_nets,
    )
}
# All places are traced, which is where most fail; these are compiled, too.
COMPILED = {"vmap", "shard_map"}
LONG = {"implicit_step"}  # not even these
# They look at numbers, at several inputs of their own or at devices, or make networks
# of what is called above.
ON_THE_HOST = {
    "check_separate",
    "decoder",
    "depth_mup",
    "device_data",
    "diagnose",
    "layer_names",
    "make_mesh",
    "place_batch",
    "place_data",
    "place_state",
    "raise_if_refused",
    "replicated",
    "split_batches",
    "split_features",
    "standard",
    "state_shardings",
    "vgg",
}


def test_every_public_function_is_called_here():
    text = inspect.getsource(inspect.getmodule(energies))
    called = text[text.index("\nNETWORK = ") : text.index("\nON_THE_HOST = ")]
    names = {
        name.rpartition(".")[2]
        for name, value in _public().items()
        if inspect.isfunction(value)
    }
    missing = {
        name
        for name in names - ON_THE_HOST
        if not re.search(rf"\b{name}\b(?!:)", called)
    }
    assert not missing, "call them in one of the functions above"


def on_a_mesh(call, function):
    """`function`, which is `call` in some place, on a mesh of one device."""
    return problems.shard_map(
        function,
        mesh=jax.sharding.Mesh(np.array(jax.devices()[:1]), ("seeds",)),
        in_specs=P("seeds"),
        out_specs=P("seeds"),
        check_vma=call is not implicit_step,  # optax's line search fails it
    )


def places(call, arrays) -> Iterator[tuple[str, Any]]:
    """The results of `call` in every place, a leading axis of 1 taken off."""
    stacked = jax.tree.map(lambda x: x[None], arrays)
    yield "jit", call(*arrays)
    yield "remat", jax.checkpoint(call)(*arrays)

    def on_device(*stacked):
        found = call(*jax.tree.map(lambda x: x[0], stacked))
        return jax.tree.map(lambda x: jnp.asarray(x)[None], found)

    for name, found in (
        ("vmap", jax.vmap(call)(*stacked)),
        ("scan", jax.lax.scan(lambda _, xs: (None, call(*xs)), None, stacked)[1]),
        ("shard_map", on_a_mesh(call, on_device)(*stacked)),
    ):
        yield name, jax.tree.map(lambda x: x[0], found)


def all_in_one(call, arrays):
    """The results of `call` in all places at once, two leading axes of 1 taken off."""
    stacked = jax.tree.map(lambda x: x[None, None], arrays)
    mapped = jax.vmap(jax.checkpoint(call))

    def scanned(*stacked):
        return jax.lax.scan(lambda _, xs: (None, mapped(*xs)), None, stacked)[1]

    found = on_a_mesh(call, scanned)(*stacked)
    return jax.tree.map(lambda x: x[0, 0], found)


def assert_agree(name, place, found, plain):
    assert jax.tree.structure(found) == jax.tree.structure(plain), place
    for have, want in zip(*map(jax.tree.leaves, (found, plain)), strict=True):
        np.testing.assert_allclose(
            have, want, rtol=2e-4, atol=1e-5, err_msg=f"{name} under {place}"
        )


@pytest.mark.parametrize("name", CALLS)
def test_public_functions_agree_in_all_places_at_once(name):
    call, arrays = CALLS[name], tuple(CASE[1:])
    numpy = jax.tree.map(np.asarray, arrays)

    @jax.jit
    def both(*arrays):
        return all_in_one(call, arrays), call(*numpy)

    assert_agree(name, "all of them", *both(*arrays))


QUICK = ("gradients",)


@pytest.mark.parametrize(
    "name", [*QUICK, *thorough(n for n in CALLS if n not in QUICK)]
)
def test_public_functions_agree_in_every_place(name):
    call, arrays = CALLS[name], tuple(CASE[1:])
    plain = call(*jax.tree.map(np.asarray, arrays))

    def everywhere(*arrays):
        found = dict(places(call, arrays))
        return {key: found[key] for key in COMPILED if name not in LONG}

    for place, found in jax.jit(everywhere)(*arrays).items():
        assert_agree(name, place, found, plain)
