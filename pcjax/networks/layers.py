"""The paper's layers, dense and convolutional."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pcjax.checks import check_callable, check_count
from pcjax.networks.near import Near, shifted
from pcjax.networks.network import Activation, Layer, Params, linear
from pcjax.networks.pooling import Pool
from pcjax.networks.sizes import check_pair
from pcjax.numerics.changes import change_of
from pcjax.numerics.precision import Product, convolution, matmul, plain, rounded

# (key, shape, dtype) -> weights, as those of `jax.nn.initializers`
Initializer = Callable[[jax.Array, Sequence[int], Any], jax.Array]


def uniform_fan_in(
    key: jax.Array, shape: Sequence[int], fan_in: int, dtype: Any
) -> jax.Array:
    """Draws from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), the reference initialisation."""
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def dense(
    features: int,
    activation: Activation = linear,
    *,
    in_features: int | None = None,
    kernel_init: Initializer | None = None,
    product_dtype: Any = None,
) -> Layer:
    """A fully connected layer, pre-activation: `p = f(h) W + b`.

    Args:
      features: the size of the prediction.
      activation: `f`, put on the input.
      in_features: the size of the input, checked by `init`; None takes what
        comes.
      kernel_init: draws the kernel, `(key, shape, dtype) -> array`, such as
        `jax.nn.initializers.he_normal()` or `orthogonal()`; biases are then 0. By
        default both are uniform within `1 / sqrt(fan_in)`.
      product_dtype: None, or the dtype to round the operands of every product to,
        `jnp.bfloat16`; all else keeps the dtype of the inputs.

    Returns:
      A layer with parameters `{"kernel": [in, features], "bias": [features]}`;
      `apply` flattens its input to [B, in].

    Raises:
      TypeError: if `product_dtype` is no float dtype, or the activation no function.
      ValueError: if a size is no int >= 1, or the range of `product_dtype` is narrow.
    """
    check_count("dense", "features", features)
    check_callable("dense", "activation", activation)
    if in_features is not None:
        check_count("dense", "in_features", in_features)
    draw = _drawn("dense", kernel_init)
    product = _product(matmul, product_dtype)
    change = change_of(activation)

    def init(key: jax.Array, inputs: jax.Array) -> Params:
        fan_in = math.prod(inputs.shape[1:])
        if in_features is not None and fan_in != in_features:
            raise ValueError(
                f"dense expects {in_features} input features, but was given {fan_in} "
                f"(shape {inputs.shape})."
            )
        return draw(key, (fan_in, features), inputs.dtype)

    def start(params, inputs):
        flat = inputs.reshape(inputs.shape[0], -1)
        outputs = product.apply(activation(flat), params["kernel"])
        return outputs + params["bias"][None], None

    def move(params, inputs, shifts, offset, moved):
        (h,), (d,) = inputs, shifts
        prediction, _ = start(params, shifted(h, d))
        total = offset
        if moved[0]:
            flat = (x.reshape(x.shape[0], -1) for x in (h, d))
            total = _plus(offset, product.apply(change(*flat), params["kernel"]))
        return prediction, jnp.zeros_like(prediction) if total is None else total

    def follow(params, first, inputs, offset):
        del offset
        step = jax.tree.map(jnp.subtract, params, first)
        return start(step, *inputs)[0]

    return _layer(init, start, move, follow, activation, product_dtype)


def conv(
    features: int,
    kernel_size: tuple[int, int],
    strides: tuple[int, int] = (2, 2),
    *,
    activation: Activation = jax.nn.relu,
    padding: tuple[int, int] = (0, 0),
    pool: Pool | None = None,
    kernel_init: Initializer | None = None,
    product_dtype: Any = None,
) -> Layer:
    """A convolution, post-activation: `p = f(conv(h) + b)`, or the pool of that.

    With a pool it still is one layer, `p = pool(f(conv(h) + b))`: no activity stands
    between them.

    >>> import pcjax
    >>> layer = conv(8, (3, 3), (1, 1), padding=(1, 1), pool=pcjax.max_pool())
    >>> images = jnp.ones((2, 32, 32, 3))
    >>> layer.apply(layer.init(jax.random.key(0), images), images).shape
    (2, 16, 16, 8)

    Args:
      features: the number of output channels.
      kernel_size: height and width of the filters.
      strides: vertical and horizontal stride.
      activation: `f`, put on the output.
      padding: rows and columns of zeros put around the images, on each side.
      pool: what is put on the activations: `max_pool(...)`, `average_pool(...)` or a
        `Pool` of one's own.
      kernel_init: see `dense`, as for the next.
      product_dtype: see `dense`.

    Returns:
      A layer over [B, H, W, C] with parameters
      `{"kernel": [kh, kw, C, features], "bias": [features]}`.

    Raises:
      TypeError, ValueError: as `dense`, or if `kernel_size` or `strides` are not two
        ints >= 1, `padding` not two >= 0, or `pool` is no `Pool`.
    """
    check_count("conv", "features", features)
    check_callable("conv", "activation", activation)
    for name, sizes in (("kernel_size", kernel_size), ("strides", strides)):
        check_pair("conv", name, sizes)
    check_pair("conv", "padding", padding, least=0)
    if pool is not None and not isinstance(pool, Pool):
        raise TypeError(
            f"conv: pool must be a Pool, such as pcjax.max_pool(), got {pool!r}."
        )
    draw, pad = _drawn("conv", kernel_init), _padded(padding)
    product = _product(convolution(strides), product_dtype)
    change = change_of(activation)

    def init(key: jax.Array, inputs: jax.Array) -> Params:
        if inputs.ndim != 4:
            raise ValueError(
                f"conv expects images [B, H, W, C], but was given {inputs.shape}."
            )
        if any(
            size + 2 * added < filter_size
            for size, added, filter_size in zip(
                inputs.shape[1:3], padding, kernel_size, strict=True
            )
        ):
            raise ValueError(
                f"conv: filters of {kernel_size} do not fit into images {inputs.shape}."
            )
        shape = (*kernel_size, inputs.shape[-1], features)
        return draw(key, shape, inputs.dtype)

    def start(params, inputs):
        outputs = product.apply(pad(inputs), params["kernel"])
        before = outputs + params["bias"][None, None, None]  # the activation
        return pooled(activation(before)), (before, None)

    def move(params, inputs, shifts, anchor, moved):
        (h,), (d,), (before, offset) = inputs, shifts, anchor
        total = offset
        if moved[0]:
            total = _plus(offset, product.apply(pad(d), params["kernel"]))
        total = jnp.zeros_like(before) if total is None else total
        known = product.known(pad(shifted(h, d)), params["kernel"], before + total)
        bias = params["bias"] - jax.lax.stop_gradient(params["bias"])  # in `known`
        prediction = pooled(activation(known + bias[None, None, None]))
        changed = change(before, total)
        if pool is not None:
            changed = pool.change(activation(before), changed)
        return prediction, changed

    def follow(params, first, inputs, anchor):
        step = jax.tree.map(jnp.subtract, params, first)
        _, (offset, _) = start(step, *inputs)
        return anchor[0], offset

    def pooled(values):
        return values if pool is None else pool.apply(values)

    return _layer(init, start, move, follow, linear, product_dtype)


def _plus(offset: jax.Array | None, change: jax.Array) -> jax.Array:
    return change if offset is None else offset + change


def _drawn(function: str, kernel_init: Initializer | None) -> Callable[..., Params]:
    """`(key, shape of the kernel, dtype) -> {"kernel": ..., "bias": ...}`."""
    if kernel_init is not None:
        check_callable(function, "kernel_init", kernel_init)

    def draw(key, shape, dtype):
        if not math.prod(shape[:-1]):
            raise ValueError(
                f"weights of shape {tuple(shape)} multiply nothing; expected one input "
                "feature or more."
            )
        if kernel_init is not None:
            kernel = kernel_init(key, shape, dtype)
            return {"kernel": kernel, "bias": jnp.zeros(shape[-1:], dtype)}
        fan_in, (kernel_key, bias_key) = math.prod(shape[:-1]), jax.random.split(key)
        return {
            "kernel": uniform_fan_in(kernel_key, shape, fan_in, dtype),
            "bias": uniform_fan_in(bias_key, shape[-1:], fan_in, dtype),
        }

    return draw


def _padded(padding: tuple[int, int]) -> Callable[[jax.Array], jax.Array]:
    """Puts zeros around images [B, H, W, C]."""
    if not any(padding):
        return lambda images: images
    widths = ((0, 0), *((added, added) for added in padding), (0, 0))
    return lambda images: jnp.pad(images, widths)


def _product(bilinear, dtype: Any) -> Product:
    return plain(bilinear) if dtype is None else rounded(bilinear, dtype)


def _layer(init, start, move, follow, activation, product_dtype):
    """A layer whose `apply` is the prediction of `start`.

    Weights that move are followed only where products are rounded, for it takes one
    more product. Elsewhere `pcjax.incremental` evaluates the layer anew and subtracts,
    which loses errors below the rounding of activities.
    """

    def apply(params: Params, inputs: jax.Array) -> jax.Array:
        return start(params, inputs)[0]

    follow = None if product_dtype is None else follow
    return Layer(init, apply, activation, Near(apply, start, move, follow))
