"""Priors, masks, held activities and both directions against closed forms."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from pcjax import training
from pcjax.inference import infer_to_equilibrium, linear_equilibrium
from pcjax.networks import linear
from tests import gaussian, problems
from tests.gaussian import GAMMA, MASK, NETWORK, PARAMS, TARGETS
from tests.tiers import thorough

EMPTY = pcjax.no_inputs(len(TARGETS))
METHOD = pcjax.sequential(3, 0.1)


def inputs64():
    return pcjax.no_inputs(len(TARGETS), jnp.float64)


@pytest.mark.parametrize("seen", [np.ones_like(MASK), MASK], ids=["all", "mask"])
def test_latents_rest_at_the_posterior_mean(x64, seen):
    params, targets = gaussian.arrays()
    rest = infer_to_equilibrium(
        NETWORK,
        pcjax.sequential(5000, 0.1),
        params,
        inputs64(),
        pcjax.observed(targets, jnp.asarray(seen)),
        output=pcjax.masked(),
        gamma=GAMMA,
        tolerance=1e-11,
    )
    assert rest.converged.all()
    found = np.concatenate(rest.state.activities[1:-1], axis=1)
    expected = [
        gaussian.condition(x, own)[0][:5] for x, own in zip(TARGETS, seen, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)
    # The completion is the mean of what is not seen; the clamped activity is not.
    completed = np.asarray(rest.state.predictions[-1])
    weights = PARAMS[-1]
    mean = found[:, 2:] @ weights["kernel"] + weights["bias"]
    np.testing.assert_allclose(completed, mean, atol=1e-12)
    np.testing.assert_array_equal(np.isnan(rest.state.activities[-1]), ~seen)


def test_exact_equilibrium_is_the_posterior_mean_too(x64):
    params, targets = gaussian.arrays()
    exact = jax.jit(partial(linear_equilibrium, NETWORK, gamma=GAMMA))
    rest = exact(params, inputs64(), targets)
    found = np.concatenate(rest.state.activities[1:-1], axis=1)
    expected = [gaussian.condition(x, np.ones(5, bool))[0][:5] for x in TARGETS]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_free_data_rest_at_their_conditional_mean(x64):
    """All of `h_L` is a hidden activity, of which the observed elements are held."""
    params, targets = gaussian.arrays()
    free, params = pcjax.free_output(NETWORK), (*params, {})
    start = np.where(MASK, targets, 7.0)  # whatever the missing ones start from
    method = pcjax.held(pcjax.sequential(5000, 0.1), (False, False, jnp.asarray(MASK)))

    @jax.jit
    def settle(params, inputs):
        hidden = pcjax.ancestral(free, params, inputs, given={3: start})[:-1]
        return infer_to_equilibrium(
            free,
            method,
            params,
            inputs,
            inputs,
            gamma=GAMMA,
            tolerance=1e-11,
            hidden=hidden,
        )

    rest = settle(params, inputs64())
    assert rest.converged.all()
    found = np.concatenate(rest.state.activities[1:-1], axis=1)
    for own, x, seen in zip(found, TARGETS, MASK, strict=True):
        mean, _ = gaussian.condition(x, seen)
        np.testing.assert_allclose(own, mean, rtol=0, atol=1e-8)


def test_held_latents_stay_under_any_method(x64):
    params, targets = gaussian.arrays()
    rng = np.random.default_rng(3)
    hidden = tuple(rng.normal(size=(4, n)) for n in (2, 3))
    mask = jnp.asarray(rng.random((4, 3)) < 0.5)
    methods = (METHOD, pcjax.simultaneous(3, 0.1), pcjax.langevin(3, 0.1))

    @jax.jit
    def moved_by_each(*batch):
        held = [pcjax.held(method, (True, mask)) for method in methods]
        return [pcjax.infer(NETWORK, m, *batch, hidden=hidden).state for m in held]

    for state in moved_by_each(params, inputs64(), targets):
        np.testing.assert_allclose(state.activities[1], hidden[0], atol=1e-14)
        moved = np.abs(state.activities[2] - hidden[1]) > 1e-12
        np.testing.assert_array_equal(moved, ~mask)


def test_sequential_moves_below_see_that_an_element_is_held(x64):
    """A held layer above is no layer that moved: one step by autodiff."""
    params, targets = gaussian.arrays()
    hidden = tuple(np.ones((4, n)) for n in (2, 3))
    method = pcjax.held(pcjax.sequential(1, 0.1), (False, True))

    @jax.jit
    def both(params, inputs, targets):
        def energy(h):
            activities = (inputs, h, hidden[1], targets)
            return pcjax.free_energy(NETWORK, params, activities).sum()

        state = pcjax.infer(
            NETWORK, method, params, inputs, targets, hidden=hidden
        ).state
        return state.activities[1], hidden[0] - 0.1 * jax.grad(energy)(hidden[0])

    found, expected = both(params, inputs64(), targets)
    np.testing.assert_allclose(found, expected, atol=1e-14)


def test_two_priors_of_a_graph(x64):
    """`x = z A + u B + b + noise`, the two latents independent."""
    layers = (
        pcjax.prior(2, [1.0, -1.0]),
        pcjax.prior(1, learned=True),
        pcjax.add(pcjax.dense(4), pcjax.dense(4)),
    )
    network = pcjax.Network(layers, reads=((0,), (0,), (1, 2)))
    case = problems.make(network, (0,), batch=3, dtype=jnp.float64)
    (_, mu, (a, b)), gamma = jax.tree.map(np.asarray, case.params), (2.0, 0.5, 4.0)
    loadings = np.concatenate([a["kernel"], b["kernel"]])
    mean = np.array([1.0, -1.0, float(mu["mean"][0])])
    spread = np.diag([1 / 2, 1 / 2, 1 / 0.5])
    whole = loadings.T @ spread @ loadings + np.eye(4) / 4
    rest = infer_to_equilibrium(
        network,
        pcjax.sequential(5000, 0.05),
        *case[1:],
        gamma=gamma,
        tolerance=1e-12,
    )
    known = np.asarray(case.targets) - mean @ loadings - a["bias"] - b["bias"]
    expected = mean + known @ np.linalg.solve(whole, loadings.T @ spread)
    found = np.concatenate(rest.state.activities[1:3], axis=1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


def test_recall_of_a_linear_memory_is_the_projection(x64):
    """Without a prior, what is recalled is the memory nearest to what is seen."""
    network = pcjax.decoder([2, 6], linear)
    _, theta = problems.make(network, (0,), dtype=jnp.float64).params
    params = ({}, theta | {"bias": jnp.zeros(6)})
    basis = np.asarray(theta["kernel"])  # rows span the memories
    rng = np.random.default_rng(0)
    cues = rng.normal(size=(4, 6))
    seen = rng.permuted(np.tile([True, True, True, True, False, False], (4, 1)), axis=1)
    seen[0] = True

    rest = infer_to_equilibrium(
        network,
        pcjax.sequential(20_000, 0.2),
        params,
        pcjax.no_inputs(4, jnp.float64),
        pcjax.observed(jnp.asarray(cues), jnp.asarray(seen)),
        output=pcjax.masked(),
        gamma=(0.0, 1.0),
        tolerance=1e-12,
    )
    recalled = rest.state.predictions[-1]
    for own, cue, known in zip(recalled, cues, seen, strict=True):
        code = np.linalg.lstsq(basis.T[known], cue[known], rcond=None)[0]
        np.testing.assert_allclose(own, code @ basis, rtol=0, atol=1e-8)
    projection = np.linalg.pinv(basis) @ basis
    np.testing.assert_allclose(recalled[0], cues[0] @ projection, atol=1e-8)


def test_sizes_of_numpy_are_sizes():
    network = pcjax.decoder(np.array([2, 5]))
    params = jax.eval_shape(network.init, jax.random.key(0), EMPTY)
    assert jax.eval_shape(network.apply, params, EMPTY).shape == (4, 5)


OUTPUTS = {"identity": pcjax.identity, "sigmoid": pcjax.sigmoid}


@pytest.mark.parametrize("name", ["sigmoid", *thorough(["identity"])])
def test_missing_columns_are_as_if_they_were_not_there(x64, name):
    """A mask that is the same for all examples is a network of fewer outputs."""
    params, targets = gaussian.arrays()
    targets = 1 / (1 + np.exp(-TARGETS))
    seen = np.array([True, False, True, True, False])
    fewer = jax.tree.map(lambda x: x[..., seen], PARAMS[-1])
    less = pcjax.decoder([2, 3, 3], linear, learned_prior=True)
    options = {"clamp": pcjax.soft_clamp(0.1), "gamma": GAMMA}
    whole = pcjax.value_and_grad(
        NETWORK, METHOD, output=pcjax.masked(OUTPUTS[name]), **options
    )
    part = pcjax.value_and_grad(less, METHOD, output=OUTPUTS[name], **options)
    known = np.where(seen, targets, np.nan)
    (energy, info), grads = jax.jit(whole)(params, inputs64(), known)
    (expected, wanted), slopes = jax.jit(part)(
        (*params[:-1], fewer), inputs64(), targets[:, seen]
    )
    grads = jax.tree.map(np.asarray, grads)
    last = jax.tree.map(lambda x: x[..., seen], grads[-1])
    problems.assert_trees_close((*grads[:-1], last), slopes)
    assert all(np.all(x[..., ~seen] == 0) for x in jax.tree.leaves(grads[-1]))
    problems.assert_trees_close(
        (energy, info.loss, info.energy, info.state.activities[1:-1]),
        (expected, wanted.loss, wanted.energy, wanted.state.activities[1:-1]),
    )


RULES = {
    "simultaneous": lambda *net, **options: pcjax.value_and_grad(
        net[0], pcjax.simultaneous(3, 0.05), **options
    ),
    "errors": lambda *net, **options: pcjax.value_and_grad(
        net[0], pcjax.error_based(4, pcjax.barzilai_borwein()), **options
    ),
    "adam": lambda *net, **options: pcjax.value_and_grad(
        net[0], pcjax.sequential(3, optimizer=optax.adam(0.1)), **options
    ),
    "at rest": lambda *net, **options: pcjax.at_equilibrium.value_and_grad(
        net[0], pcjax.sequential(300, 0.05), **options
    ),
    "backprop": lambda *net, output, **_: pcjax.backprop.value_and_grad(
        net[0], output=output
    ),
}


@pytest.mark.parametrize(
    "name", [*(name for name in RULES if name != "adam"), *thorough(["adam"])]
)
def test_every_rule_learns_as_if_missing_columns_were_not_there(x64, name):
    params, targets = gaussian.arrays()
    seen = np.array([True, False, True, True, False])
    fewer = jax.tree.map(lambda x: x[..., seen], PARAMS[-1])
    less = pcjax.decoder([2, 3, 3], linear, learned_prior=True)
    whole = RULES[name](NETWORK, output=pcjax.masked(), gamma=GAMMA)
    part = RULES[name](less, output=pcjax.identity, gamma=GAMMA)
    known = pcjax.observed(targets, np.broadcast_to(seen, targets.shape))
    _, grads = jax.jit(whole)(params, inputs64(), known)
    _, slopes = jax.jit(part)((*params[:-1], fewer), inputs64(), TARGETS[:, seen])
    grads = jax.tree.map(np.asarray, grads)
    last = jax.tree.map(lambda x: x[..., seen], grads[-1])
    problems.assert_trees_close((*grads[:-1], last), slopes)


def test_a_missing_value_is_no_fault_of_an_iteration():
    params, tx = jax.tree.map(np.float32, PARAMS), optax.sgd(0.1)
    known = pcjax.observed(np.float32(TARGETS), MASK)

    def fault(targets, output, theta=params):
        return pcjax.diagnosis.diagnose(
            NETWORK,
            METHOD,
            theta,
            EMPTY,
            targets,
            tx=tx,
            opt_state=tx.init(theta),
            output=output,
        )

    assert fault(known, pcjax.masked()) is None
    assert fault(known, pcjax.identity).quantity == "target"
    infinite = np.array(known)
    infinite[0, np.flatnonzero(MASK[0])[0]] = np.inf
    assert fault(infinite, pcjax.masked()).quantity == "target"
    broken = jax.tree.map(lambda x: x * jnp.inf, params)
    assert fault(known, pcjax.masked(), broken).quantity == "parameter"


def test_classes_are_missing_together(x64):
    case = problems.dense_case((3, 5, 4), dtype=jnp.float64)
    seen = np.array([True, False, True, True, True])
    known = np.where(seen[:, None], case.targets, np.nan)
    output = pcjax.masked(pcjax.softmax, axes=1)
    rule = partial(pcjax.value_and_grad, case.network, METHOD)
    (_, info), grads = jax.jit(rule(output=output))(case.params, case.inputs, known)
    (_, wanted), slopes = jax.jit(rule(output=pcjax.softmax))(
        case.params, *(np.asarray(x)[seen] for x in case[2:])
    )
    info, slopes = jax.tree.map(np.asarray, (info, slopes))
    problems.assert_trees_close(grads, jax.tree.map(lambda x: x * 4 / 5, slopes))
    problems.assert_trees_close(info.energy[seen], wanted.energy)
    assert info.loss[1] == info.energy[1] == 0


def test_what_is_under_a_mask_changes_no_bit():
    network, optimizer = pcjax.decoder([2, 3, 5]), optax.sgd(0.1)
    params = jax.tree.map(np.float32, ({}, *PARAMS[1:]))
    output = pcjax.masked(pcjax.sigmoid)
    options = {"output": output, "clamp": pcjax.soft_clamp(0.01), "gamma": (1.0, 2.0)}
    seen = jnp.asarray(MASK)

    @jax.jit
    def everything(targets):
        data = params, EMPTY, pcjax.observed(targets, seen)
        chain = pcjax.langevin(3, 0.1)
        update = pcjax.incremental(network, METHOD, optimizer, **options)
        return (
            pcjax.value_and_grad(network, METHOD, **options)(*data),
            pcjax.value_and_grad(network, chain, **options)(*data),
            pcjax.backprop.value_and_grad(network, output=output)(*data),
            update(params, optimizer.init(params), *data[1:]),
        )

    targets = np.float32(1 / (1 + np.exp(-TARGETS)))
    expected = everything(targets)
    for other in map(np.float32, (np.nan, np.inf, -3e38)):
        found = everything(np.where(MASK, targets, other))
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    for (energy, info), grads in expected[:3]:
        finite = jax.tree.map(np.isfinite, (energy, info.loss, info.energy, grads))
        assert all(np.all(x) for x in jax.tree.leaves(finite))
    # What is seen does change them.
    (energy, _), _ = everything(np.where(MASK, 1 - targets, np.float32(0)))[0]
    assert energy != expected[0][0][0]


def test_ancestral_samples_are_of_the_joint_distribution(x64):
    params, _ = gaussian.arrays()
    count = 20_000
    inputs = pcjax.no_inputs(count, jnp.float64)
    free, params = pcjax.free_output(NETWORK), (*params, {})
    draw = jax.jit(partial(pcjax.ancestral, free, gamma=GAMMA))
    drawn = draw(params, inputs, key=jax.random.key(0))
    samples = np.concatenate(drawn[:-1], axis=1)
    gaussian.check_samples(samples, *gaussian.joint())


def test_ancestral_without_a_key_is_the_feedforward_pass(x64):
    params, _ = gaussian.arrays()
    inputs = inputs64()
    expected = pcjax.feedforward(NETWORK, params, inputs)
    found = pcjax.ancestral(NETWORK, params, inputs)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    given = jnp.ones((4, 3))
    *_, h, logits = pcjax.ancestral(NETWORK, params, inputs, given={2: given})
    np.testing.assert_array_equal(h, given)
    np.testing.assert_array_equal(logits, NETWORK.layers[2].apply(params[2], given))


@cache
def _both_ways():
    """The compiled gradients of `both_ways`, `alpha_b` first."""
    network = pcjax.bidirectional([3, 4, 5, 2], jnp.tanh)
    method = pcjax.held(pcjax.sequential(5, 0.1), (True, False, False, True))

    def grads(alpha_b, x, y, params, inputs):
        *hidden, _ = pcjax.ancestral(network, params, inputs, given={1: x, 4: y})
        grad_fn = pcjax.value_and_grad(
            network, method, gamma=(0.0, 2.0, 2.0, 2.0, alpha_b)
        )
        return grad_fn(params, inputs, jnp.zeros((5, 12)), hidden=hidden)

    return network, jax.jit(grads)


def both_ways(alpha_b):
    """A bidirectional network with both ends held, and a start fed forward."""
    network, grads = _both_ways()
    case = problems.make(network, (0,), dtype=jnp.float64)
    x, y = (np.random.default_rng(n).normal(size=(5, n)) for n in (3, 2))
    return case.params, x, y, grads(alpha_b, x, y, *case[1:3])


def test_bidirectional_without_backward_errors_is_the_discriminative_net(x64):
    params, x, y, ((energy, info), grads) = both_ways(0.0)
    plain = pcjax.value_and_grad(
        pcjax.mlp([3, 4, 5, 2], jnp.tanh), pcjax.sequential(5, 0.1), gamma=(2, 2, 2)
    )
    (expected, wanted), slopes = jax.jit(plain)(params[1:-1], x, y)
    problems.assert_trees_close((energy, grads[1:-1]), (expected, slopes))
    problems.assert_trees_close(info.state.activities[1:4], wanted.state.activities[:3])
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(grads[-1]))


def test_bidirectional_energy_is_that_of_both_directions(x64):
    params, _, _, ((_, info), grads) = both_ways(0.7)
    x = info.state.activities[1:-1]
    ends = (linear, jnp.tanh, jnp.tanh, linear)

    def energy(params, x):
        values = [f(h) for f, h in zip(ends, x, strict=True)]
        total = 0.0
        for i, (up, down) in enumerate(zip(params[1:-1], params[-1], strict=True)):
            above = values[i] @ up["kernel"] + up["bias"][None]
            below = values[i + 1] @ down["kernel"] + down["bias"][None]
            total += 2.0 / 2 * jnp.sum((x[i + 1] - above) ** 2, axis=1)
            total += 0.7 / 2 * jnp.sum((x[i] - below) ** 2, axis=1)
        return total

    def mean(params):
        energies = energy(params, x)
        return energies.mean(), energies

    (_, energies), slopes = jax.jit(jax.value_and_grad(mean, has_aux=True))(params)
    np.testing.assert_allclose(info.energy, energies, rtol=1e-12)
    assert np.all(np.less(info.energy, info.initial_energy))
    problems.assert_trees_close(grads, slopes)


def test_epochs_train_a_decoder_with_missing_pixels():
    """Each image with a mask of its own, by the number that stands as its label."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 3, 2), np.uint8)
    data = training.device_data(images, np.arange(24), 24)
    masks = jnp.asarray(rng.random((24, 6)) < 0.5)
    flat = training.generation()

    def prepare(images, labels):
        inputs, targets = flat(images, labels)
        return inputs, pcjax.observed(targets, masks[labels])

    network, tx = pcjax.decoder([3, 6]), optax.sgd(0.1)
    grad_fn = pcjax.value_and_grad(network, METHOD, output=pcjax.masked())
    update = training.make_update(grad_fn, tx)
    params = problems.make(network, (0,)).params
    first = training.TrainState(
        params, tx.init(params), jax.random.key(0), jnp.int32(0)
    )
    epoch = training.make_epoch(update, prepare, 6)
    state, metrics = jax.jit(epoch)(first, data)
    batches = np.asarray(training.epoch_batches(first.key, 0, 24, 6))
    opt_state = first.opt_state
    step = jax.jit(update)
    inputs = pcjax.no_inputs(6)
    for batch, energy in zip(batches, np.asarray(metrics.energy), strict=True):
        targets = images[batch].reshape(6, 6) / np.float32(255)
        known = np.where(masks[batch], targets, np.float32(np.nan))
        params, opt_state, (found, _) = step(params, opt_state, inputs, known)
        np.testing.assert_allclose(found, energy, rtol=1e-5)
    problems.assert_trees_close(state.params, params, rtol=1e-4, atol=1e-6)


