"""Counts of products and bytes against closed formulas, and the tables made of them."""

import json

import jax
import pytest

from benchmarks import hlo, workloads
from experiments.costs import experiment as costs
from experiments.costs import measures as cost_measures
from tests.tiers import thorough

LIGHT = costs.Size(nets=("MLP",), depths=(2,), steps=(3,))


@pytest.mark.parametrize("whole", [False, *thorough([True])])
def test_smoke_end_to_end(tmp_path, capsys, monkeypatch, whole):
    if not whole:
        monkeypatch.setitem(costs.EXPERIMENT.sizes, "smoke", LIGHT)
        net = costs.NETS["MLP"]._replace(steps=(3,))
        monkeypatch.setitem(costs.NETS, "MLP", net)
    costs.main(costs.Config(out=tmp_path))
    found = json.loads((tmp_path / "results.json").read_text())
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "run.json").exists()
    assert found["config"]["dataset"] == "none"
    rows = {(r["method"], r["steps"]): r for r in found["results"]["nets"]["MLP"]}
    # 2L + 2T(L-1), without the (L-1)(L-2) that are zero for IL; 3L-1; T(3L-1).
    products = {key: row["products"] for key, row in rows.items()}
    assert products["BP", 0] == products["BP-Adam", 0] == 11
    assert products["SeqIL", 3] == products["SeqIL-MQ", 3] == 26
    if whole:
        assert products["SeqIL", 6] == 44
    assert products["IL", 15] == 8 + 90 - 6
    assert products["iPC", 3] == 33
    # The weights of 3072-3x1024-10, twice by BP the first, thrice the others.
    matrices = 3072 * 1024, 1024 * 1024, 1024 * 1024, 1024 * 10
    work = 3 * sum(matrices) - matrices[0]
    assert rows["BP", 0]["multiply_adds"] == work
    sizes = {key: row["bytes"] for key, row in rows.items()}
    count = 4 * (sum(matrices) + 3 * 1024 + 10)
    assert {size["parameters"] for size in sizes.values()} == {count}
    assert sizes["BP", 0]["optimizer"] == sizes["SeqIL", 3]["optimizer"] == 0
    assert sizes["SeqIL-MQ", 3]["optimizer"] == 4 * (4 + 1)
    adam = 2 * count + 4
    assert sizes["BP-Adam", 0]["optimizer"] == adam
    assert sizes["SeqIL-Adam", 3]["optimizer"] == adam
    for size in sizes.values():
        # Weights and optimizer are overwritten; the batch comes on top.
        kept = size["parameters"] + size["optimizer"]
        assert kept <= size["aliased"] <= size["outputs"]
        assert size["arguments"] == kept + 4 * 64 * (3072 + 10)
    if whole:
        formulas = found["results"]["formulas"]
        assert all(f["exact"] for f in formulas.values())
        assert {name: f["text"] for name, f in formulas.items()} == FORMULAS
    holds = {row["what"]: row["holds"] for row in found["claims"]}
    assert holds["MLP (L=4), BP: products"]
    assert not holds["MLP (L=4), SeqIL T=3: products"]  # 26; the paper prints 27
    assert "25 + 4 - 3 = 26" in capsys.readouterr().out


FORMULAS = {
    "BP": "3L - 1",
    "SeqIL": "2TL - 2T + 2L",
    "IL": "2TL - 2T - L² + 5L - 2",
    "iPC": "3TL - T",
}


@pytest.mark.parametrize(("depth", "steps"), [(2, 1), (3, 4), *thorough([(6, 7)])])
def test_counts_of_other_depths_follow_the_formulas(depth, steps):
    rows = costs.measure_depth(depth, [steps])
    found = {row["method"]: row["products"] for row in rows}
    every = 2 * depth + 2 * steps * (depth - 1)
    zero = sum(2 * max(depth - 2 - t, 0) for t in range(steps))
    assert found["BP"] == 3 * depth - 1
    assert found["SeqIL"] == every
    assert found["IL"] == every - zero
    assert found["iPC"] == (steps * (3 * depth - 1) if steps > 2 else 2 * depth)


def test_a_convolution_and_its_gradients_have_the_same_multiply_adds():
    load = workloads.conv(2, side=16, features=(8, 16), kernel_sizes=(5, 3))
    found = [
        cost_measures.inspect(load, *program)
        for program in cost_measures.learning(load, [3], [2])
    ]
    # Two strided layers of (positions, filter, channels in and out); the dense one.
    layers = (6**2 * 5**2 * 3 * 8, 2**2 * 3**2 * 8 * 16, 64 * 10)
    work = {row["method"]: row["multiply_adds"] for row in found}
    assert work["BP"] == 3 * sum(layers) - layers[0]
    assert work["SeqIL"] == 8 * sum(layers) - 6 * layers[0]
    assert work["iPC"] == 3 * work["BP"]
    assert all(row["multiply_adds"] == row["fewest_multiply_adds"] for row in found)


@pytest.mark.parametrize("padding", [(0, 0), (1, 2), (3, 1)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_multiply_adds_of_a_convolution_are_its_nonzero_terms(padding, dilation):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (2,),
            (padding,),
            (dilation,),
            dimension_numbers=("NHC", "HIO", "NHC"),
        )

    x, kernel = jax.numpy.ones((3, 11, 5)), jax.numpy.ones((4, 5, 6))
    counts = hlo.count(jax.jit(convolve).lower(x, kernel).compile())
    # Of ones, every output is the number of terms it sums.
    assert counts.flops == 2 * convolve(x, kernel).sum()


def test_leaving_out_the_optimisation_of_machine_code_changes_no_number():
    load = workloads.mlp(8, 32, 2)
    program = workloads.inference_learning(load, "sequential", 2, "MQ")
    plain = cost_measures.compile_step(load, program)
    full = cost_measures.compile_step(load, program, xla_backend_optimization_level=3)
    assert hlo.count(plain) == hlo.count(full)
    sizes = [
        (m.argument_size_in_bytes, m.output_size_in_bytes, m.temp_size_in_bytes)
        for m in (plain.memory_analysis(), full.memory_analysis())
    ]
    assert sizes[0] == sizes[1]


def test_formulas_are_those_of_the_counts():
    counts = {
        "BP": lambda layers, steps: 3 * layers - 1,
        "SeqIL": lambda layers, steps: 2 * layers + 2 * steps * (layers - 1),
        "IL": lambda layers, steps: (
            2 * layers + 2 * steps * (layers - 1) - (layers - 1) * (layers - 2)
        ),
        "iPC": lambda layers, steps: steps * (3 * layers - 1),
    }
    for method, count in counts.items():
        rows = [
            {"layers": layers, "steps": steps, "products": count(layers, steps)}
            for layers in (2, 3, 4)
            for steps in ((0,) if method == "BP" else (3, 6))
        ]
        found = cost_measures.fit(rows)
        assert (found["text"], found["exact"]) == (FORMULAS[method], True)


def test_formulas_that_do_not_meet_all_counts_say_so():
    rows = [
        {"layers": layers, "steps": steps, "products": layers * steps + (layers == 3)}
        for layers in (2, 3, 4, 5)
        for steps in (1, 2, 5)
    ]
    assert not cost_measures.fit(rows)["exact"]
    assert cost_measures.formula((1, -2, 0, -1, -3)) == "TL - 2T - L - 3"


def test_seeds_are_refused():
    with pytest.raises(ValueError, match="leave --seeds out, got 3"):
        costs.Config(seeds=3)
