"""`python -m hrt.perf.realtime`: is the answer there in time, every time, when requests come by the clock?

    python -m hrt.perf.realtime net.hrt --rate 1000 --seconds 60
    python -m hrt.perf.realtime net.hrt --name burgers --http 127.0.0.1:8000 --grpc 127.0.0.1:8001
    python -m hrt.perf.realtime net.hrt --jitter 1000000
    python -m hrt.perf.realtime --self-test

Request k is due at start + k / rate, whether or not the one before has been answered, and its latency counts from
then. hrt, the dense network in ONNX Runtime and in torch eager, and an empty call take turns of one second in random
order, so that a disturbed machine hurts all alike. The empty call is what clock, operating system and this loop cost.

Until 0.2 ms before an arrival the loop sleeps, then it spins on the clock. Dense is what .hrt holds with every matrix
multiplied out. With --http or --grpc a running server is asked over the Open
Inference Protocol instead, each request sent when it is due however many are still out.

Status 0: measured. 2: a mistake, said in one line. Of --self-test: 0 the stall was DETECTED, 1 it was NOT DETECTED,
3 TOO DISTURBED to judge: requests come as late without a stall.
"""

import gc
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

import hrt
from hrt.calibration.input_files import read_array
from hrt.errors import HrtError, InputError
from hrt.perf.measuring.command_line import as_it_stands, new_app, run
from hrt.perf.measuring.gc_watch import CollectorWatch
from hrt.perf.measuring.provenance import commit, scheduling, versions
from hrt.perf.measuring.results import FAILED, OK, Results, Row, check_results
from hrt.perf.realtime import server_load
from hrt.perf.realtime.inference_client import TOLERANCE, Server, servers
from hrt.perf.realtime.jitter import jitter, lines
from hrt.perf.realtime.latencies import Figures, histogram_library, shown, summarise
from hrt.perf.realtime.open_loop import SPIN_NS, Clock, Options, Slice, serve
from hrt.perf.realtime.self_test import SECONDS, self_test
from hrt.perf.realtime.server import measure_servers
from hrt.perf.realtime.subjects import OURS, in_process, questions

FLOOR = "empty call"
DISTURBED = 0.005  # share of deadlines that an empty call misses on a machine that cannot be judged on
app = new_app(__doc__ or "")
Http = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Ask the server there, over HTTP.")]
Grpc = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Ask the server there, over gRPC.")]
Tensors = Annotated[bool, typer.Option("--json-tensors", help="Tensors as JSON over HTTP, as MLServer wants them.")]


@app.command(help=as_it_stands(__doc__ or ""))
def realtime(
    *,
    artifact: Annotated[Path | None, typer.Argument(metavar="NET.hrt", help="The compressed network.")] = None,
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 1000.0,
    seconds: Annotated[float, typer.Option(help="For every subject.")] = 60.0,
    deadline_us: Annotated[float | None, typer.Option(help="Later than this is missed; else the period.")] = None,
    batch: Annotated[int, typer.Option(help="Rows of a request.")] = 1,
    inputs: Annotated[Path | None, typer.Option(help="Rows (.npy, .npz, .csv); else random in (0, 1).")] = None,
    threads: Annotated[int, typer.Option(help="Threads of every runtime.")] = 1,
    spin_us: Annotated[float, typer.Option(help="Spin so long before an arrival; 0 only sleeps.")] = SPIN_NS / 1e3,
    no_gc: Annotated[bool, typer.Option("--no-gc", help="Python's garbage collector is off in every turn.")] = False,
    http: Http = None,
    grpc: Grpc = None,
    name: Annotated[str | None, typer.Option(help="The model's name at the server; else the file's.")] = None,
    json_tensors: Tensors = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures here; they can be drawn as a page.")] = None,
    calls: Annotated[
        int | None, typer.Option("--jitter", help="Time so many calls of one row instead, from Python and from C.")
    ] = None,
    test: Annotated[bool, typer.Option("--self-test", help="Stall an empty call for 5 ms: is that found?")] = False,
) -> int:
    """Measure and print."""
    histogram_library()  # before minutes of measuring, not after
    if test:
        checked = Options(rate, SECONDS, spin_us=spin_us)
        return self_test(checked.rate, spin_us=checked.spin_us)
    if artifact is None:
        raise InputError("Found no network. Expected the path of a .hrt file, or --self-test.")
    if calls is not None:
        torch.set_num_threads(threads)
        print(*lines(jitter(hrt.load(artifact), max(1, calls))), f"Scheduling: {scheduling()}.", sep="\n")
        return 0
    options = Options(rate, seconds, deadline_us, batch, spin_us, not no_gc, threads)
    if json is not None:
        check_results(json)
    asked = servers(name or artifact.stem, http, grpc, not json_tensors)
    figures = measure(artifact, options, inputs=inputs, servers=asked)
    if not figures:
        raise InputError("Interrupted before the first turn ended: nothing was measured.")
    console = Console(width=150)
    console.print(table(f"{artifact}, batch {options.batch}", figures))
    for line in [*remarks(figures), f"Scheduling: {scheduling()}."]:
        console.print(line, markup=False)
    if json is not None:
        results(artifact.stem, options, figures, sys.argv).write(json)
    return 0


