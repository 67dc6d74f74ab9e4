"""`python -m hrt.perf.realtime.command`: is the answer there in time, every time, when requests come by the clock?

    python -m hrt.perf.realtime.command net.hrt --rate 1000 --seconds 60
    python -m hrt.perf.realtime.command net.hrt --net mynets.py:build --rate 200 --json build/realtime.json
    python -m hrt.perf.realtime.command net.hrt --name burgers --http 127.0.0.1:8000 --grpc 127.0.0.1:8001
    python -m hrt.perf.realtime.command --self-test

Request k is due at start + k / rate, whether or not the one before has been answered, and its latency counts from
then: a stall of 5 ms at 1,000 a second makes five requests late, not one. hrt (on the backend of `hrt.load`), the
dense network in ONNX Runtime and in torch eager, and an empty call take turns of one second each in random order, so
that a disturbed machine hurts all alike. The empty call is the floor: what clock, operating system and this loop cost.

Until 0.2 ms before an arrival the loop sleeps, then it spins on the clock (--spin-us; 0 only sleeps). Python's garbage
collector runs as it would for anybody and is counted; --no-gc turns it off during every turn. Dense is what .hrt holds
with every matrix multiplied out, or --net, the network it came from. With --http or --grpc a running server is asked
over the Open Inference Protocol instead, each request sent when it is due however many are still out.

Status 0: measured. 2: a mistake, said in one line. Of --self-test: 0 the stall was DETECTED, 1 it was NOT DETECTED,
3 TOO DISTURBED to judge: requests come as late without a stall.
"""

import argparse
import gc
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import torch
from rich.console import Console
from rich.table import Table

import hrt
from hrt.calibration.input_files import read_array
from hrt.errors import HrtError, InputError
from hrt.perf.measuring.gc_watch import CollectorWatch
from hrt.perf.measuring.provenance import commit, scheduling, versions
from hrt.perf.measuring.results import FAILED, OK, Results, Row, check_results
from hrt.perf.realtime.latencies import Figures, histogram_library, shown, summarise
from hrt.perf.realtime.open_loop import SPIN_NS, Clock, Slice, check_rate, serve
from hrt.perf.realtime.server_load import Server
from hrt.perf.realtime.subjects import OURS, Call, in_process, questions

FLOOR = "empty call"
SLICE_S, LEAD_S = 1.0, 0.05  # of a turn; of the arrivals before it that do not count
MAX_SPIN_US = 1e6  # the first request waits so long
DISTURBED = 0.005  # share of deadlines that an empty call misses on a machine that cannot be judged on


