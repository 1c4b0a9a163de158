"""What makes steps of gradients: transforms in the sense of optax.

`mq` is the paper's optimizer (section 4), `normalised` the step size of its baseline,
and `finite` guards any optimizer against gradients that are not finite. `grouping`
says which arrays are a layer, `hyper` what hyper-parameters may be.
"""

from pcjax.optimizers.grouping import layer_names
from pcjax.optimizers.mq import ScaleByMQState, first_gradient, mq, scale_by_mq

__all__ = ["ScaleByMQState", "first_gradient", "layer_names", "mq", "scale_by_mq"]
