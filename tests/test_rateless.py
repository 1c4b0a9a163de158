"""Inference without a rate: Barzilai-Borwein, Newton-CG, kinks and equilibria."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcjax
from benchmarks import hlo
from pcjax.inference.bb import BBState
from pcjax.inference.curvature import lanczos, largest_curvature
from pcjax.inference.equilibrium import infer_to_equilibrium, linear_equilibrium
from pcjax.inference.kinks import at_kinks
from pcjax.inference.newton_cg import Local, Slope, go_on
from pcjax.networks import linear
from tests import problems, test_error_based, test_graphs
from tests.tiers import thorough

SIZES = (6, 7, 5, 4)
F64 = {"dtype": jnp.float64}
BB = pcjax.barzilai_borwein()


def rest(case, method, **options):
    """`infer_to_equilibrium`, compiled."""
    return jax.jit(
        lambda *arrays: infer_to_equilibrium(case.network, method, *arrays, **options)
    )(*case[1:])


def without_biases(case):
    """Biases of zero: biases of order 1 saturate, and make inference too easy."""
    params = tuple({**theta, "bias": 0 * theta["bias"]} for theta in case.params)
    return case._replace(params=params)


def random_net(count, activation=jnp.tanh, width=32):
    sizes = (width,) * count
    return without_biases(problems.dense_case((*sizes, 10), activation, batch=8, **F64))


def worst(grads, exact):
    """The relative error of the worst layer's weights."""
    return max(
        np.linalg.norm(have["kernel"] - want["kernel"]) / np.linalg.norm(want["kernel"])
        for have, want in zip(grads, exact, strict=True)
    )


# layers: errors of the worst layer after 5, 10, 20 and 40 passes.
TABLE = {
    5: (0.06, 4e-3, 2e-6, 5e-12),
    11: (0.23, 0.08, 2e-3, 1e-5),
    31: (2.8, 0.55, 0.16, 0.02),
}


@pytest.mark.parametrize("count", [5, *thorough([11, 31])])
def test_steps_without_a_rate_reach_the_equilibrium_in_tens_of_passes(x64, count):
    case = random_net(count)
    if count < 31:  # hard targets make inference harder
        case = case._replace(targets=np.eye(10)[: len(case.targets)])
    passes, enough = (5, 10, 20, 40), 150

    def found(params, inputs, targets):
        states = pcjax.infer(
            case.network,
            pcjax.error_based(enough, BB),
            params,
            inputs,
            targets,
            output=pcjax.softmax,
            trace=lambda state: state.activities,
        ).trace
        chosen = jax.tree.map(lambda x: x[jnp.array([*passes, enough])], states)
        return jax.lax.map(
            lambda activities: pcjax.local_gradients(
                case.network, params, activities, output=pcjax.softmax
            ),
            chosen,
        )

    rows = jax.jit(found)(*case[1:])
    exact = jax.tree.map(lambda g: g[-1], rows)
    for index, bound in enumerate(TABLE[count]):
        row = jax.tree.map(lambda g, i=index: g[i], rows)
        assert worst(row, exact) <= 1.5 * bound
    bp = pcjax.backprop.value_and_grad(case.network, output=pcjax.softmax)
    _, others = jax.jit(bp)(*case[1:])
    cosine = min(
        np.cos(problems.angle(*pair)) for pair in zip(exact, others, strict=True)
    )
    assert cosine < 0.9  # what it goes to is not backprop


