"""What is packaged, how the wings stand on each other, and how long the code is."""

import ast
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.inputs.test_bad_inputs import FAULTS

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# From the ground up; an import goes to the same wing or one that stands before it.
FLOORS = (
    "checks",
    "numerics",
    "networks",
    "energy",
    "optimizers",
    "inference",
    "learning",
    "theory",
    "training",
)
WINGS = sorted(path.parent.name for path in (ROOT / "pcjax").glob("*/__init__.py"))

MAX_FUNCTION, MAX_MODULE = 60, 320  # lines


def _modules(*folders: str) -> list[Path]:
    return [
        path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def test_wheel_and_sdist_hold_pcjax_alone():
    targets = PYPROJECT["tool"]["hatch"]["build"]["targets"]
    assert targets["wheel"] == {"packages": ["pcjax"]}
    assert targets["sdist"] == {"only-include": ["pcjax", "CHANGELOG.md"]}


def test_every_wing_has_its_floor():
    files = {path.stem for path in (ROOT / "pcjax").glob("*.py")} - {"__init__"}
    assert {*WINGS, *files} == {*FLOORS, "checkpoints"}


def _imports(path: Path) -> list[str]:
    """The names of pcjax that a module imports, wherever it does."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if name.partition(".")[0] == "pcjax"]


def _floor(name: str) -> int:
    """The floor of an imported name; that of `pcjax` itself is above all."""
    wing = [*name.split("."), ""][1]
    return FLOORS.index(wing) if wing in FLOORS else len(FLOORS)


@pytest.mark.parametrize("path", _modules("pcjax"), ids=lambda path: path.stem)
def test_no_import_runs_upwards(path):
    parts = path.relative_to(ROOT / "pcjax").with_suffix("").parts
    if parts == ("__init__",):
        return
    if parts[0] == "checkpoints":
        outside = [x for x in _imports(path) if not x.startswith("pcjax.checkpoints")]
        assert not outside, "checkpoints import nothing of the rest"
        return
    own = FLOORS.index(parts[0])
    upwards = [name for name in _imports(path) if _floor(name) > own]
    assert not upwards, f"{path} stands on floor {own} of {FLOORS}"


def test_no_arrow_between_wings_is_new():
    """Each of the 32 stands for what a reader must know of another wing."""
    arrows = {
        (path.relative_to(ROOT / "pcjax").with_suffix("").parts[0], name.split(".")[1])
        for path in _modules("pcjax")
        if path.parent != ROOT / "pcjax" or path.stem in FLOORS
        for name in _imports(path)
    }
    arrows = {(own, other) for own, other in arrows if own != other}
    height = {}
    for wing in FLOORS:
        below = [height[other] for own, other in arrows if own == wing]
        height[wing] = 1 + max(below, default=0)
    assert len(arrows) <= 32, sorted(arrows)
    assert max(height.values()) <= 6, height


@pytest.mark.parametrize("wing", WINGS)
def test_every_wing_says_what_lives_there(wing):
    tree = ast.parse((ROOT / "pcjax" / wing / "__init__.py").read_text())
    words = (ast.get_docstring(tree) or "").split()
    assert len(words) >= 10


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of its body without the docstring."""
    skip = ast.get_docstring(function, clean=False) is not None
    body = function.body[skip:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("folder", ["pcjax", "experiments"])
def test_functions_and_modules_fit_on_a_screen_or_five(folder):
    long = []
    for path in _modules(folder):
        text = path.read_text()
        if (count := len(text.splitlines())) > MAX_MODULE:
            long.append(f"{path.relative_to(ROOT)}: {count} lines")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if (count := _body_lines(node)) > MAX_FUNCTION:
                where = f"{path.relative_to(ROOT)}: {node.name}"
                long.append(f"{where}: a body of {count} lines")
    assert not long, "\n".join(long)


def test_import_pcjax_brings_nothing_that_only_some_need():
    heavy = (
        *("orbax.checkpoint", "matplotlib", "sklearn", "scipy.stats", "tyro"),
        "flax.nnx",  # takes longer than the rest of flax
    )
    code = "import sys, pcjax; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    ).stdout.split()
    assert "pcjax" in found
    assert not [name for name in heavy if name in found]


def test_the_oldest_versions_are_the_lower_bounds():
    bounds = {}
    project = PYPROJECT["project"]
    for requirement in [
        *project["dependencies"],
        *project["optional-dependencies"]["experiments"],
    ]:
        name, version = re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement).groups()
        bounds[name] = version
    lines = (ROOT / ".ci" / "oldest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {name: pinned.get(name) for name in bounds} == bounds


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    explained = re.findall(r"^([a-z-]+):.*## \S", makefile, re.MULTILINE)
    assert sorted(explained) == sorted(targets)
    assert {"demo", "test", "docs"} <= set(targets)


def test_every_module_has_tests_that_are_to_notice_its_mutants():
    guards = runpy.run_path(str(ROOT / ".ci" / "guards.py"))
    modules = {
        path.relative_to(ROOT / "pcjax").as_posix()
        for path in _modules("pcjax")
        if path.name != "__init__.py"
    }
    assert set(guards["TESTS"]) == modules
    for module in modules:
        for path in guards["tests_of"](module):
            assert (ROOT / path.partition("::")[0]).is_file(), path
            assert "[" not in path or path.split("[")[1][:-1] in FAULTS, path
