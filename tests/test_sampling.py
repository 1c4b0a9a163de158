"""Langevin dynamics, learning from samples, precisions and amortised starts."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

import pcjax
from pcjax import training
from pcjax.inference import infer_to_equilibrium
from pcjax.networks import linear
from tests import gaussian, problems
from tests.gaussian import GAMMA, MASK, NETWORK, PARAMS, TARGETS
from tests.tiers import thorough

CHAINS = 5_000


def posterior():
    """Of the free variables (z, h, missing x) of the first example: mean, Hessian."""
    _, spread = gaussian.joint()
    free = np.concatenate([np.ones(5, bool), ~MASK[0]])
    hessian = np.linalg.inv(spread)[np.ix_(free, free)]
    return gaussian.condition(TARGETS[0], MASK[0])[0][free], hessian, free


def stationary(hessian, eps, momentum, temperature):
    """The covariance of the discretised dynamics, by its Lyapunov equation."""
    one, n = np.eye(len(hessian)), len(hessian)
    step = np.block([[one - eps * hessian, momentum * one]] * 2)
    step[n:, :n] -= one  # velocities: m d - eps K h
    noise = 2 * eps * (1 - momentum) * temperature * np.block([[one, one]] * 2)
    return scipy.linalg.solve_discrete_lyapunov(step, noise)[:n, :n]


@cache
def _chains():
    """Chains with the data as a free output, compiled for all settings of them."""
    free = pcjax.free_output(NETWORK)
    inputs = pcjax.no_inputs(CHAINS, jnp.float64)
    mask = jnp.asarray(MASK[:1].repeat(CHAINS, 0))

    @jax.jit
    def run(params, targets, key, eps, options):
        data = jnp.broadcast_to(targets[:1], (CHAINS, 5))
        method = pcjax.langevin(60, eps, **options)
        hidden = pcjax.ancestral(free, params, inputs, given={3: data})[:-1]
        return pcjax.infer(
            free,
            pcjax.held(method, (False, False, mask)),
            params,
            inputs,
            inputs,
            gamma=GAMMA,
            hidden=hidden,
            key=key,
        ).state

    return run


def chains(key, eps, **options):
    """The last states of chains, [CHAINS, 7]."""
    state = _chains()((*PARAMS, {}), TARGETS, key, eps, options)
    return np.concatenate(state.activities[1:-1], axis=1)


@pytest.mark.parametrize(
    ("momentum", "temperature"), [(0.6, 0.5), *thorough([(0.0, 1.0)])]
)
def test_chains_have_the_mean_and_covariance_of_the_discretised_posterior(
    x64, momentum, temperature
):
    mean, hessian, free = posterior()
    eps = 0.9 / np.linalg.eigvalsh(hessian)[-1]
    expected = stationary(hessian, eps, momentum, temperature)
    if not momentum:
        closed = np.linalg.inv(hessian - eps * hessian @ hessian / 2)
        np.testing.assert_allclose(expected, closed, atol=1e-12)
    key = jax.random.key(1)
    drawn = chains(key, eps, momentum=momentum, temperature=temperature)
    kept = TARGETS[:1, MASK[0]].repeat(CHAINS, 0)
    np.testing.assert_allclose(drawn[:, ~free], kept, atol=1e-14)
    gaussian.check_samples(drawn[:, free], mean, expected)
    # The test can tell it from the posterior of steps that go to zero.
    exact = temperature * np.linalg.inv(hessian)
    assert np.abs(gaussian.deviations(drawn[:, free], mean, exact)).max() > 6


def latent(state):
    return state.activities[1]


def small(**options):
    """A few chains without data, float32, with every state."""
    network = pcjax.decoder([2, 3])
    inputs = pcjax.no_inputs(4)
    params = problems.make(network, (0,)).params
    missing = jnp.full((4, 3), jnp.nan)

    @jax.jit
    def run(key=None, hidden=None):
        method = pcjax.langevin(4, **({"step_size": 0.1} | options))
        return pcjax.infer(
            network,
            method,
            params,
            inputs,
            missing,
            output=pcjax.masked(),
            trace=latent,
            key=key,
            hidden=hidden,
        ).trace

    return run


def noise_of(kept):
    """`sqrt(2 eps) xi` of chains whose only energy is that of the prior."""
    return np.diff(kept, axis=0) + 0.1 * kept[:-1]


def test_every_chain_has_noise_of_its_own_and_is_kept():
    run = small()
    kept = np.asarray(run(jax.random.key(0)))
    assert kept.shape == (5, 4, 2)
    steps = noise_of(kept)
    assert len(np.unique(steps.round(6))) == steps.size
    np.testing.assert_array_equal(kept, run(jax.random.key(0)))
    assert np.all(kept[1:] != run(jax.random.key(1))[1:])
    # Without a key the numbers are of the place, and of where a chain goes on.
    own = np.asarray(run())
    assert len(np.unique(own[1:])) == own[1:].size
    np.testing.assert_array_equal(own, run())
    further = np.asarray(run(hidden=(own[-1],)))
    assert np.abs(noise_of(further) - noise_of(own)).min() > 1e-4


def test_temperature_zero_is_descent_and_schedules_cool():
    run = small(temperature=0.0)
    start = np.ones((4, 2), np.float32)
    kept = run(hidden=(start,))
    np.testing.assert_allclose(kept[-1], 0.9**4 * start, rtol=1e-6)
    cooled = small(temperature=lambda t: jnp.where(t < 2, 1.0, 0.0))(jax.random.key(0))
    cooled = np.asarray(cooled)
    np.testing.assert_allclose(cooled[4], 0.9**2 * cooled[2], rtol=1e-5)
    assert not np.allclose(cooled[2], 0.9 * cooled[1])


def sigma_points(mean, spread):
    """Points [2n, n] whose mean and covariance are these exactly."""
    n = len(mean)
    root = np.sqrt(n) * np.linalg.cholesky(spread).T
    return np.concatenate([mean + root, mean - root])


@cache
def _slopes():
    """The mean local gradients of [10] latents of the first example, compiled."""

    def slopes(params, points, targets):
        activities = (
            pcjax.no_inputs(10, jnp.float64),
            points[:, :2],
            points[:, 2:],
            jnp.broadcast_to(targets[:1], (10, 5)),
        )
        return pcjax.local_gradients(NETWORK, params, activities, gamma=GAMMA)

    return jax.jit(slopes)


def expected_gradient(mean, spread):
    """The mean local gradient under a normal distribution of latents, exactly."""
    return _slopes()(PARAMS, sigma_points(mean, spread), TARGETS)


def test_the_gradient_of_log_p_is_the_mean_of_local_gradients(x64):
    """Local gradients are quadratic in the latents, so that few points are exact."""

    def log_likelihood(params):
        mu, first, second = params
        v, w = first["kernel"], second["kernel"]
        mean = (mu["mean"][None] @ v + first["bias"][None]) @ w + second["bias"][None]
        inner = v.T @ v / GAMMA[0] + jnp.eye(3) / GAMMA[1]
        spread = w.T @ inner @ w + jnp.eye(5) / GAMMA[2]
        return jax.scipy.stats.multivariate_normal.logpdf(targets[0], mean[0], spread)

    params, targets = gaussian.arrays()
    mean, spread = gaussian.condition(TARGETS[0], np.ones(5, bool))
    found = expected_gradient(mean[:5], spread[:5, :5])
    expected = jax.jit(jax.grad(lambda params: -log_likelihood(params)))(params)
    problems.assert_trees_close(found, expected, rtol=1e-9, atol=1e-9)


def test_training_with_samples_has_that_gradient(x64):
    """The mean over chains, up to what the step size changes, which is known."""
    params, _ = gaussian.arrays()
    mean, spread = gaussian.condition(TARGETS[0], np.ones(5, bool))
    hessian = np.linalg.inv(spread[:5, :5])
    eps = 0.5 / np.linalg.eigvalsh(hessian)[-1]
    expected = expected_gradient(mean[:5], stationary(hessian, eps, 0.0, 1.0))
    inputs = pcjax.no_inputs(CHAINS, jnp.float64)
    data = TARGETS[:1].repeat(CHAINS, 0)
    grad_fn = pcjax.value_and_grad(NETWORK, pcjax.langevin(60, eps), gamma=GAMMA)
    (_, info), grads = jax.jit(grad_fn)(params, inputs, data, key=jax.random.key(2))
    below, errors = (np.asarray(x[2]) for x in info.state[::2])
    local = -GAMMA[2] * below[:, :, None] * np.asarray(errors)[:, None]
    np.testing.assert_allclose(grads[2]["kernel"], local.mean(0), atol=1e-12)
    error = local.std(0) / np.sqrt(CHAINS)
    away = (grads[2]["kernel"] - expected[2]["kernel"]) / error
    assert np.abs(away).max() < 3


def test_averaged_gradients_are_those_along_one_chain(x64):
    network = pcjax.decoder([2, 5], linear, learned_prior=True)
    _, params, inputs, targets = problems.make(network, (0,), dtype=jnp.float64)
    key, gamma = jax.random.key(3), (1.5, 2.0)
    chain = pcjax.value_and_grad(network, pcjax.langevin(3, 0.05), gamma=gamma)
    descent = pcjax.value_and_grad(network, pcjax.sequential(5, 0.1), gamma=gamma)
    mcpc = pcjax.averaged(chain, 3, warm_up=descent)
    (energy, info), grads = jax.jit(mcpc)(params, inputs, targets, key=key)
    chain, descent = (jax.jit(f) for f in (chain, descent))
    hidden, rows = descent(params, inputs, targets)[0][1].state.activities[1:-1], []
    for index in range(3):
        own = jax.random.fold_in(key, index)
        rows.append(chain(params, inputs, targets, hidden=hidden, key=own))
        hidden = rows[-1][0][1].state.activities[1:-1]
    rows = jax.tree.map(np.asarray, rows)

    def mean(*leaves):
        return sum(leaves) / 3

    expected = jax.tree.map(mean, *(g for _, g in rows))
    problems.assert_trees_close(grads, expected, rtol=1e-9, atol=1e-12)
    energies = [value for (value, _), _ in rows]
    np.testing.assert_allclose(energy, np.mean(energies), rtol=1e-12)
    np.testing.assert_allclose(np.mean(info.energy), energy, rtol=1e-12)
    problems.assert_trees_close(info.state.activities[1:-1], hidden)


def test_a_learned_variance_is_the_mean_squared_error(x64):
    """Of the data of a scalar chain, `z ~ N(0, 1)`, `x = w z + N(0, 1 / Pi)`.

    At the most probable latent the error is `x / (1 + Pi w^2)`, so `1 / Pi = <e^2>` is
    a quadratic equation.
    """
    w, method = 0.5, pcjax.sequential(60, 0.4)
    network = pcjax.decoder([1, 1], linear)
    layers = ({}, {"kernel": np.full((1, 1), w), "bias": np.zeros(1)})
    rng = np.random.default_rng(0)
    targets = 2 * rng.normal(size=(16, 1))
    inputs = pcjax.no_inputs(16, jnp.float64)
    grad_fn = pcjax.with_precisions(
        lambda gamma: pcjax.value_and_grad(network, method, gamma=gamma)
    )
    tx = optax.multi_transform(
        {"moves": optax.adam(0.05), "stays": optax.set_to_zero()},
        pcjax.Precise("stays", ("stays", "moves")),
    )
    params = pcjax.Precise(layers, (jnp.zeros(()), jnp.zeros(())))
    update = training.make_update(grad_fn, tx)

    def step(carry, _):
        params, opt_state, _ = update(*carry, inputs, targets)
        return (params, opt_state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=1500)
    q = np.mean(targets**2) - 2 * w**2
    expected = (q - np.sqrt(q**2 - 4 * w**4)) / (2 * w**4)
    assert params.log_precisions[0] == 0
    np.testing.assert_allclose(np.exp(params.log_precisions[1]), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "shapes", [((), (3,), (5,)), *thorough([pytest.param(((2,), (), ()))])], ids=str
)
def test_gradients_of_precisions_are_those_of_the_normalised_energy(x64, shapes):
    """A number for a layer, and one per feature; with a mask."""
    params, targets = gaussian.arrays()
    rng = np.random.default_rng(0)
    logs = [np.asarray(rng.normal(size=shape)) for shape in shapes]
    inputs = pcjax.no_inputs(4, jnp.float64)
    method = pcjax.sequential(3, 0.05)
    known = pcjax.observed(targets, MASK)
    grad_fn = pcjax.with_precisions(
        lambda gamma: pcjax.value_and_grad(
            NETWORK, method, gamma=gamma, output=pcjax.masked()
        )
    )
    whole = pcjax.Precise(params, logs)
    (energy, info), grads = jax.jit(grad_fn)(whole, inputs, known)
    _, z, h, _ = info.state.activities

    def normal(params, logs):
        """Minus the log density of latents and of what is seen, by scipy's formula."""
        mu, first, second = params
        means = (
            mu["mean"][None],
            z @ first["kernel"] + first["bias"][None],
            h @ second["kernel"] + second["bias"][None],
        )
        total = 0.0
        for value, mean, log, seen in zip(
            (z, h, targets), means, logs, (1, 1, MASK), strict=True
        ):
            scale = jnp.exp(-log / 2)[None] if log.ndim else jnp.exp(-log / 2)
            density = jax.scipy.stats.norm.logpdf(value, mean, scale)
            total -= jnp.sum((density + 0.5 * jnp.log(2 * jnp.pi)) * seen)
        return total / 4

    total, slopes = jax.jit(jax.value_and_grad(normal, (0, 1)))(params, logs)
    np.testing.assert_allclose(energy, total, rtol=1e-12)
    np.testing.assert_allclose(energy, np.mean(info.energy), rtol=1e-12)
    problems.assert_trees_close((grads.layers, grads.log_precisions), slopes)


