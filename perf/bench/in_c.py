"""Generated C beside every other runtime: what it saves, what compression saves, and whether "auto" chooses well.

    python -m hrt.perf in-c --json perf/results/in-c/mine.json --page docs/results/runtimes.md

Every network of the harness, dense and compressed to one error, in every runtime; SVD and int8 in generated C beside
them. Errors on fresh rows come first, through the calls that are timed. At more batch sizes the compressed network
alone is timed, in generated C and in ONNX Runtime, of which "auto" takes one.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from hrt.errors import InputError
from hrt.perf.bench.candidates import Timing
from hrt.perf.bench.runner import Measured, Plan, built_of, facts_of, measure_batch
from hrt.perf.bench.tables import NONE, Cell, Table, figure
from hrt.perf.measuring.bursts import Comparison, Latency, compared
from hrt.perf.measuring.provenance import thread_facts
from hrt.perf.measuring.results import Results, check_results, disagreement
from hrt.perf.methods import generated_c
from hrt.perf.methods.catalogue import METHODS, offered
from hrt.perf.methods.matched_error import Offer, Refusal
from hrt.perf.networks.registry import Workload
from hrt.support.progress import Advance, part, silent

DENSE, SVD, INT8, HRT = "dense float32", "svd, data-weighted", "quantized, int8 in generated C", "hrt"
NATIVE, ONNX = "native", "onnxruntime"  # of hrt's executions
FORMS = {DENSE: "dense", SVD: "SVD", INT8: "int8"}
APART = (1, 16, 1024)  # batch sizes at which everything is timed
CHOICES = (1, 2, 4, 8, 16, 64, 256, 1024)  # at which "auto" is judged
TOL, ROUNDS, BURST_S = 1e-3, 8, 0.01
KEY = "in C"  # of the lines, among a result's facts


@dataclass(frozen=True)
class Ratio:
    """How many times slower one call is than another, and the 95 % interval of that."""

    times: float
    low: float
    high: float
    verdict: str

    @staticmethod
    def of(one: Latency | None, other: Latency | None, noise: float) -> "Ratio | None":
        """None where either was not measured."""
        if one is None or other is None:
            return None
        c: Comparison = compared(one, other, noise)
        times, low, high = (float(f"{v:.4g}") for v in (c.ratio, c.low, c.high))
        return Ratio(times, low, high, c.verdict)


@dataclass(frozen=True)
class Line:
    """A network at one batch size. us: medians by form. error: of the compressed network in generated C on fresh rows,
    None where there is none. noise: what one call differed from itself by. auto: the backend that it takes.

    runtime: the fastest dense form of others over dense in C; compression: dense in C over hrt in C; total: that
    fastest over what "auto" takes; choice: hrt in ONNX Runtime over hrt in C. None where either was not measured.
    """

    workload: str
    target: float
    batch: int
    us: Mapping[str, float] = field(default_factory=dict)
    dense: str = ""
    auto: str = ""
    error: float | None = None
    noise: float = 0.0
    runtime: Ratio | None = None
    compression: Ratio | None = None
    total: Ratio | None = None
    choice: Ratio | None = None
    note: str = ""

    @property
    def wrong(self) -> bool:
        """Whether "auto" takes the slower one, beyond noise."""
        slower = {NATIVE: "faster", ONNX: "slower"}.get(self.auto)
        return self.choice is not None and self.choice.verdict == slower


def measure(plan: Plan, advance: Advance = silent, keep: Callable[[Results], object] = lambda results: None) -> Results:
    """Lines of every workload and tolerance, among the facts of a result without rows. keep: given those so far after
    every workload.
    """
    torch.set_num_threads(plan.threads)
    lines: list[Line] = []
    facts, start = facts_of(plan), time.perf_counter()
    results = Results((), facts)
    for k, name in enumerate(plan.workloads):
        share = part(advance, k / len(plan.workloads), (k + 1) / len(plan.workloads))
        share(f"{name}: build", 0.0)
        workload = built_of(plan, name)
        for tol in plan.tols:
            if isinstance(workload, Refusal):
                lines.append(Line(name, tol, 1, note=f"{workload.status}: {workload.note}"))
            else:
                lines += lines_of(workload, tol, plan, share)
        torch.compiler.reset()
        spent = {"seconds": round(time.perf_counter() - start, 1), "load_average_after": thread_facts()["load_average"]}
        results = Results((), {**facts, **spent, KEY: [msgspec.to_builtins(line) for line in lines]})
        keep(results)
    return results


def together(parts: Sequence[Results]) -> Results:
    """One result of several. Raises InputError where they are of different machines or threads, or have no lines."""
    if differing := disagreement(parts):
        raise InputError(f"The files differ in {differing}. Expected files of one machine.")
    lines = [msgspec.to_builtins(line) for part in parts for line in known_lines(part)]
    return Results((), {**parts[0].facts, "seconds": sum(p.facts.get("seconds", 0) for p in parts), KEY: lines})


def lines_of(workload: Workload, tol: float, plan: Plan, advance: Advance = silent) -> list[Line]:
    """Of one workload."""
    offers: dict[str, Offer | Refusal] = {}
    for method in (DENSE, SVD, INT8, HRT):
        advance(f"{workload.name}: {method}", 0.1)
        offers[method] = _worth(method, offered(METHODS[method], workload, tol))
    hrt = offers[HRT]
    if isinstance(hrt, Refusal):
        return [Line(workload.name, tol, 1, note=f"{hrt.status}: {hrt.note}")]
    lines, batches = [], plan.batches or CHOICES
    for k, batch in enumerate(batches):
        asked = offers if batch in APART else {HRT: hrt}
        share = part(advance, 0.3 + 0.7 * k / len(batches), 0.3 + 0.7 * (k + 1) / len(batches))
        measured = measure_batch(workload, batch, {tol: asked}, plan.timing, share)
        lines.append(line_of(measured, tol, asked))
    return lines


def _worth(method: str, offer: Offer | Refusal) -> Offer | Refusal:
    """Without executions that no line has."""
    named = {SVD: (generated_c.BACKEND,), HRT: (NATIVE, ONNX)}.get(method)
    if named is None or isinstance(offer, Refusal):
        return offer
    return replace(offer, executions=tuple(e for e in offer.executions if e.backend in named))


def line_of(measured: Measured, tol: float, offers: Mapping[str, Offer | Refusal]) -> Line:
    """What was measured of one batch size."""
    times: dict[tuple[str, str], Latency] = {}
    errors: dict[tuple[str, str], float] = {}
    problems = []
    for method, offer in offers.items():
        for i, c in enumerate(measured.candidates.get(id(offer), ())):
            key = method, c.execution.backend
            if c.error is not None:
                errors[key] = c.error
            if c.problem or (c.error is not None and not c.error <= tol):
                problems.append(f"{' in '.join(key)}: {c.problem or f'error {c.error:.1e}'}")
            elif (latency := measured.times.get(f"{id(offer)}/{i}")) is not None:
                times[key] = latency
    others = {b: t for (m, b), t in times.items() if m == DENSE and b != generated_c.BACKEND}
    dense = min(others, key=lambda b: others[b].p50_us, default="")
    in_c = {m: times.get((m, NATIVE if m == HRT else generated_c.BACKEND)) for m in (DENSE, SVD, INT8, HRT)}
    hrt = offers[HRT]
    auto = str(hrt.at(measured.batch).facts.get("auto", "")) if isinstance(hrt, Offer) else ""
    shown = {
        **({FORMS[DENSE]: others[dense]} if dense else {}),
        **{f"{FORMS[m]} in C": t for m, t in in_c.items() if m in FORMS and t},
        **{f"hrt, {b}": times[HRT, b] for b in (ONNX, NATIVE) if (HRT, b) in times},
    }
    noise, best = measured.noise, others.get(dense)
    return Line(
        measured.workload.name,
        tol,
        measured.batch,
        {k: float(f"{t.p50_us:.4g}") for k, t in shown.items()},
        dense,
        auto,
        errors.get((HRT, NATIVE)),
        round(noise, 3),
        Ratio.of(best, in_c[DENSE], noise),
        Ratio.of(in_c[DENSE], in_c[HRT], noise),
        Ratio.of(best, times.get((HRT, auto)), noise),
        Ratio.of(times.get((HRT, ONNX)), times.get((HRT, NATIVE)), noise),
        "; ".join(problems),
    )


def known_lines(results: Results) -> list[Line]:
    """Those of a result. Raises InputError where it has none."""
    if KEY not in results.facts:
        raise InputError("Found no lines of generated C. Expected what `python -m hrt.perf in-c --json` wrote.")
    return msgspec.convert(results.facts[KEY], list[Line])


def groups(lines: Sequence[Line]) -> dict[tuple[str, float], dict[int, Line]]:
    """By network and error, then by batch size."""
    out: dict[tuple[str, float], dict[int, Line]] = {}
    for line in lines:
        out.setdefault((line.workload, line.target), {})[line.batch] = line
    return out


def savings(lines: Sequence[Line]) -> Table:
    """What the runtime and what compression saves: microseconds of every form, and the two factors."""
    forms = ("dense", "dense in C", "SVD in C", "int8 in C", f"hrt, {ONNX}", f"hrt, {NATIVE}")
    rows = []
    for line in (x for x in lines if x.compression or x.runtime):
        us = [figure(line.us.get(f), ",.4g") for f in forms]
        us[0] += f" ({line.dense})"
        factors = [_times(line.runtime), _times(line.compression), _times(line.total)]
        rows.append([line.workload, str(line.batch), *us, *factors])
    heads = ["network", "rows", "dense, us", "dense in C", "SVD in C", "int8 in C", "hrt, ONNX Runtime", "hrt in C"]
    return Table.of([*heads, "runtime saves", "compression saves", "both: auto"], rows, words=("network", "dense, us"))


def choices(lines: Sequence[Line]) -> Table:
    """Errors in generated C on fresh rows, and how many times faster it is than ONNX Runtime on the same network; n or
    o: which of them "auto" takes.
    """
    rows = []
    for (workload, target), by_batch in groups(lines).items():
        errors = [x.error for x in by_batch.values() if x.error is not None]
        cells = [_choice(by_batch.get(b)) for b in CHOICES]
        rows.append([workload, f"{target:g}", figure(max(errors, default=None), ".1e"), *cells])
    heads = ["network", "error allowed", "error in C", *(f"{b} row{'s' if b > 1 else ''}" for b in CHOICES)]
    return Table.of(heads, rows, words=("network",))


def _choice(line: Line | None) -> Cell:
    if line is None or line.choice is None:
        return Cell(NONE if line is None or not line.note else line.note)
    mark = {NATIVE: "n", ONNX: "o"}.get(line.auto, line.auto)
    wrong = ", WRONG" if line.wrong else ""
    return Cell(f"{mark} {line.choice.times:.3g}x{wrong}", "lost" if wrong else "")


def _times(ratio: Ratio | None) -> Cell:
    return Cell(NONE) if ratio is None else Cell(f"{ratio.times:.3g}x ({ratio.low:.3g} to {ratio.high:.3g})")


def verdicts(lines: Sequence[Line]) -> list[str]:
    """What the tables come to, in sentences."""
    errors = [x for x in lines if x.error is not None]
    over = [f"{x.workload} at {x.batch} rows ({x.error:.1e})" for x in errors if not (x.error or 0) <= x.target]
    judged = [x for x in lines if x.choice is not None]
    wrong = [f"{x.workload} at {x.batch}: {x.auto} ({_times(x.choice).text})" for x in judged if x.wrong]
    missing = [f"{x.workload}: {x.note}" for x in lines if x.note]
    return [
        f"Errors in generated C within what is allowed: {len(errors) - len(over)} of {len(errors)} measured"
        f"{': not ' + ', '.join(over) if over else ''}.",
        f'"auto" took the slower of the two, beyond noise, in {len(wrong)} of {len(judged)} cases'
        f"{': ' + '; '.join(wrong) if wrong else ''}.",
        *([f"Not measured, or not within the error: {'; '.join(missing)}."] if missing else []),
    ]


def page(results: Results) -> str:
    """docs/results/runtimes.md."""
    lines, facts, machine = known_lines(results), results.facts, results.known.machine
    versions: Mapping[str, Any] = facts.get("versions", {})
    loads = [*(machine.get("load_average") or ()), *(facts.get("load_average_after") or ())]
    return PAGE.format(
        command=" ".join(map(str, facts.get("command", ()))),
        minutes=float(facts.get("seconds", 0)) / 60,
        threads=facts.get("threads"),
        processor=machine.get("processor", "unknown"),
        load=f"{machine.get('load_average')} before, {facts.get('load_average_after')} after",
        commit=facts.get("commit"),
        versions=", ".join(f"{k} {v}" for k, v in versions.items()),
        busy=BUSY if loads and max(loads) > BUSY_FROM * (facts.get("threads") or 1) else "",
        verdicts="\n".join(f"- {v}" for v in verdicts(lines)),
        savings=savings(lines).markdown(),
        choices=choices(lines).markdown(),
    )


BUSY_FROM = 2.0  # waiting processes for each thread
BUSY = """

