"""Products in a narrower dtype than the activities: bfloat16, for short.

R rounds to bfloat16, which has float32's range but 8 bits of precision in place of 24:
an entry is off by at most 2^-8 of itself. Activities, errors, parameters and
gradients stay in float32, and products are summed in float32. What may be rounded
plainly, and what may not:

- Vector-Jacobian products `R(g) R(w)^T` and weight gradients `R(x)^T R(g)` may. Each
  term of their sums is off by at most 2^-7 of itself, whatever its size.
- The feed-forward pass `R(x) R(w)` may. Activities are counted from what it gives, so
  that hidden errors start at exactly 0.
- Predictions during inference may not. An error is `e = d - (p(h0 + d) - p(h0))`, and
  these two predictions are nearly equal: in early layers d is 1e-5 of the activity or
  less, where `R(f(h0 + d))` either is `R(f(h0))` or is 2^-8 of it away. Nor would two
  bfloat16 numbers for one do, `R(x) + R(x - R(x))`: for twice the work they are good
  for 2^-16 = 1.5e-5 of the activity.

So inference takes the product of the change since the feed-forward pass, in any
precision (`pcjax.numerics.changes`). The change is exact in float32, and rounding it
costs 2^-8 of the change, not of the activity:

    p(h) = p(h0) + R(f(h) - f(h0)) R(w)

It is one product, as before. With respect to `f(h)` and `w` it is differentiated as
`f(h) w`. Every product of an inference uses the same `R(w)`, so that inference
descends the free energy of a nearby network, up to rounding relative to each change:
that of the weights `R(w)`, with the biases of each example off by
`(R(f(h0)) - f(h0)) R(w)`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pcjax.numerics.convolve import by_xla, convolve


class Bilinear(NamedTuple):
    """A product `y = x w`, linear in either, and its transposes.

    Attributes:
      apply: `(x, w, dtype) -> y`; `dtype` is that of the sums and the result, None
        for that of the operands.
      pull_inputs: `(g, w, x.shape, dtype)`, the transposed map from y to x.
      pull_kernel: `(x, g, w.shape, dtype)`, the transposed map from y to w.
    """

    apply: Callable[[jax.Array, jax.Array, Any], jax.Array]
    pull_inputs: Callable[[jax.Array, jax.Array, Sequence[int], Any], jax.Array]
    pull_kernel: Callable[[jax.Array, jax.Array, Sequence[int], Any], jax.Array]


class Product(NamedTuple):
    """A bilinear map as layers use it.

    Attributes:
      apply: `(x, w) -> x w`.
      known: `(x, w, value) -> value`, where value is `x w` from elsewhere, with the
        derivatives of `x w`. Where only these are used, nothing is multiplied.
    """

    apply: Callable[[jax.Array, jax.Array], jax.Array]
    known: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def plain(bilinear: Bilinear) -> Product:
    """The product as it is, without rounding."""

    def apply(x, w):
        return bilinear.apply(x, w, None)

    @jax.custom_jvp
    def known(x, w, value):
        del x, w
        return value

    def differentiate(primals, tangents):
        x, w, value = primals
        along_x, along_w, _ = tangents
        zero = jax.custom_derivatives.SymbolicZero
        parts = []
        if not isinstance(along_x, zero):
            parts.append(apply(along_x, w))
        if not isinstance(along_w, zero):
            parts.append(apply(x, along_w))
        return value, sum(parts) if parts else jnp.zeros_like(value)

    known.defjvp(differentiate, symbolic_zeros=True)
    return Product(apply, known)


def rounded(bilinear: Bilinear, dtype: Any) -> Product:
    """The product `R(x) R(w)` of operands rounded to `dtype`.

    It is differentiated as `x w`, in reverse mode, with its operands and the cotangent
    rounded.

    Args:
      bilinear: the product.
      dtype: a float dtype with the range of float32, which small errors need.

    Returns:
      A product; sums and results have the dtype of x and w.

    Raises:
      TypeError: if `dtype` is no float dtype.
      ValueError: if its range is narrower than float32's.
    """
    try:
        is_float = jnp.issubdtype(dtype, jnp.floating)
    except TypeError:  # no dtype at all
        is_float = False
    if not is_float:
        raise TypeError(f"product_dtype must be a float dtype, got {dtype}.")
    if jnp.finfo(dtype).minexp > jnp.finfo(jnp.float32).minexp:
        raise ValueError(
            "product_dtype must have the range of float32, as bfloat16 has, or small "
            f"errors become zero; got {jnp.dtype(dtype)}."
        )

    @jax.custom_vjp
    def multiply(x, w):
        return save(x, w)[0]

    def save(x, w):
        operands = x.astype(dtype), w.astype(dtype)
        return bilinear.apply(*operands, x.dtype), operands

    def pull(saved, cotangent):
        x, w = saved
        g = cotangent.astype(dtype)
        return (
            bilinear.pull_inputs(g, w, x.shape, cotangent.dtype),
            bilinear.pull_kernel(x, g, w.shape, cotangent.dtype),
        )

    multiply.defvjp(save, pull)

    @jax.custom_vjp
    def with_value(x, w, value):
        return value

    def save_value(x, w, value):
        return value, (x.astype(dtype), w.astype(dtype))

    with_value.defvjp(save_value, lambda saved, g: (*pull(saved, g), None))

    def known(x, w, value):
        # No cotangent goes on to what made the value, not even one of zeros.
        return with_value(x, w, jax.lax.stop_gradient(value))

    def apply(x, w):
        both = jnp.result_type(x, w)
        return multiply(x.astype(both), w.astype(both))

    return Product(apply, known)


def _dot(left: jax.Array, right: jax.Array, axes: tuple[int, int], dtype: Any):
    contracted = ((axes[0],), (axes[1],))
    return jax.lax.dot_general(
        left, right, (contracted, ((), ())), preferred_element_type=dtype
    )


# [B, n] [n, m] -> [B, m]
matmul = Bilinear(
    apply=lambda x, w, dtype: jnp.matmul(x, w, preferred_element_type=dtype),
    pull_inputs=lambda g, w, shape, dtype: _dot(g, w, (1, 1), dtype),
    # The other way round, some versions of XLA have no program for CPUs under vmap.
    pull_kernel=lambda x, g, shape, dtype: _dot(g, x, (0, 0), dtype).T,
)


def convolution(strides: tuple[int, int]) -> Bilinear:
    """The convolution [B, H, W, C] [kh, kw, C, D] -> [B, H', W', D] without padding.

    JAX cannot transpose it if the sums have another dtype than the operands.

    Args:
      strides: vertical and horizontal stride.

    Returns:
      The convolution and its transposes.
    """

    def apply(x, w, dtype):
        if dtype is None:
            return convolve(x, w, strides)
        return by_xla(x, w, strides, dtype)

    def left_over(shape, g_shape):
        """Rows and columns of x beyond those where the last filter starts."""
        return [
            size - (stride * (count - 1) + 1)
            for size, count, stride in zip(
                shape[1:3], g_shape[1:3], strides, strict=True
            )
        ]

    def pull_inputs(g, w, shape, dtype):
        return jax.lax.conv_general_dilated(
            g,
            jnp.flip(w, (0, 1)),
            window_strides=(1, 1),
            padding=[
                (size - 1, rest)
                for size, rest in zip(
                    w.shape[:2], left_over(shape, g.shape), strict=True
                )
            ],
            lhs_dilation=strides,
            dimension_numbers=("NHWC", "HWOI", "NHWC"),
            preferred_element_type=dtype,
        )

    def pull_kernel(x, g, shape, dtype):
        return jax.lax.conv_general_dilated(
            x,
            g,
            window_strides=(1, 1),
            # Cut what no filter reached.
            padding=[
                (0, size - 1 - rest)
                for size, rest in zip(
                    shape[:2], left_over(x.shape, g.shape), strict=True
                )
            ],
            rhs_dilation=strides,
            dimension_numbers=("CHWN", "IHWO", "HWNC"),
            preferred_element_type=dtype,
        )

    return Bilinear(apply, pull_inputs, pull_kernel)