@dataclass(frozen=True)
class Options:
    """rate: requests a second.  seconds: for every subject.  deadline_us: None for the period.  batch: rows of a
    request.  spin_us: see `Clock`.  gc: whether Python's collector may run.  threads: of every runtime.
    """

    rate: float = 1000.0
    seconds: float = 60.0
    deadline_us: float | None = None
    batch: int = 1
    spin_us: float = SPIN_NS / 1e3
    gc: bool = True
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_rate(self.rate)
        if not 0 < self.seconds <= 86_400:
            raise InputError(f"Found {self.seconds:g} seconds. Expected more than 0 and at most a day.")
        if self.rate * self.seconds < 1:
            raise InputError(f"Found {self.rate:g} a second for {self.seconds:g} s. Expected at least one request.")
        if self.deadline_us is not None and not 0 < self.deadline_us < math.inf:
            raise InputError(f"Found a deadline of {self.deadline_us:g} us. Expected more than 0, and finite.")
        if not 0 <= self.spin_us <= MAX_SPIN_US:
            raise InputError(f"Found a spin of {self.spin_us:g} us. Expected 0 to {MAX_SPIN_US:,.0f}.")
        if self.batch < 1 or self.threads < 1:
            raise InputError(f"Found batch {self.batch} and {self.threads} threads. Expected at least one of each.")

    def turns(self) -> list[int]:
        """Requests of every turn of a subject, about a second each."""
        total = max(1, round(self.rate * self.seconds))
        count = max(1, min(total, round(self.seconds / SLICE_S)))
        return [total // count + (k < total % count) for k in range(count)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print. Returns 0; 2 for a mistake, said on stderr; for the self-test what `hrt.perf.realtime.self_test` says."""
    args = _parser().parse_args(arguments)
    try:
        histogram_library()  # before minutes of measuring, not after
        if args.self_test:
            from hrt.perf.realtime.self_test import SECONDS, self_test

            checked = Options(args.rate, SECONDS, spin_us=args.spin_us)
            return self_test(checked.rate, spin_us=checked.spin_us)
        if args.artifact is None:
            raise InputError("Found no network. Expected the path of a .hrt file, or --self-test.")
        options = Options(
            args.rate, args.seconds, args.deadline_us, args.batch, args.spin_us, not args.no_gc, args.threads
        )
        if args.json is not None:
            check_results(args.json)
        addresses = [("http", args.http), ("grpc", args.grpc)]
        servers = [
            Server(a, p, args.name or args.artifact.stem, not args.json_tensors) for p, a in addresses if a is not None
        ]
        found = measure(args.artifact, options, net=args.net, inputs=args.inputs, servers=servers)
        if not found:
            raise InputError("Interrupted before the first turn ended: nothing was measured.")
        console = Console(width=150)
        console.print(table(f"{args.artifact}, batch {options.batch}", found))
        for line in [*remarks(found), f"Scheduling: {scheduling()}."]:
            console.print(line, markup=False)
        if args.json is not None:
            command = ["python", "-m", "hrt.perf.realtime.command", *map(str, arguments or sys.argv[1:])]
            results(args.artifact.stem, options, found, command).write(args.json)
    except HrtError as error:
        print(f"hrt.perf.realtime.command: {error}", file=sys.stderr)
        return 2
    return 0


def measure(
    artifact: Path,
    options: Options,
    *,
    net: str | None = None,
    inputs: Path | None = None,
    servers: Sequence[Server] = (),
    clock: Clock | None = None,
) -> list[Figures]:
    """What `python -m hrt.perf.realtime.command` measures: in process, or of `servers` where there are any.

    net: the dense network as `hrt compress` takes it; None: what `artifact` holds, multiplied out.  inputs: rows to ask
    with (.npy, .npz, .csv) for networks of one input; None: random numbers in (0, 1). Ctrl-C ends the run: what was
    measured until then is returned. Raises HrtError: for a file that cannot be read, answers that disagree, a server
    that cannot be reached.
    """
    torch.set_num_threads(options.threads)
    model = hrt.load(artifact)
    asked = questions(model.program, options.batch, None if inputs is None else read_array(inputs))
    if servers:
        from hrt.perf.realtime.server import measure_servers

        return measure_servers(model, asked, servers, options)
    subjects = {**in_process(model, asked, net, options.threads), FLOOR: lambda k: None}
    found: dict[str, list[Slice]] = {name: [] for name in subjects}
    watches = {name: CollectorWatch(off=not options.gc) for name in subjects}
    clock = clock or Clock(spin_ns=round(options.spin_us * 1e3))
    gc.collect()  # once, and not before every turn: a later full collection is one that a user would meet, too
    try:
        with torch.no_grad():
            for name, stretch in interleaved(subjects, options, clock, watches):
                found[name].append(stretch)
    except KeyboardInterrupt:
        print("interrupted: these are the turns until then", file=sys.stderr)
    return [
        summarise(name, slices, deadline_us=options.deadline_us, collections=watches[name].found)
        for name, slices in found.items()
        if slices
    ]


def interleaved(
    subjects: Mapping[str, Call], options: Options, clock: Clock, watches: Mapping[str, CollectorWatch]
) -> Iterator[tuple[str, Slice]]:
    """Turns of about a second, every subject once a round, in a new random order each."""
    order, shuffle = list(subjects), Random(options.seed).shuffle
    lead = max(1, round(LEAD_S * options.rate))
    for count in options.turns():
        shuffle(order)
        for name in order:
            with watches[name]:
                stretch = serve(subjects[name], options.rate, count, clock=clock, lead=lead)
            yield name, stretch


def table(title: str, found: Sequence[Figures]) -> Table:
    """Latency from when a request was due, misses, the queue and jitter of every subject; microseconds."""
    first = found[0]
    out = Table(title=f"{title}: {first.rate:,.0f} a second, deadline {first.deadline_us:,.0f} us; microseconds")
    lasts = ("longest\nqueue", "call alone\np50 / p99.9", "start late\np99.9 / max")
    for column in ("", "requests", "missed", "p50", "p95", "p99", "p99.9", "max", *lasts):
        out.add_column(column, justify="right" if column else "left", overflow="fold")
    for f in found:
        cells = [shown(v) for v in (f.p50_us, f.p95_us, f.p99_us, f.p999_us, f.max_us)]
        late = f"{shown(f.jitter_p999_us)} / {shown(f.jitter_max_us)}"
        alone = f"{shown(f.call_p50_us)} / {shown(f.call_p999_us)}"
        counts = f"{f.offered:,}", f"{f.missed:,} ({f.missed / f.offered:.2%})"
        style = "bold" if f.subject == OURS else "dim" if f.subject == FLOOR else None
        out.add_row(f.subject, *counts, *cells, f"{f.queue:,}", alone, late, style=style)
    return out


def remarks(found: Sequence[Figures]) -> list[str]:
    """Sentences under the table: whether the rate was sustained, spells of misses, garbage collections, failures."""
    lines = []
    for f in found:
        line = f"{f.subject}: {f.verdict}"
        if f.spells and f.sustained:
            line += f"; misses in {f.spells} spells, the longest of {f.longest_spell} requests"
        if f.collections:
            line += f"; {f.collections} garbage collections, the longest {f.longest_collection_us:,.0f} us"
        if f.failed and f.failed < f.offered:
            line += f"; {f.failed} requests failed: {f.note}"
        lines.append(line + ".")
    floor = next((f for f in found if f.subject.startswith(FLOOR)), None)
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


def results(workload: str, options: Options, found: Sequence[Figures], command: Sequence[str] = ()) -> Results:
    """Rows of all but the floor (workload "NAME, open loop at RATE/s"), and under facts["realtime"] every figure."""
    rows, samples = [], {}
    for f in found:
        if f.subject.startswith(FLOOR):
            continue
        samples[len(rows)] = f.medians_us
        rows.append(_row(f"{workload}, open loop at {options.rate:g}/s", options.batch, f))
    facts = {
        "command": " ".join(command),
        "commit": commit(),
        "versions": versions(),
        "threads": options.threads,
        "scheduling": scheduling(),
        "realtime": [{**asdict(f), "workload": workload} for f in found],
    }
    return Results(tuple(rows), facts, samples)


def _row(workload: str, batch: int, f: Figures) -> Row:
    method, _, backend = f.subject.partition(", ")
    note = f"{f.missed} of {f.offered} later than {f.deadline_us:g} us; {f.verdict}"
    status = OK if f.served else FAILED
    row = Row(workload, method, batch, backend or "auto", 0.0, status, calls=f.served, note=note)
    if not f.served:
        return row
    return replace(row, p50_us=f.p50_us, p95_us=f.p95_us, p99_us=f.p99_us, p999_us=f.p999_us)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hrt.perf.realtime.command",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("artifact", nargs="?", type=Path, metavar="NET.hrt", help="the compressed network")
    add("--rate", type=float, default=1000.0, help="requests a second (default 1000)")
    add("--seconds", type=float, default=60.0, help="for every subject (default 60)")
    add("--deadline-us", type=float, help="later than this is missed (default: the period)")
    add("--batch", type=int, default=1, help="rows of a request (default 1)")
    add("--inputs", type=Path, help="rows to ask with, .npy, .npz or .csv (default: random numbers in (0, 1))")
    add("--net", help="the dense network, as `hrt compress` takes it (default: the file's, multiplied out)")
    add("--threads", type=int, default=1, help="threads of every runtime (default 1)")
    add("--spin-us", type=float, default=SPIN_NS / 1e3, help="spin so long before an arrival (default 200; 0: sleep)")
    add("--no-gc", action="store_true", help="turn Python's garbage collector off during every turn")
    add("--http", metavar="HOST:PORT", help="ask the server there, over HTTP")
    add("--grpc", metavar="HOST:PORT", help="ask the server there, over gRPC")
    add("--name", help="the model's name at the server (default: the file's)")
    add("--json-tensors", action="store_true", help="tensors as JSON over HTTP, as MLServer wants them")
    add("--json", type=Path, help="write the figures here; `python -m hrt.perf.bench.html_report` draws them")
    add("--self-test", action="store_true", help="stall an empty call for 5 ms and see whether that is found")
    return parser


if __name__ == "__main__":
    sys.exit(main())
