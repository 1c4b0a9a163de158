"""Memory and matrix products of a training iteration (Tables 3, 4 and 5).

python -m experiments.costs
python -m experiments.costs --preset cpu

Training iterations are compiled for the CPU and read, never run: nothing here depends
on data or on chance, and no count on the machine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from benchmarks import workloads
from benchmarks.workloads import Workload
from experiments.common.harness import Claim, Experiment, Options, Run, execute
from experiments.common.settings import settings
from experiments.costs.measures import (
    MEMORY,
    PAPER,
    find,
    fit,
    formula,
    inspect,
    learning,
    paper,
)
from experiments.costs.plots import plot

TINY = settings("conv", "tiny_imagenet")


class Net(NamedTuple):
    """A net of the paper.

    Attributes:
      load: makes it, with a batch of 64.
      steps: T of its sequential inference in the paper, and others to count.
      printed: by method, a of the number of products aL - 1 in Table 4.
    """

    load: Callable[[], Workload]
    steps: tuple[int, ...]
    printed: dict[str, int]


NETS = {
    "MLP": Net(workloads.mlp, (3, 6), {"BP": 3, "SeqIL": 7, "IL": 31}),
    "autoencoder": Net(workloads.autoencoder, (6, 3), {"BP": 3, "SeqIL": 13, "IL": 31}),
    "conv net": Net(workloads.conv, (3, 6), {}),
    "conv net, Tiny ImageNet": Net(
        partial(
            workloads.conv,
            side=64,
            classes=200,
            features=TINY.hidden,
            kernel_sizes=TINY.kernel_sizes,
        ),
        (TINY.num_steps,),
        {},
    ),
}
IL_STEPS = 15  # of standard IL, Table 4
# Where the counts follow one formula: pcjax leaves out all zero products of standard
# IL up to L = 5, and few iterations of iPC have products that nothing uses.
REGULAR: dict[str, tuple[str, Callable[[int, int], bool]]] = {
    "BP": ("", lambda layers, steps: True),
    "SeqIL": ("", lambda layers, steps: True),
    "IL": (", L-1 ≤ T, L ≤ 5", lambda layers, steps: layers <= min(5, steps + 1)),
    "iPC": (", T ≥ 3", lambda layers, steps: steps >= 3),
}


@dataclass(frozen=True)
class Size:
    """What is compiled.

    Attributes:
      nets: of the paper, in their full size.
      depths: L of the MLPs from which the formulas are taken.
      steps: T of their inference.
    """

    nets: tuple[str, ...] = tuple(NETS)
    depths: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    steps: tuple[int, ...] = (1, 3, 6, IL_STEPS)


@dataclass(frozen=True)
class Config(Options):
    """Counts the products and the memory of compiled training iterations.

    Nothing is trained: the data set, its folder and the seed make no difference.
    """

    def __post_init__(self) -> None:
        if self.seeds is not None:
            raise ValueError(
                "costs trains no networks whose results could differ by the seed; "
                f"leave --seeds out, got {self.seeds}."
            )

    @property
    def dataset_name(self) -> str:
        """No data set is needed."""
        return "none"


def measure_net(name: str) -> list[dict]:
    """Every method on a net of the paper."""
    net = NETS[name]
    load, first = net.load(), net.steps[0]
    programs = list(learning(load, net.steps, [IL_STEPS]))
    programs.append(("BP-Adam", 0, workloads.backprop(load, "Adam")))
    for optimizer in ("MQ", "Adam"):
        program = workloads.inference_learning(load, "sequential", first, optimizer)
        programs.append((f"SeqIL-{optimizer}", first, program))
    return [inspect(load, *program) for program in programs]


def measure_depth(depth: int, steps: Sequence[int]) -> list[dict]:
    """The products of a small MLP of L layers, whose number is that of a wide one."""
    load = workloads.mlp(batch_size=8, width=32, depth=depth)
    shown = ("method", "layers", "steps", "products")
    rows = [inspect(load, *program) for program in learning(load, steps, steps)]
    return [{name: row[name] for name in shown} for row in rows]


def measure(config: Config, size: Size, run: Run) -> dict[str, Any]:
    """Compiles everything, a net at a time."""
    nets = {
        name: run.part(f"net-{index}", partial(measure_net, name))
        for index, name in enumerate(size.nets)
    }
    depths = [
        run.part(f"depth-{depth}", partial(measure_depth, depth, size.steps))
        for depth in size.depths
    ]
    chain = [row for rows in depths for row in rows]
    formulas = {}
    for method, (_, regular) in REGULAR.items():
        rows = [row for row in chain if row["method"] == method]
        formulas[method] = fit(
            [row for row in rows if regular(row["layers"], row["steps"])]
        )
    return {"batch_size": 64, "nets": nets, "chain": chain, "formulas": formulas}


def claims(results: dict[str, Any]) -> list[Claim]:
    """Tables 3, 4 and 5 beside what was counted."""
    return [
        *_state_claims(results["nets"]),
        *_peak_claims(results["nets"]),
        *_product_claims(results["nets"]),
        *_formula_claims(results),
    ]


def _state_claims(nets: dict[str, list[dict]]) -> list[Claim]:
    """Table 3: what is kept from one training iteration to the next."""
    claims = []
    for method, multiple in MEMORY.items():
        found = [find(rows, method) for rows in nets.values()]
        more = [
            row["bytes"]["optimizer"] - (multiple - 1) * row["bytes"]["parameters"]
            for row in found
        ]
        # A number for each layer and a counter vanish beside M.
        small = [4 * (row["layers"] + 1) for row in found]
        times = "" if multiple == 1 else multiple
        ends = sorted({min(more), max(more)})
        claims.append(
            Claim(
                f"{method}: parameters M and optimizer state",
                "-" if method == "SeqIL" else f"O({times}M)",
                f"{times}M + {' to '.join(map(str, ends))} bytes",
                all(0 <= m <= s for m, s in zip(more, small, strict=True)),
            )
        )
    return claims


def _peak_claims(nets: dict[str, list[dict]]) -> list[Claim]:
    """What the compiled iteration holds at once, activities and gradients included."""
    claims = []
    for name, rows in nets.items():
        peaks = [find(rows, method)["bytes"]["peak"] / 1e6 for method in MEMORY]
        claims.append(
            Claim(
                f"{name}, batch 64: MB a whole step holds, {', '.join(MEMORY)}",
                "-",
                ", ".join(f"{peak:.1f}" for peak in peaks),
            )
        )
    return claims


def _product_claims(nets: dict[str, list[dict]]) -> list[Claim]:
    """Tables 4 and 5 for the paper's nets."""
    claims = []
    for name, rows in nets.items():
        backprop = find(rows, "BP")
        for method in PAPER:
            row = find(rows, method)
            layers, steps = row["layers"], row["steps"]
            said = right = paper(method, layers, steps)
            text = f"{formula(PAPER[method])} = {right}"
            if factor := NETS[name].printed.get(method):
                said = factor * layers - 1
                text = f"{factor}L - 1 = {said}"
                text += f"; {formula(PAPER[method])} = {right}" * (said != right)
            times = row["products"] / backprop["products"]
            work = row["multiply_adds"] / backprop["multiply_adds"]
            claims.append(
                Claim(
                    f"{name} (L={layers}), {method}"
                    + (f" T={steps}" if steps else "")
                    + ": products",
                    text,
                    f"{row['products']}, {times:.2f} x BP ({work:.2f} x BP in the "
                    f"{row['multiply_adds'] / 1e6:.1f} M multiply-adds an example)",
                    row["products"] == said,
                )
            )
            if method in ("SeqIL", "IL"):
                claims.append(_account(row, right))
    return claims


