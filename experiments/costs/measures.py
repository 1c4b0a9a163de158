"""What compiled training iterations multiply and hold, and formulas of the counts."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import hlo, workloads
from benchmarks.workloads import Program, Workload

MEMORY = {  # Table 3: multiples of the parameters M, with the optimizer's state
    "BP": 1,
    "BP-Adam": 3,
    "SeqIL": 1,
    "SeqIL-MQ": 1,
    "SeqIL-Adam": 3,
}
TERMS = ("TL", "T", "L²", "L", "")
# Table 5, and 3L - 1 of Table 4: the coefficients of these terms.
PAPER = {
    "BP": (0, 0, 0, 3, -1),
    "SeqIL": (2, -1, 0, 1, 0),
    "IL": (2, -1, 0, 1, 0),
    "iPC": (3, -1, 0, 0, 0),
}


def compile_step(load: Workload, program: Program, **options: Any) -> Any:
    """A training iteration compiled for the CPU, with buffers donated as in training.

    Args:
      load: net and batch.
      program: the iteration.
      **options: of XLA; by default the machine code is not optimised, which shows
        neither in the optimised HLO nor in its buffers, and is faster.
    """
    arrays = load.inputs, load.targets
    params = jax.eval_shape(load.network.init, jax.random.key(0), load.inputs)
    state = jax.eval_shape(program.tx.init, params)
    shapes = jax.eval_shape(lambda *x: x, params, state, *arrays)
    with jax.default_device(jax.devices("cpu")[0]):
        lowered = jax.jit(program.update, donate_argnums=(0, 1)).lower(*shapes)
        return lowered.compile(options or {"xla_backend_optimization_level": 0})


def inspect(load: Workload, method: str, steps: int, program: Program) -> dict:
    """What a compiled training iteration multiplies and holds."""
    compiled = compile_step(load, program)
    counts = hlo.count(compiled)
    memory = compiled.memory_analysis()
    params = jax.eval_shape(load.network.init, jax.random.key(0), load.inputs)
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
    }
    per_example = 2 * len(load.inputs)  # a multiply-add is two operations
    return {
        "method": method,
        "layers": len(load.network.layers),
        "steps": steps,
        "products": counts.dots + counts.convolutions,
        "dots": counts.dots,
        "convolutions": counts.convolutions,
        "multiply_adds": counts.flops // per_example,
        "fewest_multiply_adds": program.floor // per_example,
        "bytes": {
            "parameters": _bytes(params),
            "optimizer": _bytes(jax.eval_shape(program.tx.init, params)),
            **sizes,
            "peak": sum(sizes.values()) - 2 * sizes["aliased"],
        },
    }


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def learning(load: Workload, steps: Iterable[int], il_steps: Iterable[int]) -> Iterator:
    """`(method, T, program)` of backprop, SeqIL, iPC and IL with SGD; T of BP is 0."""
    yield "BP", 0, workloads.backprop(load, "SGD")
    for count in steps:
        program = workloads.inference_learning(load, "sequential", count, "SGD")
        yield "SeqIL", count, program
        yield "iPC", count, workloads.incremental(load, count, "SGD")
    for count in il_steps:
        program = workloads.inference_learning(load, "simultaneous", count, "SGD")
        yield "IL", count, program


def fit(rows: list[dict]) -> dict[str, Any]:
    """The formula of whole coefficients nearest to counts; whether it meets them all.

    Returns:
      `coefficients` of TERMS, `text`, the number of `counts` and whether it is `exact`.
    """
    terms = np.array([_terms(row["layers"], row["steps"]) for row in rows])
    counts = np.array([row["products"] for row in rows])
    found = np.linalg.lstsq(terms, counts, rcond=None)[0]
    whole = np.rint(found).astype(int)
    return {
        "coefficients": whole.tolist(),
        "text": formula(whole),
        "counts": len(rows),
        "exact": bool((terms @ whole == counts).all()),
    }


def _terms(layers: int, steps: int) -> tuple[int, ...]:
    return steps * layers, steps, layers**2, layers, 1


def paper(method: str, layers: int, steps: int) -> int:
    """The paper's number of products by Table 5, its sum rightly evaluated."""
    return int(np.dot(PAPER[method], _terms(layers, steps)))


def formula(coefficients: Iterable[int]) -> str:
    """`2TL - 2T + 2L` of (2, -2, 0, 2, 0)."""
    text = ""
    for factor, term in zip(coefficients, TERMS, strict=True):
        if factor:
            number = "" if abs(factor) == 1 and term else abs(factor)
            text += f" {'-' if factor < 0 else '+'} {number}{term}"
    return text.removeprefix(" + ").strip()


def find(rows: list[dict], method: str, steps: int | None = None) -> dict:
    """The first row of a method, of one number of iterations T if given."""
    return next(
        row for row in rows if row["method"] == method and steps in (None, row["steps"])
    )
