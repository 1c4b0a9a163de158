"""The paper's layers and nets: dense and convolutional, and chains of them."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from pcjax.checks import check_count, is_int
from pcjax.networks.network import Activation, Layer, Network, Params, linear
from pcjax.numerics.precision import (
    Bilinear,
    Product,
    convolution,
    matmul,
    plain,
    rounded,
)


def uniform_fan_in(
    key: jax.Array, shape: Sequence[int], fan_in: int, dtype: Any
) -> jax.Array:
    """Draws from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), the reference initialisation."""
    if fan_in < 1:
        raise ValueError(
            f"weights of shape {tuple(shape)} multiply nothing; expected one input "
            "feature or more."
        )
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def dense(
    features: int,
    activation: Activation = linear,
    *,
    in_features: int | None = None,
    product_dtype: Any = None,
) -> Layer:
    """A fully connected layer, pre-activation: `p = f(h) W + b`.

    Args:
      features: the size of the prediction.
      activation: `f`, put on the input.
      in_features: the size of the input, checked by `init`; None takes what
        comes.
      product_dtype: None, or the dtype to round the operands of every product to,
        `jnp.bfloat16`; all else keeps the dtype of the inputs. See
        `pcjax.precision`.

    Returns:
      A layer with parameters `{"kernel": [in, features], "bias": [features]}`;
      `apply` flattens its input to [B, in].

    Raises:
      TypeError: if `product_dtype` is no float dtype.
      ValueError: if a size is no int >= 1, or the range of `product_dtype` is narrow.
    """
    check_count("dense", "features", features)
    if in_features is not None:
        check_count("dense", "in_features", in_features)
    product = _product(matmul, product_dtype)

    def init(key: jax.Array, inputs: jax.Array) -> Params:
        fan_in = math.prod(inputs.shape[1:])
        if in_features is not None and fan_in != in_features:
            raise ValueError(
                f"dense expects {in_features} input features, but was given {fan_in} "
                f"(shape {inputs.shape})."
            )
        kernel_key, bias_key = jax.random.split(key)
        shape = (fan_in, features)
        return {
            "kernel": uniform_fan_in(kernel_key, shape, fan_in, inputs.dtype),
            "bias": uniform_fan_in(bias_key, (features,), fan_in, inputs.dtype),
        }

    def near(params, inputs, anchor):
        flat = inputs.reshape(inputs.shape[0], -1)
        outputs, anchor = product(activation(flat), params["kernel"], anchor)
        return outputs + params["bias"][None], anchor

    return _layer(init, near, activation, product_dtype)


def conv(
    features: int,
    kernel_size: tuple[int, int],
    strides: tuple[int, int] = (2, 2),
    *,
    activation: Activation = jax.nn.relu,
    product_dtype: Any = None,
) -> Layer:
    """A convolution without padding, post-activation: `p = f(conv(h) + b)`.

    Args:
      features: the number of output channels.
      kernel_size: height and width of the filters.
      strides: vertical and horizontal stride.
      activation: `f`, put on the output.
      product_dtype: see `dense`.

    Returns:
      A layer over [B, H, W, C] with parameters
      `{"kernel": [kh, kw, C, features], "bias": [features]}`.

    Raises:
      TypeError, ValueError: as `dense`, or if `kernel_size` or `strides` are not two
        ints >= 1.
    """
    check_count("conv", "features", features)
    for name, sizes in (("kernel_size", kernel_size), ("strides", strides)):
        if not _are_sizes(sizes) or len(sizes) != 2:
            raise ValueError(f"conv: {name} must be two ints >= 1, got {sizes!r}.")
    product = _product(convolution(strides), product_dtype)

    def init(key: jax.Array, inputs: jax.Array) -> Params:
        if inputs.ndim != 4:
            raise ValueError(
                f"conv expects images [B, H, W, C], but was given {inputs.shape}."
            )
        if any(
            size < filter_size
            for size, filter_size in zip(inputs.shape[1:3], kernel_size, strict=True)
        ):
            raise ValueError(
                f"conv: filters of {kernel_size} do not fit into images {inputs.shape}."
            )
        channels = inputs.shape[-1]
        fan_in = math.prod(kernel_size) * channels
        kernel_key, bias_key = jax.random.split(key)
        shape = (*kernel_size, channels, features)
        return {
            "kernel": uniform_fan_in(kernel_key, shape, fan_in, inputs.dtype),
            "bias": uniform_fan_in(bias_key, (features,), fan_in, inputs.dtype),
        }

    def near(params, inputs, anchor):
        outputs, anchor = product(inputs, params["kernel"], anchor)
        return activation(outputs + params["bias"][None, None, None]), anchor

    return _layer(init, near, linear, product_dtype)


def _are_sizes(sizes: Any) -> bool:
    return isinstance(sizes, Iterable) and all(is_int(n) and n >= 1 for n in sizes)


def _product(bilinear: Bilinear, dtype: Any) -> Product:
    return plain(bilinear) if dtype is None else rounded(bilinear, dtype)


def _layer(init, near, activation, product_dtype):
    """A layer whose `apply` is `near` without an anchor."""

    def apply(params: Params, inputs: jax.Array) -> jax.Array:
        return near(params, inputs, None)[0]

    return Layer(init, apply, activation, None if product_dtype is None else near)


def mlp(
    sizes: Sequence[int],
    activation: Activation = jax.nn.relu,
    *,
    product_dtype: Any = None,
) -> Network:
    """A fully connected network in the pre-activation layout.

    Args:
      sizes: of the input, the hidden layers and the output;
        `[3072, 1024, 1024, 1024, 10]` is the paper's classifier.
      activation: `f` of the hidden layers; the input passes unchanged.
      product_dtype: see `dense`.

    Returns:
      A network of `len(sizes) - 1` dense layers; inputs of any shape are
      flattened.

    Raises:
      TypeError: if `product_dtype` is no float dtype.
      ValueError: if there are fewer than two sizes, or one is no int >= 1.
    """
    if not _are_sizes(sizes) or len(sizes) < 2:
        raise ValueError(f"mlp: expected two or more positive sizes, got {sizes!r}.")
    return Network(
        tuple(
            dense(
                size,
                activation if index else linear,
                in_features=below,
                product_dtype=product_dtype,
            )
            for index, (below, size) in enumerate(itertools.pairwise(sizes))
        )
    )


def convnet(
    num_classes: int,
    *,
    features: Sequence[int] = (64, 128, 256),
    kernel_sizes: Sequence[int] = (5, 5, 3),
    product_dtype: Any = None,
) -> Network:
    """The paper's convolutional classifier, post-activation.

    Stride-2 ReLU convolutions without padding, then one linear layer on the
    flattened channels. The defaults are the net for 32x32 images;
    `features=(32, 64, 128, 256), kernel_sizes=(5, 5, 5, 3)` is the one for
    64x64 (Tiny ImageNet).

    Args:
      num_classes: the number of logits.
      features: the output channels of each convolution.
      kernel_sizes: the side of each (square) filter.
      product_dtype: see `dense`.

    Returns:
      A network of `len(features) + 1` layers over images [B, H, W, C].

    Raises:
      TypeError: if `product_dtype` is no float dtype.
      ValueError: if the two lists differ in length, or a size is no int >= 1.
    """
    check_count("convnet", "num_classes", num_classes)
    for name, sizes in (("features", features), ("kernel_sizes", kernel_sizes)):
        if not _are_sizes(sizes):
            raise ValueError(f"convnet: {name} must be ints >= 1, got {sizes!r}.")
    if len(features) != len(kernel_sizes):
        raise ValueError(
            f"convnet: {len(features)} features, but {len(kernel_sizes)} kernel sizes."
        )
    convs = [
        conv(channels, (size, size), product_dtype=product_dtype)
        for channels, size in zip(features, kernel_sizes, strict=True)
    ]
    return Network((*convs, dense(num_classes, product_dtype=product_dtype)))


def autoencoder(
    sizes: Sequence[int] = (3072, 1024, 256, 20, 256, 1024, 3072),
    activation: Activation = jax.nn.relu,
    *,
    product_dtype: Any = None,
) -> Network:
    """The paper's fully connected autoencoder: an `mlp` that ends where it starts.

    Args:
      sizes: of every layer, input and reconstruction included.
      activation: of the hidden layers.
      product_dtype: see `dense`.

    Returns:
      A network whose logits [B, sizes[-1]] are meant for `pcjax.sigmoid`.

    Raises:
      TypeError: if `product_dtype` is no float dtype.
      ValueError: if the first and the last size differ, there are fewer than two, or
        one is no int >= 1.
    """
    if not _are_sizes(sizes) or len(sizes) < 2:
        raise ValueError(
            f"autoencoder: expected two or more positive sizes, got {sizes!r}."
        )
    if sizes[0] != sizes[-1]:
        raise ValueError(
            f"autoencoder: the input has size {sizes[0]}, the reconstruction "
            f"{sizes[-1]}; they must be equal."
        )
    return mlp(sizes, activation, product_dtype=product_dtype)
