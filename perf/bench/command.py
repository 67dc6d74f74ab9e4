"""A plan run, written and shown: what `python -m hrt.perf` and `hrt bench` share."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from hrt.errors import InputError
from hrt.model import artifact
from hrt.perf.bench.runner import Plan, run
from hrt.perf.bench.tables import show
from hrt.perf.measuring.results import FAILED, Results, check_results, disagreement, read
from hrt.perf.networks.registry import SUFFIXES, from_file
from hrt.support.atomic_files import replacing, usable
from hrt.support.progress import track

INTERRUPTED = 130
WIDTH = 200  # of a table where nobody's terminal says
BEGIN, END = "<!-- figures: written by a command -->", "<!-- end of figures -->"


def console() -> Console:
    """Where tables are printed."""
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def measure(plan: Plan, json: Path | None = None, every: bool = False) -> int:
    """Run a plan, write its rows to `json` after every workload, print them. Returns 0, 1 where a network could not be
    measured at all, or 130 where Ctrl-C ended it.
    """
    if json is not None:
        check_results(json)  # before the work
    with track("perf", True, piped=True) as advance:
        results = run(plan, advance, keep=lambda so_far: _keep(so_far, json))
    out = console()
    show(results, out, every)
    if json is not None:
        out.print(f"wrote {json}: {len(results.rows)} rows" if results.rows else f"no rows yet for {json}")
    if results.facts.get("interrupted"):
        return INTERRUPTED
    names = dict.fromkeys(r.workload for r in results.rows)
    failed = [n for n in names if all(r.status == FAILED for r in results.rows if r.workload == n)]
    if failed:
        print(f"not measured: {', '.join(failed)}; the table says why", file=sys.stderr)
    return 1 if failed else 0


def _keep(results: Results, json: Path | None) -> None:
    """Write, unless there is nothing yet and an earlier run left something, which is worth more."""
    if json is not None and (results.rows or not json.exists() or not json.stat().st_size):
        results.write(json)


def bench(
    path: Path,
    inputs: Sequence[Path] = (),
    tols: Sequence[float] = (),
    batches: Sequence[int] = (),
    threads: int = 2,
    json: Path | None = None,
) -> int:
    """One network of a user's beside every method; returns as `measure`. tols: by default what a `.hrt` file was made
    for, else 1e-2, 1e-3 and 1e-4. Raises HrtError for a file of another kind, or one that cannot be read.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"Found {path}. Expected a .hrt, .onnx or .pt2 file.")
    if not tols and path.suffix == ".hrt" and usable(path).is_file():
        tols = (artifact.read(path).certificate.tol,)
    from_file(path, tuple(inputs))  # a file that cannot be read is a mistake, and no row of a table
    plan = Plan(
        workloads=(str(path),),
        tols=tuple(tols) or Plan.tols,
        batches=tuple(batches) or None,
        threads=threads,
        inputs=tuple(inputs),
    )
    return measure(plan, json)


def one_of(paths: Sequence[Path]) -> tuple[Results, list[Results]]:
    """All files as one result, and each. Raises InputError for a file that `python -m hrt.perf run` did not write, or
    files of different machines or numbers of threads, whose times cannot be ranked with each other.
    """
    parts = [read(path) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if "realtime" in part.facts:
            raise InputError(
                f"{path} holds requests by the clock, which have no errors to rank at. Expected a file of "
                "`python -m hrt.perf run --json`; `python -m hrt.perf report` draws this one."
            )
    if differing := disagreement(parts):
        raise InputError(f"The files differ in {differing}. Expected files of one machine; summarize each by itself.")
    return Results(tuple(r for part in parts for r in part.rows), parts[0].facts), parts


def put_into(page: Path, text: str) -> None:
    """`text` in place of what stands between the page's lines BEGIN and END. Raises InputError where they are not."""
    before, begin, rest = (usable(page).read_text() if page.is_file() else "").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"Found no place for figures in {page}. Expected a page with the lines {BEGIN} and {END}.")
    with replacing(page) as file:
        file.write(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}".encode())