def test_a_channel_has_a_precision_of_its_own(x64):
    """Of images between two convolutions: `(Pi e^2 - 1) / 2` over its pixels."""
    layers = (pcjax.conv(3, (3, 3)), pcjax.conv(2, (2, 2), activation=jnp.tanh))
    network = pcjax.Network(layers)
    _, params, images, targets = problems.make(
        network, (6, 6, 1), batch=4, dtype=jnp.float64
    )
    rng = np.random.default_rng(0)
    logs = [rng.normal(size=3), rng.normal(size=2)]
    grad_fn = pcjax.with_precisions(
        lambda gamma: pcjax.value_and_grad(
            network, pcjax.sequential(3, 0.05), gamma=gamma
        )
    )
    whole = pcjax.Precise(params, logs)
    (energy, info), grads = jax.jit(grad_fn)(whole, images, targets)
    expected, total = [], 0.0
    for log, error in zip(logs, info.state.errors, strict=True):
        terms = np.exp(log) * np.asarray(error) ** 2
        expected.append(0.5 * (terms - 1).sum((1, 2)).mean(0))
        total += 0.5 * (terms - log).sum((1, 2, 3)).mean()
    problems.assert_trees_close(grads.log_precisions, expected)
    np.testing.assert_allclose(energy, total, rtol=1e-10)


