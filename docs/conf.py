"""How `make docs` builds the site."""

import ast
import inspect
import os
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The checkout is what is documented, here and in the pages that are executed.
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Kernels warn at every start that they talk to this process in clear.
PROFILE = ROOT / "docs" / "_build" / "ipython" / "profile_default"
PROFILE.mkdir(parents=True, exist_ok=True)
(PROFILE / "ipython_kernel_config.py").write_text('c.IPKernelApp.log_level = "ERROR"\n')
os.environ["IPYTHONDIR"] = str(PROFILE.parent)

import pcjax  # noqa: E402
from pcjax.networks import outputs  # noqa: E402

project = "pcjax"
author = "The pcjax Authors"
copyright = "The pcjax Authors"
release = version = pcjax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "jupyter_execute"]
root_doc = "index"

html_theme = "sphinx_book_theme"
html_title = f"pcjax {release}"
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # the search is in the sidebar
}
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"

# Pages with code cells are executed at every build; one that fails fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds a cell, on a machine that is busy
nb_execution_in_temp = True
nb_merge_streams = True
nb_output_stderr = "remove"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 79
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
# The docstrings put code between single backquotes; what names something is a link.
default_role = "py:obj"


_PLURAL = re.compile(r"(`[^`]+`)(?=[a-z])")  # `Layer`s, which ends no backquote there


def _is_field(member: object) -> bool:
    """Whether a member of a class is the field of a NamedTuple."""
    return type(member).__name__ == "_tuplegetter"


def skip_fields(app, what, name, member, skip, options):
    """Fields are described in the docstring of their class, not a second time."""
    return True if _is_field(member) else None


def as_written(app, what, name, obj, options, signature, returns):
    """The signature as in the source: names of types and defaults, not their values.

    Of a NamedTuple these are its fields.
    """
    if what not in ("function", "method", "class"):
        return None
    try:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(obj))).body
    except (TypeError, OSError):
        return None
    if isinstance(node, ast.ClassDef):
        fields = [x for x in node.body if isinstance(x, ast.AnnAssign)]
        if issubclass(obj, tuple) and fields:
            return f"({', '.join(map(ast.unparse, fields))})", None
        makers = [
            x
            for x in node.body
            if isinstance(x, ast.FunctionDef) and x.name in ("__init__", "__new__")
        ]
        if not makers:
            return None
        (node,) = makers
    if node.args.args and node.args.args[0].arg in ("self", "cls"):
        del node.args.args[0]
    returned = node.returns if what != "class" else None
    return f"({ast.unparse(node.args)})", returned and ast.unparse(returned)


def as_restructured_text(app, what, name, obj, options, lines):
    """Makes reStructuredText of the few things that the docstrings write otherwise.

    A block that is indented below a line which ends in a colon or a full stop is code
    or an equation; a block between three backquotes is code.
    """
    if isinstance(obj, outputs.Output):  # its own words stand behind its assignment
        lines[:] = _words_behind(name.rpartition(".")[2])
    text, fenced, indent = [], False, ""
    for index, line in enumerate(lines):
        line = _PLURAL.sub(r"\1\\ ", line)
        if line.strip() == "```":
            fenced = not fenced
            indent = line[: len(line) - len(line.lstrip())]
            text += [f"{indent}::", ""] if fenced else [""]
            continue
        text.append(f"   {line}" if fenced and line.strip() else line)
        if not fenced and _begins_block(lines, index):
            text += ["", f"{line[: len(line) - len(line.lstrip())]}::"]
    lines[:] = text


def _begins_block(lines: list[str], index: int) -> bool:
    """Whether an indented block follows a paragraph that ends at this line."""
    line = lines[index]
    if not line.strip() or index + 2 >= len(lines) or lines[index + 1].strip():
        return False
    if line.lstrip().startswith((":", "..", "-", "*")) or line.endswith("::"):
        return False
    below = next((other for other in lines[index + 2 :] if other.strip()), "")
    depth, depth_below = (len(x) - len(x.lstrip()) for x in (line, below))
    return depth_below > depth


def _words_behind(name: str) -> list[str]:
    source = inspect.getsource(outputs)
    return re.search(rf'^{name} = .*?"""(.*?)"""', source, re.M | re.S)[1].splitlines()


def setup(app):
    """Registers the hooks above."""
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-signature", as_written)
    app.connect("autodoc-process-docstring", as_restructured_text)