BAD = {
    "mask_shape": (
        lambda: pcjax.observed(jnp.ones((2, 3)), jnp.ones((2, 1), bool)),
        ValueError,
        r"observed: mask must have the shape \(2, 3\) of what it masks, got \(2, 1\)",
    ),
    "mask_dtype": (
        lambda: pcjax.observed(jnp.ones((2, 3)), jnp.ones((2, 3))),
        TypeError,
        "observed: mask must be an array of bools, got float32",
    ),
    "integer_targets": (
        lambda: pcjax.observed(jnp.ones((2, 3), int), jnp.ones((2, 3), bool)),
        TypeError,
        "observed: targets must be floats, got int32",
    ),
    "softmax_by_element": (
        lambda: pcjax.masked(pcjax.softmax),
        ValueError,
        "classes of softmax are one observation, expected axes=1; got axes=0",
    ),
    "axes": (
        lambda: pcjax.masked(axes=-1),
        ValueError,
        "masked: axes must be an int >= 0, got -1",
    ),
    "prior_above": (
        lambda: pcjax.Network((pcjax.dense(3), pcjax.prior(2))),
        ValueError,
        r"layer 1 is a prior, which predicts from nothing: expected it to be the first "
        r"layer.*got \(1,\)",
    ),
    "prior_shape": (
        lambda: pcjax.prior((2, 0)),
        ValueError,
        r"prior: shape must hold ints >= 1, got \(2, 0\)",
    ),
    "prior_mean": (
        lambda: pcjax.prior(3, np.zeros(2)),
        ValueError,
        r"prior: mean must be a number or an array of shape \(3,\), got one of shape "
        r"\(2,\)",
    ),
    "no_batch": (
        lambda: pcjax.no_inputs(0),
        ValueError,
        "no_inputs: batch_size must be an int >= 1, got 0",
    ),
    "decoder_sizes": (
        lambda: pcjax.decoder([3]),
        ValueError,
        r"decoder: expected two or more sizes >= 1, got \[3\]",
    ),
    "bidirectional_sizes": (
        lambda: pcjax.bidirectional([3]),
        ValueError,
        r"bidirectional: expected two or more sizes >= 1, got \[3\]",
    ),
    "held_errors": (
        lambda: pcjax.held(pcjax.error_based(1, 0.1), (True,)),
        ValueError,
        "held: the method moves errors, so that no activity can be held",
    ),
    "held_dtype": (
        lambda: pcjax.held(METHOD, (jnp.ones(3),)),
        TypeError,
        r"held: masks\[0\] must be an array of bools, got float32",
    ),
    "held_shape": (
        lambda: _infer(pcjax.held(METHOD, (False, jnp.ones((4, 2), bool)))),
        ValueError,
        r"held: masks\[1\] must have the shape \(4, 3\) of what it masks, got "
        r"\(4, 2\)",
    ),
    "held_masks": (
        lambda: pcjax.held(METHOD, True),
        TypeError,
        "held: masks must be a tuple or list, got a bool",
    ),
    "masked_examples": (
        lambda: _infer(METHOD, output=pcjax.masked(axes=2)),
        ValueError,
        r"masked: axes must be at most 1 for targets of shape \(4, 5\), got 2",
    ),
    "residual_prior": (
        lambda: pcjax.residual(pcjax.prior(3)),
        ValueError,
        "residual: expected a layer that reads, got a prior",
    ),
    "sum_of_priors": (
        lambda: pcjax.add(pcjax.dense(3), pcjax.prior(3)),
        ValueError,
        "add: layer 1 is a prior, which reads nothing",
    ),
    "classes_of_other_weights": (
        lambda: _infer(
            METHOD, output=pcjax.softmax, gamma=(1.0, 1.0, jnp.ones((1, 5)))
        ),
        ValueError,
        r"infer: gamma of the output holds a weight per feature, of shape \(1, 5\)",
    ),
    "held_count": (
        lambda: _infer(pcjax.held(METHOD, (False, False, False))),
        ValueError,
        "held: expected a mask for each of the 2 hidden activities, got 3",
    ),
    "given_index": (
        lambda: _ancestral(given={3: jnp.ones((4, 5))}),
        ValueError,
        "ancestral: given holds an activity 3, expected hidden ones, 1 to 2",
    ),
    "given_shape": (
        lambda: _ancestral(given={1: jnp.ones((4, 5))}),
        ValueError,
        r"given\[1\] must have the shape \(4, 2\) of its prediction, got \(4, 5\)",
    ),
    "no_precision": (
        lambda: _ancestral(key=jax.random.key(0), gamma=(0.0, 1.0)),
        ValueError,
        "ancestral: the gamma of h_1 is 0, so that it cannot be drawn",
    ),
    "precision_function": (
        lambda: _ancestral(gamma=lambda h, e: 1.0),
        ValueError,
        "ancestral: gamma must be numbers, not a function",
    ),
    "ancestral_temperature": (
        lambda: _ancestral(temperature=-1.0),
        ValueError,
        "ancestral: temperature must be >= 0 and finite, got -1.0",
    ),
    "weights_of_other_features": (
        lambda: _infer(METHOD, gamma=(jnp.ones((1, 3)), 1.0)),
        ValueError,
        r"infer: gamma must be a number or hold one weight .* shapes \[\(1, 3\), \(\)",
    ),
}