def test_weights_per_feature_are_those_of_the_energy(x64):
    """One step by autodiff of the free energy, and the weights of one number each."""
    params, targets = gaussian.arrays()
    inputs = pcjax.no_inputs(4, jnp.float64)
    rng = np.random.default_rng(0)
    gamma = [rng.random(n) for n in ((1, 2), (4, 3), (1, 5))]
    hidden = tuple(rng.normal(size=(4, n)) for n in (2, 3))
    method = pcjax.simultaneous(1, 0.1)

    @jax.jit
    def everything(params, targets, hidden):
        state = pcjax.infer(
            NETWORK, method, params, inputs, targets, gamma=gamma, hidden=hidden
        ).state
        errors = pcjax.prediction_errors(NETWORK, params, (inputs, *hidden, targets))

        def energy(hidden):
            activities = (inputs, *hidden, targets)
            return pcjax.free_energy(NETWORK, params, activities, gamma=gamma).sum()

        return state, errors, *jax.value_and_grad(energy)(hidden)

    state, errors, energy, slopes = everything(params, targets, hidden)
    by_hand = [0.5 * g * np.square(e) for g, e in zip(gamma, errors, strict=True)]
    total = sum(np.sum(part) for part in by_hand)
    np.testing.assert_allclose(energy, total, rtol=1e-12)
    slopes = map(np.asarray, slopes)
    expected = [h - 0.1 * g for h, g in zip(hidden, slopes, strict=True)]
    problems.assert_trees_close(list(state.activities[1:-1]), expected)


