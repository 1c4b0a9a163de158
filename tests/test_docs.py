"""The documentation names everything public, and points at what is there."""

import ast
import importlib
import inspect
import re
import types
from pathlib import Path
from typing import Any

import pytest

import pcjax

ROOT = Path(__file__).parents[1]
PAGES = sorted(ROOT.glob("docs/*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]

# Wings whose `__all__` is public, and modules whose own functions and classes are.
WINGS = ("networks", "inference", "learning", "optimizers", "training", "checkpoints")
MODULES = (
    "at_equilibrium",
    "backprop",
    "equilibrium",
    "finite",
    "measures",
    "normalised",
    "proximal",
    "theorem1",
    "newton",
    "evaluation",
    "sharding",
    "diagnosis",
)
# Helpers that modules of pcjax share among themselves.
INTERNAL = {
    "all_finite",
    "check_positive",
    "descend",
    "fits",
    "positive_or_nan",
    "relative",
    "scalar_loss",
}


def _is_documented_kind(value: object) -> bool:
    """Functions, classes and values; modules and type aliases have no page."""
    if isinstance(value, pcjax.Output):
        return True
    if value is Any:  # what a type alias may be
        return False
    return inspect.isfunction(value) or inspect.isclass(value)


def _public() -> dict[str, object]:
    found = {name: getattr(pcjax, name) for name in pcjax.__all__}
    for wing in WINGS:
        module = importlib.import_module(f"pcjax.{wing}")
        found |= {f"{wing}.{name}": getattr(module, name) for name in module.__all__}
    for name in MODULES:
        module = importlib.import_module(f"pcjax.{name}")
        found |= {
            f"{name}.{key}": value
            for key, value in vars(module).items()
            if not key.startswith("_")
            and key not in INTERNAL
            and getattr(value, "__module__", None) == module.__name__
        }
    return {key: value for key, value in found.items() if _is_documented_kind(value)}


def _documented() -> dict[str, object]:
    """What the tables of docs/api list, by name."""
    found = {}
    for page in sorted(ROOT.glob("docs/api/*.rst")):
        for block in re.findall(
            r"\.\. autosummary::\n((?:   .*\n|\n)+)", page.read_text() + "\n"
        ):
            for name in re.findall(r"^   ([\w.]+)$", block, re.MULTILINE):
                assert name not in found, f"{page.name} lists {name} a second time"
                found[name] = _resolve(name)
    return found


def _resolve(name: str) -> object:
    folder, _, leaf = name.rpartition(".")
    module = importlib.import_module(f"pcjax.{folder}") if folder else pcjax
    return getattr(module, leaf)


def test_every_public_name_has_a_page():
    pages = {id(value) for value in _documented().values()}
    public = _public().items()
    missing = sorted(name for name, value in public if id(value) not in pages)
    assert not missing, "list them in a table of docs/api"


def test_every_page_has_a_docstring():
    for name, value in _documented().items():
        assert not isinstance(value, types.ModuleType)
        assert len(inspect.getdoc(value) or "") > 20, name


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-"))


def _links(text: str) -> list[str]:
    found = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)
    return [link for link in found if not link.startswith(("http", "#", "mailto"))]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)
def test_links_and_pictures_point_at_what_is_there(page):
    for link in _links(page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path
        assert target.exists(), f"{page.name} points at {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            anchors = [_anchor(heading) for heading in headings]
            assert anchor in anchors, f"{page.name} points at {link}"


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)
def test_files_that_are_named_are_there(page):
    names = re.findall(
        r"`((?:tests|docs|benchmarks|experiments|pcjax)/[\w./-]+)(?:::\w+)?`",
        page.read_text(),
    )
    missing = [name for name in names if not (ROOT / name).exists()]
    made = ("docs/_build",)
    assert not [name for name in missing if not name.startswith(made)]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)
def test_modules_that_are_named_are_there(page):
    pattern = r"(?:python -m |`)((?:experiments|benchmarks)(?:\.[a-z_]+)+)"
    names = re.findall(pattern, page.read_text())
    for name in names:
        path = ROOT / name.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_stands_in_the_table_of_contents(page):
    index = (ROOT / "docs" / "index.md").read_text()
    listed = re.findall(r"^([\w/]+)$", index, re.MULTILINE)
    assert page.stem == "index" or page.stem in listed


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)
def test_python_of_the_pages_is_python(page):
    for block in re.findall(
        r"```(?:python|\{code-cell\})\n(.*?)```", page.read_text(), re.DOTALL
    ):
        ast.parse(re.sub(r"^:tags:.*\n", "", block))
