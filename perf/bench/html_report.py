"""`python -m hrt.perf.bench.html_report`: a result of the harness as one HTML page that needs no network, and as PNGs.

    python -m hrt.perf --quick --json build/results.json
    python -m hrt.perf.bench.html_report build/results.json --html build/results.html --png build/pictures

The page has, for every workload, the Pareto fronts (held-out error against bytes and against latency), latencies with
their tails, the batch sizes where a method begins or ceases to pay, and every row: those that lose and those that
could not be measured as plainly as the others. Rows of `python -m hrt.perf.realtime.command --json` are drawn by quantile.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hrt.errors import HrtError, InputError
from hrt.perf.bench import charts
from hrt.perf.bench.html_tables import about, facts_table, rows_table, standings_table
from hrt.perf.measuring.results import OK, Results, Row, read
from hrt.support.atomic_files import replacing

MOST_TARGETS = 3  # panels of break-even lines side by side

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #22223b; background: #fff; max-width: 1290px;
       margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.3rem; margin: 2.4rem 0 .4rem;
     border-bottom: 2px solid #d8d8e0; } h3 { font-size: 1.05rem; margin: 1.4rem 0 .3rem; }
p { margin: .3rem 0 .6rem; max-width: 75ch; } figure { margin: .6rem 0 1rem; }
figure svg { max-width: 100%; height: auto; }
figcaption { font-size: .88rem; color: #4a4e69; max-width: 90ch; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .8rem; margin: .4rem 0; }
th, td { padding: .16rem .45rem; text-align: right; border-bottom: 1px solid #e6e6ee; white-space: nowrap; }
td.text { white-space: normal; max-width: 13rem; } td.text[colspan] { max-width: none; } td.fact { text-align: left;
  white-space: normal; overflow-wrap: anywhere; }
th { background: #f4f4f8; position: sticky; top: 0; } .text { text-align: left; }
td.note { text-align: left; white-space: normal; min-width: 15rem; max-width: 24rem; }
tr.hrt td { font-weight: 600; background: #fff6ef; } tr.unmeasured td { color: #6b2737; background: #faf2f3; }
.won { color: #00664a; } .lost { color: #9c2a00; } code { background: #f4f4f8; padding: 0 .25em; }
nav a { margin-right: 1em; } summary { cursor: pointer; font-weight: 600; }
"""

Picture = tuple[str, str, Callable[[], Any]]  # name of the file, caption, what draws it


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and the pictures. Returns 0, or 2 for a mistake, said on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m hrt.perf.bench.html_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, help="what `python -m hrt.perf --json` wrote")
    parser.add_argument("--html", type=Path, help="the page to write")
    parser.add_argument("--png", type=Path, metavar="FOLDER", help="a folder for the pictures, made if missing")
    args = parser.parse_args(arguments)
    try:
        if args.html is None and args.png is None:
            raise InputError("Found nothing to write. Expected --html FILE, --png FOLDER, or both.")
        results = read(args.results)
        if args.html is not None:
            write_page(results, args.html)
            print(f"wrote {args.html}: {args.html.stat().st_size:,} bytes")
        if args.png is not None:
            print(f"wrote {len(write_pictures(results, args.png))} pictures into {args.png}")
    except HrtError as error:
        print(f"hrt.perf.bench.html_report: {error}", file=sys.stderr)
        return 2
    return 0


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
    written = []
    for name, _, draw in [p for _, pictures in sections(results) for p in pictures]:
        charts.as_png(draw, folder / f"{name}.png")
        written.append(folder / f"{name}.png")
    return written


def page(results: Results) -> str:
    """The HTML text. Whatever stands in the result is escaped; nothing is loaded from anywhere."""
    rows = results.rows
    body, links, number = [], [], 0
    for title, pictures in sections(results):
        anchor = f"part-{len(links)}"
        links.append(f'<a href="#{anchor}">{escape(title)}</a>')
        body.append(f'<h2 id="{anchor}">{escape(title)}</h2>')
        body.append(about(results.facts, title))
        own = [r for r in rows if r.workload == title]
        for _, caption, draw in pictures:
            number += 1
            svg = distinct(charts.as_svg(draw), f"f{number}")
            label = escape(caption.split(".")[0], quote=True)
            svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
            body.append(f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>")
        if own:
            opened = " open" if len(own) <= 60 else ""
            body.append(f"<details{opened}><summary>All {len(own)} rows</summary>{rows_table(own)}</details>")
    missing = [r for r in rows if r.status != OK]
    said = (
        f"{len(rows)} rows; {len(missing)} have no verdict: out of reach, not installed, failed or too noisy. "
        "Ratios compare with the fastest dense form of the same batch size; above 1 is faster."
    )
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>hrt: measured beside dense, SVD, pruning and quantization</title>\n<style>{STYLE}</style>\n</head>",
        "<body>\n<h1>At the error you can accept, what is smallest and what is fastest?</h1>",
        f"<p>{escape(said)}</p>",
        f"<nav>{' '.join(links)}</nav>",
        "<h2>Where hrt stands</h2>",
        standings_table(rows),
        *body,
        "<h2>Where these figures come from</h2>",
        facts_table(results.facts),
        "</body>\n</html>\n",
    ]
    return "\n".join(parts)


