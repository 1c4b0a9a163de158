"""The oracle against finite differences of its own energy, and against closed forms."""

import itertools

import numpy as np
import pytest

from tests.reference import cases, inference, learning, mq, outputs
from tests.reference.layers import Dense, Tanh

NETS = list(cases.NETS)
OUTPUTS = list(cases.OUTPUTS)
SWEEPS = {"simultaneous": inference.simultaneous, "sequential": inference.sequential}


def numerical_gradient(function, array, delta=1e-5):
    """Central differences of a scalar function; `array` is perturbed in place."""
    gradient = np.empty_like(array)
    for position in np.ndindex(array.shape):
        value = array[position]
        array[position] = value + delta
        above = function()
        array[position] = value - delta
        below = function()
        array[position] = value
        gradient[position] = (above - below) / (2 * delta)
    return gradient


def assert_gradient(actual, function, array):
    """`actual` is the gradient of `function` at `array`, and it is not trivial."""
    expected = numerical_gradient(function, array)
    scale = np.abs(expected).max()
    assert scale > 1e-3
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-7 * max(scale, 1.0))


def assert_tree_gradient(actual, function, params):
    for name, child in params.items():
        if isinstance(child, dict):
            assert_tree_gradient(actual[name], function, child)
        else:
            assert_gradient(actual[name], function, child)


