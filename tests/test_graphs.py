"""Networks whose layers read several activities, against plain NumPy loops."""

from functools import partial
from itertools import product

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from benchmarks import hlo
from pcjax import training
from pcjax.inference.equilibrium import infer_to_equilibrium, linear_equilibrium
from pcjax.inference.kernel import _stages
from pcjax.networks import linear
from tests import problems
from tests.tiers import thorough

F64 = {"dtype": jnp.float64}

# Who reads what: a skip over two layers, several readers of one activity, the input
# read again, and a random one.
GRAPHS = {
    "chain": ((0,), (1,), (2,), (3,)),
    "residual": ((0,), (1,), (2, 1), (3,), (4, 3, 1)),
    "input again": ((0,), (1, 0), (1,), (3, 2, 0)),
    "branches": ((0,), (0,), (1,), (2, 1), (3, 4), (5, 1)),
}


def network_of(name, activation=jnp.tanh, width=4, **options):
    """Sums of dense layers; the input is read without an activation function."""
    reads = GRAPHS[name]
    layers = []
    for index, read in enumerate(reads):
        size = 3 if index == len(reads) - 1 else width + index % 2
        parts = [
            pcjax.dense(size, activation if i else linear, **options) for i in read
        ]
        layers.append(parts[0] if len(parts) == 1 else pcjax.add(*parts))
    return pcjax.Network(layers, reads)


def case_of(name, activation=jnp.tanh, **kwargs):
    return problems.make(network_of(name, activation), (5,), **kwargs)


class Oracle:
    """A network of `network_of` in NumPy: eqs. 1, 2 and 4 edge by edge."""

    def __init__(self, case, reads, activation="tanh", gamma=1.0, decay=0.0):
        arrays = jax.tree.map(np.asarray, case[1:])
        params, self.x, self.y = arrays
        self.reads, self.count = reads, len(reads)
        self.parts = [
            (theta,) if len(read) == 1 else theta
            for theta, read in zip(params, reads, strict=True)
        ]
        self.f, self.slope = {
            "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
            "linear": (lambda x: x, np.ones_like),
        }[activation]
        self.gamma, self.decay = gamma, decay

    def of(self, i, h):
        return self.f(h) if i else h

    def predict(self, layer, h):
        pairs = zip(self.reads[layer], self.parts[layer], strict=True)
        return sum(self.of(i, h[i]) @ p["kernel"] + p["bias"] for i, p in pairs)

    def start(self):
        h = [self.x]
        for layer in range(self.count - 1):
            h.append(self.predict(layer, h))
        return h

    def errors(self, h):
        logits = self.predict(self.count - 1, h)
        hidden = [h[i] - self.predict(i - 1, h) for i in range(1, self.count)]
        weights = np.exp(logits - logits.max(1, keepdims=True))
        return [None, *hidden, self.y - weights / weights.sum(1, keepdims=True)]

    def weigh(self, i, e):
        return e if i == self.count else self.gamma * e

    def gradient(self, i, h, e):
        total = self.weigh(i, e[i]) + self.decay * self.slope(h[i]) * self.f(h[i])
        for layer, read in enumerate(self.reads):
            for j, p in zip(read, self.parts[layer], strict=True):
                if j == i:
                    pulled = self.weigh(layer + 1, e[layer + 1]) @ p["kernel"].T
                    total = total - self.slope(h[i]) * pulled
        return total

    def infer(self, kind, num_steps, eps):
        h = self.start()
        for _ in range(num_steps):
            e = self.errors(h)
            moved = list(h)
            for i in range(self.count - 1, 0, -1):
                move = -eps * self.gradient(i, h, e)
                moved[i] = h[i] + move
                if kind == "sequential":
                    e[i] = e[i] + move
            h = moved
        return h

    def gradients(self, h, parts=None):
        """Weight gradients, part by part."""
        e, batch = self.errors(h), len(self.x)
        return [
            [
                {
                    "bias": -self.weigh(layer + 1, e[layer + 1]).sum(0) / batch,
                    "kernel": -self.of(i, h[i]).T
                    @ self.weigh(layer + 1, e[layer + 1])
                    / batch,
                }
                for i in read
            ]
            for layer, read in enumerate(self.reads)
        ]


def crossed(quick, *values):
    """The cases of a parametrised test: `quick`, and all others as thorough ones."""
    others = [case for case in product(*values) if case not in quick]
    return [*quick, *thorough(others)]


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(x)) for x in jax.tree.leaves(tree)])