def hand_rolled(case, num_steps, kind):
    """The rule by autodiff of `E(e)` or `F(h)`."""
    hidden = jax.jit(lambda: pcjax.feedforward(*case[:3])[:-1])()

    def energy(place):
        if kind is pcjax.error_based:
            return test_error_based.energy_of_errors(case, place, pcjax.softmax)
        activities = (case.inputs, *place, case.targets)
        return jnp.sum(pcjax.free_energy(*case[:2], activities, output=pcjax.softmax))

    @jax.jit
    def look(place, direction):
        return jax.jvp(jax.grad(energy), (place,), (direction,))

    def inner(one, other):
        return sum((a * b).sum(1) for a, b in zip(one, other, strict=True))

    hidden = list(map(np.asarray, hidden))
    place = [0 * h for h in hidden] if kind is pcjax.error_based else hidden
    step = moves = old = None
    for _ in range(num_steps):
        slopes = [np.asarray(g) for g in look(place, place)[0]]
        if step is None:
            along = [np.asarray(g) for g in look(place, slopes)[1]]
            step = inner(slopes, slopes) / inner(slopes, along)
        else:
            change = [new - was for new, was in zip(slopes, old, strict=True)]
            product = inner(moves, change)
            square = inner(change, change)
            bound = np.sqrt(inner(moves, moves) / square)
            step = np.where(product > 0, product / square, bound)
        step = np.clip(step, 1e-4, 1.0)
        moves = [-step[:, None] * g for g in slopes]
        place = [v + d for v, d in zip(place, moves, strict=True)]
        old = slopes
    return place


@pytest.mark.parametrize("kind", [pcjax.error_based, pcjax.simultaneous])
def test_iterations_are_those_of_the_rule(x64, kind):
    case = problems.dense_case(SIZES, **F64)
    method = kind(6, BB)
    state = pcjax.infer(case.network, method, *case[1:], output=pcjax.softmax).state
    have = state.errors[:-1] if kind is pcjax.error_based else state.activities[1:-1]
    test_graphs.assert_close(have, hand_rolled(case, 6, kind))


def test_linear_networks_rest_at_the_closed_form(x64):
    case = test_error_based.linear_case()
    exact = jax.jit(partial(linear_equilibrium, case.network))(*case[1:])
    method = pcjax.error_based(100, BB)
    found = rest(case, method, tolerance=1e-11)
    assert found.converged.all()
    assert not found.kinks.any()
    assert (found.num_steps < method.num_steps).all()
    np.testing.assert_array_equal(found.passes, found.num_steps + 2)
    np.testing.assert_allclose(found.energy, exact.energy, rtol=1e-10)
    np.testing.assert_allclose(found.initial_energy, exact.initial_energy)
    hidden = (x.state.activities[1:-1] for x in (found, exact))
    problems.assert_trees_close(*hidden, rtol=1e-9, atol=1e-10)
    assert (exact.energy < exact.initial_energy).all()


