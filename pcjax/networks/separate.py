"""A check that the layers of a network treat the examples of a batch separately.

Inference moves every example by its own energy, and learning adds up the gradients of
all. Neither is right if a layer looks from one example at the next, as a normalisation
by the statistics of the batch does. Nothing in the types tells, so it is tried.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pcjax.networks.network import Network, Params, feedforward


def check_separate(
    network: Network, params: Sequence[Params], inputs: jax.Array
) -> None:
    """Refuses a network with layers that mix the examples of a batch.

    A layer is separate if what it predicts for an example stays the same when the
    others are replaced, in a batch of the same size, and when the example is alone.
    Every pair of examples is told apart by a bit of their numbers, so that each layer
    is applied 2 ceil(log2 B) + 2 times. Two to eight examples will do.

    >>> import pcjax
    >>> def centred(params, x):
    ...     return x - x.mean(0, keepdims=True)
    >>> mixing = pcjax.Network(
    ...     (pcjax.dense(3), pcjax.networks.Layer(lambda key, x: {}, centred))
    ... )
    >>> inputs = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> params = mixing.init(jax.random.key(0), inputs)
    >>> check_separate(mixing, params, inputs)
    Traceback (most recent call last):
        ...
    ValueError: check_separate: layer 1 mixes the examples of a batch: what it ...

    Args:
      network: L layers, a chain or a graph.
      params: their parameters. Freshly drawn ones hide a layer that is 0 at first.
      inputs: [B, ...], two examples or more, such as random numbers. Not traced.

    Raises:
      ValueError: if a layer mixes examples, naming the first; if there are fewer than
        two examples, or integers are the same as those before; and as `feedforward`.
    """
    if inputs.shape[0] < 2:
        raise ValueError(
            "check_separate: expected two examples or more, got inputs of shape "
            f"{inputs.shape}."
        )
    below = (inputs, *feedforward(network, params, inputs)[:-1])
    for index, layer in enumerate(network.layers):
        apply = jax.jit(partial(layer.apply, params[index]))
        read = [jnp.asarray(below[i]) for i in network.reads[index]]
        if found := _mixing(apply, read):
            raise ValueError(
                f"check_separate: layer {index} mixes the examples of a batch: what it "
                f"predicts for one depends on {found}. Inference moves every example "
                "on its own, so this network would be trained by wrong gradients. "
                "Normalise over features (LayerNorm, GroupNorm) instead."
            )


def _mixing(apply: Callable, inputs: Sequence[jax.Array]) -> str:
    """What the prediction of an example depends on besides the example, if anything."""
    numbers = np.arange(inputs[0].shape[0])
    others = [_replacements(h) for h in inputs]
    expected = apply(*inputs)
    eps = float(jnp.finfo(expected.dtype).eps)
    for bit in range(int(numbers[-1]).bit_length()):
        for value in (0, 1):
            kept = (numbers >> bit) % 2 == value
            mixed = [
                jnp.where(kept.reshape(-1, *[1] * (h.ndim - 1)), h, other)
                for h, other in zip(inputs, others, strict=True)
            ]
            found = apply(*mixed)
            # The same program, but sums may be taken in an order that varies.
            if not _agree(found[kept], expected[kept], 8 * eps):
                return "the others"
    # Another program, whose products may be rounded in another way.
    alone = _agree(apply(*[h[:1] for h in inputs]), expected[:1], max(2**8 * eps, 2e-3))
    return "" if alone else "how many there are"


def _replacements(inputs: jax.Array) -> jax.Array:
    """Other examples of the same kind; those of integers (tokens) are their own."""
    others = jnp.roll(inputs, 1, axis=0)
    if jnp.issubdtype(inputs.dtype, jnp.floating):
        return 1 - 2 * others
    same = np.all(np.asarray(others == inputs).reshape(len(inputs), -1), axis=1)
    if np.any(same):
        index = int(np.argmax(same))
        raise ValueError(
            f"check_separate: example {index} is the same as the one before; expected "
            "examples that differ."
        )
    return others


def _agree(found: jax.Array, expected: jax.Array, tolerance: float) -> bool:
    """Whether two arrays agree up to a part of the largest entry."""
    have, want = (np.asarray(x, np.float64) for x in (found, expected))
    finite = np.abs(want[np.isfinite(want)])
    atol = tolerance * np.max(finite, initial=0)
    return np.allclose(have, want, rtol=0, atol=atol, equal_nan=True)