def assert_close(have, want, start=None):
    """To 1e-10 of the change, which may be small beside the values."""
    have, want = flat(have), flat(want)
    base = 0 if start is None else flat(start)
    scale = np.abs(want - base).max()
    np.testing.assert_allclose(have - base, want - base, rtol=0, atol=1e-10 * scale)


@pytest.mark.parametrize(
    ("name", "kind", "num_steps"),
    crossed(
        [
            ("branches", "simultaneous", 4),
            ("branches", "sequential", 4),
            ("residual", "simultaneous", 1),
            ("input again", "sequential", 1),
        ],
        *(GRAPHS, problems.METHODS, [1, 4]),
    ),
)
def test_inference_and_learning_are_those_of_plain_loops(x64, name, kind, num_steps):
    case = case_of(name, **F64)
    weights = {"gamma": 0.7, "decay": 0.2} if num_steps == 4 else {}
    oracle = Oracle(case, GRAPHS[name], **weights)
    method = problems.METHODS[kind](num_steps, 0.1)
    options = {"output": pcjax.softmax, **weights}
    grad_fn = pcjax.value_and_grad(case.network, method, **options)
    gamma = {"gamma": weights.get("gamma", 1.0)}

    @jax.jit
    def run(params, inputs, targets):
        (energy, info), grads = grad_fn(params, inputs, targets)
        of = case.network, params, info.state.activities
        local = pcjax.local_gradients(*of, output=pcjax.softmax, **gamma)
        return energy, info.state, grads, pcjax.free_energy(*of, **options), local

    energy, state, grads, want, local = run(*case[1:])
    h = oracle.infer(kind, num_steps, 0.1)
    assert_close(state.activities[1:-1], h[1:], oracle.start()[1:])
    assert_close(state.errors, oracle.errors(h)[1:])
    assert_close(grads, oracle.gradients(h))
    np.testing.assert_allclose(energy, want.mean(), rtol=1e-12)
    assert_close(grads, local)


def test_the_energy_of_a_graph_is_the_sum_over_its_nodes(x64):
    case = case_of("residual", **F64)
    oracle = Oracle(case, GRAPHS["residual"])
    h = oracle.infer("sequential", 2, 0.3)
    energies = partial(
        pcjax.free_energy_per_layer, case.network, output=pcjax.softmax, decay=0.3
    )
    terms = jax.jit(energies)(case.params, [*h, case.targets])
    e = oracle.errors(h)
    for i in range(1, oracle.count):
        want = 0.5 * (e[i] ** 2).sum(1) + 0.15 * (np.tanh(h[i]) ** 2).sum(1)
        np.testing.assert_allclose(terms[i - 1], want, rtol=1e-12)


def test_the_decay_is_of_the_function_that_an_activity_is_read_through(x64):
    # h_1 is the second that its reader reads, h_2 the first.
    reads = ((0,), (0, 1), (2, 0))
    parts = [pcjax.dense(4, jnp.tanh if i else linear) for i in (0, 1)]
    layers = pcjax.dense(4), pcjax.add(*parts), pcjax.add(*parts[::-1])
    case = problems.make(pcjax.Network(layers, reads), (5,), **F64)
    oracle = Oracle(case, reads, decay=0.7)
    options = {"output": pcjax.softmax, "decay": 0.7}

    @jax.jit
    def run(params, inputs, targets):
        method = pcjax.sequential(2, 0.3)
        h = pcjax.infer(case.network, method, params, inputs, targets, **options)
        of = partial(pcjax.free_energy_per_layer, case.network, params, **options)
        activities = h.state.activities
        return activities, of(activities), jax.grad(lambda h: of(h).sum())(activities)

    activities, terms, slopes = run(*case[1:])
    h = oracle.infer("sequential", 2, 0.3)
    e = oracle.errors(h)
    assert_close(activities[1:-1], h[1:], oracle.start()[1:])
    for i in (1, 2):
        want = 0.5 * (e[i] ** 2).sum(1) + 0.35 * (np.tanh(h[i]) ** 2).sum(1)
        np.testing.assert_allclose(terms[i - 1], want, rtol=1e-12)
        assert_close(slopes[i], oracle.gradient(i, h, e))


def test_the_decay_is_of_the_first_layer_that_reads_an_activity():
    end = pcjax.add(pcjax.dense(3, jax.nn.relu), pcjax.skip())
    layers = pcjax.dense(3), pcjax.dense(3, jnp.tanh), end
    network = pcjax.Network(layers, ((0,), (1,), (2, 1)))
    assert network.activation(1) is jnp.tanh
    assert network.activation(2) is jax.nn.relu


