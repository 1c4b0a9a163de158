"""Residual nets and muPC: variances, coordinate check, and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from pcjax.networks import Place, linear, parametrised
from tests import problems, test_graphs
from tests.tiers import thorough


def nets(sizes, activation=linear, make=pcjax.residual_mlp):
    return make(sizes, activation, parametrisation=pcjax.mupc)


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_residual_layers_are_what_a_user_would_write(x64):
    """Predictions, inference and gradients of blocks with and without `near`."""
    ours = pcjax.residual_mlp([5, 6, 6, 4], jnp.tanh)
    block = problems.residual()
    plain = pcjax.Network((pcjax.dense(6), block, pcjax.dense(4, jnp.tanh)))
    case = problems.make(ours, (5,), dtype=jnp.float64)
    for method in (pcjax.sequential(3, 0.1), pcjax.error_based(3, 0.1)):
        both = [pcjax.value_and_grad(network, method) for network in (ours, plain)]
        found = jax.jit(lambda *a, both=both: [f(*a) for f in both])(*case[1:])
        ((one, info), grads), ((other, known), want) = found
        np.testing.assert_allclose(one, other, rtol=1e-10)
        test_graphs.assert_close(info.state.errors, known.state.errors)
        test_graphs.assert_close(grads, want)


def _residual_conv(parametrisation):
    """Three convolutions, the second with a skip, and a dense layer."""

    def scaled(layer, index):
        return parametrised(layer, parametrisation(Place(index, 3, skips=True)))

    convs = [
        pcjax.conv(4, (3, 3), (1, 1), activation=f, padding=(1, 1))
        for f in (linear, jnp.tanh)
    ]
    block = pcjax.residual(scaled(convs[1], 1))
    return pcjax.Network((scaled(convs[0], 0), block, scaled(pcjax.dense(3), 2)))


def test_residual_convolutions_of_ones_own_are_scaled(x64):
    scaled, plain = _residual_conv(pcjax.mupc), _residual_conv(lambda place: None)
    case = problems.make(scaled, (5, 4, 2), dtype=jnp.float64)
    factors = (1 / np.sqrt(9 * 2), 1 / np.sqrt(9 * 4 * 3), 1 / (5 * 4 * 4))
    params = tuple(
        {"kernel": a * theta["kernel"], "bias": np.zeros(theta["kernel"].shape[-1])}
        for a, theta in zip(factors, case.params, strict=True)
    )
    method = pcjax.error_based(3, 0.1)
    (one, _), grads = jax.jit(pcjax.value_and_grad(scaled, method))(*case[1:])
    both = jax.jit(pcjax.value_and_grad(plain, method))
    (other, _), want = both(params, *case[2:])
    np.testing.assert_allclose(one, other, rtol=1e-12)
    for a, have, expected in zip(factors, grads, want, strict=True):
        np.testing.assert_allclose(
            have["kernel"], a * expected["kernel"], rtol=1e-9, atol=1e-12
        )


def test_only_layers_of_a_kernel_and_a_bias_are_scaled():
    scaling = pcjax.mupc(Place(0, 2, skips=False))
    black_box = pcjax.Layer(lambda key, x: {}, lambda params, x: x, linear)
    with pytest.raises(TypeError, match=r"of pcjax\.dense or pcjax\.conv, got Layer"):
        parametrised(black_box, scaling)
    other = pcjax.dense(3)._replace(init=lambda key, x: {"weights": jnp.ones((3, 3))})
    with pytest.raises(TypeError, match="expected a layer with a kernel and a bias"):
        parametrised(other, scaling).init(jax.random.key(0), jnp.ones((2, 3)))


@pytest.mark.parametrize("product_dtype", [jnp.bfloat16, *thorough([None])])
def test_scaled_layers_are_those_of_scaled_weights(product_dtype):
    """muPC with weights W is a standard net with weights a W, gradients times a."""
    scaled = pcjax.residual_mlp(
        [9, 16, 16, 4],
        jnp.tanh,
        parametrisation=pcjax.mupc,
        product_dtype=product_dtype,
    )
    plain = pcjax.residual_mlp([9, 16, 16, 4], jnp.tanh, product_dtype=product_dtype)
    case = problems.make(scaled, (9,))
    factors = (1 / 3, 1 / np.sqrt(16 * 3), 1 / 16)
    assert [set(theta) for theta in case.params] == [{"kernel"}] * 3
    params = tuple(
        {"kernel": np.float32(a) * theta["kernel"], "bias": np.zeros(size, "f4")}
        for a, theta, size in zip(factors, case.params, (16, 16, 4), strict=True)
    )
    method = pcjax.sequential(3, 0.1)
    _, grads = jax.jit(pcjax.value_and_grad(scaled, method))(*case[1:])
    _, want = jax.jit(pcjax.value_and_grad(plain, method))(params, *case[2:])
    for a, have, expected in zip(factors, grads, want, strict=True):
        np.testing.assert_allclose(
            have["kernel"], a * expected["kernel"], rtol=2e-3, atol=1e-6
        )
    update = jax.jit(pcjax.incremental(scaled, method, optax.sgd(0.1)))
    moved, *_ = update(case.params, optax.sgd(0.1).init(case.params), *case[2:])
    assert all(
        np.abs(np.subtract(new["kernel"], old["kernel"])).max() > 0
        for new, old in zip(moved, case.params, strict=True)
    )


def first_pass(network, inputs):
    """The feed-forward activities of weights that were just drawn."""
    params = network.init(jax.random.key(0), inputs)
    return jax.jit(lambda *a: pcjax.feedforward(network, *a))(params, inputs)


@pytest.mark.parametrize(
    ("width", "count"), [(512, 8), *thorough([(256, 4), (128, 32)])]
)
def test_variances_of_linear_residual_nets_are_flat(width, count):
    """`E h_l^2 = (1 + 1/L)^(l-1)` for inputs of mean square 1, at every width."""
    network = nets([64, *[width] * (count - 1), 10])
    inputs = normal(64, 64)
    inputs /= np.sqrt(np.mean(inputs**2, axis=1, keepdims=True))
    *hidden, logits = map(np.asarray, first_pass(network, inputs))
    for index, h in enumerate(hidden):
        np.testing.assert_allclose(
            np.mean(h**2), (1 + 1 / count) ** index, rtol=0.25, err_msg=f"{index}"
        )
    # The logits are of order 1/sqrt(N): nothing but what is learned.
    assert 0.4 < np.mean(logits**2) * width / (1 + 1 / count) ** (count - 2) < 2.5


def test_units_of_adam_leave_the_function_as_it_is():
    """depth-muP with weights W / a is muPC with weights W."""
    one, other = (
        pcjax.residual_mlp([9, 16, 16, 4], jnp.tanh, parametrisation=parametrisation)
        for parametrisation in (pcjax.mupc, pcjax.depth_mup)
    )
    inputs = normal(8, 9)

    params, same = (net.init(jax.random.key(0), inputs) for net in (one, other))

    @jax.jit
    def applied(params, same):
        return one.apply(params, inputs), other.apply(same, inputs)

    for net in (one, other):
        halves = net.init(jax.random.key(0), inputs.astype(jnp.bfloat16))
        assert {x.dtype for x in jax.tree.leaves(halves)} == {jnp.dtype("bfloat16")}
    outputs, others = applied(params, same)
    np.testing.assert_allclose(outputs, others, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        same[1]["kernel"], np.sqrt(16 * 3) * np.asarray(params[1]["kernel"]), rtol=1e-6
    )


def test_variances_of_plain_and_conv_nets():
    for network, shape in (
        (nets([100, *[256] * 5, 10], make=pcjax.mlp), (64, 100)),
        (
            pcjax.convnet(
                10,
                features=(64, 64),
                kernel_sizes=(3, 3),
                parametrisation=lambda place: pcjax.mupc(place),
            ),
            (8, 11, 11, 3),
        ),
    ):
        *hidden, _ = map(np.asarray, first_pass(network, normal(*shape)))
        if len(shape) == 2:
            for h in hidden:
                np.testing.assert_allclose(np.mean(h**2), 1.0, rtol=0.35)
        else:  # ReLU halves the mean square of each layer
            np.testing.assert_allclose(np.mean(hidden[0] ** 2), 0.5, rtol=0.2)
            np.testing.assert_allclose(np.mean(hidden[1] ** 2), 0.25, rtol=0.3)


def change_of_logits(network, rate=0.01, shape=(20,)):
    """Mean square of the change of the logits by one step of Adam on the loss."""
    inputs, targets, tx = normal(32, *shape), normal(32, 4, seed=2), optax.adam(rate)
    grad_fn = pcjax.backprop.value_and_grad(network)

    @jax.jit
    def change(params, inputs, targets):
        _, grads = grad_fn(params, inputs, targets)
        updates, _ = tx.update(grads, tx.init(params), params)
        moved = optax.apply_updates(params, updates)
        return network.apply(moved, inputs) - network.apply(params, inputs)

    params = network.init(jax.random.key(0), inputs)
    return np.sqrt(np.mean(np.square(change(params, inputs, targets))))


@pytest.mark.parametrize(
    "shapes",
    [
        [(32, 4), (256, 8)],
        *thorough([[(32, 4), (256, 4), (32, 32)]]),
    ],
    ids=str,
)
def test_one_step_of_adam_changes_the_logits_alike_at_all_sizes(shapes):
    """The coordinate check: 8-fold width and 2- or 8-fold depth change little."""
    scaled, mupc, standard = (
        [
            change_of_logits(
                pcjax.residual_mlp(
                    [20, *[width] * (count - 1), 4],
                    jnp.tanh,
                    parametrisation=parametrisation,
                )
            )
            for width, count in shapes
        ]
        for parametrisation in (pcjax.depth_mup, pcjax.mupc, pcjax.standard)
    )
    assert max(scaled) / min(scaled) < 1.5
    assert max(mupc) / min(mupc) > 2  # as sqrt(N L) in hidden layers
    assert max(standard) / min(standard) > 2


@pytest.mark.parametrize("kind", ["plain", "conv"])
def test_one_step_of_adam_changes_the_logits_alike_at_all_widths(kind):
    """The coordinate check of nets without skips, whose units know no depth."""

    def change(width, parametrisation):
        if kind == "plain":
            sizes = [20, width, width, 4]
            net = pcjax.mlp(sizes, jnp.tanh, parametrisation=parametrisation)
            return change_of_logits(net)
        net = pcjax.convnet(
            4,
            features=(width, width),
            kernel_sizes=(3, 2),
            parametrisation=parametrisation,
        )
        return change_of_logits(net, shape=(6, 6, 1))

    scaled, standard = (
        [change(width, parametrisation) for width in (16, 256)]
        for parametrisation in (pcjax.depth_mup, pcjax.standard)
    )
    assert max(scaled) / min(scaled) < 1.5
    assert max(standard) / min(standard) > 2


def test_parametrisations_are_functions_of_the_place():
    seen = []

    def watching(place):
        seen.append(place)

    pcjax.residual_mlp([3, 4, 4, 2], parametrisation=watching)
    assert seen == [Place(index, 3, True) for index in range(3)]
    seen.clear()
    pcjax.mlp([3, 4, 2], parametrisation=watching)
    assert seen == [Place(0, 2, False), Place(1, 2, False)]

    def zeros_with_bias(place):
        del place
        return pcjax.networks.Scaling(
            lambda key, shape, dtype: jnp.zeros(shape, dtype), lambda n: 1.0, bias=True
        )

    network = pcjax.mlp([3, 4, 2], parametrisation=zeros_with_bias)
    inputs = np.ones((1, 3), np.float32)
    params = network.init(jax.random.key(0), inputs)
    assert [set(theta) for theta in params] == [{"kernel", "bias"}] * 2
    biased = tuple({**theta, "bias": np.add(theta["bias"], 1)} for theta in params)
    np.testing.assert_array_equal(network.apply(biased, inputs), 1)


def test_bad_residual_nets_are_refused():
    with pytest.raises(ValueError, match="the hidden ones all equal, got"):
        pcjax.residual_mlp([3, 4, 5, 2])
    for make in (pcjax.mlp, pcjax.residual_mlp):
        with pytest.raises(TypeError, match="parametrisation must be a function"):
            make([3, 4, 4, 2], parametrisation="mupc")
    with pytest.raises(TypeError, match="parametrisation must be a function"):
        pcjax.convnet(10, parametrisation="mupc")
    with pytest.raises(TypeError, match="residual: expected a layer, got 3"):
        pcjax.residual(3)
    block = pcjax.Network((pcjax.residual(pcjax.dense(4)),))
    with pytest.raises(ValueError, match="a skip needs equal shapes"):
        block.init(jax.random.key(0), jnp.ones((1, 3)))
