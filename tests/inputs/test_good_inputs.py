"""Good inputs, drawn at random, give finite results, each example on its own."""

from functools import partial

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pcjax
from tests.inputs.draws import METHODS, OUTPUTS, make_problem
from tests.tiers import thorough


@st.composite
def good_weights(draw, hidden, batch, output):
    """A weight per example, [layers, B] or less, as `gamma` and `decay` take it."""
    number = st.floats(0.0, 2.0, width=16)
    kind = draw(st.sampled_from(["number", "layers", "examples"]))
    if kind == "number":
        return draw(number)
    count = hidden + (output and draw(st.integers(0, 1)))
    if kind == "layers":
        return draw(st.lists(number, min_size=count, max_size=count))
    values = draw(st.lists(number, min_size=count * batch, max_size=count * batch))
    return np.asarray(values, np.float32).reshape(count, batch)


def of_example(weights, i):
    return weights[:, i : i + 1] if isinstance(weights, np.ndarray) else weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("examples", "fewest", "most"),  # the widths of a net
    [(7, 3, 4), *thorough([(40, 2, 5)])],
)
def test_good_inputs_give_finite_results_of_every_example_on_its_own(
    examples, fewest, most
):
    sizes = st.lists(st.integers(1, 8), min_size=fewest, max_size=most)
    hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        print_blob=False,
    )(hypothesis.given(st.data(), sizes)(check))()


def check(data, sizes):
    batch, hidden = data.draw(st.integers(1, 5)), len(sizes) - 2
    dtype = data.draw(st.sampled_from([jnp.float32, jnp.float32, jnp.bfloat16]))
    p = make_problem(sizes, batch, data.draw(st.integers(0, 9)))
    params, inputs, targets = jax.tree.map(
        lambda x: x.astype(dtype), (p.params, p.inputs, p.targets)
    )
    num_steps = data.draw(st.integers(1, 4))
    method = data.draw(st.sampled_from(METHODS))(
        num_steps, data.draw(st.floats(0.0, 0.25))
    )
    output = data.draw(st.sampled_from(OUTPUTS))
    gamma = data.draw(good_weights(hidden, batch, output=True))
    decay = data.draw(good_weights(hidden, batch, output=False))
    clamp = pcjax.soft_clamp(data.draw(st.floats(0.0, 1.0)))

    def learn(inputs, targets, gamma, decay):
        grad_fn = pcjax.value_and_grad(
            p.network,
            method,
            output=output,
            clamp=clamp,
            gamma=gamma,
            decay=decay,
            trace=lambda state: state.activities,
        )
        return jax.jit(grad_fn)(params, inputs, targets)

    (energy, info), grads = learn(inputs, targets, gamma, decay)
    assert energy.shape == ()
    assert energy.dtype == jnp.promote_types(dtype, jnp.float32)  # a sum
    assert info.energy.shape == info.initial_energy.shape == info.loss.shape == (batch,)
    assert info.logits.shape == targets.shape
    steps = (num_steps + 1, batch)
    assert [h.shape for h in info.trace] == [(*steps, size) for size in sizes]
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    for have, want in zip(jax.tree.leaves(grads), jax.tree.leaves(params), strict=True):
        assert (have.shape, have.dtype) == (want.shape, want.dtype)
    for leaf in jax.tree.leaves((energy, info, grads)):
        assert np.all(np.isfinite(np.asarray(leaf, np.float32)))
    if dtype == jnp.bfloat16:
        return

    i = data.draw(st.integers(0, batch - 1))
    (_, alone), _ = learn(
        inputs[i : i + 1],
        targets[i : i + 1],
        of_example(gamma, i),
        of_example(decay, i),
    )
    for name in ("loss", "logits", "initial_energy", "energy"):
        np.testing.assert_allclose(
            getattr(alone, name)[0], getattr(info, name)[i], rtol=1e-5, atol=1e-5
        )
    for have, want in zip(alone.trace, info.trace, strict=True):
        np.testing.assert_allclose(have[:, 0], want[:, i], rtol=1e-5, atol=1e-5)
    energy_of = partial(
        pcjax.free_energy, p.network, output=output, gamma=gamma, decay=decay
    )
    np.testing.assert_allclose(
        jax.jit(energy_of)(params, [np.asarray(h[-1]) for h in info.trace]),
        info.energy,
        rtol=1e-4,
        atol=1e-5,
    )
