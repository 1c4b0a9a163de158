"""Training over whole data sets, and what goes with it.

`data` puts a data set on the device, `epoch` makes one compiled epoch of a gradient and
an optimizer, `evaluation` averages measures over a data set, `sharding` spreads both
over devices, `diagnosis` names what went wrong in an iteration, and `measures` says how
far a rule is from backprop. The names of the first two are those of `pcjax.training`.
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
