"""The profile of a training run."""

import json
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from benchmarks import hlo, whole_run, workloads
from tests.tiers import thorough

READS_PROFILES = hasattr(jax.profiler, "ProfileData")


def test_own_time_leaves_out_what_is_inside():
    events = [("loop", 0, 10), ("a", 1, 4), ("b", 2, 3), ("a", 5, 7), ("c", 12, 13)]
    own = {}
    for name, time in whole_run._own_times(events):
        own[name] = own.get(name, 0) + time
    assert own == {"loop": 5, "a": 4, "b": 1, "c": 1}
    assert whole_run._covered([*events, ("d", 9, 11)]) == 12


def _profile(name, *events):
    events = [
        SimpleNamespace(
            name=kernel, start_ns=start, duration_ns=3, stats=op and [("hlo_op", op)]
        )
        for kernel, op, start in events
    ]
    return SimpleNamespace(name=name, lines=[SimpleNamespace(events=events)])


def test_the_host_of_a_gpu_is_not_counted():
    host = _profile("/host:CPU", ("dot.1", "dot.1", 0), ("Python", (), 1))
    gpu = _profile("/device:GPU:0", ("gemm", "dot.1", 5), ("memcpy", (), 2))
    assert whole_run._instructions([host]) == [[("dot.1", 0, 3)]]
    assert whole_run._instructions([host, gpu]) == [
        [("memcpy", 2, 5), ("dot.1", 5, 8)],
    ]


def test_kinds_of_instructions():
    def program(a, b):
        def body(_, x):
            return jnp.tanh(x @ b)

        x = jax.lax.fori_loop(0, 3, body, a)
        return jnp.sum(x), x[jnp.argsort(x[:, 0])]

    compiled = jax.jit(program).lower(jnp.ones((64, 64)), jnp.ones((64, 64))).compile()
    kinds = hlo.kinds(compiled)
    by_kind = {
        kind: [n for n, k in kinds.items() if k == kind] for kind in kinds.values()
    }
    assert {"product", "loop", "reduction", "gather", "elementwise"} <= set(by_kind)
    # In the entry, a loop is control flow; its body's product counts for itself.
    assert any(name.startswith("while") for name in by_kind["loop"])
    assert not any(name.startswith("while") for name in by_kind["product"])


@pytest.mark.slow
@pytest.mark.skipif(not READS_PROFILES, reason="this JAX cannot read its profiles")
@pytest.mark.parametrize(
    ("width", "depth", "program"),
    [(512, 3, "SeqIL-SGD T=6"), *thorough([(1024, 4, "SeqIL-MQ T=3")])],
)
def test_products_are_told_from_other_work(
    tmp_path, monkeypatch, width, depth, program
):
    """Tests compile quickly, which leaves all but products slow: half of a run."""
    net = partial(workloads.mlp, width=width, depth=depth)
    monkeypatch.setitem(workloads.NETS, "mlp", net)
    path = tmp_path / "run.json"
    config = whole_run.Config(
        program=program, epochs=1, seeds=2, steps=3, profiled_steps=3, json=path
    )
    whole_run.main(config)
    found = json.loads(path.read_text())
    shares = found["share_of_time"]
    assert 0.2 < shares["product"] < 1
    assert shares["elementwise"] > 0.05
    assert sum(shares.values()) > 0.9
    assert shares.get("other", 0) < 0.05
    assert found["images_per_second"] == pytest.approx(
        2 * 3 * 64 / found["median_epoch_seconds"]
    )
    assert found["flops_per_second"] > 1e9


@pytest.mark.skipif(READS_PROFILES, reason="this JAX reads its profiles")
def test_a_jax_that_cannot_read_profiles_is_told():
    with pytest.raises(RuntimeError, match=r"^profile: JAX .* expected a newer"):
        whole_run.profile(None)
