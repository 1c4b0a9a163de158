"""Training over whole data sets, and what goes with it.

`data` puts a data set on the device, `augmentation` changes its images at random,
`epoch` makes one compiled epoch of a gradient and an optimizer, `evaluation` averages
measures over a data set, `sharding` spreads both over devices, `diagnosis` names what
went wrong in an iteration, and `measures` says how far a rule is from backprop. The
names of the first three are those of `pcjax.training`.
"""

from pcjax.training.augmentation import (
    Augmentation,
    augmented,
    normalised,
    padded_crop,
    random_crop,
    random_flip,
)
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
    batch_keys,
    epoch_batches,
    init_state,
    make_epoch,
    make_update,
)
from pcjax.training.generation import generation

__all__ = [
    "Augmentation",
    "Data",
    "EpochMetrics",
    "Prepare",
    "TrainState",
    "augmented",
    "batch_keys",
    "classification",
    "device_data",
    "epoch_batches",
    "generation",
    "init_state",
    "make_epoch",
    "make_update",
    "normalised",
    "padded_crop",
    "random_crop",
    "random_flip",
    "reconstruction",
    "rows",
]
