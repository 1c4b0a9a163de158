"""Elements of hidden activities that are known, and stay where they are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from pcjax.checks import check_parts, check_sequence
from pcjax.energy import Errors
from pcjax.inference.kernel import Method
from pcjax.inference.origin import Gradient, Origin, View
from pcjax.networks.masks import check_mask

Mask = jax.Array | bool


def held(method: Method, masks: Sequence[Mask]) -> Method:
    """The method with elements of hidden activities held at where they start.

    So latents or, with `free_output`, data are clamped in part: `hidden=` says at what.
    Their gradients are 0 for all purposes, also for `infer_to_equilibrium`, whose
    fallback is refused: it would move them.

    Args:
      method: what moves the others, in the activities: any but `error_based`.
      masks: for each of `h_1, ..., h_{L-1}` True (held), False (free), or bools
        shaped like the activity, [B, ...], True where it is held; traced or not.

    Returns:
      A method.

    Raises:
      TypeError: if masks is no sequence, or one is not of bools; by what runs the
        method, too.
      ValueError: if the method moves errors; by what runs it, if a mask has another
        shape than its activity, or they are not L-1.
    """
    check_parts("held", method=method)
    if method.look is Origin.rebuild:
        raise ValueError(
            "held: the method moves errors, so that no activity can be held; expected "
            "one that moves activities, such as pcjax.sequential."
        )
    check_sequence("held", "masks", masks)
    for index, mask in enumerate(masks):
        if not isinstance(mask, bool):
            shape = getattr(mask, "shape", ())
            check_mask("held", f"masks[{index}]", mask, shape)
    parts = tuple(masks)
    step, look = _Step(method.step, parts), _Look(method.look, parts)
    return method._replace(step=step, look=look)


def _free(mask: Mask, values: jax.Array | None, index: int) -> jax.Array | None:
    """The values, 0 where they are of a held element."""
    if values is None or mask is False:
        return values
    if mask is True:
        return jnp.zeros_like(values)
    check_mask("held", f"masks[{index}]", mask, values.shape)
    return jnp.where(mask, 0, values)


@dataclass(frozen=True)
class _Step:
    step: Callable
    masks: tuple[Mask, ...]

    def __call__(self, t, state, gradient, own):
        updates, own = self.step(t, state, gradient, own)
        if len(updates) != len(self.masks):
            raise ValueError(
                f"held: expected a mask for each of the {len(updates)} hidden "
                f"activities, got {len(self.masks)}."
            )
        pairs = enumerate(zip(self.masks, updates, strict=True))
        return tuple(_free(mask, d, index) for index, (mask, d) in pairs), own


@dataclass(frozen=True)
class _Look:
    look: Callable[..., View]
    masks: tuple[Mask, ...]

    def __call__(self, origin: Origin, *args: Any, **options: Any) -> View:
        view = self.look(origin, *args, **options)
        gradient: Any = _Gradient(view.gradient, self.masks)
        return view._replace(gradient=gradient)


@dataclass(frozen=True)
class _Gradient:
    whole: Gradient
    masks: tuple[Mask, ...]

    def __call__(self, index: int, errors: Errors) -> jax.Array | None:
        slope = self.whole(index, errors)
        return _free(self.masks[index - 1], slope, index - 1)