def assert_trees_close(actual, expected, **tolerance):
    for a, b in zip(mq.leaves(actual), mq.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def per_layer(problem, low, high, extra=0, seed=5):
    """Distinct weights for the hidden layers, and for `extra` more."""
    count = len(problem.layers) - 1 + extra
    return list(np.random.default_rng(seed).uniform(low, high, count))


@pytest.mark.parametrize("net", NETS)
def test_pull_backs_are_those_of_forward(net):
    problem = cases.make_problem(net, "identity")
    activities = cases.perturbed_activities(problem, 0)
    rng = np.random.default_rng(2)
    for layer, h in zip(problem.layers, activities[:-1], strict=True):
        h = h.copy()
        e = rng.standard_normal(layer.forward(h).shape)

        def along_e(layer=layer, h=h, e=e):
            return np.sum(e * layer.forward(h))

        assert_gradient(layer.pull_input(h, e), along_e, h)
        assert_tree_gradient(layer.pull_params(h, e), along_e, layer.params)
        assert_gradient(layer.decay_gradient(h), lambda i=layer, h=h: i.decay(h), h)


def test_dense_layer_in_numbers():
    kernel = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    layer = Dense({"kernel": kernel, "bias": np.array([10.0, 20.0])})
    np.testing.assert_array_equal(layer.forward(np.array([1.0, 0.0, -1.0])), [6, 16])
    # A [1, 3] input is flattened; f is applied to the input, not to the result.
    layer = Dense(layer.params, f=Tanh())
    expected = np.tanh(2.0) * kernel[1] + [10.0, 20.0]
    np.testing.assert_allclose(layer.forward(np.array([[0.0, 2.0, 0.0]])), expected)


def test_conv_layer_slides_its_kernel_without_padding():
    layer = cases.conv_net(np.random.default_rng(0))[0][0]
    h = np.zeros((8, 6, 2))
    h[2, 3, 1] = 1.0  # seen by windows that start at rows 0 and 2, column 2
    out = layer.convolve(h)
    assert out.shape == (3, 3, 4)
    expected = np.tile(layer.params["bias"], (3, 3, 1))
    expected[0, 1] += layer.params["kernel"][2, 1, 1]
    expected[1, 1] += layer.params["kernel"][0, 1, 1]
    np.testing.assert_allclose(out, expected, rtol=1e-14)
    assert layer.forward(h).min() == 0.0 > out.min()


@pytest.mark.parametrize("name", OUTPUTS)
def test_output_error_is_minus_the_gradient_of_the_loss(name):
    output = cases.OUTPUTS[name]
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(5)
    # Soft targets, which the soft clamp makes of hard ones.
    target = rng.dirichlet(np.ones(5)) if name == "softmax" else rng.uniform(size=5)
    descent = -outputs.error(output, logits, target)
    assert_gradient(descent, lambda: output.loss(logits, target), logits)


def test_losses_in_numbers():
    logits, target = np.log([1.0, 2.0, 5.0]), np.array([0.0, 1.0, 0.0])
    expected = -np.log(2 / 8)
    np.testing.assert_allclose(outputs.Softmax().loss(logits, target), expected)
    # sigmoid(log r) = r / (1 + r)
    expected = -(np.log(1 / 2) + np.log(2 / 3) + np.log(1 / 6))
    np.testing.assert_allclose(outputs.Sigmoid().loss(logits, target), expected)
    expected = 0.5 * (0 + (np.log(2) - 1) ** 2 + np.log(5) ** 2)
    np.testing.assert_allclose(outputs.Linear().loss(logits, target), expected)


@pytest.mark.parametrize("gamma", [0.01, 0.5, 3.0])
def test_soft_clamp_minimises_its_quadratic(gamma):
    """Eq. 3 minimises ||y - h||^2 / 2 + gamma_L / 2 ||h - sigma(p_L)||^2."""
    target, prediction = np.array([0.0, 1.0]), np.array([0.3, 0.7])
    h = outputs.soft_clamp(gamma)(target, prediction, None)

    def quadratic():
        misfit = 0.5 * np.sum((target - h) ** 2)
        return misfit + gamma / 2 * np.sum((h - prediction) ** 2)

    np.testing.assert_allclose(numerical_gradient(quadratic, h), 0.0, atol=1e-9)
    # Hence the output error is that of the full clamp, shrunk.
    np.testing.assert_allclose(h - prediction, (target - prediction) / (1 + gamma))
    assert np.all(outputs.full_clamp(target, prediction, None) == target)


def scalar_layer(weight, bias, f=None):
    """p = weight f(h) + bias."""
    return Dense({"kernel": np.array([[weight]]), "bias": np.array([bias])}, f=f)


def test_free_energy_in_numbers():
    """A chain of scalars: x = 1, weights 2 and 3, tanh on h_1."""
    layers = [scalar_layer(2.0, 1.0), scalar_layer(3.0, 0.0, f=Tanh())]
    activities = [np.array([1.0]), np.array([5.0]), np.array([7.0])]
    terms = inference.free_energy_per_layer(
        layers, outputs.Linear(), activities, gamma=[0.5, 10.0], decay=0.25
    )
    hidden = 0.5 / 2 * (5 - 3) ** 2 + 0.25 / 2 * np.tanh(5.0) ** 2
    loss = 10.0 * 0.5 * (7 - 3 * np.tanh(5.0)) ** 2
    np.testing.assert_allclose(terms, [hidden, loss], rtol=1e-14)


def hidden_direction(problem, activities, gamma, decay):
    """-dF/dh_l of the hidden layers, read off one iteration with a step size of 1."""
    moved = inference.simultaneous(
        problem.layers,
        problem.output,
        activities,
        gamma,
        decay,
        lambda i, h, gradient: h - gradient,
    )
    assert moved[0] is activities[0]
    assert moved[-1] is activities[-1]
    return [a - b for a, b in zip(moved[1:-1], activities[1:-1], strict=True)]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("net", NETS)
def test_gradients_are_those_of_the_free_energy(net, output):
    """Activities (eq. 2) and weights (eq. 4), with every weight of F in play."""
    problem = cases.make_problem(net, output)
    activities = cases.perturbed_activities(problem, 0)
    gamma = per_layer(problem, 0.5, 2.0, extra=1)
    decay = per_layer(problem, 0.2, 0.6, seed=6)

    def energy():
        return inference.free_energy(
            problem.layers, problem.output, activities, gamma, decay
        )

    directions = hidden_direction(problem, activities, gamma, decay)
    for h, direction in zip(activities[1:-1], directions, strict=True):
        assert_gradient(-direction, energy, h)
    gradients = learning.energy_gradient(
        problem.layers, problem.output, activities, gamma
    )
    for layer, gradient in zip(problem.layers, gradients, strict=True):
        assert_tree_gradient(gradient, energy, layer.params)


@pytest.mark.parametrize("net", NETS)
def test_output_target_enters_the_last_layer_only(net):
    problem = cases.make_problem(net, "softmax")
    activities = cases.perturbed_activities(problem, 0)
    soft = 0.5 * activities[-1] + 0.5 / 3
    softened = [*activities[:-1], soft]
    args = (problem.layers, problem.output)
    gradients = learning.energy_gradient(
        *args, softened, 2.0, output_target=activities[-1]
    )
    *below, _ = learning.energy_gradient(*args, softened, 2.0)
    *_, last = learning.energy_gradient(*args, activities, 2.0)
    for actual, expected in zip(gradients, [*below, last], strict=True):
        assert_trees_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("net", NETS)
def test_backprop_gradient_is_that_of_the_loss(net, output):
    problem = cases.make_problem(net, output)
    x, target = problem.xs[0], problem.targets[0]

    def loss():
        logits = inference.feedforward(problem.layers, x)[-1]
        return problem.output.loss(logits, target)

    gradients = learning.backprop_gradient(problem.layers, problem.output, x, target)
    for layer, gradient in zip(problem.layers, gradients, strict=True):
        assert_tree_gradient(gradient, loss, layer.params)


def test_finite_differences_refuse_a_wrong_gradient():
    array = np.array([1.0, -2.0])

    def cube():
        return np.sum(array**3)

    assert_gradient(3 * array**2, cube, array)
    for wrong in (-3 * array**2, 3.001 * array**2, [3.0, 12.001]):
        with pytest.raises(AssertionError):
            assert_gradient(wrong, cube, array)


def test_weights_of_the_energy_in_every_form():
    activities = [np.zeros(1)] * 4
    errors = [None, *[np.ones(1)] * 3]

    def resolved(weights):
        return inference.resolve(weights, activities, errors, output_weight=1.0)

    assert resolved(2.0) == [None, 2, 2, 1]
    assert resolved([2, 3]) == [None, 2, 3, 1]
    assert resolved(np.array([2, 3, 4])) == [None, 2, 3, 4]
    assert resolved(lambda h, e: [len(h), len(e)]) == [None, 4, 3, 1]
    with pytest.raises(AssertionError):
        resolved([2, 3, 4, 5])


def scalar_chain():
    """p_1 = 2 x, p_2 = 3 h_1, p_3 = h_2 - 1; x = 1, so the values are 2, 6, 5."""
    layers = [scalar_layer(2.0, 0.0), scalar_layer(3.0, 0.0), scalar_layer(1.0, -1.0)]
    return layers, outputs.Linear(), np.array([1.0]), np.array([9.0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # t = 0: e = (0, 0, 4): h_2 moves by 4/10. t = 1: e = (0, .4, 3.6): h_2 moves by
        # (3.6 - .4)/20, h_1 by 3 (.4)/20.
        ("simultaneous", [[1, 2, 6, 9], [1, 2, 6.4, 9], [1, 2.06, 6.56, 9]]),
        # t = 0: h_2 moves by 4/10, so e_2 = .4 and h_1 moves by 3 (.4)/10 = .12.
        # t = 1: p_2 = 6.36, e = (.12, .04, 3.6): h_2 moves by (3.6 - .04)/20 = .178,
        # then e_2 = .218 and h_1 moves by (3 (.218) - .12)/20 = .0267.
        ("sequential", [[1, 2, 6, 9], [1, 2.12, 6.4, 9], [1, 2.1467, 6.578, 9]]),
    ],
)
def test_inference_of_a_scalar_chain_by_hand(name, expected):
    layers, output, x, target = scalar_chain()
    history = inference.infer(
        layers,
        output,
        x,
        target,
        SWEEPS[name],
        num_steps=2,
        optimizer=inference.GradientDescent(lambda t: 0.1 / (1 + t)),
        clamp=outputs.full_clamp,
    )
    np.testing.assert_allclose(np.array(history)[..., 0], expected, rtol=1e-14)


@pytest.mark.parametrize("name", SWEEPS)
def test_output_activity_follows_the_logits(name):
    problem = cases.make_problem("dense", "softmax")
    gamma = 0.5
    history = inference.infer(
        *(problem.layers, problem.output, problem.xs[0], problem.targets[0]),
        SWEEPS[name],
        num_steps=3,
        optimizer=inference.GradientDescent(0.2),
        clamp=outputs.soft_clamp(gamma),
    )
    assert len(history) == 4
    for activities in history:
        logits = problem.layers[-1].forward(activities[-2])
        expected = problem.targets[0] + gamma * problem.output.link(logits)
        np.testing.assert_allclose(activities[-1], expected / (1 + gamma))
    assert np.abs(history[-1][-1] - history[-2][-1]).max() > 1e-3


@pytest.mark.parametrize("net", ["dense", "conv", "residual"])
def test_error_front(net):
    """From feed-forward values, one iteration reaches one layer or all of them."""
    problem = cases.make_problem(net, "softmax")
    first = {}
    for name, sweep in SWEEPS.items():
        before, first[name] = inference.infer(
            *(problem.layers, problem.output, problem.xs[0], problem.targets[0]),
            sweep,
            num_steps=1,
            optimizer=inference.GradientDescent(0.3),
            clamp=outputs.full_clamp,
        )
        moved = [
            np.abs(a - b).max() > 1e-6 for a, b in zip(first[name], before, strict=True)
        ]
        everywhere = name == "sequential"
        assert moved == [False, everywhere, everywhere, True, False]
    np.testing.assert_array_equal(first["sequential"][-2], first["simultaneous"][-2])


def test_weights_of_the_energy_are_recomputed_every_iteration():
    problem = cases.make_problem("dense", "identity")
    calls = []

    def gamma(activities, errors):
        calls.append((activities, errors))
        return [1.0 + i for i in range(len(errors) - 1)]

    kwargs = {
        "num_steps": 3,
        "optimizer": inference.GradientDescent(0.05),
        "clamp": outputs.full_clamp,
    }
    args = (problem.layers, problem.output, problem.xs[0], problem.targets[0])
    for sweep in SWEEPS.values():
        calls.clear()
        history = inference.infer(*args, sweep, gamma=gamma, **kwargs)
        fixed = inference.infer(*args, sweep, gamma=[1, 2, 3], **kwargs)
        for a, b in zip(history[-1], fixed[-1], strict=True):
            np.testing.assert_array_equal(a, b)
        assert len(calls) == 3
        for (activities, errors), start in zip(calls, history[:-1], strict=True):
            assert activities is start
            predictions = inference.predict(problem.layers, start)
            np.testing.assert_array_equal(errors[1], start[2] - predictions[2])


def test_momentum_and_adam_under_a_constant_gradient():
    g, steps = np.array([0.5, -2.0]), 4
    h = {"momentum": np.zeros(2), "adam": np.zeros(2)}
    momentum, adam = inference.Momentum(0.1, mu=0.8), inference.Adam(0.1)
    momentum.start()
    adam.start()
    for t in range(steps):
        h["momentum"] = momentum.update(t, 1, h["momentum"], g)
        h["adam"] = adam.update(t, 1, h["adam"], g)
    # m_t = g (1 - mu^(t+1)) / (1 - mu); Adam's corrected ratio is the sign of g.
    total = sum((1 - 0.8 ** (t + 1)) / (1 - 0.8) for t in range(steps))
    np.testing.assert_allclose(h["momentum"], -0.1 * g * total, rtol=1e-14)
    np.testing.assert_allclose(h["adam"], -0.1 * steps * np.sign(g), rtol=1e-7)


def test_adam_under_two_gradients():
    adam = inference.Adam(0.1, beta1=0.5, beta2=0.75, eps=0.25)
    adam.start()
    h = adam.update(0, 1, np.zeros(1), np.array([4.0]))
    moved = adam.update(1, 1, h, np.array([0.0])) - h
    # m = 2 then 1, corrected by 3/4; v = 4 then 3, corrected by 7/16.
    np.testing.assert_allclose(
        moved, -0.1 * (4 / 3) / (np.sqrt(48 / 7) + 0.25), rtol=1e-14
    )


def test_batch_mean_and_descent_in_numbers():
    gradients = [
        [{"kernel": np.array([1.0, 2.0])}],
        [{"kernel": np.array([3.0, -6.0])}],
    ]
    (mean,) = learning.batch_mean(gradients)
    np.testing.assert_array_equal(mean["kernel"], [2.0, -2.0])
    (layer,) = learning.descend([Dense({"kernel": np.ones(2)})], [mean], 0.25)
    np.testing.assert_array_equal(layer.params["kernel"], [0.5, 1.5])


def incremental(problem, sweep, step_sizes, rate, **kwargs):
    batch_size = len(problem.xs)
    gammas = kwargs.pop("gammas", [1.0] * batch_size)
    return learning.incremental(
        *(problem.layers, problem.output, problem.xs, problem.targets),
        sweep,
        step_sizes,
        rate,
        outputs.soft_clamp(0.1),
        gammas,
        [0.0] * batch_size,
        **kwargs,
    )


@pytest.mark.parametrize("name", SWEEPS)
def test_incremental_with_rate_zero_is_inference(name):
    problem = cases.make_problem("residual", "sigmoid")
    layers, history = incremental(problem, SWEEPS[name], [0.1, 0.05], rate=0.0)
    for b, x in enumerate(problem.xs):
        expected = inference.infer(
            *(problem.layers, problem.output, x, problem.targets[b]),
            SWEEPS[name],
            num_steps=2,
            optimizer=inference.GradientDescent(lambda t: 0.1 / (1 + t)),
            clamp=outputs.soft_clamp(0.1),
        )
        for (_, batch), row in zip(history, expected, strict=True):
            for actual, activity in zip(batch[b], row, strict=True):
                np.testing.assert_allclose(actual, activity, rtol=1e-14)
    for layer, old in zip(layers, problem.layers, strict=True):
        assert_trees_close(layer.params, old.params, rtol=0, atol=0)


def test_incremental_steps_both_from_the_start_of_the_iteration():
    """Each iteration in its pieces: F's gradient at the old state, then the clamp."""
    problem = cases.make_problem("dense", "softmax")
    gammas, eps, rate = [0.5, 1.0, 2.0], 0.3, 0.4
    for sweep in SWEEPS.values():
        layers, history = incremental(problem, sweep, [eps] * 3, rate, gammas=gammas)
        for (old, activities), (new, moved) in itertools.pairwise(history):
            gradient = learning.batch_mean(
                [
                    learning.energy_gradient(old, problem.output, h, gamma)
                    for h, gamma in zip(activities, gammas, strict=True)
                ]
            )
            for before, after, g in zip(old, new, gradient, strict=True):
                change = after.params["kernel"] - before.params["kernel"]
                np.testing.assert_allclose(change, -rate * g["kernel"], atol=1e-14)
            for b, gamma in enumerate(gammas):
                hidden = sweep(
                    *(old, problem.output, activities[b], gamma, 0.0),
                    lambda i, h, g: h - eps * g,
                )
                probabilities = problem.output.link(new[-1].forward(hidden[-2]))
                h_output = (problem.targets[b] + 0.1 * probabilities) / 1.1
                np.testing.assert_allclose(moved[b][-1], h_output, rtol=1e-14)
        assert layers is history[-1][0]


def test_first_incremental_step_is_backprop_of_the_last_layer():
    """All hidden errors are 0 at the start, so only the last layer's weights move."""
    problem = cases.make_problem("dense", "softmax")
    layers, _ = learning.incremental(
        *(problem.layers, problem.output, problem.xs, problem.targets),
        inference.sequential,
        [0.1],
        0.5,
        outputs.full_clamp,
        [1.0] * 3,
        [0.0] * 3,
    )
    gradient = learning.batch_mean(
        [
            learning.backprop_gradient(problem.layers, problem.output, x, y)
            for x, y in zip(problem.xs, problem.targets, strict=True)
        ]
    )
    last = problem.layers[-1].params["kernel"] - 0.5 * gradient[-1]["kernel"]
    np.testing.assert_allclose(layers[-1].params["kernel"], last, rtol=1e-14)
    for layer, old in zip(layers[:-1], problem.layers[:-1], strict=True):
        assert_trees_close(layer.params, old.params, rtol=0, atol=0)


def test_mq_under_a_gradient_of_constant_size():
    """v_b = (v_0 + b a) / (b + 1) while rho_b is the running one, then geometric."""
    # The mean over the pooled entries is 3; the mean of the two means would be 4.
    kernel = np.array([[2.0, -2.0], [2.0, -2.0]])
    gradient = {"kernel": kernel, "bias": np.array([7.0])}
    a, alpha, rho = 3.0, 0.5, 0.8
    optimizer = mq.MQ(lambda b, i: alpha, 1, rho=rho, alpha_min=0.01, r=0.1)
    v = alpha
    for b in range(7):
        assert np.isclose(optimizer.v[0], v, rtol=1e-14)
        (update,) = optimizer.update([gradient])
        step = alpha / (v + 0.1) + 0.01
        np.testing.assert_allclose(update["bias"], [-7 * step], rtol=1e-14)
        np.testing.assert_allclose(update["kernel"], -step * kernel, rtol=1e-14)
        # rho = .8 takes over at b + 2 = 5, where both rules agree.
        v = (alpha + (b + 1) * a) / (b + 2) if b < 4 else rho * v + (1 - rho) * a
    assert optimizer.b == 7


def test_mq_keeps_one_scale_per_layer():
    optimizer = mq.MQ(lambda b, i: [0.1, 10.0][i] / (1 + b), 2)
    gradients = [{"kernel": np.full((2, 2), 1.0)}, {"kernel": np.full(3, 1000.0)}]
    assert optimizer.v == [0.1, 10.0]
    optimizer.update(gradients)
    np.testing.assert_allclose(optimizer.v, [(0.1 + 1) / 2, (10 + 1000) / 2])
    updates = optimizer.update(gradients)
    steps = [0.05 / (0.55 + 1e-6) + 1e-3, 5.0 / (505.0 + 1e-6) + 1e-3]
    np.testing.assert_allclose(updates[0]["kernel"], -steps[0], rtol=1e-14)
    np.testing.assert_allclose(updates[1]["kernel"], -1000 * steps[1], rtol=1e-14)
