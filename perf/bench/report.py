"""A result of the harness as one HTML page that needs no network, and as PNGs.

The page has, for every workload, the Pareto fronts (held-out error against bytes and against latency), latencies with
their tails, and every row: those that lose and those that could not be measured as plainly as the others. Rows of
real-time mode are drawn by quantile.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hrt.errors import InputError
from hrt.perf.bench import charts
from hrt.perf.bench.ranking import nbytes, usable
from hrt.perf.bench.tables import Table, overview, rows_table
from hrt.perf.measuring.results import OK, Results, Row
from hrt.support.atomic_files import replacing

TEMPLATE = "page.html.jinja"
MOST_OPEN = 60  # rows of a table that is shown at once
LONGEST = 600  # characters of a fact that are shown at once
IN_SECTIONS = ("realtime", "about", "why")  # facts that stand elsewhere

CAPTIONS = {
    "pareto": "Pareto fronts. Every marker is a method at a target; what lies on the line is undercut by nothing in "
    "both error and cost. Lower left is better.",
    "realtime": "Latency by quantile, requests by the clock. Counted from the moment a request was due, so that it "
    "holds the wait behind a stalled one; dotted is an empty call, which is what the harness itself costs.",
}


@dataclass(frozen=True)
class Picture:
    """name: of its file.  draw: makes the figure."""

    name: str
    caption: str
    draw: Callable[[], Any]

    def svg(self) -> Markup:
        """The picture for the page, with a name for who does not see it, and ids of its own."""
        named = f'<svg role="img" aria-label="{escape(self.caption.split(".")[0], quote=True)}" '
        return Markup(distinct(charts.as_svg(self.draw), self.name).replace("<svg ", named, 1))


@dataclass(frozen=True)
class Section:
    """A part of the page. about, why: of a workload.  rows: every row of it."""

    title: str
    pictures: Sequence[Picture]
    about: str = ""
    why: Sequence[str] = ()
    rows: Table | None = None


def write_page(results: Results, path: Path) -> None:
    """One self-contained HTML file, whole or not at all. Raises InputError."""
    text = page(results)
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_pictures(results: Results, folder: Path) -> list[Path]:
    """Every picture of the page as a PNG. Raises InputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}. Expected the name of a folder.") from error
    pictures = {folder / f"{p.name}.png": p.draw for section in sections(results) for p in section.pictures}
    for path, draw in pictures.items():
        charts.as_png(draw, path)
    return list(pictures)


def page(results: Results) -> str:
    """The HTML text. Whatever stands in the result is escaped; nothing is loaded from anywhere."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    facts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in results.facts.items() if k not in IN_SECTIONS}
    return environment.get_template(TEMPLATE).render(
        count=len(results.rows),
        unjudged=sum(r.status != OK for r in results.rows),
        overview=overview(results) if any(usable(r, nbytes) for r in results.rows) else None,
        sections=sections(results),
        facts=facts,
        most_open=MOST_OPEN,
        longest=LONGEST,
    )


def sections(results: Results) -> list[Section]:
    """One section for each workload, then real-time runs."""
    known = results.known
    parts: list[Section] = []
    for number, workload in enumerate(dict.fromkeys(r.workload for r in results.rows)):
        rows = [r for r in results.rows if r.workload == workload]
        lines = [f"batch {w.batch}, error {w.target:g}: {w.line}" for w in known.why if w.workload == workload]
        pictures = workload_pictures(f"{number + 1:02}-{slug(workload)}", rows)
        parts.append(Section(workload, pictures, known.about.get(workload, ""), lines, rows_table(rows)))
    opened: dict[str, list[dict[str, Any]]] = {}
    for run in known.realtime:
        if run.get("histogram"):
            opened.setdefault(str(run.get("workload", "")), []).append(run)
    for workload, runs in opened.items():
        name = f"realtime-{slug(workload)}"
        picture = Picture(name, CAPTIONS["realtime"], lambda runs=runs: charts.realtime(runs))
        parts.append(Section(f"Real time: {workload}", [picture]))
    return parts


def workload_pictures(name: str, rows: Sequence[Row]) -> list[Picture]:
    """What is drawn of one workload; nothing where there is nothing to see."""
    pictures: list[Picture] = []
    if any(r.error is not None for r in rows):
        pictures.append(Picture(f"{name}-pareto", CAPTIONS["pareto"], lambda: charts.pareto(rows)))
    timed = [r for r in rows if r.p50_us is not None and r.error is not None]
    if timed:
        targets = sorted({r.target for r in timed}, reverse=True)
        middle, batches = targets[len(targets) // 2], sorted({r.batch for r in timed})
        for batch in dict.fromkeys((batches[0], batches[-1])):
            some = [r for r in timed if r.batch == batch and r.target == middle]
            caption = f"Latencies at batch {batch}, error at most {middle:g}. The fastest on top; losses stand below."
            pictures.append(Picture(f"{name}-latency-{batch}", caption, lambda some=some: charts.latencies(some)))
    return pictures


def slug(text: str) -> str:
    """`text` as part of a file's name: letters, digits and hyphens, at most 40."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "x"


def distinct(svg: str, prefix: str) -> str:
    """`svg` with every id, and what refers to it, under `prefix`: several on one page must not share them."""
    svg = re.sub(r'\bid="([^"]*)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'href="#([^"]*)"', rf'href="#{prefix}-\1"', svg)
    return re.sub(r"url\(#([^)]*)\)", rf"url(#{prefix}-\1)", svg)