def test_an_amortiser_that_is_the_posterior_mean_has_no_gradient(x64):
    """The latent is affine in the data, so that a linear amortiser can be exact."""
    params, targets = gaussian.arrays()
    mean, spread = gaussian.joint()
    gain = spread[:2, 5:] @ np.linalg.inv(spread[5:, 5:])
    exact = {"kernel": gain.T, "bias": mean[:2] - gain @ mean[5:]}
    inputs = pcjax.no_inputs(4, jnp.float64)
    rest = pcjax.value_and_grad(NETWORK, pcjax.sequential(2000, 0.1), gamma=GAMMA)
    grad_fn = jax.jit(pcjax.amortised(rest, NETWORK, pcjax.mlp([5, 2])))
    whole = pcjax.Amortised(params, (exact,))
    (energy, info), grads = grad_fn(whole, inputs, targets)
    slopes = grads.amortiser[0]
    assert all(np.abs(x).max() < 1e-8 for x in jax.tree.leaves(slopes))
    expected, wanted = jax.jit(rest)(params, inputs, targets)
    problems.assert_trees_close((energy, grads.network), (expected[0], wanted), 1e-8)
    # One that is off by d is pulled back by d, the mean of it being the bias's.
    off = {"kernel": exact["kernel"], "bias": exact["bias"] + 0.5}
    (_, info), grads = grad_fn(pcjax.Amortised(params, (off,)), inputs, targets)
    np.testing.assert_allclose(grads.amortiser[0]["bias"], 0.5, atol=1e-8)
    # Inference starts where the amortiser says.
    still = pcjax.value_and_grad(NETWORK, pcjax.sequential(1, 0.0), gamma=GAMMA)
    grad_fn = jax.jit(pcjax.amortised(still, NETWORK, pcjax.mlp([5, 2])))
    (_, info), _ = grad_fn(whole, inputs, targets)
    guess = TARGETS @ exact["kernel"] + exact["bias"][None]
    draw = jax.jit(partial(pcjax.ancestral, NETWORK))
    expected = draw(params, inputs, given={1: guess})[:-1]
    problems.assert_trees_close(info.state.activities[1:-1], expected)


