"""Both ways to convolve, against sums written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcjax.numerics import convolve

SHAPES = {  # input, kernel, strides; some leave a remainder at the border
    "square": ((2, 7, 7, 3), (3, 3, 3, 4), (2, 2)),
    "remainder": ((2, 8, 9, 2), (3, 5, 2, 3), (2, 3)),
    "overlap": ((1, 6, 5, 2), (4, 2, 2, 3), (1, 1)),
    "whole": ((2, 4, 3, 2), (4, 3, 2, 5), (2, 2)),
}


def by_sums(inputs, kernel, strides):
    height, width = kernel.shape[:2]
    rows = range(0, inputs.shape[1] - height + 1, strides[0])
    columns = range(0, inputs.shape[2] - width + 1, strides[1])
    return np.array(
        [
            [
                np.einsum(
                    "bijc,ijcf->bf", inputs[:, r : r + height, c : c + width], kernel
                )
                for c in columns
            ]
            for r in rows
        ]
    ).transpose(2, 0, 1, 3)


@pytest.mark.parametrize("function", [convolve.by_product, convolve.by_xla])
@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_and_its_gradients(x64, function, shape):
    image, filters, strides = SHAPES[shape]
    rng = np.random.default_rng(0)
    inputs, kernel = rng.normal(size=image), rng.normal(size=filters)
    expected = by_sums(inputs, kernel, strides)
    errors = rng.normal(size=expected.shape)

    @jax.jit
    def both(inputs, kernel, errors):
        outputs, pull = jax.vjp(lambda x, k: function(x, k, strides), inputs, kernel)
        return outputs, pull(errors)

    outputs, (to_inputs, to_kernel) = both(inputs, kernel, errors)
    np.testing.assert_allclose(outputs, expected, rtol=1e-12, atol=1e-12)
    # The map is linear in each argument: <e, C(x', k)> = <C^T e, x'> for any x'.
    other, another = rng.normal(size=image), rng.normal(size=filters)
    np.testing.assert_allclose(
        np.sum(to_inputs * other), np.sum(errors * by_sums(other, kernel, strides))
    )
    np.testing.assert_allclose(
        np.sum(to_kernel * another), np.sum(errors * by_sums(inputs, another, strides))
    )


def test_a_cpu_multiplies_matrices():
    lowered = jax.jit(lambda x, k: convolve.convolve(x, k, (2, 2))).lower(
        jnp.ones((1, 5, 5, 1)), jnp.ones((3, 3, 1, 2))
    )
    assert "convolution" not in lowered.as_text()
