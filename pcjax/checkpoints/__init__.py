"""Checkpoints of any pytree: asynchronous, atomic, checked, exact to the bit.

`checkpoints` is what users meet, `storage` writes and reads folders, `leaves` turns
trees into arrays and back, and `locks` keeps other processes out. It imports nothing of
the rest of pcjax, and `import pcjax` does not import it.
"""

from pcjax.checkpoints.checkpoints import (
    CheckpointError,
    Checkpoints,
    CheckpointWarning,
    Restored,
)

__all__ = ["CheckpointError", "CheckpointWarning", "Checkpoints", "Restored"]
