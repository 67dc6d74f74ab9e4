"""At the error you can accept, what is fastest and what is smallest, on this machine?

python -m hrt.perf --quick --json build/results/quick.json   # one workload, one error, under three minutes
python -m hrt.perf --workload burgers log-1d:4096 --tol 1e-3 --batch 1 64
python -m hrt.perf --workload mine.onnx --inputs x.npy --json build/results/mine.json
python -m hrt.perf report build/results/mine.json --html page.html
python -m hrt.perf table build/results/mine.json --why
python -m hrt.perf compare before.json after.json
python -m hrt.perf compress-time
python -m hrt.perf in-c --json build/results/in-c.json --page build/results/in-c.md

`run` is what happens where no command is named. Every method sets its knob on search rows until the error is kept by
hrt's own rule, is judged on fresh rows, and then timed beside all others in short bursts in random order. What cannot
be had is a row that says why. Full results belong into build/results, which is not tracked; `table --summary` makes
what is.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from hrt.errors import InputError
from hrt.perf.bench import command, compare, compress_time, in_c, report, tables
from hrt.perf.bench.candidates import Timing
from hrt.perf.bench.runner import Plan
from hrt.perf.measuring import command_line
from hrt.perf.measuring.results import check_results, read
from hrt.perf.methods.catalogue import METHODS, USUAL
from hrt.perf.networks.registry import QUICK, REGISTRY, check
from hrt.perf.paper.command import app as paper
from hrt.perf.realtime.command import realtime, serving
from hrt.support.atomic_files import check_writable
from hrt.support.progress import track

QUICK_BURST_S, QUICK_TOLS = 0.01, (1e-2,)
KNOWN = f"{', '.join(REGISTRY)} (operators take a size: log-1d:4096), or your .pt2, .onnx or .hrt file."

app = command_line.new_app(__doc__ or "")
app.add_typer(paper, name="paper")
app.command(help="Requests by the clock: is every answer in time?")(realtime)
app.command()(serving)

Files = Annotated[list[Path], typer.Argument(metavar="JSON...", help="What `run --json` wrote; several add up.")]


@app.command("run")
def run(
    *,
    quick: Annotated[bool, typer.Option("--quick", help=f"Only {' and '.join(QUICK)}, at one error.")] = False,
    workload: Annotated[list[str] | None, typer.Option(metavar="NAME", help=KNOWN)] = None,
    inputs: Annotated[list[Path] | None, typer.Option(help="Rows for your file, one file per input.")] = None,
    method: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help=f"Beginnings of {'; '.join(METHODS)} (all but the last).")
    ] = None,
    tol: Annotated[list[float] | None, typer.Option(help="Relative errors to compare at (1e-2 1e-3 1e-4).")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes (1 256).")] = None,
    threads: Annotated[int, typer.Option(help="Threads of every method.")] = 2,
    rounds: Annotated[int, typer.Option(help="Bursts of every method.")] = Timing.rounds,
    seed: Annotated[int, typer.Option(help="Of the order of bursts.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Also write the rows here (build/results/mine.json).")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every execution of a method, not the fastest alone.")] = False,
) -> int:
    """Measure. Status 1 where a network could not be measured, 130 after Ctrl-C (rows so far are kept)."""
    chosen = [m for m in METHODS if any(m.startswith(p) for p in method or ())]
    unknown = [p for p in method or () if not any(m.startswith(p) for m in METHODS)]
    plan = Plan(
        workloads=tuple(workload or (QUICK if quick else REGISTRY)),
        methods=tuple(unknown or (dict.fromkeys(("dense float32", *chosen)) if chosen else USUAL)),
        tols=tuple(tol or (QUICK_TOLS if quick else Plan.tols)),
        batches=tuple(batch) if batch else None,
        threads=threads,
        timing=Timing(rounds, QUICK_BURST_S if quick else Timing.burst_s, seed),
        inputs=tuple(inputs or ()),
    )
    return command.measure(plan, json, every)


@app.command("table")
def table(
    results: Files,
    why: Annotated[bool, typer.Option("--why", help="Why hrt does not win where it does not.")] = False,
    methods: Annotated[bool, typer.Option("--methods", help="One line per method too: bytes, error, times.")] = False,
    into: Annotated[Path | None, typer.Option(help="Put it between this page's lines of figures instead.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Write what is worth tracking of it, a line a row.")] = None,
) -> None:
    """One line per network and error, in Markdown, as on the page of results."""
    together, parts = command.one_of(results)
    shown = (tables.methods if methods else tables.overview)(together).markdown()
    text = "\n".join(f"- {line}" for part in parts for line in tables.reasons(part)) if why else shown
    if into is None:
        print(text)
    else:
        command.put_into(into, f"{tables.provenance(together)}\n\n{text}")
    if summary is not None:
        tables.summary(together).write(summary)


@app.command("report")
def draw(
    results: Annotated[Path, typer.Argument(metavar="JSON", help="What `run` or `realtime` wrote.")],
    html: Annotated[Path | None, typer.Option(help="The page to write.")] = None,
    png: Annotated[Path | None, typer.Option(metavar="FOLDER", help="For the pictures, made if missing.")] = None,
) -> None:
    """One page, without network, and pictures."""
    if html is None and png is None:
        raise InputError("Found nothing to write. Expected --html FILE, --png FOLDER, or both.")
    if html is not None:
        check_writable(html, force=True)
    result = read(results)
    if html is not None:
        report.write_page(result, html)
        print(f"wrote {html}: {html.stat().st_size:,} bytes")
    if png is not None:
        print(f"wrote {len(report.write_pictures(result, png))} pictures into {png}")


@app.command("compare", help=command_line.as_it_stands(compare.__doc__ or ""))
def judge(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="BEFORE AFTER", help="Two results; after `--`, options of `run`.")
    ] = None,
    commits: Annotated[
        tuple[str, str] | None, typer.Option(metavar="REV1 REV2", help="Measure two commits of this repository.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="With --commits: runs of each, in turns.")] = 3,
    keep: Annotated[Path | None, typer.Option(metavar="FOLDER", help="With --commits: leave the results here.")] = None,
    threshold: Annotated[float, typer.Option(help="Slower by less is let pass.")] = compare.THRESHOLD,
    judge_all: Annotated[bool, typer.Option("--all", help="Judge every method; dense is no control.")] = False,
) -> int:
    """Two results, or two commits; the module says how. Status 1 on a regression, 3 where too little was judged."""
    files = files or []
    if not 0 < threshold < math.inf:
        raise InputError(f"Found threshold {threshold:g}. Expected a positive finite number.")
    if commits and files and not files[0].startswith("-"):
        raise InputError("Found --commits and files. Expected one of them.")
    if commits:
        from hrt.perf.bench.git_revisions import measured

        before, after = measured(*commits, files, repeats, keep)
    elif len(files) == 2:
        before, after = ([read(path)] for path in files)
    else:
        raise InputError(f"Found {len(files)} files. Expected two results, or --commits REV1 REV2.")
    comparison = compare.compare(before, after, threshold=threshold, judge_all=judge_all)
    compare.show(comparison, command.console())
    return comparison.status


@app.command("compress-time")
def seconds(
    workload: Annotated[list[str] | None, typer.Option(metavar="NAME", help=KNOWN)] = None,
    tol: Annotated[list[float] | None, typer.Option(help="Relative errors (1e-2).")] = None,
    threads: Annotated[int, typer.Option(help="Threads of everything.")] = 2,
) -> None:
    """How long compressing takes, beside torchao's `quantize_` and one SVD of every layer."""
    cases = [(name, t) for name in workload for t in tol or QUICK_TOLS] if workload else compress_time.CASES
    for name, _ in cases:
        check(name)
    torch.set_num_threads(threads)
    with track("compress-time", True) as advance:
        table = compress_time.compress_time(cases, advance)
    command.console().print(table.rich())