def _infer(method, **options):
    params = jax.tree.map(np.float32, PARAMS)
    return pcjax.infer(NETWORK, method, params, EMPTY, jnp.ones((4, 5)), **options)


def _ancestral(**options):
    params = jax.tree.map(np.float32, PARAMS)
    return pcjax.ancestral(NETWORK, params, EMPTY, **options)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    call, error, text = BAD[name]
    with pytest.raises(error, match=text):
        call()


def test_what_moves_everything_refuses_a_method_that_holds():
    """Newton steps and curvatures are of all coordinates; kinks cannot be told."""
    network, *batch = problems.dense_case((3, 4, 2), batch=2)
    seen = jnp.asarray(np.tile(np.arange(4) < 2, (2, 1)))
    method = pcjax.held(pcjax.simultaneous(20, pcjax.barzilai_borwein()), [seen])
    with pytest.raises(ValueError, match=r"fallback: expected .*pcjax\.held"):
        pcjax.infer_to_equilibrium(network, method, *batch, fallback=pcjax.newton_cg())
    with pytest.raises(ValueError, match=r"largest_curvature: expected .*pcjax\.held"):
        pcjax.largest_curvature(network, method, *batch)
    settle = partial(pcjax.infer_to_equilibrium, network, method, tolerance=1e-4)
    rest = jax.jit(settle)(*batch)
    assert rest.kinks is None
    assert rest.converged.all()
    start, _ = jax.jit(partial(pcjax.feedforward, network))(*batch[:2])
    moved = np.asarray(rest.state.activities[1]) - start
    assert (moved[:, :2] == 0).all()
    assert (moved[:, 2:] != 0).all()