def _account(row: dict, right: int) -> Claim:
    """How the paper's sum becomes the number of products counted."""
    layers, steps = row["layers"], row["steps"]
    needed = right + layers - steps
    zero = needed - row["products"]
    zeros = (layers - 1) * (layers - 2) if row["method"] == "IL" else 0
    less = f" - {zero} (of {zeros})" if zeros else ""
    return Claim(
        "  = the right sum + first forward pass - repeated predictions of layer 1"
        + (" - products that are zero" if zeros else ""),
        "-",
        f"{right} + {layers} - {steps}{less} = {row['products']}",
        zero == zeros,
    )


def _formula_claims(results: dict[str, Any]) -> list[Claim]:
    """The numbers as formulas in L and T."""
    claims = []
    depths = [row["layers"] for row in results["chain"]]
    for method, found in results["formulas"].items():
        exact = "all" if found["exact"] else "not all"
        claims.append(
            Claim(
                f"{method}, MLPs of L = {min(depths)} to {max(depths)}"
                f"{REGULAR[method][0]}: products",
                formula(PAPER[method]),
                f"{found['text']} ({exact} of {found['counts']} counts)",
                found["exact"] and tuple(found["coefficients"]) == PAPER[method],
            )
        )
    chain = {(r["method"], r["layers"], r["steps"]): r for r in results["chain"]}
    pairs = [
        (steps, row["products"] > chain["SeqIL", layers, steps]["products"])
        for (method, layers, steps), row in chain.items()
        if method == "iPC"
    ]
    more = sorted({steps for steps, is_more in pairs if is_more})
    fewer = sorted({steps for steps, is_more in pairs if not is_more})
    claims.append(
        Claim(
            "iPC makes more products than SeqIL with the same T",
            "sections 5, A.6",
            f"for T in {more}" + (f", not for T in {fewer}" if fewer else ""),
            not fewer,
        )
    )
    return claims


EXPERIMENT = Experiment(
    name="costs",
    paper="Tables 3, 4 and 5",
    title="Memory and matrix products of a training iteration",
    sizes={
        "smoke": Size(nets=("MLP",), depths=(2, 3, 4), steps=(3, 6)),
        "cpu": Size(),
        "paper": Size(),
    },
    measure=measure,
    plot=plot,
    claims=claims,
    exact=True,
)
main = partial(execute, EXPERIMENT)
