"""The oracle over a batch: examples one by one, then stacked or averaged.

A `setting` has the fields of `both_sides.Setting`, gamma and decay once per example.
"""

import numpy as np

from tests.reference import inference, learning


def stack(examples):
    """A batched list from one list per example."""
    return [
        None if values[0] is None else np.stack(values)
        for values in zip(*examples, strict=True)
    ]


def history(problem, num_steps, setting, optimizer):
    """Per time, the activities [layer] of each example."""
    examples = [
        inference.infer(
            *(problem.layers, problem.output, x, target),
            *(setting.method, num_steps, optimizer, setting.clamp, gamma, decay),
        )
        for x, target, gamma, decay in zip(
            problem.xs, problem.targets, setting.gamma, setting.decay, strict=True
        )
    ]
    return list(zip(*examples, strict=True))


def energies(problem, activities, setting, layers=None):
    """F of each example, with the problem's layers or others."""
    layers = layers or problem.layers
    examples = zip(activities, setting.gamma, setting.decay, strict=True)
    return np.array(
        [inference.free_energy(layers, problem.output, *given) for given in examples]
    )


def gradient(problem, activities, gammas, output_targets=None):
    """The mean of eq. 4 over the batch, one list of trees."""
    output_targets = output_targets or [None] * len(activities)
    examples = zip(activities, gammas, output_targets, strict=True)
    return learning.batch_mean(
        [
            learning.energy_gradient(problem.layers, problem.output, *given)
            for given in examples
        ]
    )


def rounded(problem, dtype):
    """The problem with numbers that `dtype` can hold, in float64."""

    def round_to(array):
        return array.astype(dtype).astype(np.float64)

    return problem._replace(
        layers=[
            layer.with_params(learning.combine(round_to, layer.params))
            for layer in problem.layers
        ],
        xs=round_to(problem.xs),
        targets=round_to(problem.targets),
    )
