"""Calls of functions that users pass in."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any


def call_at(name: str, hook: Callable, t: Any, *args: Any, **others: Any) -> Any:
    """Calls a user's gamma, decay or clamp, with those of `t=` and others that it has.

    Raises:
      ValueError: if it has a `t`, but there is no inference and so no t.
    """
    names: Mapping[str, Any]
    try:
        names = inspect.signature(hook).parameters
    except (TypeError, ValueError):  # a callable without a signature
        names = {}
    hook = partial(hook, **{k: v for k, v in others.items() if k in names})
    if "t" not in names:
        return hook(*args)
    if t is None:
        raise ValueError(
            f"{name} depends on the inference iteration t, of which there is none "
            "outside of inference; expected weights of one iteration."
        )
    return hook(*args, t=t)
