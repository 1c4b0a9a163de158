"""The report of all experiments: Markdown, and a page of HTML that stands alone."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.harness import MARKS

COLUMNS = ("what", "paper", "here", "")


class Section(NamedTuple):
    """An experiment in the report.

    Attributes:
      title: what was measured.
      paper: the figures and tables of the paper.
      folder: where results and figures are.
      failure: why there are none; "" if there are.
      found: what is in results.json.
      run: what is in run.json.
    """

    title: str
    paper: str
    folder: Path
    failure: str = ""
    found: dict[str, Any] | None = None
    run: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The title with what it was measured on."""
        results = (self.found or {}).get("results", {})
        about = [results[key] for key in ("dataset", "net") if key in results]
        return f"{self.title} ({', '.join([*about, self.paper])})"

    @property
    def rows(self) -> list[tuple[str, str, str, str]]:
        """The numbers beside the paper's."""
        claims = self.found["claims"] if self.found else []
        return [(c["what"], c["paper"], c["here"], MARKS[c["holds"]]) for c in claims]

    @property
    def figures(self) -> list[Path]:
        """The figures, by name."""
        return sorted(self.folder.glob("*.png")) if self.found else []

    @property
    def facts(self) -> str:
        """How it came about."""
        assert self.found is not None
        assert self.run is not None
        versions = ", ".join(f"{k} {v}" for k, v in self.found["versions"].items())
        return (
            f"{self.run['seconds']:.0f} s on {self.found['device']}; {versions}; "
            f"{self.run['finished']}"
        )


def write(out: Path, preset: str, sections: Sequence[Section]) -> None:
    """Writes report.md and report.html."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(markdown(out, preset, sections))
    (out / "report.html").write_text(page(preset, sections))


def markdown(out: Path, preset: str, sections: Sequence[Section]) -> str:
    """The report as Markdown, its figures by their paths relative to `out`."""
    lines = [
        f"# The paper's figures and tables, preset {preset}",
        "",
        _summary(sections),
    ]
    for section in sections:
        lines += ["", f"## {section.name}", ""]
        if section.found is None or section.run is None:
            lines.append(f"Not run: {section.failure}")
            continue
        lines += [f"`{section.run['command']}`", "", section.facts, ""]
        lines.append("| " + " | ".join(COLUMNS) + " |")
        lines.append("|" + "---|" * len(COLUMNS))
        for row in section.rows:
            cells = [cell.replace("|", "\\|") for cell in row]
            lines.append("| " + " | ".join(cells) + " |")
        for path in section.figures:
            lines += ["", f"![{path.stem}]({path.relative_to(out).as_posix()})"]
    return "\n".join(lines) + "\n"


def page(preset: str, sections: Sequence[Section]) -> str:
    """The report as one page of HTML, its figures inside."""
    title = f"The paper's figures and tables, preset {preset}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{html.escape(title)}</title>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(_summary(sections))}</p>",
        "<nav><ul>",
    ]
    for index, section in enumerate(sections):
        name = html.escape(section.name)
        parts.append(f'<li><a href="#s{index}">{name}</a></li>')
    parts.append("</ul></nav>")
    for index, section in enumerate(sections):
        parts.append(f'<section id="s{index}">')
        parts.append(f"<h2>{html.escape(section.name)}</h2>")
        parts += _body(section)
        parts.append("</section>")
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _body(section: Section) -> list[str]:
    if section.found is None or section.run is None:
        return [f'<p class="bad">Not run: {html.escape(section.failure)}</p>']
    parts = [f"<pre>{html.escape(section.run['command'])}</pre>"]
    parts.append(f"<p>{html.escape(section.facts)}</p>")
    parts.append("<table><tr>")
    parts += [f"<th>{html.escape(column)}</th>" for column in COLUMNS]
    parts.append("</tr>")
    for row in section.rows:
        kind = {"holds": "good", "does not hold": "bad"}.get(row[-1], "")
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        parts.append(f'<tr class="{kind}">{cells}</tr>')
    parts.append("</table>")
    for path in section.figures:
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(f'<img alt="{path.stem}" src="data:image/png;base64,{data}">')
    return parts


def _summary(sections: Sequence[Section]) -> str:
    """How many of the paper's statements hold, and what was not run."""
    marks = [row[-1] for section in sections for row in section.rows]
    counts = [marks.count(MARKS[holds]) for holds in (True, False)]
    missing = [section.title for section in sections if section.found is None]
    return (
        f"Of the paper's statements that were tested, {counts[0]} hold here and "
        f"{counts[1]} do not." + (f" Not run: {', '.join(missing)}." if missing else "")
    )


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto;
  padding: 0 1rem; color: #222; }
h2 { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid #ddd; }
td:last-child { white-space: nowrap; }
.good td:last-child { color: #006d4f; }
.bad td:last-child, p.bad { color: #a33c00; font-weight: 600; }
pre { background: #f4f4f4; padding: .6rem; overflow-x: auto; }
img { max-width: 100%; margin-top: 1rem; }
"""