def sections(results: Results) -> list[tuple[str, list[Picture]]]:
    """Titles with their pictures: one section for each workload, then the roofline, then real-time runs."""
    found: list[tuple[str, list[Picture]]] = []
    opened = _realtime(results.facts)
    workloads = dict.fromkeys(r.workload for r in results.rows)
    for number, workload in enumerate(workloads):
        rows = [r for r in results.rows if r.workload == workload]
        found.append((workload, workload_pictures(f"{number + 1:02}-{slug(workload)}", rows)))
    if any(r.roofline_fraction for r in results.rows):
        caption = "Roofline. The least possible time over the measured median; 1 cannot be passed."
        found.append(("Roofline", [("roofline", caption, lambda: charts.roofline(results.rows))]))
    for workload, runs in opened.items():
        caption = (
            "Latency by quantile, requests by the clock. Counted from the moment a request was due, so that it holds "
            "the wait behind a stalled one; dotted is an empty call, which is what the harness itself costs."
        )
        title = f"Real time: {workload}"
        found.append((title, [(f"realtime-{slug(workload)}", caption, lambda runs=runs: charts.realtime(runs))]))
    return found


def workload_pictures(name: str, rows: Sequence[Row]) -> list[Picture]:
    """What is drawn of one workload; nothing where there is nothing to see."""
    found: list[Picture] = []
    if any(r.error is not None for r in rows):
        caption = (
            "Pareto fronts. Every marker is a method at a target; what lies on the line is undercut by nothing in both "
            "error and cost. Lower left is better."
        )
        found.append((f"{name}-pareto", caption, lambda: charts.pareto(rows)))
    targets = sorted({r.target for r in rows if r.p50_us is not None}, reverse=True)
    timed = [r for r in rows if r.p50_us is not None and r.error is not None]
    if timed:
        middle = targets[len(targets) // 2]
        batches = sorted({r.batch for r in timed})
        for batch in dict.fromkeys((batches[0], batches[-1])):
            some = [r for r in timed if r.batch == batch and r.target == middle]
            caption = f"Latencies at batch {batch}, error at most {middle:g}. The fastest on top; losses stand below."
            found.append((f"{name}-latency-{batch}", caption, lambda some=some: charts.latencies(some)))
    compared = sorted({r.target for r in rows if r.ratio_vs_best_dense is not None}, reverse=True)[:MOST_TARGETS]
    if compared and len({r.batch for r in rows}) > 1:
        caption = (
            "Break-even. The best method of every family beside the fastest dense form: above the dashed line it is "
            "faster, below it loses. Bars are 95 % intervals."
        )
        found.append((f"{name}-break-even", caption, lambda: charts.break_even_lines(rows, compared)))
    return found


def slug(text: str) -> str:
    """`text` as part of a file's name: letters, digits and hyphens, at most 40."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "x"


def distinct(svg: str, prefix: str) -> str:
    """`svg` with every id, and what refers to it, under `prefix`: several on one page must not share them."""
    svg = re.sub(r'\bid="([^"]*)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'href="#([^"]*)"', rf'href="#{prefix}-\1"', svg)
    return re.sub(r"url\(#([^)]*)\)", rf"url(#{prefix}-\1)", svg)


def _realtime(facts: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Open-loop runs by workload; none where the facts hold something else."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    listed = facts.get("realtime", [])
    for one in listed if isinstance(listed, list) else []:
        if isinstance(one, Mapping) and one.get("histogram"):
            found.setdefault(str(one.get("workload", "")), []).append(one)
    return found


if __name__ == "__main__":
    sys.exit(main())