BAD = {
    "temperature": (
        lambda: pcjax.langevin(3, 0.1, temperature=-1.0),
        ValueError,
        "langevin: temperature must be >= 0 and finite, got -1.0",
    ),
    "temperatures": (
        lambda: pcjax.langevin(3, 0.1, temperature=jnp.ones(2)),
        ValueError,
        r"temperature must be a number or a schedule, got an array of shape \(2,\)",
    ),
    "momentum": (
        lambda: pcjax.langevin(3, 0.1, momentum=1.0),
        ValueError,
        r"langevin: momentum must be in \[0, 1\), got 1.0",
    ),
    "steps": (
        lambda: pcjax.langevin(0, 0.1),
        ValueError,
        "langevin: num_steps must be an int >= 1, got 0",
    ),
    "step_size": (
        lambda: pcjax.langevin(3, -0.1),
        ValueError,
        "langevin: step_size must be >= 0 and finite, got -0.1",
    ),
    "samples": (
        lambda: pcjax.averaged(lambda *args: None, 0),
        ValueError,
        "averaged: num_samples must be an int >= 1, got 0",
    ),
    "no_function": (
        lambda: pcjax.averaged("mcpc", 2),
        TypeError,
        "averaged: grad_fn must be a function",
    ),
    "no_state": (
        lambda: _gradients(pcjax.averaged(pcjax.backprop.value_and_grad(NETWORK), 2)),
        ValueError,
        "averaged: the gradient function keeps no state of inference",
    ),
    "no_precisions": (
        lambda: _gradients(pcjax.with_precisions(lambda gamma: _grad_fn)),
        TypeError,
        "with_precisions: params must be a pcjax.Precise .* got a tuple",
    ),
    "no_amortiser": (
        lambda: _gradients(pcjax.amortised(_grad_fn, NETWORK, pcjax.mlp([5, 2]))),
        TypeError,
        "amortised: params must be a pcjax.Amortised .* got a tuple",
    ),
}


def _grad_fn(*args, **options):
    raise AssertionError("never called")


def _gradients(grad_fn):
    inputs = pcjax.no_inputs(4)
    params = jax.tree.map(np.float32, PARAMS)
    return jax.eval_shape(grad_fn, params, inputs, jnp.ones((4, 5)))


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    call, error, text = BAD[name]
    with pytest.raises(error, match=text):
        call()


def test_equilibrium_starts_from_amortised_latents(x64):
    """A start that is right is where inference to equilibrium stays."""
    params, targets = gaussian.arrays()
    rows = [gaussian.condition(x, np.ones(5, bool))[0] for x in TARGETS]
    latents = np.asarray(rows)[:, :5]
    rest = infer_to_equilibrium(
        NETWORK,
        pcjax.sequential(10, 0.1),
        params,
        pcjax.no_inputs(4, jnp.float64),
        targets,
        gamma=GAMMA,
        hidden=(latents[:, :2], latents[:, 2:]),
    )
    assert rest.converged.all()
    assert rest.num_steps.max() == 0
