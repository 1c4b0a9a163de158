"""Which tests are to notice a change of which module of pcjax."""

BAD = "test_bad_inputs_are_refused_as_documented"

# The tests of a module, beside its own doctests. `inputs:data` is that kind of the bad
# inputs of tests/inputs.
TESTS: dict[str, str] = {
    "checkpoints/checkpoints.py": "checkpoints",
    "checkpoints/leaves.py": "checkpoints",
    "checkpoints/locks.py": "checkpoints",
    "checkpoints/storage.py": "checkpoints",
    "checks.py": "bad_input kinds small_numbers inputs:parts inputs:data",
    "energy.py": "energy small_numbers bad_input learning inference "
    "kinds graphs sampling generative",
    "inference/ancestral.py": "generative sampling",
    "inference/bb.py": "rateless generative",
    "inference/curvature.py": "measures rateless generative",
    "inference/equilibrium.py": "equilibrium bad_input hooks graphs",
    "inference/front.py": "graphs inference counts",
    "inference/held.py": "generative rateless",
    "inference/kernel.py": "inference hooks kinds bad_input learning "
    "graphs contract error_based precision",
    "inference/keys.py": "hooks inference",
    "inference/kinks.py": "rateless generative",
    "inference/langevin.py": "sampling",
    "inference/methods.py": "error_based hooks inference bad_input counts",
    "inference/movers.py": "inference hooks bad_input contract inputs:methods",
    "inference/newton_cg.py": "rateless generative measures",
    "inference/origin.py": "inference error_based graphs small_numbers kinds "
    "counts contract precision generative",
    "inference/rest.py": "equilibrium rateless bad_input hooks",
    "inference/slopes.py": "rateless measures error_based counts",
    "inference/state.py": "inference hooks",
    "learning/alm.py": "relatives",
    "learning/amortised.py": "generative sampling",
    "learning/at_equilibrium.py": "rateless",
    "learning/backprop.py": "learning bad_input kinds contract",
    "learning/gradients.py": "learning bad_input kinds hooks small_numbers "
    "graphs contract precision",
    "learning/incremental.py": "learning kinds bad_input graphs contract precision",
    "learning/nudging.py": "nudging kinds hooks",
    "learning/precisions.py": "sampling generative",
    "learning/relatives.py": "relatives",
    "learning/sampled.py": "sampling hooks",
    "networks/bidirectional.py": "generative",
    "networks/fitting.py": "bad_input modules kinds networks mq_layers",
    "networks/layers.py": "networks convolve bad_input graphs inputs:constructors",
    "networks/masks.py": "generative sampling training",
    "networks/modules.py": "modules kinds bad_input separate",
    "networks/near.py": "small_numbers kinds networks graphs generative",
    "networks/nets.py": "networks bad_input graphs kinds inputs:constructors",
    "networks/network.py": "bad_input kinds graphs inputs:chains inputs:Network.init",
    "networks/nnx_modules.py": "modules kinds",
    "networks/nudges.py": "nudging hooks",
    "networks/outputs.py": "outputs kinds bad_input small_numbers "
    "generative nudging inputs:soft_clamp",
    "networks/parametrisations.py": "parametrisations",
    "networks/pooling.py": "vgg",
    "networks/priors.py": "generative sampling",
    "networks/residual.py": "parametrisations",
    "networks/separate.py": "separate",
    "networks/sizes.py": "networks bad_input vgg",
    "networks/sums.py": "graphs small_numbers bad_input",
    "networks/vgg.py": "vgg",
    "numerics/changes.py": "small_numbers inference error_based learning kinds",
    "numerics/compiled.py": "hooks kinds",
    "numerics/convolve.py": "convolve precision counts",
    "numerics/devices.py": "everywhere sharding",
    "numerics/hooks.py": "hooks nudging",
    "numerics/kept.py": "counts",
    "numerics/precision.py": "precision small_numbers",
    "numerics/reductions.py": "finite mq mq_starts sharding",
    "numerics/weights.py": "energy generative inference sampling",
    "numerics/widths.py": "kinds proximal mq finite",
    "optimizers/finite.py": "finite bad_input sharding inputs:optimizers",
    "optimizers/grouping.py": "mq_layers mq bad_input sharding everywhere",
    "optimizers/hyper.py": "mq_starts mq mq_layers bad_input inputs:MQ",
    "optimizers/mq.py": "mq mq_starts mq_layers bad_input "
    "everywhere sharding inputs:MQ",
    "optimizers/normalised.py": "proximal",
    "theory/newton.py": "proximal",
    "theory/proximal.py": "proximal",
    "theory/theorem1.py": "proximal",
    "training/augmentation.py": "augmentation",
    "training/data.py": "training bad_input kinds inputs:data",
    "training/diagnosis.py": "finite generative",
    "training/epoch.py": "training bad_input contract finite augmentation "
    "kinds sharding inputs:data",
    "training/evaluation.py": "training bad_input kinds sharding inputs:data",
    "training/generation.py": "generative training",
    "training/measures.py": "measures",
    "training/sharding.py": "sharding inputs:meshes",
}


def tests_of(module: str) -> list[str]:
    """What pytest is told to run, below the checkout."""
    found = [f"pcjax/{module}"]
    for name in TESTS[module].split():
        kind = name.partition(":")[2]
        bad = f"inputs/test_bad_inputs.py::{BAD}[{kind}]"
        found.append(f"tests/{bad}" if kind else f"tests/test_{name}.py")
    return found


def marks_of(tests: list[str]) -> str:
    """Faults are injected where nothing else would tell, since that takes long.

    So are devices made up for what runs on several.
    """
    if "pcjax/training/sharding.py" in tests:
        return "not faults"
    stored = any("checkpoints" in test for test in tests)
    return "not slow" if stored else "bad_inputs or not slow and not faults"