@pytest.mark.parametrize("kind", problems.METHODS)
def test_incremental_steps_of_weights_and_activities(x64, kind):
    case = case_of("residual", **F64)
    tx, num_steps = optax.sgd(0.1), 3
    update = pcjax.incremental(
        case.network, problems.METHODS[kind](num_steps, 0.2), tx, output=pcjax.softmax
    )
    params, _, _ = jax.jit(update)(case.params, tx.init(case.params), *case[2:])
    oracle = Oracle(case, GRAPHS["residual"])
    h = oracle.start()
    for _ in range(num_steps):
        e, moved = oracle.errors(h), list(h)
        grads = oracle.gradients(h)
        for i in range(oracle.count - 1, 0, -1):
            move = -0.2 * oracle.gradient(i, h, e)
            moved[i] = h[i] + move
            if kind == "sequential":
                e[i] = e[i] + move
        h = moved
        oracle.parts = [
            [{k: p[k] - 0.1 * g[k] for k in p} for p, g in zip(*pair, strict=True)]
            for pair in zip(oracle.parts, grads, strict=True)
        ]
    assert_close(params, oracle.parts, case.params)


def test_a_chain_given_as_a_graph_is_the_chain():
    chain = pcjax.mlp([5, 4, 4, 3])
    assert chain.is_chain
    assert pcjax.Network(chain.layers, ((0,), (1,), (2,))) == chain
    assert not network_of("residual").is_chain


@pytest.mark.parametrize("kind", ["sequential", *thorough(["simultaneous"])])
def test_the_order_of_independent_nodes_does_not_matter(x64, kind):
    # Layers 1 and 2 read the same; h_2 and h_3 change places.
    one, two = pcjax.dense(4, jnp.tanh), pcjax.dense(4, jax.nn.relu)
    end = pcjax.add(pcjax.dense(3), pcjax.dense(3, jnp.tanh))
    first = problems.make(
        pcjax.Network((pcjax.dense(4), one, two, end), ((0,), (1,), (1,), (2, 3))),
        (5,),
        **F64,
    )
    a, b, c, d = first.params
    swapped = pcjax.Network((pcjax.dense(4), two, one, end), ((0,), (1,), (1,), (3, 2)))
    method = problems.METHODS[kind](3, 0.2)
    results = [
        pcjax.value_and_grad(network, method, output=pcjax.softmax)(params, *first[2:])
        for network, params in (
            (first.network, first.params),
            (swapped, (a, c, b, d)),
        )
    ]
    (value, grads), (other, moved) = results
    np.testing.assert_allclose(value[0], other[0], rtol=1e-12)
    assert_close(grads, (moved[0], moved[2], moved[1], moved[3]))


def _products(network, method):
    inputs, targets = (jax.ShapeDtypeStruct((16, n), jnp.float32) for n in (12, 3))
    params = jax.eval_shape(network.init, jax.random.key(0), inputs)
    tx = optax.sgd(0.1)
    grad_fn = pcjax.value_and_grad(network, method, output=pcjax.softmax)
    update = training.make_update(grad_fn, tx)
    opt_state = jax.eval_shape(tx.init, params)
    lowered = jax.jit(update).lower(params, opt_state, inputs, targets)
    return hlo.count(lowered.compile()).dots


def edges_of(name):
    return [(i, layer) for layer, read in enumerate(GRAPHS[name]) for i in read]


@pytest.mark.parametrize(
    ("name", "num_steps", "product_dtype"),
    crossed(
        [("branches", 3, jnp.bfloat16), ("residual", 1, None)],
        *(GRAPHS, [1, 3], [None, jnp.bfloat16]),
    ),
)
def test_sequential_inference_multiplies_every_hidden_edge_twice(
    name, num_steps, product_dtype
):
    network = network_of(name, jax.nn.relu, width=8, product_dtype=product_dtype)
    edges = edges_of(name)
    hidden = [edge for edge in edges if edge[0]]
    # One product forward and one weight gradient of every edge; a change and a pull of
    # every edge from a hidden activity in every iteration.
    want = 2 * len(edges) + 2 * num_steps * len(hidden)
    assert _products(network, pcjax.sequential(num_steps, 0.05)) == want


