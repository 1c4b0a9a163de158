"""The report of all experiments: Markdown, and a page of HTML that stands alone."""

import base64
import html
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common import report
from experiments.common.claims import MARKS, UNDECIDED, Claim

COLUMNS = ("what", "paper", "here", "")
LONG_COLUMNS = ("what", "paper", "at full length", "", "here", "")
_KINDS = {MARKS[True]: "good", MARKS[False]: "bad"}


class Measured(NamedTuple):
    """What a folder of results holds.

    Attributes:
      folder: where results and figures are.
      found: what is in results.json.
      run: what is in run.json.
      times: the numbers that depend on the clock.
      papers: the size of the paper's run, as `found["size"]`.
    """

    folder: Path
    found: dict[str, Any]
    run: dict[str, Any]
    times: Sequence[Claim] = ()
    papers: Mapping[str, Any] = {}

    @property
    def claims(self) -> list[Claim]:
        """The numbers beside the paper's, in order."""
        return [*(Claim(**claim) for claim in self.found["claims"]), *self.times]

    @property
    def seconds(self) -> float:
        """What the run took; of one that was interrupted, about what its parts did.

        Its `run.json` has the seconds of the last stretch, of every part in the stretch
        in which it was finished, and of every epoch. Some epochs may have waited for
        the run to go on, so the median counts.
        """
        if not self.run["resumed"]:
            return self.run["seconds"]
        by_part = self.run["seconds_by_part"]
        parts = sum(took for took in by_part.values() if not isinstance(took, dict))
        epochs = sum(
            len(each) * statistics.median(each)
            for name, by_method in by_part.items()
            if name.endswith("per epoch")
            for each in by_method.values()
        )
        return max(self.run["seconds"], epochs or parts)

    @property
    def facts(self) -> str:
        """How it came about."""
        versions = ", ".join(f"{k} {v}" for k, v in self.found["versions"].items())
        missing = self.found.get("unfinished")
        stretches = ", in several stretches," if self.run["resumed"] else ""
        seeds = self.found["size"].get("seeds")
        return (
            f"{self.seconds:.0f} s{stretches} on {self.found['device']}; "
            + (f"{report.seeds(seeds)}; " if seeds else "")
            + f"{versions}; {self.run['finished']}"
            + (f"; not finished: {', '.join(missing)}" if missing else "")
            + self._otherwise()
        )

    def _otherwise(self) -> str:
        """What is of another size than in the paper."""
        size, papers = self.found["size"], dict(self.papers)
        settings = self.found["results"].get("settings", {})
        if papers.get("epochs", 0) is None:  # as the settings say
            papers["epochs"] = settings.get("epochs")
        other = [
            f"{name.replace('_', ' ')} {_counts(size[name])} ({_counts(meant)})"
            for name, meant in papers.items()
            if size.get(name) is not None and size[name] != meant
        ]
        return f"; in brackets the paper's: {', '.join(other)}" if other else ""


class Section(NamedTuple):
    """An experiment in the report.

    Attributes:
      title: what was measured.
      paper: the figures and tables of the paper.
      failure: why there are no results; "" if there are.
      here: what was measured.
      full: the same at the paper's length, if there is such a run.
      more: the runs that some of its methods are from.
    """

    title: str
    paper: str
    failure: str = ""
    here: Measured | None = None
    full: Measured | None = None
    more: Sequence[Measured] = ()

    @property
    def measured(self) -> list[Measured]:
        """What there is, the longer run first."""
        return [found for found in (self.full, self.here) if found]

    @property
    def runs(self) -> list[Measured]:
        """Where it is from, the longer runs first."""
        return [found for found in (self.full, *self.more, self.here) if found]

    @property
    def name(self) -> str:
        """The title with what it was measured on."""
        results = self.measured[-1].found["results"] if self.measured else {}
        about = [results[key] for key in ("dataset", "net") if key in results]
        return f"{self.title} ({', '.join([*about, self.paper])})"

    @property
    def columns(self) -> tuple[str, ...]:
        """The headers of the table."""
        return LONG_COLUMNS if self.full else COLUMNS

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The numbers beside the paper's, those of both runs side by side."""
        if not self.full:
            claims = self.here.claims if self.here else []
            return [(c.what, c.paper, *_cells(c)) for c in claims]
        sides = [
            {c.what: c for c in found.claims}
            for found in (self.full, self.here)
            if found
        ]
        sides += [{}] * (2 - len(sides))
        full, here = sides
        rows: list[tuple[str, ...]] = []
        for what in dict.fromkeys([*full, *here]):
            either = full.get(what) or here[what]
            cells = (*_cells(full.get(what)), *_cells(here.get(what)))
            rows.append((what, either.paper, *cells))
        return rows

    @property
    def figures(self) -> list[Path]:
        """The figures, by name."""
        return [path for m in self.runs for path in sorted(m.folder.glob("*.png"))]


