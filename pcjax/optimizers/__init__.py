"""What makes steps of gradients: transforms in the sense of optax.

`mq` is the paper's optimizer (section 4), `normalised` the step size of its baseline,
and `finite` guards any optimizer against gradients that are not finite.
"""

from pcjax.optimizers.mq import ScaleByMQState, mq, scale_by_mq

__all__ = ["ScaleByMQState", "mq", "scale_by_mq"]
