"""Changes lines of pcjax one at a time and counts the changes that a test notices.

`python .ci/mutants.py --sample 150 --seed 0`, or `make mutants`. mutmut makes the
mutants: an operator, a number, a condition, an argument, an assignment. Left out are
those of texts. Its own runner forks with the test modules imported and so with XLA's
threads started, which a fork does not take along; here each mutant has a process forked
from one that has imported jax and nothing of pcjax, and runs the tests of its module in
a copy of the checkout until one fails.
"""

import argparse
import contextlib
import difflib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from guards import TESTS, marks_of, tests_of

ROOT = Path(__file__).resolve().parents[1]

# Imported before the fork: what takes long and starts no thread.
WARM = (
    "chex flax.linen flax.nnx jax.numpy numpy optax optax.contrib "
    "orbax.checkpoint pytest"
)
DURATIONS = ROOT / "out" / "durations.json"
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", "__pycache__", "out", "_build", ".hypothesis"
)


class Mutant(NamedTuple):
    """One change of one module."""

    module: str  # below pcjax
    line: int
    change: tuple[str, ...]  # the lines of it, with - and +
    source: str  # of the whole module


class Outcome(NamedTuple):
    """What became of a run of tests."""

    code: int  # of pytest, -9 if it took too long, as in a loop without an end
    seconds: float
    output: str


def mutations_of(module: str) -> list[Callable[[], Mutant]]:
    """All of a module, but for those of texts and of what stands in them."""
    import libcst
    from mutmut.mutation.file_mutation import create_mutations

    def below(node):
        yield node
        for child in node.children:
            yield from below(child)

    path = ROOT / "pcjax" / module
    old = path.read_text()
    tree, mutations, *_ = create_mutations(str(path), old)
    texts = (libcst.FormattedString, libcst.SimpleString)
    in_texts = {
        id(inner)
        for node in below(tree)
        if isinstance(node, texts)
        for inner in below(node)
    }

    def make(mutation):
        node = mutation.original_node
        source = tree.deep_replace(node, mutation.mutated_node).code
        change, line = [], 0
        for row in difflib.unified_diff(old.split("\n"), source.split("\n"), n=0):
            if row.startswith("@@"):
                line = line or int(row.split()[1][1:].split(",")[0])
            elif not row.startswith(("---", "+++")):
                change.append(row)
        return Mutant(module, line, tuple(change), source)

    return [
        partial(make, mutation)
        for mutation in mutations
        if mutation.contained_by_top_level_function is not None
        and id(mutation.original_node) not in in_texts
    ]


class Quickest:
    """A plugin of pytest that runs the quickest tests first, as far as it has seen."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._took = json.loads(path.read_text()) if path.is_file() else {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=lambda item: self._took.get(item.nodeid, 1.0))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" and report.passed:
            self._took[report.nodeid] = report.duration
            own = self._path.with_suffix(f".{os.getpid()}")
            with open(own, "w") as file:
                json.dump(self._took, file)
            os.replace(own, self._path)  # tests may watch those of Path


def start(tree: Path, tests: list[str], log: Path) -> int:
    """Runs tests in a process of its own, whose id it returns."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(file, descriptor)
        os.chdir(tree)
        import pytest

        options = ["-x", "-q", "--tb=short", "-p", "no:cacheprovider"]
        options += ["-m", marks_of(tests), *tests]
        code = int(pytest.main(options, plugins=[Quickest(DURATIONS)]))
        sys.stdout.flush()
        os._exit(code)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(3)


class Running(NamedTuple):
    """Tests that run, of a mutant or, without one, of what is not changed."""

    process: int
    mutant: Mutant | None
    tests: list[str]
    began: float
    limit: float  # seconds
    tree: Path
    log: Path

    def is_late(self) -> bool:
        return time.monotonic() - self.began > self.limit


