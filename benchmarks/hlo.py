"""Counts the products and the collectives of a compiled program.

The optimised HLO is read as text and walked from the entry computation: a while
loop counts as often as its known trip count says, a fusion or call as often as it
is called, of the branches of a conditional the most expensive one.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_SHAPE = re.compile(r"^\w+\[([\d,]*)\]")
_OPCODE = re.compile(r"(?:^|\s)([a-z][\w\-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
_OPERAND = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
# Products in a vendor's library.
_VENDOR = re.compile(r'custom_call_target="[^"]*(?:gemm|matmul|conv|dot)')
_KINDS = {
    "product": {"dot", "convolution"},
    "loop": {"while", "conditional"},
    "reduction": {"reduce", "reduce-window"},
    "gather": {"gather", "dynamic-slice", "scatter"},
    "slice": {"slice", "pad", "concatenate"},
    "copy": {"copy", "copy-start", "transpose"},
}


class Counts(NamedTuple):
    """How often a compiled program multiplies matrices.

    Attributes:
      dots: matrix products executed.
      convolutions: convolutions executed.
      flops: floating-point operations of both, a multiply-add being two; those with
        the zeros that pad or dilate a convolution are not counted.
    """

    dots: int
    convolutions: int
    flops: int


class Collectives(NamedTuple):
    """How often a compiled program communicates, by one kind of collective.

    Attributes:
      calls: collectives executed.
      arrays: arrays in them; XLA may send several at once.
      bytes: of their results on one device.
    """

    calls: int
    arrays: int
    bytes: int


def count(compiled: jax.stages.Compiled) -> Counts:
    """Counts the products that one call of a compiled function executes.

    Args:
      compiled: what `jax.jit(f).lower(...).compile()` returns.

    Returns:
      The counts, for each device if there are several.

    Raises:
      ValueError: if the program holds a loop of unknown length, or a custom call
        that may hide a product.
    """
    counts = _executed(compiled, _product)
    return Counts(*(counts[name] for name in Counts._fields))


def collectives(compiled: jax.stages.Compiled) -> dict[str, Collectives]:
    """Counts what one call of a compiled function sends between devices.

    Args:
      compiled: what `jax.jit(f).lower(...).compile()` returns.

    Returns:
      `{kind: counts}`, kinds such as `all-reduce`; empty if nothing is sent.

    Raises:
      ValueError: if a loop of unknown length communicates, or a collective is of a
        form not known here.
    """
    counts = _executed(compiled, _collective)
    return {
        kind: Collectives(*(counts[kind, name] for name in Collectives._fields))
        for kind in sorted({kind for kind, _ in counts})
    }


def kinds(compiled: jax.stages.Compiled) -> dict[str, str]:
    """What every instruction of a compiled function is for.

    Args:
      compiled: what `jax.jit(f).lower(...).compile()` returns.

    Returns:
      `{instruction: kind}`: "product" if it or what it calls multiplies matrices or
      convolves, else "reduction" if it sums, "gather", "slice" (the patches of images),
      "copy", "loop" for control flow, or "elementwise".
    """
    computations, _ = _parse(compiled.as_text() or "")

    def opcodes(line: str) -> Iterator[str]:
        found = _OPCODE.search(line)
        opcode = found[1] if found else ""
        vendor = opcode == "custom-call" and _VENDOR.search(line)
        yield "dot" if vendor else opcode
        if opcode not in ("while", "conditional", "reduce"):
            for name in _CALLED.findall(line):
                for inner in computations[name][1].values():
                    yield from opcodes(inner)

    def kind(line: str) -> str:
        held = set(opcodes(line))
        return next((kind for kind, ops in _KINDS.items() if held & ops), "elementwise")

    return {
        name: kind(line)
        for _, lines in computations.values()
        for name, line in lines.items()
    }


def _executed(
    compiled: jax.stages.Compiled,
    measure: Callable[[str, str, dict], dict | None],
) -> Counter:
    """Sums `measure(opcode, line, shapes)` over all instructions executed."""
    computations, entry = _parse(compiled.as_text() or "")
    known: dict[str, Counter] = {}

    def total(name: str) -> Counter:
        if name not in known:
            shapes, lines = computations[name]
            known[name] = Counter()
            for line in lines.values():
                known[name].update(_instruction(line, shapes, total, measure))
        return known[name]

    return total(entry)


def _parse(text: str) -> tuple[dict, str]:
    """Every computation's `{instruction: shape}` and lines, and the entry's name."""
    computations: dict[str, tuple[dict, dict]] = {}
    entry = name = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header[2]
            entry = name if header[1] else entry
            computations[name] = ({}, {})
        elif found := _INSTRUCTION.match(line):
            shapes, lines = computations[name]
            if shape := _SHAPE.match(found[2]):
                shapes[found[1]] = [int(n) for n in shape[1].split(",") if n]
            lines[found[1]] = found[2]
    return computations, entry


def _instruction(line: str, shapes: dict, total, measure) -> dict:
    opcode = _OPCODE.search(line)
    kind = opcode[1] if opcode else ""
    own = measure(kind, line, shapes)
    if own is not None:
        return own
    if kind == "conditional" and (branches := _BRANCHES.search(line)):
        costs = [total(name) for name in _OPERAND.findall(branches[1])]
        return max(costs, key=lambda counts: sum(counts.values()))
    called = [total(name) for name in _CALLED.findall(line) if kind != "reduce"]
    times = 1
    if kind == "while":
        trips = _TRIPS.search(line)
        if trips:
            times = int(trips[1])
        elif any(called):
            raise ValueError(f"a loop of unknown length: {line[:200]}")
    sums: Counter = sum(called, Counter())
    return {key: times * value for key, value in sums.items()}


def _product(kind: str, line: str, shapes: dict) -> dict | None:
    if kind == "dot":
        return {"dots": 1, "flops": 2 * _size(line) * _contracted(line, shapes)}
    if kind == "convolution":
        return {"convolutions": 1, "flops": 2 * _terms(line, shapes)}
    if kind == "custom-call" and _VENDOR.search(line):
        raise ValueError(f"a custom call may hide a product: {line[:200]}")
    return None


def _collective(kind: str, line: str, shapes: dict) -> dict | None:
    del shapes
    name = kind.removesuffix("-start")
    if name not in _COLLECTIVES:
        return None
    if kind != name and name != "all-reduce":  # its type holds operands and results
        raise ValueError(f"an asynchronous collective: {line[:200]}")
    arrays = _ARRAY.findall(line[: line.index(f" {kind}(")])
    size = sum(_bytes(dtype, dims) for dtype, dims in arrays)
    return {(name, "calls"): 1, (name, "arrays"): len(arrays), (name, "bytes"): size}


def _bytes(dtype: str, dims: str) -> int:
    """The size of an array such as `f32[40,48]`; that of a bool is a byte."""
    bits = re.search(r"\d+", dtype)
    count = math.prod(int(n) for n in dims.split(",") if n)
    return count * (int(bits[0]) if bits else 8) // 8


def _size(line: str) -> int:
    shape = _SHAPE.match(line)
    return math.prod(int(n) for n in shape[1].split(",") if n) if shape else 0


def _operands(line: str) -> list[str]:
    return _OPERAND.findall(line[line.index("(") :])


def _contracted(line: str, shapes: dict) -> int:
    """The length of the sums of a dot."""
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)
    left = shapes[_operands(line)[0]]
    return math.prod(left[int(a)] for a in axes[1].split(",") if a) if axes else 1


def _terms(line: str, shapes: dict) -> int:
    """How many products a convolution sums, those with padding or dilation left out."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line)
    result = _SHAPE.match(line)
    assert labels is not None, line
    assert result is not None, line
    inputs, kernel = (shapes[name] for name in _operands(line)[:2])
    outputs = [int(n) for n in result[1].split(",") if n]
    terms = outputs[labels[3].index("b")] * outputs[labels[3].index("f")]
    terms *= kernel[labels[2].index("i")]
    for axis in (label for label in labels[1] if label.isdigit()):
        terms *= _taps(
            inputs[labels[1].index(axis)],
            kernel[labels[2].index(axis)],
            outputs[labels[3].index(axis)],
            [_field(line, name, int(axis)) for name in _WINDOW],
        )
    return terms


_WINDOW = {"stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1"}


def _field(line: str, name: str, axis: int) -> int:
    """A window's number for an axis; of the padding that in front."""
    window = re.search(r"window=\{([^}]*)\}", line)
    found = re.search(rf"\b{name}=([\dx_\-]+)", window[1]) if window else None
    text = found[1].split("x")[axis] if found else _WINDOW[name]
    return int(text.split("_")[0])


def _taps(size: int, kernel: int, outputs: int, window: list[int]) -> int:
    """Pairs of an output and a filter position along an axis that meet an input."""
    stride, pad, dilation, kernel_dilation = window
    places = (
        output * stride + tap * kernel_dilation - pad
        for output in range(outputs)
        for tap in range(kernel)
    )
    return sum(
        place % dilation == 0 and 0 <= place // dilation < size for place in places
    )