@pytest.mark.parametrize(
    ("name", "num_steps"),
    crossed(
        [("branches", 5), ("residual", 2), ("input again", 1), ("chain", 12)],
        *(GRAPHS, [1, 2, 5, 12]),
    ),
)
def test_simultaneous_inference_leaves_out_what_no_error_has_reached(name, num_steps):
    edges, count = edges_of(name), len(GRAPHS[name])
    # By hand: who has moved, whose error is not zero, edge by edge.
    moved, products = set(), 2 * len(edges)
    for _ in range(num_steps):
        live = {count} | moved | {k + 1 for i, k in edges if i in moved}
        pulls = {(i, k) for i, k in edges if i and k + 1 in live}
        products += len(pulls)
        moved |= {i for i, _ in pulls} | (live - {count})
        products += len([1 for i, _ in edges if i in moved])
    found = _products(
        network_of(name, jax.nn.relu, width=8), pcjax.simultaneous(num_steps, 0.05)
    )
    assert found == products


def test_the_front_of_a_chain_of_many_layers_moves_in_stages():
    """They leave out most of the products of zeros, and nothing else."""
    count = 14
    case = problems.dense_case([8] * count + [3], batch=4)
    method, every = pcjax.simultaneous(20, 0.3), 2 * count + 2 * 20 * (count - 1)
    grad_fn = pcjax.value_and_grad(case.network, method)
    compiled = jax.jit(grad_fn).lower(*case[1:]).compile()
    found, zeros = hlo.count(compiled).dots, (count - 1) * (count - 2)
    assert every - zeros <= found < every - 0.8 * zeros
    run = partial(pcjax.infer, case.network, method._replace(delayed=False))
    want = jax.jit(run)(*case[1:]).state.activities
    (_, info), _ = compiled(*case[1:])
    for one, other in zip(info.state.activities, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_eight_iterations_stand_alone_and_the_next_reach_half_as_far_again():
    fronts = list("abcdefghijklmnopqrstuvwxyzABCD")
    stages = [tuple(stage) for stage in _stages(40, fronts, "all")]
    alone = [(t, t + 1, fronts[t]) for t in range(8)]
    later = [(8, 12, "l"), (12, 18, "r"), (18, 27, "A"), (27, 30, "D")]
    assert stages == [*alone, *later, (30, 40, "all")]
    assert [tuple(stage) for stage in _stages(2, fronts, "all")] == alone[:2]


def test_linear_graphs_rest_at_the_closed_form(x64):
    case = case_of("residual", linear, **F64)
    oracle = Oracle(case, GRAPHS["residual"], "linear")
    sizes = [h.shape[1] for h in oracle.start()[1:]]
    splits = np.cumsum(sizes)[:-1]

    def errors(flat_h, example):
        h = [oracle.x[example : example + 1]]
        h += [part[None] for part in np.split(flat_h, splits)]
        logits = oracle.predict(oracle.count - 1, h)
        hidden = [h[i] - oracle.predict(i - 1, h) for i in range(1, oracle.count)]
        return np.concatenate([*hidden, oracle.y[example] - logits], axis=1)[0]

    rest = jax.jit(partial(linear_equilibrium, case.network))(*case[1:])
    assert rest.converged.all()
    without_a_rate = pcjax.error_based(400, pcjax.barzilai_borwein())
    loops = [
        infer_to_equilibrium(case.network, method, *case[1:], tolerance=1e-11)
        for method in (pcjax.sequential(4000, 0.2), without_a_rate)
    ]
    for example in range(len(oracle.x)):
        zero = np.zeros(sum(sizes))
        at_zero = errors(zero, example)
        matrix = np.stack(
            [errors(row, example) - at_zero for row in np.eye(len(zero))], axis=1
        )
        want = np.linalg.lstsq(matrix, -at_zero, rcond=None)[0]
        for found, atol in ((rest, 1e-12), *((loop, 1e-9) for loop in loops)):
            have = np.concatenate(
                [np.asarray(h)[example] for h in found.state.activities[1:-1]]
            )
            np.testing.assert_allclose(have, want, atol=atol)


class Pair(nn.Module):
    """A module that reads two activities."""

    @nn.compact
    def __call__(self, h, skip):
        return nn.Dense(4, param_dtype=h.dtype)(nn.tanh(h) * skip) + skip


def several(name):
    """A network with a layer, of convolutions or a module, that reads two."""
    if name == "conv":
        pair = pcjax.add(
            pcjax.conv(3, (1, 1), (1, 1), activation=jnp.tanh), pcjax.skip()
        )
        below = pcjax.conv(3, (3, 3)), pcjax.conv(3, (1, 1), (1, 1))
    else:
        pair = pcjax.from_linen(Pair())
        below = pcjax.dense(4), pcjax.dense(4, jnp.tanh)
    layers = (*below, pair, pcjax.dense(3))
    shape = (7, 7, 2) if name == "conv" else (5,)
    return problems.make(
        pcjax.Network(layers, ((0,), (1,), (2, 1), (3,))), shape, **F64
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    crossed(
        [("conv", "sequential"), ("linen", "simultaneous")],
        *(["conv", "linen"], problems.METHODS),
    ),
)
def test_modules_and_convolutions_may_read_several_activities(x64, name, kind):
    case = several(name)
    method = problems.METHODS[kind](3, 0.1)
    found = jax.jit(partial(pcjax.infer, case.network, method))(*case[1:])
    want = jax.jit(lambda: descend(case, kind, 3, 0.1))()
    start = found.initial.activities[1:-1]
    assert_close(found.state.activities[1:-1], want, start)


def descend(case, kind, num_steps, eps):
    """Hidden activities by differentiating the free energy, node by node."""
    network, params, inputs, targets = case
    hidden = list(pcjax.feedforward(network, params, inputs)[:-1])
    for _ in range(num_steps):
        old, moved = list(hidden), list(hidden)
        for i in range(len(hidden) - 1, -1, -1):
            # The errors above i are those that the moves just made have left, the
            # predictions those of the old activities.
            def energy(h, i=i, old=old, moved=moved):
                below = [*old[:i], h, *old[i + 1 :]]
                acts = [inputs, *below]
                total = 0.0
                for k, (layer, theta, read) in enumerate(
                    zip(network.layers, params, network.reads, strict=True)
                ):
                    p = layer.apply(theta, *[acts[j] for j in read])
                    if k == len(network.layers) - 1:
                        total += 0.5 * jnp.sum((targets - p) ** 2)
                    else:
                        node = (
                            h if k == i else (moved if kind == "sequential" else old)[k]
                        )
                        total += 0.5 * jnp.sum((node - p) ** 2)
                return total

            moved[i] = old[i] - eps * jax.grad(energy)(old[i])
        hidden = moved
    return hidden


@pytest.mark.parametrize(
    ("layers", "reads", "error", "message"),
    [
        (2, ((0,), (2,)), ValueError, "layer 1 must read .* of 0 to 1"),
        (2, ((0,),), ValueError, "each of the 2 layers"),
        (2, ((0,), ()), ValueError, "layer 1 must read one or more"),
        (2, ((0,), (1, 1)), ValueError, "different activities"),
        (3, ((0,), (1,), (1,)), ValueError, r"hidden activities \[2\] are read by no"),
        (2, ((0,), 1), ValueError, "tuple of ints .* got 1 for 1"),
        (2, "chain", ValueError, "each of the 2 layers, got 'chain'"),
    ],
)
def test_graphs_that_are_none_are_refused(layers, reads, error, message):
    with pytest.raises(error, match=message):
        pcjax.Network((pcjax.dense(3),) * layers, reads)


def test_as_many_functions_as_activities_are_read():
    one = pcjax.dense(3)
    for count, read in ((1, (0,)), (1, (0, 1)), (3, (1, 0))):
        layer = one._replace(activations=(linear,) * count)
        first = (layer,) if len(read) == 1 else (one, layer)
        with pytest.raises(ValueError, match=f"reads .*; got {count} functions"):
            pcjax.Network(first, ((0,), read)[-len(first) :])


def test_sums_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="one layer or more"):
        pcjax.add()
    with pytest.raises(TypeError, match="expected layers, got 3 at 1"):
        pcjax.add(pcjax.skip(), 3)
    key, inputs = jax.random.key(0), jax.ShapeDtypeStruct((2, 4), jnp.float32)
    network = pcjax.Network((pcjax.dense(3), pcjax.add(pcjax.dense(3))), ((0,), (1, 0)))
    with pytest.raises(ValueError, match="1 layers read one activity each, but 2"):
        jax.eval_shape(network.init, key, inputs)
    network = pcjax.Network(
        (pcjax.dense(3), pcjax.add(pcjax.dense(2), pcjax.skip())), ((0,), (1, 0))
    )
    with pytest.raises(ValueError, match=r"same shape, got .*2.*4"):
        jax.eval_shape(network.init, key, inputs)
