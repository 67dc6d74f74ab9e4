"""The runner: every method on every workload at every error and batch size, errors first, then times side by side.

What fails is a row like any other. Ctrl-C ends the run; the rows so far are kept.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from hrt.errors import HrtError, InputError
from hrt.perf.bench.candidates import EMPTY, HOPELESS, Candidate, bound, dense_again, one_line, timed
from hrt.perf.bench.cpu_peaks import Peaks, measure_peaks
from hrt.perf.bench.explain_rank import Contender, why
from hrt.perf.measuring.bursts import Comparison, Latency, compared, thread_facts
from hrt.perf.measuring.provenance import commit, versions
from hrt.perf.measuring.results import FAILED, MISSING, NOISY, OK, UNREACHABLE, Results, Row
from hrt.perf.methods.catalogue import METHODS, Method
from hrt.perf.methods.matched_error import Offer, Refusal
from hrt.perf.methods.runtimes import BOUND
from hrt.perf.networks import registry as workloads
from hrt.perf.networks.registry import MissingError, Workload
from hrt.support.progress import Advance, part, silent

USUAL = tuple(m for m in METHODS if m != "hrt, fewest bytes")  # which takes as long as "hrt" again


@dataclass(frozen=True)
class Plan:
    """What to measure. batches: of every workload, or None for each one's own.  rounds, burst_s: see `bursts`.

    inputs: files of rows for a user's own network. Raises InputError for what is unknown or makes no sense.
    """

    workloads: tuple[str, ...] = tuple(workloads.REGISTRY)
    methods: tuple[str, ...] = USUAL
    tols: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    batches: tuple[int, ...] | None = None
    threads: int = 2
    rounds: int = 12
    burst_s: float = 0.02
    seed: int = 0
    inputs: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        for name in self.workloads:
            workloads.check(name)
        unknown = [m for m in self.methods if m not in METHODS]
        if unknown:
            raise InputError(f"Found method {unknown[0]!r}. Expected one of {'; '.join(METHODS)}.")
        if not any(m == "dense float32" for m in self.methods):
            raise InputError("Found no 'dense float32' among the methods. Expected it: every ratio is against dense.")
        if not all(0 < t < 1 for t in self.tols) or not self.tols:
            raise InputError(f"Found errors {list(self.tols)}. Expected relative errors between 0 and 1.")
        if self.batches is not None and not all(b >= 1 for b in self.batches):
            raise InputError(f"Found batches {list(self.batches)}. Expected positive whole numbers.")
        if self.threads < 1 or self.rounds < 2:
            raise InputError(f"Found {self.threads} threads, {self.rounds} rounds. Expected at least 1 and 2.")
        gone = [str(p) for p in self.inputs if not p.is_file()]
        if gone:
            raise InputError(f"{gone[0]} does not exist. Expected a file of rows: .npy, .npz or .csv.")
        if self.inputs and not all(w.endswith(workloads.SUFFIXES) for w in self.workloads):
            raise InputError("Found inputs for a workload of the registry, which has its own. Give them with a file.")


@dataclass
class _Kept:
    """Rows as they come, so that an interruption loses none."""

    rows: list[Row] = field(default_factory=list)
    samples: dict[int, tuple[float, ...]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, row: Row, latency: Latency | None = None) -> None:
        if latency is not None:
            self.samples[len(self.rows)] = latency.medians
        self.rows.append(row)

    @property
    def results(self) -> Results:
        return Results(tuple(self.rows), self.facts, self.samples)


def run(
    plan: Plan,
    advance: Advance = silent,
    methods: Mapping[str, Method] = METHODS,
    keep: Callable[[Results], object] = lambda results: None,
) -> Results:
    """All rows. Ctrl-C ends it early: facts["interrupted"] is True then, and what was measured is there.

    methods: what the names in the plan stand for.  keep: given all rows so far after every workload.
    """
    torch.set_num_threads(plan.threads)
    kept = _Kept(facts=_facts(plan))
    start = time.perf_counter()
    try:
        peaks = measure_peaks()
        kept.facts["peaks"] = peaks.as_facts()
        for k, name in enumerate(plan.workloads):
            share = part(advance, k / len(plan.workloads), (k + 1) / len(plan.workloads))
            _workload(plan, name, methods, peaks, kept, share)
            keep(kept.results)
    except KeyboardInterrupt:
        kept.facts["interrupted"] = True
    kept.facts["seconds"] = round(time.perf_counter() - start, 1)
    kept.facts["load_average_after"] = thread_facts()["load_average"]
    keep(kept.results)
    return kept.results


def _facts(plan: Plan) -> dict[str, Any]:
    return {
        "command": sys.argv[1:],
        "commit": commit(),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": thread_facts(),
        "memory_bytes": psutil.virtual_memory().total,
        "threads": plan.threads,
        "seed": plan.seed,
        "peak_bytes": "rise of the process's resident memory (RSS high-water mark) in the first call",
        "nbytes": "as stored, biases in float32; what is decoded or widened at loading is said in the note",
        "error": "relative L2 against the dense network in float64, on fresh rows, through the calls that are timed",
        "noise": {},
        "why": [],
        "about": {},
        "spent": {},
    }


def _workload(
    plan: Plan, name: str, methods: Mapping[str, Method], peaks: Peaks, kept: _Kept, advance: Advance
) -> None:
    """All rows of one workload; what cannot be had is a row that says why."""
    batch = (plan.batches or (1,))[0]

    def nothing(status: str, note: str) -> None:
        for tol in plan.tols:
            kept.add(Row(name, "dense float32", batch, "-", tol, status, note=note))

    advance(f"{name}: build", 0.0)
    try:
        workload = workloads.from_file(Path(name), plan.inputs) if plan.inputs else workloads.build(name)
    except MissingError as error:
        return nothing(MISSING, str(error))
    except MemoryError as error:
        return nothing(FAILED, f"does not fit: {error}" if str(error) else "ran out of memory")
    except HrtError as error:
        return nothing(FAILED, str(error))
    kept.facts["about"][name] = workload.about
    batches = plan.batches or workload.batches
    offers: dict[tuple[str, float], Offer | Refusal] = {}
    pairs = [(method, tol) for tol in plan.tols for method in plan.methods]
    spent = kept.facts["spent"][name] = {}  # where the time of a run goes, to the second
    for k, (method, tol) in enumerate(pairs):
        advance(f"{name}: {method} at {tol:g}", 0.7 * k / len(pairs))
        since = time.perf_counter()
        offers[method, tol] = _offer(methods[method], workload, tol)
        spent[method] = round(spent.get(method, 0.0) + time.perf_counter() - since, 1)
    since = time.perf_counter()
    for k, b in enumerate(batches):
        share = part(advance, 0.7 + 0.3 * k / len(batches), 0.7 + 0.3 * (k + 1) / len(batches))
        _batch(plan, workload, b, offers, peaks, kept, share)
    spent["errors and times"] = round(time.perf_counter() - since, 1)
    torch.compiler.reset()


def _offer(method: Method, workload: Workload, tol: float) -> Offer | Refusal:
    """What a method offers; every way to fail is a refusal."""
    try:
        return method(workload, tol)
    except MissingError as error:
        return Refusal(MISSING, str(error))
    except MemoryError as error:
        return Refusal(FAILED, f"ran out of memory {error}".strip())
    except Exception as error:  # other libraries raise whatever they like; a method that fails is a row
        return Refusal(FAILED, f"{type(error).__name__}: {one_line(error)}")


def _batch(
    plan: Plan,
    workload: Workload,
    batch: int,
    offers: Mapping[tuple[str, float], Offer | Refusal],
    peaks: Peaks,
    kept: _Kept,
    advance: Advance,
) -> None:
    """All rows of one batch size: candidates bound and judged, then timed together, whatever their tolerance."""
    found: dict[int, list[Candidate]] = {}
    running: dict[str, Candidate] = {}
    unique = {id(o): o for o in offers.values() if isinstance(o, Offer)}
    for k, (key, offer) in enumerate(unique.items()):
        advance(f"{workload.name}, batch {batch}: errors", 0.5 * k / len(unique))
        found[key] = [bound(workload, e, batch) for e in offer.executions]
        loosest = max(tol for (_, tol), o in offers.items() if o is offer)
        for i, c in enumerate(found[key]):
            if c.call is not None and c.error is not None and c.error <= loosest:
                running[f"{key}/{i}"] = c

    def told(share: float) -> None:
        advance(f"{workload.name}, batch {batch}: times", 0.5 + 0.5 * share)

    dense = id(offers.get(("dense float32", plan.tols[0])))
    bound_dense = (f"{dense}/{i}" for i, c in enumerate(found.get(dense, ())) if c.execution.backend == BOUND)
    again = next(((name, call) for name in bound_dense for call in dense_again(workload, batch)), None)
    times, noise = timed(running, plan.rounds, plan.burst_s, plan.seed, told, again)
    kept.facts["noise"][f"{workload.name}, batch {batch}"] = round(noise, 4)
    for tol in plan.tols:
        group = {m: o for (m, t), o in offers.items() if t == tol}
        _rows(workload, batch, tol, group, found, times, noise, peaks, kept)


def _rows(
    workload: Workload,
    batch: int,
    tol: float,
    group: Mapping[str, Offer | Refusal],
    found: Mapping[int, Sequence[Candidate]],
    times: Mapping[str, Latency],
    noise: float,
    peaks: Peaks,
    kept: _Kept,
) -> None:
    """The rows of one workload, batch size and error."""
    reaching: dict[tuple[str, int], Latency] = {}
    for method, offer in group.items():
        if isinstance(offer, Offer):
            for i, c in enumerate(found[id(offer)]):
                if c.error is not None and c.error <= tol and f"{id(offer)}/{i}" in times:
                    reaching[method, i] = times[f"{id(offer)}/{i}"]
    dense = [t for (method, _), t in reaching.items() if method.startswith("dense")]
    best = min(dense, key=lambda t: t.p50_us, default=None)
    contenders: list[Contender] = []
    for method, offer in group.items():
        if isinstance(offer, Refusal):
            kept.add(Row(workload.name, method, batch, "-", tol, offer.status, note=offer.note))
            continue
        as_run = offer.at(batch)
        for i, c in enumerate(found[id(offer)]):
            latency = reaching.get((method, i))
            row, comparison = _row(workload.name, method, batch, tol, as_run, c, latency, best, noise, peaks)
            kept.add(row, latency)
            if latency is not None and row.status in (OK, NOISY):
                contenders.append(Contender(row, as_run, latency, comparison))
    line = why(contenders, workload.dense_nbytes, times.get(EMPTY), noise)
    if line:
        kept.facts["why"].append({"workload": workload.name, "batch": batch, "target": tol, "line": line})


def _row(
    name: str,
    method: str,
    batch: int,
    tol: float,
    offer: Offer,
    c: Candidate,
    latency: Latency | None,
    best: Latency | None,
    noise: float,
    peaks: Peaks,
) -> tuple[Row, Comparison | None]:
    """One execution as a row; times only where the error is kept, a ratio only where noise allows it."""
    known: dict[str, Any] = dict(error=c.error, nbytes=offer.nbytes, note=offer.note)
    head = name, method, batch, c.execution.backend, tol
    if c.problem:
        return Row(*head, FAILED, nbytes=offer.nbytes, note=c.problem), None
    if latency is None:
        missed = f"error {c.error:.2e} on fresh rows"
        promised = method.startswith("hrt")
        return Row(*head, FAILED if promised else UNREACHABLE, **{**known, "note": f"{missed}; {offer.note}"}), None
    known.update(p50_us=latency.p50_us, p95_us=latency.p95_us, p99_us=latency.p99_us)
    known.update(p999_us=latency.p999_us, cold_us=latency.cold_us, noise=noise, peak_bytes=c.peak, calls=latency.calls)
    if offer.arithmetic == "float32":
        known["roofline_fraction"] = peaks.fraction(offer.work, batch, offer.nbytes, latency.p50_us)
    if best is None:
        return Row(*head, **known), None
    comparison = compared(best, latency, noise)
    if comparison.verdict == "too noisy" or noise > HOPELESS:
        why_not = (
            f"the same call differs from itself by {noise:.0%}" if noise > HOPELESS else "the interval is too wide"
        )
        return Row(*head, NOISY, **{**known, "note": f"no verdict: {why_not}; {offer.note}"}), comparison
    known.update(ratio_vs_best_dense=comparison.ratio, ratio_low=comparison.low, ratio_high=comparison.high)
    if comparison.verdict == "no difference" and latency is not best:
        known["note"] = f"no difference from the best dense beyond noise; {offer.note}".rstrip("; ")
    return Row(*head, **known), comparison
