"""Bad inputs, drawn at random, are refused as documented.

Every bad input must end in the documented ValueError or TypeError, whose message says
what was given; another exception is a failure, and so is a result.
"""

import re

import hypothesis
import pytest

from tests.inputs import batches, builders, runs

FAULTS = {
    **{f"batch of {name}": batches.batches(name) for name in batches.BATCH_FUNCTIONS},
    **{f"weights of {name}": batches.weights(name) for name in batches.WEIGHTED},
    **{
        f"activities of {name}": batches.activities(name)
        for name in batches.ON_ACTIVITIES
    },
    "feedforward": batches.feedforwards(),
    "Network.init": batches.inits(),
    "constructors": builders.constructors(),
    "chains": builders.chains(),
    "methods": builders.methods_refused(),
    "parts": builders.parts(),
    "soft_clamp": builders.soft_clamps(),
    "MQ": builders.mqs(),
    "optimizers": builders.transforms(),
    "data": runs.data(),
    "meshes": runs.meshes(),
}


@pytest.mark.bad_inputs
@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
def test_bad_inputs_are_refused_as_documented(faults, kind):
    injected, wrong = 0, []

    @hypothesis.settings(
        max_examples=120 if faults.all else 9,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(FAULTS[kind])
    def inject(fault):
        nonlocal injected
        injected += 1
        try:
            result = fault.call()
        except Exception as error:
            if isinstance(error, fault.kind) and re.search(fault.message, str(error)):
                return
            found = f"{type(error).__name__}: {error}"
        else:
            found = f"no error, but {result!r:.100}"
        wrong.append(f"expected {fault.kind.__name__} {fault.message!r}; {found}")

    inject()
    assert not wrong, f"{len(wrong)}, the first being:\n" + "\n".join(wrong[:5])
    faults.report("a bad input", injected, injected - len(wrong))