def serving(
    *,
    artifact: Annotated[Path, typer.Argument(metavar="NET.hrt", help="The file that is served, for comparison.")],
    name: Annotated[str, typer.Option(help="The model's name at the server.")],
    http: Http = None,
    grpc: Grpc = None,
    requests: Annotated[int, typer.Option(help="How many, of mixed sizes.")] = 1000,
    in_flight: Annotated[int | None, typer.Option(help="Requests out at once; else all.")] = None,
    json_tensors: Tensors = False,
) -> None:
    """Ask servers many things at once, compare every answer with `predict` and print a line for each server."""
    if not (http or grpc):
        raise InputError("Found no server to ask. Expected --http HOST:PORT, --grpc HOST:PORT, or both.")
    asked = server_load.questions(hrt.load(artifact, backend="torch"))
    print(server_load.HEADER)
    bad = 0
    for server in servers(name, http, grpc, not json_tensors):
        outcome = server_load.ask(server, asked, requests, in_flight)
        bad += outcome.wrong + outcome.failed
        print(server_load.row(server.address, server, outcome))
    if bad:
        raise HrtError(f"{bad} answers failed or differ from predict by more than {TOLERANCE:g} (relative).")


def measure(
    artifact: Path,
    options: Options,
    *,
    inputs: Path | None = None,
    servers: Sequence[Server] = (),
    clock: Clock | None = None,
) -> list[Figures]:
    """What `python -m hrt.perf.realtime` measures: in process, or of `servers` where there are any.

    Ctrl-C ends the run: what was measured until then is returned.
    """
    torch.set_num_threads(options.threads)
    model = hrt.load(artifact)
    asked = questions(model.program, options.batch, None if inputs is None else read_array(inputs))
    if servers:
        return measure_servers(model, asked, servers, options)
    subjects = {**in_process(model, asked, options.threads), FLOOR: lambda k: None}
    slices: dict[str, list[Slice]] = {name: [] for name in subjects}
    watches = {name: CollectorWatch(off=not options.gc) for name in subjects}
    clock = clock or Clock(spin_ns=round(options.spin_us * 1e3))
    gc.collect()  # once, and not before every turn: a later full collection is one that a user would meet, too
    try:
        with torch.no_grad():
            for name, count in options.turns(list(subjects)):
                with watches[name]:
                    stretch = serve(subjects[name], options.rate, count, clock=clock, lead=options.lead)
                slices[name].append(stretch)
    except KeyboardInterrupt:
        print("interrupted: these are the turns until then", file=sys.stderr)
    return [
        summarise(name, parts, deadline_us=options.deadline_us, collections=watches[name].seen)
        for name, parts in slices.items()
        if parts
    ]


