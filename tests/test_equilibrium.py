"""Equilibria against least squares in NumPy and the gradient of the free energy."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from pcjax.inference.equilibrium import infer_to_equilibrium, linear_equilibrium
from pcjax.networks.network import linear
from tests import problems
from tests.tiers import thorough

pytestmark = pytest.mark.usefixtures("x64")

SIZES, BATCH = (3, 5, 4, 2), 3
RNG = np.random.default_rng(1)
EXAMPLES = RNG.uniform(0.5, 2, (3, BATCH))
# name: (gamma, decay, gamma_L of the soft clamp)
WEIGHTS = {
    "default": (1.0, 0.0, 0.0),
    "soft": (1.0, 0.0, 0.5),
    "decay": (1.0, 0.3, 0.0),
    "layers": ([0.5, 2.0, 1.5], [0.0, 0.2], 0.1),
    "examples": (EXAMPLES, EXAMPLES[:2], 0.2),
}
FORMS = ("default", "layers", "examples")  # a number, one a layer, one an example
PAIRS = [(name, kind) for name in FORMS for kind in problems.METHODS]
QUICK = [("layers", "sequential"), ("examples", "simultaneous")]


def exact(case, **kwargs):
    """`linear_equilibrium`, compiled."""
    network, *arrays = case
    return jax.jit(lambda *arrays: linear_equilibrium(network, *arrays, **kwargs))(
        *arrays
    )


def rest(case, method, **kwargs):
    """`infer_to_equilibrium`, which compiles itself."""
    return infer_to_equilibrium(case.network, method, *case[1:], **kwargs)


def linear_case(sizes=SIZES):
    return problems.dense_case(sizes, linear, batch=BATCH, dtype=jnp.float64)


@cache
def solved(name):
    """The linear equilibrium of `linear_case()` in some of the `WEIGHTS`."""
    gamma, decay, soft = WEIGHTS[name]
    return exact(linear_case(), gamma=gamma, decay=decay, clamp_gamma=soft)


def rows(case, gamma, decay, soft):
    """Gamma [L, B], decay [L-1, B] and the targets, as NumPy arrays."""
    count = len(case.network.layers)
    gammas, decays = np.ones((count, BATCH)), np.zeros((count - 1, BATCH))
    gamma, decay = np.asarray(gamma), np.asarray(decay)
    gammas[: len(gamma) if gamma.ndim else -1] = (
        gamma[:, None] if gamma.ndim == 1 else gamma
    )
    decays[:] = decay[:, None] if decay.ndim == 1 else decay
    gammas[-1] /= 1 + soft
    return gammas, decays


def least_squares(case, gamma, decay, soft):
    """`argmin_h F`, every term being the square of one row block of `A h - b`."""
    gammas, decays = rows(case, gamma, decay, soft)
    kernels = [np.asarray(p["kernel"]).T for p in case.params]
    biases = [np.asarray(p["bias"]) for p in case.params]
    sizes = [kernel.shape[0] for kernel in kernels[:-1]]
    ends = np.cumsum([0, *sizes])
    answers = []
    for b in range(BATCH):
        blocks, right = [], []

        def block(parts, value, weight, blocks=blocks, right=right):
            matrix = np.zeros((len(value), ends[-1]))
            for layer, part in parts:
                matrix[:, ends[layer - 1] : ends[layer]] += part
            blocks.append(np.sqrt(weight) * matrix)
            right.append(np.sqrt(weight) * value)

        x, y = np.asarray(case.inputs[b]), np.asarray(case.targets[b])
        block([(1, np.eye(sizes[0]))], kernels[0] @ x + biases[0], gammas[0, b])
        for layer in range(2, len(kernels)):
            below = -kernels[layer - 1]
            parts = [(layer, np.eye(sizes[layer - 1])), (layer - 1, below)]
            block(parts, biases[layer - 1], gammas[layer - 1, b])
        # An error y - p of the output that the soft clamp has shrunk.
        block([(len(sizes), kernels[-1])], y - biases[-1], gammas[-1, b])
        for layer, size in enumerate(sizes, 1):
            block([(layer, np.eye(size))], np.zeros(size), decays[layer - 1, b])
        solution = np.linalg.lstsq(np.concatenate(blocks), np.concatenate(right))[0]
        answers.append(np.split(solution, ends[1:-1]))
    return [np.stack(h) for h in zip(*answers, strict=True)]


@pytest.mark.parametrize("name", [*FORMS, *thorough(["soft", "decay"])])
def test_linear_equilibrium_is_the_least_squares_solution(name):
    found = solved(name)
    expected = least_squares(linear_case(), *WEIGHTS[name])
    for have, want in zip(found.state.activities[1:-1], expected, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-10, atol=1e-12)
    assert found.converged.all()
    assert found.residual.max() < 1e-12
    for count in (found.num_steps, found.passes):
        np.testing.assert_array_equal(count, np.zeros(len(found.residual)))


@pytest.mark.parametrize(
    ("name", "kind"),
    [*QUICK, *thorough(pair for pair in PAIRS if pair not in QUICK)],
)
def test_inference_converges_to_the_linear_equilibrium(name, kind):
    case = linear_case()
    gamma, decay, soft = WEIGHTS[name]
    known = solved(name)
    found = rest(
        case,
        problems.METHODS[kind](20_000, 0.1),
        clamp=pcjax.soft_clamp(soft),
        gamma=gamma,
        decay=decay,
        tolerance=1e-11,
    )
    assert found.converged.all()
    for have, want in zip(found.state.activities, known.state.activities, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-8, atol=1e-9)


def energy_slopes(case, output, **weights):
    """`hidden -> ||dF/dh||` [B] by autodiff of the free energy, full clamp."""

    def total(hidden):
        activities = (case.inputs, *hidden, case.targets)
        return jnp.sum(
            pcjax.free_energy(
                case.network, case.params, activities, output=output, **weights
            )
        )

    slopes = jax.jit(jax.grad(total))

    def norms(hidden):
        rows = slopes(tuple(hidden))
        return np.sqrt(sum(np.sum(np.asarray(s) ** 2, 1) for s in rows))

    return norms


def test_residual_is_the_relative_gradient_of_the_energy():
    case = problems.dense_case((6, 7, 5, 4), dtype=jnp.float64)
    weights = {"gamma": [0.5, 2.0], "decay": 0.1}
    found = rest(
        case,
        pcjax.simultaneous(7, 0.1),
        output=pcjax.softmax,
        tolerance=1e-8,
        **weights,
    )
    start = jax.jit(partial(pcjax.feedforward, case.network))(*case[1:3])[:-1]
    norms = energy_slopes(case, pcjax.softmax, **weights)
    expected = norms(found.state.activities[1:-1]) / norms(start)
    np.testing.assert_allclose(found.residual, expected, rtol=1e-10)
    assert not found.converged.any()
    assert (found.num_steps == 7).all()


@pytest.mark.parametrize("b", [2, *thorough([0])])
def test_each_example_stops_by_itself(b):
    case = problems.dense_case((6, 7, 5, 4), dtype=jnp.float64)
    # Of example 1 all numbers are exact, so that its gradient vanishes to the bit.
    params, inputs, targets = jax.tree.map(np.array, case[1:])
    for theta in params:
        theta["bias"][:] = 0
    inputs[1] = targets[1] = 0
    case = problems.Case(case.network, params, inputs, targets)
    method = pcjax.sequential(3000, 0.2)

    together = rest(case, method, tolerance=1e-6)
    assert together.converged.all()
    assert together.num_steps[1] == 0
    assert len(set(together.num_steps.tolist())) > 2
    one = case._replace(inputs=inputs[b : b + 1], targets=targets[b : b + 1])
    alone = rest(one, method, tolerance=1e-6)
    steps = int(alone.num_steps[0])
    assert steps == together.num_steps[b]
    for own, shared in zip(
        alone.state.activities, together.state.activities, strict=True
    ):
        np.testing.assert_allclose(
            np.asarray(own)[0], np.asarray(shared)[b], rtol=1e-10, atol=1e-12
        )
    # It stopped at the first iteration with a residual that is small enough.
    assert alone.residual[0] <= 1e-6
    before = rest(one, method._replace(num_steps=steps - 1), tolerance=1e-6)
    assert before.residual[0] > 1e-6
    assert not before.converged[0]


def test_optimizers_come_to_the_same_equilibrium():
    case = problems.dense_case((6, 7, 4), dtype=jnp.float64)
    nesterov = optax.sgd(0.1, momentum=0.9, nesterov=True)
    methods = [
        pcjax.simultaneous(2000, 0.1),
        pcjax.simultaneous(2000, optimizer=nesterov),
    ]
    ends = [rest(case, m, tolerance=1e-9) for m in methods]
    assert ends[1].num_steps.max() < ends[0].num_steps.max()
    for one, other in zip(*(e.state.activities for e in ends), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)


def test_divergence_is_reported():
    case = linear_case()
    method = pcjax.simultaneous(5000, 10.0)
    found = rest(case, method)
    assert not found.converged.any()
    assert not (found.residual < 1).any()
    # It goes on for as long as the gradient is finite, and no further: the norm, in
    # which it is squared, overflows before the activities do.
    assert (found.num_steps < 5000).all()
    assert np.isinf(found.residual).all()
    for h in found.state.activities:
        assert np.isfinite(h).all()


def test_a_network_without_hidden_layers_is_at_rest():
    case = linear_case((3, 2))
    for found in (
        rest(case, pcjax.sequential(5, 0.1)),
        exact(case),
    ):
        assert found.converged.all()
        np.testing.assert_array_equal(found.residual, 0)
        np.testing.assert_array_equal(found.num_steps, 0)


def test_linear_equilibrium_of_a_layer_that_is_not_linear_is_reported():
    layers = pcjax.mlp([3, 4, 2], linear).layers
    curved = layers[1]._replace(
        apply=lambda params, h: jnp.tanh(layers[1].apply(params, h))
    )
    network = pcjax.Network((layers[0], curved))
    found = exact(problems.make(network, (3,), dtype=jnp.float64))
    assert not found.converged.any()
    assert (found.residual > 1e-3).all()


def test_bad_input_is_refused():
    case = linear_case()
    tanh = problems.dense_case(dtype=jnp.float64)
    method = pcjax.sequential(5, 0.1)
    with pytest.raises(ValueError, match="layer 1 has the activation"):
        linear_equilibrium(*tanh)
    half = pcjax.add(pcjax.dense(4, linear), pcjax.dense(4, jnp.tanh))
    graph = pcjax.Network((pcjax.dense(4, linear), half), ((0,), (0, 1)))
    with pytest.raises(ValueError, match="layer 1 has the activation"):
        linear_equilibrium(*problems.make(graph, (3,), dtype=jnp.float64))
    with pytest.raises(ValueError, match="must be numbers, not functions"):
        linear_equilibrium(*case, gamma=lambda h, e: 1.0)
    with pytest.raises(ValueError, match="clamp_gamma must be >= 0 and finite"):
        linear_equilibrium(*case, clamp_gamma=-1.0)
    with pytest.raises(ValueError, match="tolerance must be >= 0 and finite"):
        infer_to_equilibrium(case.network, method, *case[1:], tolerance=-1.0)
    with pytest.raises(ValueError, match="targets have shape"):
        infer_to_equilibrium(case.network, method, *case[1:3], case.targets[:, :1])
