"""Relatives of predictive coding against the exact multiples of backprop they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pcjax
from tests import problems

pytestmark = pytest.mark.usefixtures("x64")

SIZES = (6, 7, 8, 5, 4)
LAST = len(SIZES) - 1  # L


def both(make, output=pcjax.softmax, **options):
    """Gradients of a rule on a random net, and those of backprop."""
    case = problems.dense_case(SIZES, dtype=jnp.float64)
    bp = pcjax.backprop.value_and_grad(case.network, output=output)
    grad_fn = make(case.network, output=output, **options)
    _, exact = jax.jit(bp)(*case[1:])
    (_, info), grads = jax.jit(grad_fn)(*case[1:])
    return info, grads, exact


def assert_multiples(grads, exact, factors, rtol=1e-10):
    scaled = tuple(
        jax.tree.map(lambda g, f=factor: f * g, layer)
        for factor, layer in zip(factors, exact, strict=True)
    )
    for have, want in zip(grads, scaled, strict=True):
        size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(want))
        problems.assert_trees_close(have, want, rtol=rtol, atol=rtol * size)


@pytest.mark.parametrize("output", problems.OUTPUTS.values())
def test_forward_update_of_one_sequential_step_is_a_power_of_the_step(output):
    step = 0.05
    _, grads, exact = both(
        lambda network, **options: pcjax.forward_update(
            network, pcjax.sequential(1, step), **options
        ),
        output,
    )
    assert_multiples(grads, exact, [step ** (LAST - n) for n in range(1, LAST + 1)])


def test_moves_below_the_rounding_of_activities_are_learned_from():
    """The lower layers of a deep net move by 1e-12 of their activities."""
    rng = np.random.default_rng(0)
    sizes = [8] * 13
    network = pcjax.mlp(sizes, jnp.tanh)
    params = tuple(
        {
            "kernel": jnp.asarray(rng.normal(size=(8, 8)) / np.sqrt(8), jnp.float32),
            "bias": jnp.zeros(8, jnp.float32),
        }
        for _ in sizes[1:]
    )
    batch = tuple(jnp.asarray(rng.normal(size=(4, 8)), jnp.float32) for _ in range(2))
    rule = jax.jit(pcjax.forward_update(network, pcjax.sequential(1, 0.1)))
    _, grads = rule(params, *batch)
    bp = jax.jit(pcjax.backprop.value_and_grad(network))
    _, exact = bp(*jax.tree.map(lambda x: x.astype(jnp.float64), (params, *batch)))
    factors = [0.1 ** (12 - n) for n in range(1, 13)]
    wide = jax.tree.map(lambda x: x.astype(jnp.float64), grads)
    assert_multiples(wide, exact, factors, rtol=1e-4)


def test_forward_update_takes_the_gammas():
    gammas = [0.5, 2.0, 1.5, 0.8]
    step, case = 0.05, problems.dense_case(SIZES, dtype=jnp.float64)
    method = pcjax.sequential(1, step)
    options = {"output": pcjax.softmax, "gamma": gammas}
    grads = pcjax.forward_update(case.network, method, **options)(*case[1:])[1]
    plain = pcjax.forward_update(case.network, method, learning_gamma=1.0, **options)
    _, unweighted = plain(*case[1:])
    assert_multiples(grads, unweighted, gammas)
    wrong = pcjax.forward_update(case.network, method, learning_gamma=[1.0] * 7)
    with pytest.raises(ValueError, match=r"^forward_update: gamma must be a number"):
        wrong(*case[1:])


def test_z_il_is_backprop():
    _, grads, exact = both(pcjax.z_il)
    assert_multiples(grads, exact, [1.0] * LAST, rtol=1e-11)
    residual = pcjax.Network(
        (pcjax.dense(4), pcjax.dense(4), pcjax.add(pcjax.dense(4), pcjax.skip())),
        reads=((0,), (1,), (2, 1)),
    )
    with pytest.raises(ValueError, match="z_il: expected a chain"):
        pcjax.z_il(residual)


def test_spikes_pass_one_error_at_a_time():
    eta = 0.3
    _, grads, exact = both(
        lambda network, **options: pcjax.forward_update(
            network,
            pcjax.simultaneous(LAST, eta),
            gamma=pcjax.spiking(),
            learning_gamma=1.0,
            **options,
        )
    )
    hidden = [(1 - eta) * eta ** (LAST - n) for n in range(1, LAST)]
    assert_multiples(grads, exact, [*hidden, 1.0])


def test_spikes_and_decays_are_weights_of_their_iteration():
    errors = (None,) * 4
    for t, one in ((0, 3), (1, 2), (3, 0), (4, None)):
        want = [1.0 if index == one else 0.25 for index in range(4)]
        have = pcjax.spiking(0.25)(None, errors, t=jnp.int32(t))
        np.testing.assert_array_equal(have, want)
    have = pcjax.decaying(0.5)(None, errors, t=jnp.int32(3))
    np.testing.assert_allclose(have, [np.exp(-1.5)] * 3)
    for make in (pcjax.spiking, pcjax.decaying):
        with pytest.raises(ValueError, match="must be >= 0 and finite, got -1"):
            make(-1.0)


def test_decaying_precisions_on_a_scalar_chain():
    """`h <- h - s (exp(-k t) (h - p) - w (y - w h))` with one hidden unit."""
    w, s, k = 1.5, 0.2, 0.4
    network = pcjax.mlp([1, 1, 1], pcjax.networks.linear)
    params = tuple(
        {"kernel": jnp.full((1, 1), value), "bias": jnp.zeros(1)} for value in (0.7, w)
    )
    x, y = jnp.array([[2.0]]), jnp.array([[-1.0]])
    found = pcjax.infer(
        network,
        pcjax.simultaneous(5, s),
        params,
        x,
        y,
        gamma=pcjax.decaying(k),
        trace=lambda state: state.activities[1],
    )
    h = p = 0.7 * 2.0
    for t in range(5):
        h = h - s * (np.exp(-k * t) * (h - p) - w * (-1.0 - w * h))
        np.testing.assert_allclose(found.trace[t + 1], h, rtol=1e-13)


def test_multipliers_go_to_the_deltas_of_backprop():
    info, grads, exact = both(
        lambda network, **options: pcjax.augmented_lagrangian(
            network, 3000, 0.2, **options
        )
    )
    assert_multiples(grads, exact, [1.0] * LAST, rtol=1e-7)
    case = problems.dense_case(SIZES, dtype=jnp.float64)
    hidden = pcjax.feedforward(*case[:3])[:-1]

    def loss(*shifts):
        h = case.inputs
        for layer, theta, d in zip(
            case.network.layers, case.params, shifts, strict=True
        ):
            h = layer.apply(theta, h) + d
        return jnp.sum(pcjax.softmax.loss(h, case.targets))

    zeros = [0 * h for h in (*hidden, case.targets)]
    deltas = jax.grad(loss, argnums=tuple(range(LAST - 1)))(*zeros)
    for have, want in zip(info.trace, deltas, strict=True):
        np.testing.assert_allclose(have, -want, rtol=1e-6, atol=1e-9)
    assert max(float(jnp.abs(e).max()) for e in info.state.errors[:-1]) < 1e-9


def test_the_lagrangian_is_descended():
    """Two iterations against autodiff of the Lagrangian."""
    step, rho, alpha = 0.1, 0.7, 0.4
    case = problems.dense_case(SIZES, dtype=jnp.float64)

    def errors_of(params, hidden):
        activities = (case.inputs, *hidden, case.targets)
        return pcjax.prediction_errors(
            case.network, params, activities, output=pcjax.softmax
        )[:-1]

    def lagrangian(params, hidden, multipliers):
        logits = case.network.layers[-1].apply(params[-1], hidden[-1])
        total = jnp.sum(pcjax.softmax.loss(logits, case.targets))
        for e, own in zip(errors_of(params, hidden), multipliers, strict=True):
            total += jnp.sum(own * e) + 0.5 * rho * jnp.sum(e**2)
        return total

    hidden = pcjax.feedforward(*case[:3])[:-1]
    multipliers = [0 * h for h in hidden]
    slope = jax.jit(jax.grad(lagrangian, argnums=(0, 1)))
    for _ in range(2):
        used = multipliers
        _, slopes = slope(case.params, hidden, multipliers)
        hidden = tuple(h - step * g for h, g in zip(hidden, slopes, strict=True))
        pairs = zip(multipliers, errors_of(case.params, hidden), strict=True)
        multipliers = [own + alpha * e for own, e in pairs]
    want, _ = slope(case.params, hidden, used)
    grad_fn = pcjax.augmented_lagrangian(
        case.network, 2, step, rho=rho, alpha=alpha, output=pcjax.softmax
    )
    (_, info), grads = jax.jit(grad_fn)(*case[1:])
    mean = jax.tree.map(lambda g: g / len(case.inputs), want)
    problems.assert_trees_close(grads, mean, rtol=1e-9, atol=1e-12)
    problems.assert_trees_close(info.trace, tuple(used), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="rho must be >= 0 and finite, got -1"):
        pcjax.augmented_lagrangian(case.network, 2, step, rho=-1.0)