def table(title: str, figures: Sequence[Figures]) -> Table:
    """Latency from when a request was due, misses, the queue and jitter of every subject; microseconds."""
    first = figures[0]
    out = Table(title=f"{title}: {first.rate:,.0f} a second, deadline {first.deadline_us:,.0f} us; microseconds")
    lasts = ("longest\nqueue", "call alone\np50 / p99.9", "start late\np99.9 / max")
    for column in ("", "requests", "missed", "p50", "p95", "p99", "p99.9", "max", *lasts):
        out.add_column(column, justify="right" if column else "left", overflow="fold")
    for f in figures:
        cells = [shown(v) for v in (f.p50_us, f.p95_us, f.p99_us, f.p999_us, f.max_us)]
        late = f"{shown(f.jitter_p999_us)} / {shown(f.jitter_max_us)}"
        alone = f"{shown(f.call_p50_us)} / {shown(f.call_p999_us)}"
        counts = f"{f.offered:,}", f"{f.missed:,} ({f.missed / f.offered:.2%})"
        style = "bold" if f.subject == OURS else "dim" if f.subject == FLOOR else None
        out.add_row(f.subject, *counts, *cells, f"{f.queue:,}", alone, late, style=style)
    return out


def remarks(figures: Sequence[Figures]) -> list[str]:
    """Sentences under the table: whether the rate was sustained, spells of misses, garbage collections, failures."""
    lines = []
    for f in figures:
        line = f"{f.subject}: {f.verdict}"
        if f.spells and f.sustained:
            line += f"; misses in {f.spells} spells, the longest of {f.longest_spell} requests"
        if f.collections:
            line += f"; {f.collections} garbage collections, the longest {f.longest_collection_us:,.0f} us"
        if f.failed and f.failed < f.offered:
            line += f"; {f.failed} requests failed: {f.note}"
        lines.append(line + ".")
    floor = next((f for f in figures if f.subject.startswith(FLOOR)), None)
    if floor is not None and floor.missed > DISTURBED * floor.offered:
        lines.append(
            f"TOO DISTURBED to judge: even the empty call missed {floor.missed / floor.offered:.1%} of its deadlines, "
            f"by up to {shown(floor.max_us)} us. Others use these cores; measure again without them."
        )
    elif floor is not None and floor.missed:
        lines.append(
            f"Even the empty call missed {floor.missed} of {floor.offered:,} deadlines: about so many of the others' "
            "misses are the machine's."
        )
    return lines


def results(workload: str, options: Options, figures: Sequence[Figures], command: Sequence[str] = ()) -> Results:
    """Rows of all but the floor (workload "NAME, open loop at RATE/s"), and under facts["realtime"] every figure."""
    subjects = [f for f in figures if not f.subject.startswith(FLOOR)]
    rows = tuple(_row(f"{workload}, open loop at {options.rate:g}/s", options.batch, f) for f in subjects)
    facts = {"command": " ".join(command), "commit": commit(), "versions": versions(), "scheduling": scheduling()}
    facts |= {"threads": options.threads, "realtime": [{**asdict(f), "workload": workload} for f in figures]}
    return Results(rows, facts, {k: f.medians_us for k, f in enumerate(subjects)})


def _row(workload: str, batch: int, f: Figures) -> Row:
    method, _, backend = f.subject.partition(", ")
    note = f"{f.missed} of {f.offered} later than {f.deadline_us:g} us; {f.verdict}"
    status = OK if f.served else FAILED
    row = Row(workload, method, batch, backend or "auto", 0.0, status, calls=f.served, note=note)
    if not f.served:
        return row
    return replace(row, p50_us=f.p50_us, p95_us=f.p95_us, p99_us=f.p99_us, p999_us=f.p999_us)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print. Returns 0; 2 for a mistake; for the self-test what `hrt.perf.realtime.self_test` says."""
    return run(app, "hrt.perf.realtime", arguments)