def test_products_of_a_decoder_have_the_dtype_that_is_asked():
    rough = pcjax.decoder([4, 6], product_dtype=jnp.bfloat16)
    params = problems.make(rough, (0,)).params
    latents = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    found = np.asarray(rough.layers[1].apply(params[1], latents))
    same = pcjax.dense(6, linear, product_dtype=jnp.bfloat16)
    np.testing.assert_array_equal(found, same.apply(params[1], latents))
    assert np.abs(found - pcjax.dense(6, linear).apply(params[1], latents)).max() > 1e-4


def test_images_that_are_free_have_no_output():
    network = pcjax.free_output(
        pcjax.Network((pcjax.prior((4, 4, 2)), pcjax.conv(3, (3, 3), (1, 1))))
    )
    params = problems.make(network, (0,)).params
    method = pcjax.simultaneous(2, 0.1)

    @jax.jit
    def both(params):
        found = pcjax.infer(network, method, params, EMPTY, EMPTY)
        return network.apply(params, EMPTY), found

    logits, found = both(params)
    assert logits.shape == EMPTY.shape
    assert found.state.activities[2].shape == (len(TARGETS), 2, 2, 3)


def test_rows_of_images_are_missing_together():
    """With two axes an observation is a whole image of several in an example."""
    rng = np.random.default_rng(0)
    logits, targets = np.float32(rng.normal(size=(2, 2, 3, 4, 2)))
    known = targets.copy()
    known[0, 1, 2, 0] = np.nan  # one pixel takes its image along
    output = pcjax.masked(axes=2)
    loss, found = jax.jit(lambda *a: (output.loss(*a), output.error(*a)))(logits, known)
    half = 0.5 * np.sum((targets - logits) ** 2, axis=(2, 3))
    half[0, 1] = 0
    np.testing.assert_allclose(loss, half.sum(1), rtol=1e-6)
    error = targets - logits
    error[0, 1] = 0
    np.testing.assert_allclose(found, error, rtol=1e-6)


def test_there_is_no_input_of_the_dtype_that_is_asked():
    assert pcjax.no_inputs(2, jnp.bfloat16).dtype == jnp.bfloat16
    assert pcjax.no_inputs(2).dtype == jnp.float32
