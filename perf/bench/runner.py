"""The runner: every method on every workload at every error and batch size, errors first, then times side by side.

What fails is a row like any other. Ctrl-C ends the run; the rows so far are kept.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from hrt.errors import HrtError, InputError
from hrt.perf.bench.candidates import EMPTY, HOPELESS, Candidate, Timing, bound, dense_again, timed
from hrt.perf.bench.ranking import REFERENCE, Contender, why
from hrt.perf.measuring.bursts import Latency, compared
from hrt.perf.measuring.provenance import commit, thread_facts, versions
from hrt.perf.measuring.results import FAILED, MEASURED, MISSING, NOISY, UNREACHABLE, Results, Row
from hrt.perf.methods.catalogue import METHODS, USUAL, made_s, offered
from hrt.perf.methods.matched_error import Method, Offer, Refusal
from hrt.perf.methods.runtimes import BOUND
from hrt.perf.networks import registry as workloads
from hrt.perf.networks.registry import MissingError, Workload
from hrt.support.progress import Advance, part, silent

SEARCHING = 0.7  # of the time of a workload, about; the rest goes to errors and times
TIMES = ("p50_us", "p95_us", "p99_us", "p999_us", "cold_us", "calls")  # of a Latency, that stand in a row
Offers = Mapping[str, Offer | Refusal]  # by method


@dataclass(frozen=True)
class Plan:
    """What to measure. batches: of every workload, or None for each one's own.  timing: see `Timing`.

    inputs: files of rows for a user's own network. Raises InputError for what is unknown or makes no sense.
    """

    workloads: tuple[str, ...] = tuple(workloads.REGISTRY)
    methods: tuple[str, ...] = USUAL
    tols: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    batches: tuple[int, ...] | None = None
    threads: int = 2
    timing: Timing = field(default_factory=Timing)
    inputs: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        for name in self.workloads:
            workloads.check(name)
        known, gone = "; ".join(METHODS), [str(p) for p in self.inputs if not p.is_file()]
        files = all(w.endswith(workloads.SUFFIXES) for w in self.workloads)
        batches, few = list(self.batches or (1,)), f"{self.threads} threads, {self.timing.rounds} rounds"
        for holds, mistake in (
            (not {*self.methods} - {*METHODS}, f"methods {list(self.methods)}. Expected some of {known}."),
            (
                REFERENCE in self.methods,
                f"no {REFERENCE!r} among the methods. Expected it: every ratio is against dense.",
            ),
            (
                self.tols and all(0 < t < 1 for t in self.tols),
                f"errors {list(self.tols)}. Expected some between 0 and 1.",
            ),
            (all(b >= 1 for b in batches), f"batches {batches}. Expected positive whole numbers."),
            (self.threads >= 1 and self.timing.rounds >= 2, f"{few}. Expected at least 1 and 2."),
            (not gone, f"that {', '.join(gone)} does not exist. Expected files of rows: .npy, .npz or .csv."),
            (
                files or not self.inputs,
                "inputs for a workload of the registry, which has its own. Give them with a file.",
            ),
        ):
            if not holds:
                raise InputError(f"Found {mistake}")


@dataclass
class _Collected:
    """Rows as they come, with latencies of those that were timed, so that an interruption loses none."""

    facts: dict[str, Any]
    rows: list[tuple[Row, Latency | None]] = field(default_factory=list)

    @property
    def results(self) -> Results:
        samples = {k: latency.medians for k, (_, latency) in enumerate(self.rows) if latency is not None}
        return Results(tuple(row for row, _ in self.rows), self.facts, samples)


@dataclass(frozen=True, eq=False)
class Measured:
    """One batch size of a workload. candidates: executions of an offer, by id(offer).  times: by "id(offer)/number".
    noise: what one call differed from itself by.
    """

    workload: Workload
    batch: int
    candidates: Mapping[int, Sequence[Candidate]]
    times: Mapping[str, Latency]
    noise: float

    def rows(self, tol: float, offers: Offers) -> tuple[list[tuple[Row, Latency | None]], str]:
        """The rows at one error, with latencies of those that keep it, and why hrt is not first, where it is not."""
        reaching = {
            (method, i): self.times[f"{id(offer)}/{i}"]
            for method, offer in offers.items()
            for i, c in enumerate(self.candidates.get(id(offer), ()))
            if c.error is not None and c.error <= tol and f"{id(offer)}/{i}" in self.times
        }
        dense = [t for (method, _), t in reaching.items() if method.startswith("dense")]
        best = min(dense, key=lambda t: t.p50_us, default=None)
        rows: list[tuple[Row, Latency | None]] = []
        contenders: list[Contender] = []
        for method, offer in offers.items():
            head = (self.workload.name, method, self.batch)
            if isinstance(offer, Refusal):
                rows.append((Row(*head, "-", tol, offer.status, note=offer.note), None))
                continue
            as_run, made = offer.at(self.batch), made_s(self.workload, offer)
            for i, c in enumerate(self.candidates[id(offer)]):
                latency = reaching.get((method, i))
                known = self._times(as_run, latency, best) if latency else _missed(method, as_run, c)
                row = Row(
                    *head,
                    c.execution.backend,
                    tol,
                    **{"error": c.error, "nbytes": offer.nbytes, "made_s": made, **known},
                )
                rows.append((row, latency))
                if latency is not None and row.status in MEASURED:
                    contenders.append(Contender(row, as_run, latency))
        return rows, why(contenders, self.workload.dense_nbytes, self.times.get(EMPTY), self.noise)

    def _times(self, offer: Offer, latency: Latency, best: Latency | None) -> dict[str, Any]:
        """What is known of an execution that keeps its error: times, and a ratio only where noise allows it."""
        known: dict[str, Any] = {name: getattr(latency, name) for name in TIMES}
        known |= {"noise": self.noise, "note": offer.note}
        if best is None:
            return known
        beside = compared(best, latency, self.noise)
        if self.noise > HOPELESS or beside.verdict == "too noisy":
            itself = f"the same call differs from itself by {self.noise:.0%}"
            cause = itself if self.noise > HOPELESS else "the interval is too wide"
            return known | {"status": NOISY, "note": f"no verdict: {cause}; {offer.note}"}
        known |= {"ratio_vs_best_dense": beside.ratio, "ratio_low": beside.low, "ratio_high": beside.high}
        if beside.verdict == "no difference" and latency is not best:
            known["note"] = f"no difference from the best dense beyond noise; {offer.note}".rstrip("; ")
        return known


def _missed(method: str, offer: Offer, c: Candidate) -> dict[str, Any]:
    """What is known of an execution that fails, or misses the error: hrt promised it, and has failed."""
    if c.problem:
        return {"status": FAILED, "note": c.problem}
    status = FAILED if method.startswith("hrt") else UNREACHABLE
    return {"status": status, "note": f"error {c.error:.2e} on fresh rows; {offer.note}"}


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
    collected = _Collected(facts_of(plan))
    start = time.perf_counter()
    try:
        for k, name in enumerate(plan.workloads):
            share = part(advance, k / len(plan.workloads), (k + 1) / len(plan.workloads))
            share(f"{name}: build", 0.0)
            built = built_of(plan, name)
            if isinstance(built, Refusal):
                head = (name, REFERENCE, (plan.batches or (1,))[0], "-")
                collected.rows += [(Row(*head, tol, built.status, note=built.note), None) for tol in plan.tols]
            else:
                _workload(plan, built, methods, collected, share)
            keep(collected.results)
    except KeyboardInterrupt:
        collected.facts["interrupted"] = True
    collected.facts["seconds"] = round(time.perf_counter() - start, 1)
    collected.facts["load_average_after"] = thread_facts()["load_average"]
    keep(collected.results)
    return collected.results


def facts_of(plan: Plan) -> dict[str, Any]:
    """What figures depend on."""
    return {
        "command": sys.argv[1:],
        "commit": commit(),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": thread_facts(),
        "memory_bytes": psutil.virtual_memory().total,
        "threads": plan.threads,
        "seed": plan.timing.seed,
        "nbytes": "as stored, biases in float32; what is decoded or widened at loading is said in the note",
        "error": "relative L2 against the dense network in float64, on fresh rows, through the calls that are timed",
        "noise": {},
        "why": [],
        "about": {},
        "spent": {},
    }


def built_of(plan: Plan, name: str) -> Workload | Refusal:
    """A workload, or why there is none."""
    try:
        return workloads.from_file(Path(name), plan.inputs) if plan.inputs else workloads.build(name)
    except MissingError as error:
        return Refusal(MISSING, str(error))
    except MemoryError as error:
        return Refusal(FAILED, f"does not fit: {error}" if str(error) else "ran out of memory")
    except HrtError as error:
        return Refusal(FAILED, str(error))


def _workload(
    plan: Plan, workload: Workload, methods: Mapping[str, Method], collected: _Collected, advance: Advance
) -> None:
    """All rows of one workload; what cannot be had is a row that says why."""
    name, facts = workload.name, collected.facts
    facts["about"][name] = workload.about
    spent = facts["spent"][name] = {}  # where the time of a run goes, in seconds
    offers: dict[float, dict[str, Offer | Refusal]] = {tol: {} for tol in plan.tols}
    pairs = [(method, tol) for tol in plan.tols for method in plan.methods]
    for k, (method, tol) in enumerate(pairs):
        advance(f"{name}: {method} at {tol:g}", SEARCHING * k / len(pairs))
        since = time.perf_counter()
        offers[tol][method] = offered(methods[method], workload, tol)
        spent[method] = round(spent.get(method, 0.0) + time.perf_counter() - since, 1)
    since, batches = time.perf_counter(), plan.batches or workload.batches
    for k, batch in enumerate(batches):
        ends = (SEARCHING + (1 - SEARCHING) * i / len(batches) for i in (k, k + 1))
        measured = measure_batch(workload, batch, offers, plan.timing, part(advance, *ends))
        facts["noise"][f"{name}, batch {batch}"] = round(measured.noise, 4)
        for tol in plan.tols:
            rows, line = measured.rows(tol, offers[tol])
            collected.rows += rows
            if line:
                facts["why"].append({"workload": name, "batch": batch, "target": tol, "line": line})
    spent["errors and times"] = round(time.perf_counter() - since, 1)
    torch.compiler.reset()


def measure_batch(
    workload: Workload, batch: int, offers: Mapping[float, Offers], timing: Timing, advance: Advance
) -> Measured:
    """One batch size: candidates bound and judged, then timed together, whatever their tolerance (offers by error)."""
    loosest: dict[int, tuple[Offer, float]] = {}
    for tol, offer in ((tol, o) for tol, group in offers.items() for o in group.values() if isinstance(o, Offer)):
        loosest[id(offer)] = (offer, max(tol, loosest.get(id(offer), (offer, 0.0))[1]))
    candidates: dict[int, list[Candidate]] = {}
    running: dict[str, Candidate] = {}
    for k, (key, (offer, tol)) in enumerate(loosest.items()):
        advance(f"{workload.name}, batch {batch}: errors", 0.5 * k / len(loosest))
        candidates[key] = [bound(workload, e, batch) for e in offer.executions]
        for i, c in enumerate(candidates[key]):
            if c.call is not None and c.error is not None and c.error <= tol:
                running[f"{key}/{i}"] = c

    dense = id(next(iter(offers.values())).get(REFERENCE))
    names = (f"{dense}/{i}" for i, c in enumerate(candidates.get(dense, ())) if c.execution.backend == BOUND)
    name, call = next(names, None), dense_again(workload, batch)
    again = (name, call) if name is not None and call is not None else None
    halfway = part(advance, 0.5, 1.0)
    times, noise = timed(running, timing, partial(halfway, f"{workload.name}, batch {batch}: times"), again)
    return Measured(workload, batch, candidates, times, noise)
