"""Jitter: very many calls at one row, back to back, each timed by itself: from Python, and from C without Python.

Subjects take turns, so that a disturbed machine hurts all alike. The empty calls are what reading the clock costs, and
how long the machine itself stands still.
"""

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np

import hrt
from hrt.errors import BackendError
from hrt.export.c.library_cache import SOURCE, library
from hrt.export.c.native_session import aligned
from hrt.export.c.session_source import NAME, session_source
from hrt.export.c.toolchain import compiler
from hrt.perf.networks.as_torch_module import written_out
from hrt.perf.realtime.subjects import KINDS, questions
from hrt.program.parallel_linears import joined
from hrt.program.program import Program
from hrt.runtime.backends import on_cpu, open_session

TURN = 10_000  # calls of a subject at a time
WARM = 1000
COUNTED = ("-DCOUNTED", "-Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc")  # what the network's code allocates
Timed = Callable[[int], np.ndarray]  # a number of calls to the nanoseconds of each


@dataclass(frozen=True)
class Jitter:
    """Microseconds of so many calls. allocations: how often the network's own code asked for memory meanwhile; None
    where that was not counted.
    """

    subject: str
    calls: int
    p50: float
    p999: float
    p9999: float
    max: float
    allocations: int | None = None


def jitter(model: hrt.CompressedModel, calls: int) -> list[Jitter]:
    """Of hrt and of the dense network in every backend, from Python and from C, and of empty calls."""
    subjects, taken = subjects_of(model), {}
    turns = max(1, calls // TURN)
    for timed in subjects.values():
        timed(WARM)
    order = np.random.default_rng(0)
    for _ in range(turns):
        for k in order.permutation(len(subjects)):
            name = list(subjects)[k]
            taken.setdefault(name, []).append(subjects[name](min(TURN, calls)))
    counts = {name: timed.allocations() for name, timed in subjects.items() if isinstance(timed, InC)}
    return [_figures(name, np.concatenate(taken[name]), counts.get(name)) for name in subjects]


def subjects_of(model: hrt.CompressedModel) -> dict[str, Timed]:
    """By name. Native ones are missing where there is no compiler."""
    asked = questions(model.program, 1)
    dense = written_out(model.program)
    subjects: dict[str, Timed] = {"empty, Python": partial(_from_python, lambda x: None, asked)}
    for backend in ("onnxruntime", "native"):
        if backend not in on_cpu():
            continue
        try:
            served, session = replace(model, backend=backend), open_session(dense, backend)
            subjects[f"hrt, {backend}, Python"] = partial(_from_python, served.predict, asked)
            subjects[f"dense, {backend}, Python"] = partial(_from_python, session.run_as_given, asked)
        except BackendError:
            continue
        if backend == "native":
            for name, program in (("hrt", model.program), ("dense", dense)):
                timed = InC.of(program, asked)
                subjects.setdefault("empty, C", partial(timed, empty=True))
                subjects[f"{name}, native, C"] = timed
    return subjects


def _from_python(call: Callable[[Any], Any], asked: Sequence[tuple[np.ndarray, ...]], calls: int) -> np.ndarray:
    inputs = [x if len(x) > 1 else next(iter(x)) for x in asked]
    ns, clock = np.empty(calls, np.int64), time.perf_counter_ns
    for k in range(calls):
        x = inputs[k % KINDS]
        start = clock()
        call(x)
        ns[k] = clock() - start
    return ns


@dataclass(frozen=True, eq=False)
class InC:
    """A loop in C around the network's own function. asked, answers: what `table` points to."""

    code: ctypes.CDLL
    table: np.ndarray
    workspace: np.ndarray
    asked: Sequence[tuple[np.ndarray, ...]]
    answers: Sequence[np.ndarray]
    counted: bool

    @staticmethod
    def of(program: Program, asked: Sequence[tuple[np.ndarray, ...]]) -> "InC":
        """Compiled; allocations are counted where the linker can."""
        source, maker = session_source(joined(program)), compiler()
        text = source.files[SOURCE] + files("hrt.perf.realtime").joinpath("jitter.c").read_bytes()
        sources = {**source.files, SOURCE: text}
        try:
            code, counted = library(sources, replace(maker, flags=(*maker.flags, *COUNTED))), True
        except BackendError:
            code, counted = library(sources, maker), False
        outputs = [np.empty((1, *program.shape_of(name)), np.float32) for name in program.outputs]
        rows = [[*(v.ctypes.data for v in x), *(y.ctypes.data for y in outputs), 1] for x in asked]
        return InC(code, np.array(rows, np.uint64), aligned(_workspace(code)), asked, outputs, counted)

    def __call__(self, calls: int, empty: bool = False) -> np.ndarray:
        """Nanoseconds of each; empty: of reading the clock."""
        ns = np.empty(calls, np.int64)
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (ns, self.table, self.workspace)]
        counts = ctypes.c_size_t(calls), ctypes.c_size_t(len(self.table))
        self.code.hrt_time_calls(pointers[0], counts[0], pointers[1], counts[1], pointers[2], ctypes.c_int(empty))
        return ns

    def allocations(self) -> int | None:
        """Since it was compiled."""
        self.code.hrt_allocations.restype = ctypes.c_size_t
        return self.code.hrt_allocations() if self.counted else None


def _workspace(code: ctypes.CDLL) -> int:
    size = getattr(code, f"{NAME}_workspace")
    size.restype = ctypes.c_size_t
    return size()


def _figures(name: str, ns: np.ndarray, allocations: int | None) -> Jitter:
    p50, p999, p9999, most = (float(v) / 1e3 for v in np.quantile(ns, (0.5, 0.999, 0.9999, 1.0)))
    return Jitter(name, len(ns), p50, p999, p9999, most, allocations)


def lines(figures: Sequence[Jitter]) -> list[str]:
    """A table as text."""
    quantiles = f"{'p50':>8} {'p99.9':>8} {'p99.99':>8} {'max':>10}"
    head = f"{'one row, back to back; us':32} {'calls':>10} {quantiles} {'malloc':>7}"
    return [head] + [
        f"{f.subject:32} {f.calls:10,} {f.p50:8.2f} {f.p999:8.2f} {f.p9999:8.2f} {f.max:10.1f} "
        f"{'-' if f.allocations is None else f.allocations:>7}"
        for f in figures
    ]
