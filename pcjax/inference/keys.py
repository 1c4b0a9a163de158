"""Random keys for methods of inference: one per example."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pcjax.inference.origin import Origin


def example_keys(
    key: jax.Array | None, origin: Origin, hidden: Sequence[jax.Array] | None = None
) -> jax.Array:
    """A typed key for every example, [B].

    Without a key they are made of the bits of the feed-forward activities, and of what
    else inference is given: pure functions remember nothing, but these differ between
    examples and, as the weights learn, between training iterations. Examples without an
    input may be the same, and are told apart by their places.
    """
    inputs, targets = origin.data
    values = (*origin.start, origin.logits, targets, *(hidden or ()))
    batch = values[0].shape[0]
    if key is not None:
        return jax.random.split(key, batch)
    digest = jnp.zeros(batch, jnp.uint32)
    if not inputs.size:
        digest = jnp.arange(batch, dtype=jnp.uint32)
    for value in values:
        bits = jax.lax.bitcast_convert_type(
            value.astype(jnp.float32).reshape(batch, -1), jnp.uint32
        )
        # Odd factors, so that no bit of any feature is lost modulo 2^32.
        factors = 2 * jnp.arange(bits.shape[1], dtype=jnp.uint32) + 1
        digest = digest * jnp.uint32(0x9E3779B1) + jnp.sum(
            bits * factors[None], axis=1, dtype=jnp.uint32
        )
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(digest)


def holds_keys(state: Any) -> bool:
    """Whether a state has random keys among its leaves, typed or of the old kind."""
    return any(map(_is_key, jax.tree.leaves(state)))


def with_keys(state: Any, keys: jax.Array) -> Any:
    """A state of one example with its keys drawn anew from the example's, []."""
    leaves, structure = jax.tree.flatten(state)
    for index, leaf in enumerate(leaves):
        if _is_key(leaf):
            leaves[index] = _like(leaf, jax.random.fold_in(keys, index))
    return jax.tree.unflatten(structure, leaves)


def _like(leaf: jax.Array, key: jax.Array) -> jax.Array:
    """A key, or several, of the leaf's kind and shape, made of a single key."""
    typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    if typed and leaf.dtype == key.dtype and leaf.shape == ():
        return key
    shape = jax.random.key_data(leaf).shape if typed else leaf.shape
    bits = jax.random.key_data(key)
    if bits.shape != shape:
        bits = jax.random.bits(key, shape, jnp.uint32)
    if typed:
        return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
    return bits


def _is_key(leaf: Any) -> bool:
    """Whether it is a typed key or several, or a single one of the old kind."""
    if not hasattr(leaf, "dtype"):
        return False
    typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return typed or (leaf.dtype == jnp.uint32 and leaf.shape in ((2,), _raw_shape()))


def _raw_shape() -> tuple[int, ...]:
    """The shape of a key of the old kind by the implementation that is the default."""
    return jax.eval_shape(jax.random.PRNGKey, 0).shape