**The machine was busy with other work: errors hold, ratios are indications, microseconds say little.**"""
PAGE = """# Generated C beside every other runtime

`python -m hrt.perf {command}`: {minutes:.0f} minutes on {threads} threads of {processor},
load average {load}; commit {commit}; {versions}.
Printed again by `python -m hrt.perf in-c --from JSON`.{busy}

{verdicts}

## What the runtime saves, and what compression saves

Microseconds of one call from Python, medians of interleaved bursts, answers checked first on fresh rows. *dense* is the
fastest of torch, torch.compile, ONNX Runtime and OpenVINO, named. *Runtime saves*: that over the same dense network in
generated C. *Compression saves*: dense in C over hrt in C. *Both*: the fastest dense form over what "auto" takes.
Brackets: the 95 % interval over rounds. SVD and int8 keep the same error, each layer cut, or rounded, as far as that
allows.

{savings}

## What "auto" takes

How many times faster the compressed network is in generated C than in ONNX Runtime, by rows of a call; *n*: "auto"
takes generated C, *o*: ONNX Runtime. Before it the error in generated C on fresh rows, the worst of all batch sizes.

{choices}
"""


def default_plan(
    workloads: Sequence[str], tols: Sequence[float], batches: Sequence[int], threads: int, rounds: int
) -> Plan:
    """A plan of this comparison. Raises InputError as `Plan` does."""
    return Plan(
        workloads=tuple(workloads) or Plan.workloads,
        methods=(DENSE, SVD, INT8, HRT),
        tols=tuple(tols) or (TOL,),
        batches=tuple(batches) or CHOICES,
        threads=threads,
        timing=Timing(rounds, BURST_S, cold=0),
    )


def write(results: Results, json: Path | None, page_path: Path | None) -> None:
    """The lines, and the page made of them."""
    if json is not None:
        results.write(json)
    if page_path is not None:
        check_results(page_path)
        page_path.write_text(page(results), "utf-8")