def _counts(value: Any) -> str:
    """A number of the size or several; None is as many as there are."""
    if isinstance(value, list):
        return ", ".join(map(_counts, value))
    return "all" if value is None else str(value)


def _cells(claim: Claim | None) -> tuple[str, str]:
    return (claim.here, MARKS[claim.holds]) if claim else ("-", "")


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
        if section.failure:
            lines += [f"Not run: {section.failure}", ""]
        if not section.measured:
            continue
        for found in section.runs:
            lines += [f"`{found.run['command']}`", "", found.facts, ""]
        lines.append("| " + " | ".join(section.columns) + " |")
        lines.append("|" + "---|" * len(section.columns))
        for row in section.rows:
            cells = [cell.replace("|", "\\|") for cell in row]
            lines.append("| " + " | ".join(cells) + " |")
        for path in section.figures:
            name = path.relative_to(out).as_posix()
            lines += ["", f"![{path.stem}]({name})"]
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
    parts = []
    if section.failure:
        parts.append(f'<p class="bad">Not run: {html.escape(section.failure)}</p>')
    if not section.measured:
        return parts
    for found in section.runs:
        parts.append(f"<pre>{html.escape(found.run['command'])}</pre>")
        parts.append(f"<p>{html.escape(found.facts)}</p>")
    parts.append("<table><tr>")
    parts += [f"<th>{html.escape(column)}</th>" for column in section.columns]
    parts.append("</tr>")
    for row in section.rows:
        cells = "".join(_cell(cell) for cell in row)
        parts.append(f"<tr>{cells}</tr>")
    parts.append("</table>")
    for path in section.figures:
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(f'<img alt="{path.stem}" src="data:image/png;base64,{data}">')
    return parts


def _cell(text: str) -> str:
    kind = _KINDS.get(text)
    start = f'<td class="{kind}">' if kind else "<td>"
    return f"{start}{html.escape(text)}</td>"


def _summary(sections: Sequence[Section]) -> str:
    """How many of the paper's statements hold, and what was not run.

    A statement that was tested at full length counts by that run. What the paper does
    not say is none, though it is judged.
    """
    verdicts = []
    for section in sections:
        latest: dict[str, Claim] = {}
        for found in reversed(section.measured):  # the longer run last
            latest |= {claim.what: claim for claim in found.claims}
        verdicts += [c.holds for c in latest.values() if c.paper != "-"]
    missing = [section.title for section in sections if section.failure]
    return (
        f"Of the paper's statements that were tested, {verdicts.count(True)} hold "
        f"here, {verdicts.count(False)} do not and {verdicts.count(UNDECIDED)} are not "
        "decided." + (f" Not run: {', '.join(missing)}." if missing else "")
    )


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto;
  padding: 0 1rem; color: #222; }
h2 { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid #ddd; }
td.good { color: #006d4f; }
td.bad, p.bad { color: #a33c00; font-weight: 600; }
pre { background: #f4f4f4; padding: .6rem; overflow-x: auto; }
img { max-width: 100%; margin-top: 1rem; }
"""