@pytest.mark.parametrize("name", ["dense", *thorough(["residual"])])
def test_newton_goes_on_with_what_has_not_converged(x64, name):
    if name == "dense":
        case = problems.dense_case((6, 5, 4), **F64)
    else:
        case = test_graphs.case_of(name, **F64)
    options = {"output": pcjax.softmax, "gamma": 0.7, "tolerance": 1e-10}
    few = pcjax.error_based(2, BB)
    left = rest(case, few, **options)
    assert not left.converged.any()
    fallback = pcjax.newton_cg(20)
    found = rest(case, few, fallback=fallback, **options)
    assert found.converged.all()
    assert (found.passes > left.passes).all()
    assert (found.energy < left.energy).all()
    known = rest(case, pcjax.error_based(300, BB), **options)
    hidden = (x.state.activities[1:-1] for x in (found, known))
    problems.assert_trees_close(*hidden, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("output", ["softmax", *thorough(["identity"])])
def test_newton_descends_what_inference_follows(x64, output):
    """A clamp that gives way has another energy than the free energy of its targets."""
    case = problems.dense_case(SIZES, jnp.tanh, **F64)
    options = {
        "output": problems.OUTPUTS[output],
        "clamp": pcjax.soft_clamp(0.5),
        "tolerance": 1e-9,
    }
    newton = pcjax.newton_cg()
    found = rest(case, pcjax.error_based(1, BB), fallback=newton, **options)
    known = rest(case, pcjax.error_based(400, BB), **options)
    assert found.converged.all()
    assert not found.kinks.any()
    hidden = (x.state.activities[1:-1] for x in (found, known))
    problems.assert_trees_close(*hidden, rtol=1e-7, atol=1e-7)


def test_newton_is_refused_where_there_is_no_energy_to_lower():
    case = problems.dense_case((6, 7, 5))
    gamma = {"gamma": lambda activities, errors: 1.0}
    with pytest.raises(ValueError, match="fallback: expected gamma and decay that are"):
        rest(case, pcjax.error_based(2, BB), fallback=pcjax.newton_cg(), **gamma)
    assert rest(case, pcjax.error_based(2, BB), **gamma).kinks is None


def test_fallback_leaves_those_that_have_converged(x64):
    case = problems.dense_case((6, 7, 5), linear, **F64)
    found = rest(
        case,
        pcjax.error_based(100, BB),
        tolerance=1e-9,
        fallback=pcjax.newton_cg(),
    )
    np.testing.assert_array_equal(found.passes, found.num_steps + 2)


def test_kinks_are_told_from_too_few_passes(x64):
    relu, smooth = random_net(5, jax.nn.relu), random_net(2, jnp.tanh)
    scaled = jax.tree.map(lambda w: jnp.asarray(1.4 * np.asarray(w)), relu.params)
    relu = relu._replace(params=scaled, targets=3 * relu.targets)
    at_kinks = rest(relu, pcjax.error_based(300, BB), tolerance=1e-9)
    assert at_kinks.kinks.any()
    # What is near enough has converged, kink or none.
    some = rest(relu, pcjax.error_based(300, BB), tolerance=0.02)
    assert some.kinks.any()
    assert some.converged.any()
    assert not (some.kinks & some.converged).any()
    too_few = rest(smooth, pcjax.error_based(4, BB), tolerance=1e-9)
    assert not too_few.converged.any()
    assert not too_few.kinks.any()


def test_gradients_at_equilibrium_are_those_of_the_free_energy_there(x64):
    case = problems.dense_case(SIZES, **F64)
    options = {"output": pcjax.softmax, "gamma": 0.7, "decay": 0.1}
    method = pcjax.error_based(200, BB)
    grad_fn = pcjax.at_equilibrium.value_and_grad(
        case.network, method, tolerance=1e-9, **options
    )
    (energy, info), grads = jax.jit(grad_fn)(*case[1:])
    found = info.equilibrium
    assert found.converged.all()
    known = rest(case, method, tolerance=1e-9, **options)
    problems.assert_trees_close(found, known, rtol=1e-7, atol=1e-8)
    del options["decay"]  # which the weights have no part in
    local = partial(pcjax.local_gradients, case.network, **options)
    want = jax.jit(local)(case.params, known.state.activities)
    problems.assert_trees_close(grads, want, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(energy, known.energy.mean(), rtol=1e-9)
    few = pcjax.at_equilibrium.value_and_grad(
        case.network, pcjax.error_based(2, BB), tolerance=1e-9, **options
    )
    assert not jax.jit(few)(*case[1:])[0][1].equilibrium.converged.any()


@pytest.mark.parametrize("product_dtype", [jnp.bfloat16, *thorough([None])])
def test_iterations_make_the_products_of_any_other(product_dtype):
    network = pcjax.mlp([24, 20, 16, 10], product_dtype=product_dtype)
    inputs, targets = (jax.ShapeDtypeStruct((16, n), jnp.float32) for n in (24, 10))
    params = jax.eval_shape(network.init, jax.random.key(0), inputs)

    def count(num_steps):
        grad_fn = pcjax.value_and_grad(network, pcjax.error_based(num_steps, BB))
        lowered = jax.jit(grad_fn).lower(params, inputs, targets)
        return hlo.count(lowered.compile()).dots

    first, third = count(3), count(5)
    assert third - first == 2 * 2 * 2


@pytest.mark.parametrize("kind", [pcjax.error_based, pcjax.simultaneous])
def test_to_see_whether_it_rests_costs_no_products(kind):
    network = pcjax.mlp([24, 20, 16, 12, 10])
    inputs, targets = (jax.ShapeDtypeStruct((16, n), jnp.float32) for n in (24, 10))
    params = jax.eval_shape(network.init, jax.random.key(0), inputs)

    found = partial(infer_to_equilibrium, network, kind(7, 0.1))
    program = jax.jit(found).lower(params, inputs, targets).compile().as_text()
    # The forward pass; the gradients at its activities, in the loop and at the end.
    assert program.count(" dot(") == 4 + 3 * 2 * 3


def test_a_fallback_is_one():
    case = problems.dense_case(SIZES)
    for wrong in (pcjax.newton_cg, True):
        with pytest.raises(TypeError, match=r"fallback must be None or pcjax\.newton"):
            rest(case, pcjax.error_based(2, BB), fallback=wrong)


def test_weights_that_are_functions_have_no_curvature():
    case = problems.dense_case(SIZES)
    for name in ("gamma", "decay"):
        with pytest.raises(ValueError, match="expected gamma and decay that are no f"):
            pcjax.largest_curvature(
                case.network,
                pcjax.error_based(1, 0.1),
                *case[1:],
                **{name: lambda activities, errors: 1.0},
            )


def test_a_curvature_below_zero_is_found_where_lanczos_ends_early():
    def times(vector):
        return tuple(-3.0 * v for v in vector)

    start = (jnp.array([[1.0], [2.0]]),)
    np.testing.assert_allclose(lanczos(times, start, 4), [-3.0, -3.0], rtol=1e-6)


@pytest.mark.parametrize("name", ["conv", *thorough(["tanh", "linen", "nnx"])])
def test_curvature_is_the_largest_eigenvalue_of_the_hessian(x64, name):
    case = problems.network_case(name, **F64)
    shapes = jax.eval_shape(lambda: pcjax.feedforward(*case[:3])[:-1])
    errors = [np.zeros(h.shape) for h in shapes]

    def energy(errors):
        return test_error_based.energy_of_errors(case, errors, pcjax.softmax)

    sizes = [e[0].size for e in errors]
    flat = np.zeros(sum(sizes))

    def of_first(flat):
        firsts = jnp.split(flat, np.cumsum(sizes)[:-1])
        parts = [
            jnp.concatenate([part.reshape(1, *e.shape[1:]), e[1:]])
            for part, e in zip(firsts, errors, strict=True)
        ]
        return energy(parts)

    exact = np.linalg.eigvalsh(jax.jit(jax.hessian(of_first))(flat))[-1]
    found = largest_curvature(
        case.network,
        pcjax.error_based(1, 0.0),
        *case[1:],
        output=pcjax.softmax,
        num_products=min(40, flat.size),
    )
    np.testing.assert_allclose(found[0], exact, rtol=1e-6)


def test_bad_rules_are_refused():
    case = problems.dense_case()
    with pytest.raises(ValueError, match="expected 0 < smallest <= largest"):
        pcjax.barzilai_borwein(smallest=2.0)
    with pytest.raises(TypeError, match="step_size must hold real numbers, got Barzil"):
        pcjax.sequential(3, BB)
    with pytest.raises(ValueError, match="num_steps must be an int >= 1, got 0"):
        pcjax.error_based(0, BB)
    with pytest.raises(ValueError, match="cg_steps must be an int >= 1, got 0"):
        pcjax.newton_cg(cg_steps=0)
    with pytest.raises(ValueError, match="num_products must be an int >= 1"):
        largest_curvature(
            case.network, pcjax.error_based(1, 0.1), *case[1:], num_products=0
        )


def test_curvature_is_that_of_weights_and_clamp(x64):
    """The Jacobian of the slopes that inference itself descends."""
    case = problems.dense_case((3, 4, 2), **F64)
    options = {
        "output": pcjax.softmax,
        "clamp": pcjax.soft_clamp(0.5),
        "gamma": (2.0, 0.7),
        "decay": 0.3,
    }
    batch = case.params, case.inputs[:1], case.targets[:1]

    def slopes(h):
        state = pcjax.infer(
            case.network,
            pcjax.simultaneous(1, 1.0),
            *batch,
            hidden=(h[None],),
            **options,
        ).state
        return h - state.activities[1][0]

    start = jax.jit(partial(pcjax.feedforward, case.network))(*batch[:2])[0][0]
    exact = np.linalg.eigvalsh(jax.jit(jax.jacfwd(slopes))(start))[-1]
    found = largest_curvature(
        case.network, pcjax.simultaneous(1, 0.1), *batch, num_products=4, **options
    )
    np.testing.assert_allclose(found, [exact], rtol=1e-8)


def test_steps_where_the_curvature_is_not_positive():
    rule = pcjax.barzilai_borwein(smallest=0.01, largest=1.0)
    slopes = (np.array([[0.3, 0.4]] * 4, np.float32),)
    rows = [[-3.0, -4.0], [0.0, 0.0], [0.03, 0.04], [600.0, 800.0]]
    product = (np.array(rows, np.float32),)
    # ||g|| / ||Hg||, g.g / g.Hg, and what the bounds leave of it.
    found = jax.jit(rule.first)(slopes, product)
    np.testing.assert_allclose(found, [0.1, 0.5, 1.0, 0.01])
    step = np.full(4, 0.4, np.float32)
    moves = (np.array([[1], [1], [1], [0]], np.float32),)
    old = (np.array([[0], [0], [3], [0]], np.float32),)
    now = (np.array([[4], [-8], [3], [2]], np.float32),)
    # <dv, dg> / <dg, dg>; ||dv|| / ||dg|| where that is negative; where nothing has
    # moved, or nothing has changed, the last.
    found = jax.jit(rule.next)(BBState(moves, old, step), now)
    np.testing.assert_allclose(found, [0.25, 0.125, 0.4, 0.4])


def local_of(energy, exact=True):
    """What Newton-CG asks of `energy: [n] -> number`."""
    slope = jax.vmap(jax.grad(energy))

    def linearised(errors):
        slopes, times = jax.linearize(slope, errors[0])
        return Slope(
            jax.vmap(energy)(errors[0]),
            (slopes,),
            lambda along: (times(along[0]),),
            jnp.linalg.norm(slopes, axis=1) < 1e-9,
        )

    def ahead(errors):
        here = linearised(errors)
        return here.energy, here.slopes

    return Local(linearised, ahead, exact)


def test_newton_leaves_what_is_no_minimum_and_counts_its_passes(x64):
    """`x^2/2 - y^2/2 + y^4/4` has minima at y = 1 and -1; there H is diag(1, 2)."""

    def energy(v):
        return v[0] ** 2 / 2 - v[1] ** 2 / 2 + v[1] ** 4 / 4

    local = local_of(energy)
    start = np.array([[0.0, 0.1], [0.1, -0.2], [0.0, 1.0]])

    def run(num_steps):
        newton = pcjax.newton_cg(num_steps)
        return jax.jit(lambda start: go_on(newton, local, (start,)))(start)

    (found,), passes = run(30)
    np.testing.assert_allclose(found, [[0, 1], [0, -1], [0, 1]], atol=1e-8)
    assert passes[2] == 0
    # One step: the gradients before and in it, a product, which is two, and one more
    # gradient where it leads.
    _, passes = run(1)
    np.testing.assert_array_equal(passes, [5, 5, 0])


def test_newton_goes_downhill_where_nothing_curves(x64):
    """`v^2/2` up to 1 and straight from there, so that H is 0 at first."""
    local = local_of(lambda v: optax.huber_loss(v[0]))
    newton, start = pcjax.newton_cg(5), np.array([[2.5]])
    (found,), _ = jax.jit(lambda start: go_on(newton, local, (start,)))(start)
    np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize("exact", [True, False])
def test_newton_takes_no_step_that_leads_uphill(x64, exact):
    """Newton's whole steps on `sqrt(1 + v^2)` lead from v to -v^3."""
    local = local_of(lambda v: jnp.sqrt(1 + v[0] ** 2), exact=exact)
    newton, start = pcjax.newton_cg(8), np.array([[2.0], [-5.0]])
    (found,), _ = jax.jit(lambda start: go_on(newton, local, (start,)))(start)
    np.testing.assert_allclose(found, 0, atol=1e-8)


def test_newton_goes_on_below_the_rounding_of_the_energy():
    local = local_of(lambda v: 1e6 + v[0] ** 2 / 2)
    newton, start = pcjax.newton_cg(5), np.array([[0.1]], np.float32)
    (found,), passes = jax.jit(lambda start: go_on(newton, local, (start,)))(start)
    np.testing.assert_array_equal(found, 0)
    # It has arrived after one step, and no more are counted.
    np.testing.assert_array_equal(passes, [5])


def test_newton_sees_a_rise_between_two_slopes_that_do_not(x64):
    """`v^2/2`, and 5 higher below 1 than above 2: the whole step goes from 2.5 to 0."""

    def energy(v):
        return v[0] ** 2 / 2 + 5 * jnp.clip(2 - v[0], 0, 1)

    newton, start = pcjax.newton_cg(1), np.array([[2.5]])
    local = local_of(energy)
    (found,), _ = jax.jit(lambda start: go_on(newton, local, (start,)))(start)
    np.testing.assert_array_equal(found, 2.5 * 3 / 4)


def test_it_is_at_a_kink_if_no_step_gains_though_little_was_promised():
    """`|v| + rest`, with a promise of 1/2 by a step of 1."""

    @jax.jit
    def kinks(rest, start):
        local = local_of(lambda v: jnp.abs(v[0]) + rest)
        place = (jnp.full((1, 1), start),)
        here = local.linearised(place)
        steep = local._replace(
            linearised=lambda errors: here._replace(times=lambda along: along)
        )
        return at_kinks(steep, place)

    assert kinks(100.0, 0.05)
    assert not kinks(1.0, 0.05)  # half of the energy: not at rest, kink or none
    assert not kinks(1e6, 0.05)  # below the rounding of the energy nothing can be told
    assert not kinks(100.0, 0.5)  # half a step leads to the kink, and gains all


def test_curved_nets_after_a_few_passes_are_not_at_kinks():
    network = pcjax.mlp([8, 16, 16, 16, 5], jnp.tanh)
    case = problems.make(network, (8,), batch=128)
    steep = jax.tree.map(lambda w: jnp.asarray(3 * np.asarray(w)), case.params)
    case = case._replace(params=steep, targets=jnp.eye(5)[jnp.arange(128) % 5])
    found = rest(case, pcjax.error_based(8, BB), output=pcjax.softmax, tolerance=1e-5)
    assert not found.converged.all()
    assert not found.kinks.any()


def test_newton_keeps_what_no_step_of_it_lowers():
    """Also where the direction overflows."""
    local = local_of(lambda v: 10 * jnp.abs(v[0]))

    def steep(errors):
        here = local.linearised(errors)
        return here._replace(times=lambda along: (2e-38 * along[0],))

    start = np.array([[1e-30]], np.float32)
    (found,), _ = jax.jit(
        lambda start: go_on(
            pcjax.newton_cg(3), local._replace(linearised=steep), (start,)
        )
    )(start)
    np.testing.assert_array_equal(found, start)