@app.command("in-c")
def generated_c(
    *,
    workload: Annotated[list[str] | None, typer.Option(metavar="NAME", help=KNOWN)] = None,
    tol: Annotated[list[float] | None, typer.Option(help="Relative errors (1e-3).")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes (1 2 4 8 16 64 256 1024).")] = None,
    threads: Annotated[int, typer.Option(help="Threads of every runtime.")] = 2,
    rounds: Annotated[int, typer.Option(help="Bursts of every runtime.")] = in_c.ROUNDS,
    json: Annotated[Path | None, typer.Option(help="Write the figures here, after every network.")] = None,
    page: Annotated[Path | None, typer.Option(metavar="MD", help="Write the page here.")] = None,
    earlier: Annotated[
        list[Path] | None, typer.Option("--from", metavar="JSON", help="Measure nothing: what --json wrote, together.")
    ] = None,
) -> None:
    """Generated C beside every other runtime, dense and compressed, and what "auto" chooses of them."""
    if json is not None:
        check_results(json)
    if earlier:
        results = in_c.together([read(path) for path in earlier])
    else:
        plan = in_c.default_plan(workload or (), tol or (), batch or (), threads, rounds)
        with track("in C", True, piped=True) as advance:
            results = in_c.measure(plan, advance, keep=lambda so_far: in_c.write(so_far, json, None))
    in_c.write(results, json, page)
    print(in_c.page(results))


@app.command("gpu", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def gpu(context: typer.Context) -> int:
    """Minutes on a GPU, by worth (`make gpu`); `python -m hrt.perf.gpu --help` says how."""
    from hrt.perf.gpu.command import main as on_gpu

    return on_gpu(context.args)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, `run` where none is named. Returns its status; 2 for a mistake, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    named = words and (words[0] == "--help" or not words[0].startswith("-"))
    return command_line.run(app, "hrt.perf", words if named else ["run", *words])


if __name__ == "__main__":
    sys.exit(main())
