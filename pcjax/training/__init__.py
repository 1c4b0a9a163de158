"""Training over whole data sets, and what goes with it.

`epoch` makes one compiled epoch of a gradient and an optimizer, `evaluation` averages
measures over a data set, `sharding` spreads both over devices, and `diagnosis` names
what went wrong in an iteration. The names of `epoch` are those of `pcjax.training`.
"""

from pcjax.training.epoch import (
    Data,
    EpochMetrics,
    Prepare,
    TrainState,
    classification,
    device_data,
    epoch_batches,
    init_state,
    make_epoch,
    make_update,
    reconstruction,
    rows,
)

__all__ = [
    "Data",
    "EpochMetrics",
    "Prepare",
    "TrainState",
    "classification",
    "device_data",
    "epoch_batches",
    "init_state",
    "make_epoch",
    "make_update",
    "reconstruction",
    "rows",
]
