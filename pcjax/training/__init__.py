"""Training over whole data sets, and what goes with it.

`data` puts a data set on the device, `epoch` makes one compiled epoch of a gradient and
an optimizer, `evaluation` averages measures over a data set, `sharding` spreads both
over devices, and `diagnosis` names what went wrong in an iteration. The names of the
first two are those of `pcjax.training`.
"""

from pcjax.training.data import (
    Data,
    Prepare,
    classification,
    device_data,
    reconstruction,
    rows,
)
from pcjax.training.epoch import (
    EpochMetrics,
    TrainState,
    epoch_batches,
    init_state,
    make_epoch,
    make_update,
)
from pcjax.training.generation import generation

__all__ = [
    "Data",
    "EpochMetrics",
    "Prepare",
    "TrainState",
    "classification",
    "device_data",
    "epoch_batches",
    "generation",
    "init_state",
    "make_epoch",
    "make_update",
    "reconstruction",
    "rows",
]
