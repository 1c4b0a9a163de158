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
            new = jax.random.fold_in(keys, index)
            typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            leaves[index] = new if typed else jax.random.key_data(new)
    return jax.tree.unflatten(structure, leaves)


def _is_key(leaf: Any) -> bool:
    if not hasattr(leaf, "dtype"):
        return False
    typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return typed or (leaf.dtype == jnp.uint32 and leaf.shape == (2,))
