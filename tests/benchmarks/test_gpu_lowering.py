"""Training iterations as JAX hands them to the compiler of a GPU, without a GPU.

Seen is that they lower, that nothing meant for CPUs is in them, and how many products
they have; not what XLA makes of them.
"""

from functools import cache, partial

import jax
import pytest
from jax import export

from benchmarks import workloads
from pcjax.optimizers import finite
from tests.tiers import thorough

SMALL = {
    "mlp": lambda: workloads.mlp(4, 32),
    "conv": lambda: workloads.conv(4),
    "vgg5": lambda: workloads.vgg5(4),
}
PROGRAMS = {
    "BP": lambda load: workloads.backprop(load, "Adam"),
    "SeqIL": lambda load: workloads.inference_learning(load, "sequential", 3, "MQ"),
    "IL": lambda load: workloads.inference_learning(load, "simultaneous", 5, "SGD"),
    "iPC": lambda load: workloads.incremental(load, 3, "Adam"),
}
# Products and convolutions as written: the body of a loop counts once.
PRODUCTS = {
    ("mlp", "BP"): (11, 0),
    ("mlp", "SeqIL"): (20, 0),
    ("conv", "BP"): (11, 0),
    ("vgg5", "BP"): (3, 11),
}


# Each net and each program once, and all whose number of products is known.
QUICK = [*PRODUCTS, ("mlp", "IL"), ("mlp", "iPC")]
OTHERS = [(net, name) for net in SMALL for name in PROGRAMS if (net, name) not in QUICK]


@cache
def _load(net):
    return SMALL[net]()


@pytest.fixture
def on_gpu(monkeypatch):
    """What pcjax asks for, which is the platform, says GPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def _start(load, program):
    """The shapes of parameters and optimizer state."""
    return jax.eval_shape(partial(workloads.start, load, program))


def _lower(update, *arguments):
    return export.export(jax.jit(update), platforms=["cuda"])(*arguments).mlir_module()


def _count(text):
    return text.count("stablehlo.dot_general"), text.count("stablehlo.convolution")


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(("net", "name"), [*QUICK, *thorough(OTHERS)])
def test_five_networks_are_as_many_products_as_one(net, name):
    load = _load(net)
    program = PROGRAMS[name](load)
    state = _start(load, program)
    batch = load.inputs, load.targets
    one = _lower(program.update, *state, *batch)
    states = jax.tree.map(lambda x: jax.ShapeDtypeStruct((5, *x.shape), x.dtype), state)
    five = _lower(jax.vmap(program.update, (0, 0, None, None)), *states, *batch)
    assert _count(one) == _count(five)
    assert _count(one) == PRODUCTS.get((net, name), _count(one))
    dots, convolutions = _count(one)
    assert dots > 0
    assert (convolutions > 0) == (net == "vgg5")  # filters without strides
    for text in (one, five):
        assert "callback" not in text
        assert "send" not in text


def test_without_a_cpu_nothing_is_counted(monkeypatch):
    def devices(platform):
        raise RuntimeError(f"Unknown backend {platform}")

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(SystemExit, match="expected it to name cpu too, as in cuda,cpu"):
        workloads.mlp(4, 32)


@pytest.mark.usefixtures("on_gpu")
def test_a_guard_is_a_select_and_no_loop():
    # The loop of one round that spares copies on a CPU would make a GPU wait.
    load = _load("mlp")
    program = PROGRAMS["BP"](load)
    tx = finite.guard(program.tx)
    params, _ = _start(load, program)
    grads = params
    text = _lower(tx.update, grads, jax.eval_shape(tx.init, params), params)
    assert "stablehlo.while" not in text
    assert "stablehlo.select" in text