class Pool:
    """Copies of the checkout, in each of which one process at a time runs tests."""

    def __init__(self, folder: Path, workers: int) -> None:
        self._free = []
        self._running: dict[int, Running] = {}
        for index in range(workers):
            tree = folder / f"copy{index}"
            shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
            self._free.append((tree, folder / f"log{index}"))

    def run(self, jobs: list[tuple[Mutant | None, list[str], float]]) -> Iterator:
        """Yields `(mutant, tests, Outcome)` as they end."""
        waiting = jobs[::-1]
        try:
            while waiting or self._running:
                while waiting and self._free:
                    self._start(*waiting.pop())
                process, status = os.waitpid(-1, os.WNOHANG)
                if process:
                    yield self._end(process, os.waitstatus_to_exitcode(status))
                    continue
                self._stop(job for job in self._running.values() if job.is_late())
                time.sleep(0.02)
        finally:
            self._stop(self._running.values())

    @staticmethod
    def _stop(jobs):
        for job in jobs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.process, signal.SIGKILL)

    def _start(self, mutant, tests, limit):
        tree, log = self._free.pop()
        if mutant:
            (tree / "pcjax" / mutant.module).write_text(mutant.source)
        process = start(tree, tests, log)
        now = time.monotonic()
        self._running[process] = Running(process, mutant, tests, now, limit, tree, log)

    def _end(self, process, code):
        job = self._running.pop(process)
        if job.mutant:
            path = f"pcjax/{job.mutant.module}"
            shutil.copy2(ROOT / path, job.tree / path)
        outcome = Outcome(code, time.monotonic() - job.began, job.log.read_text())
        self._free.append((job.tree, job.log))
        return job.mutant, job.tests, outcome


def warm(cache: Path) -> None:
    """Imports what takes long. Programs that no mutant changes are compiled once."""
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    for name in WARM.split():
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork takes one thread along"
    sys.dont_write_bytecode = True


def killed(outcome: Outcome) -> bool:
    """Whether a test failed, or what it imports, or the process crashed."""
    if outcome.code in (3, 4):  # pytest's own, or the import of conftest.py
        return "/pcjax/" in outcome.output
    return outcome.code not in (0, 5, -9)  # 5: no test was there to run


def noticed_by(outcome: Outcome) -> str:
    """The test that failed, as pytest's summary names it."""
    lines = outcome.output.splitlines()
    found = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return found[-1].split(" - ")[0] if found else f"exit code {outcome.code}"


def table(outcomes: list[tuple[Mutant, Outcome]]) -> str:
    """The score of every module, in Markdown."""
    counts: Counter[str] = Counter(m.module for m, _ in outcomes)
    deaths: Counter[str] = Counter(m.module for m, o in outcomes if killed(o))
    rows = [(name, counts[name], deaths[name]) for name in sorted(counts)]
    rows.append(("all", counts.total(), deaths.total()))
    return "\n".join(
        [
            "| module | mutants | noticed | % |",
            "|---|---|---|---|",
            *(f"| {m} | {n} | {k} | {100 * k / n:.0f} |" for m, n, k in rows),
        ]
    )


def main() -> None:
    """Draws mutants, tests each, and prints the score and what survived."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sample", type=int, default=150, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--skip", type=int, default=0, help="of the sample, the first")
    parser.add_argument("--only", default="", help="what module names start with")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    parser.add_argument(
        "--limit", type=float, default=600.0, help="seconds for the tests of a mutant"
    )
    parser.add_argument(
        "--trust", action="store_true", help="that the tests pass without a mutant"
    )
    parser.add_argument("--json", type=Path, help="where to write all outcomes")
    options = parser.parse_args()

    every = [
        make
        for module in sorted(TESTS)
        if module.startswith(options.only)
        for make in mutations_of(module)
    ]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    count = min(options.sample, len(every))
    drawn = random.Random(options.seed).sample(every, count)
    sample = [make() for make in drawn[options.skip :]]
    print(f"{count} of {len(every)} mutants, seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mutants") as name:
        folder = Path(name)
        warm(folder / "cache")
        DURATIONS.parent.mkdir(exist_ok=True)
        pool = Pool(folder, options.workers)
        files = sorted({t for m in sample for t in tests_of(m.module)})
        trials = (
            [] if options.trust else [(None, [file], options.limit) for file in files]
        )
        for _, [tests], outcome in pool.run(trials):
            if killed(outcome):
                sys.exit(f"{tests} fails without a mutant:\n{outcome.output[-3000:]}")
        outcomes = []
        jobs = [(m, tests_of(m.module), options.limit) for m in sample]
        with contextlib.suppress(KeyboardInterrupt):  # then with what there is
            for mutant, _, outcome in pool.run(jobs):
                outcomes.append((mutant, outcome))
                where = f"{mutant.module}:{mutant.line} in {outcome.seconds:.0f} s"
                if killed(outcome):
                    print(f"{where} noticed by {noticed_by(outcome)}", flush=True)
                else:
                    verdict = "TOOK TOO LONG" if outcome.code < 0 else "SURVIVED"
                    print(f"{where} {verdict}", *mutant.change, sep="\n", flush=True)
    print(table(outcomes))
    if options.json:
        rows = [m._replace(source="")._asdict() | o._asdict() for m, o in outcomes]
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
