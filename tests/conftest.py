"""Settings and fixtures of all tests."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import hypothesis
import jax
import jax.experimental
import jax.monitoring
import pytest

from experiments.common.compiling import compile_quickly

compile_quickly()  # nearly all of the time would go into that

# What JAX tells of a program on its way, and what the summary calls it.
STAGES = {
    "/jax/core/compile/jaxpr_trace_duration": "traced",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowered",
    "/jax/core/compile/backend_compile_duration": "compiled",
}
_spent: dict[str, list[float]] = defaultdict(list)  # seconds of every program


def _note(event: str, seconds: float, **_: object) -> None:
    if event in STAGES:
        _spent[STAGES[event]].append(seconds)


jax.monitoring.register_event_duration_secs_listener(_note)


# A [B] array that meets a [B, D] array by mistake must not broadcast in silence.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compilation makes first examples slow; x64 is the same for every example.
hypothesis.settings.register_profile(
    "pcjax",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("pcjax")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option of `make test-faults`."""
    parser.addoption(
        "--all-faults",
        action="store_true",
        help="inject as many faults as docs/reliability.md reports, not a few of them, "
        "and run the tests that are left out otherwise",
    )


class Faults(NamedTuple):
    """How a test counts the faults that it injects.

    Attributes:
      all: whether all are to be injected; a few otherwise.
      report: `(what, injected, survived, equal)`: fails unless all were survived, and
        all that left a result (`equal` of them, None if none does) left the right one.
    """

    all: bool
    report: Callable[..., None]


@pytest.fixture
def faults(request: pytest.FixtureRequest, record_property) -> Faults:
    """Counts injected faults for the table at the end of the tests."""

    def report(what, injected, survived, equal=None):
        record_property("faults", [what, injected, survived, equal])
        assert survived == injected > 0
        assert equal in (None, injected)

    return Faults(request.config.getoption("--all-faults"), report)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Notes what a test and its fixtures took to compile."""
    spent = {name: [len(row), sum(row)] for name, row in _spent.items()}
    item.user_properties.append(("programs", spent))
    _spent.clear()


def pytest_terminal_summary(terminalreporter) -> None:
    """Prints what went into programs, and the faults injected and survived."""
    _report_programs(terminalreporter)
    _report_faults(terminalreporter)


def _report_programs(terminalreporter) -> None:
    total: dict[str, list[float]] = defaultdict(lambda: [0, 0])
    for report in terminalreporter.stats.get("", ()):
        if report.when == "teardown":
            for name, value in report.user_properties:
                if name == "programs":
                    for stage, (count, seconds) in value.items():
                        total[stage][0] += count
                        total[stage][1] += seconds
    if total:
        terminalreporter.section("programs")
        for stage, (count, seconds) in total.items():
            terminalreporter.write_line(f"{count:7,} {stage} in {seconds:,.0f} s")


def _report_faults(terminalreporter) -> None:
    """How many were injected and survived, as a Markdown table."""
    counts: dict[str, list[int | None]] = defaultdict(lambda: [0, 0, None])
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            for name, value in report.user_properties:
                if name == "faults" and report.when == "call":
                    what, injected, survived, equal = value
                    row = counts[what]
                    row[0] += injected
                    row[1] += survived
                    row[2] = row[2] if equal is None else (row[2] or 0) + equal
    if counts:
        lines = [
            "| fault | injected | survived | results equal |",
            "|---|---|---|---|",
            *(
                f"| {what} | {injected:,} | {survived:,} | "
                f"{'-' if equal is None else f'{equal:,}'} |"
                for what, (injected, survived, equal) in sorted(counts.items())
            ),
        ]
        terminalreporter.section("faults")
        terminalreporter.write_line("\n".join(lines))


def pytest_collection_modifyitems(config, items) -> None:
    """Leaves out what takes long and what a quick test guards as well."""
    if config.getoption("--all-faults"):
        return
    left_out = [item for item in items if item.get_closest_marker("exhaustive")]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs a test in double precision."""
    # Newer versions of jax have one name, older ones the other.
    new = hasattr(jax, "enable_x64")
    enable = jax.enable_x64 if new else jax.experimental.enable_x64
    with enable(True):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the repository, where there is one."""
    checkout = Path(__file__).resolve().parents[1]
    folders = [base / "shared" / "data" for base in checkout.parents[:2]]
    for folder in folders:
        if folder.is_dir():
            return folder
    pytest.skip(
        "the real images are not there: no folder " + " or ".join(map(str, folders))
    )
