"""Compressed layers and networks on the GPU here, beside the best dense form, each checked, then timed.

Dense is given its best: F.linear and torch.compile max-autotune, in the same precision, both captured in a CUDA graph;
the faster one counts. Layers run through several copies of weights and inputs in one graph, together twice the L2
cache, so that nothing stays there between runs (networks fit any cache, and stay there in use too). Candidates are
interleaved in random order, and medians are compared. The floor beside each time is `hrt.schedule.roofline`'s with
the copy and matmul rates of this card, measured first.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hrt.model.model import CompressedModel
from hrt.perf.measuring import gpu_timing as device
from hrt.perf.measuring.gpu_timing import Call
from hrt.perf.networks.as_torch_module import module_of, written_out
from hrt.program.program import Program
from hrt.runtime.cuda_program import CudaProgram
from hrt.runtime.cuda_session import CudaSession
from hrt.schedule.roofline import CHIPS, Chip, Load, dense_work, schedule_floor, work_of

DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}
UNIT = {"bf16": 2.0**-9, "fp16": 2.0**-12, "tf32": 2.0**-10}  # relative error of one rounded number
CHECKED_ROWS = 512  # at most; from 128 on all batches have one form
REPEATS = 30
COPIED, SIDE = 1 << 30, 8192  # bytes, and the side of a product, that the card's rates are measured with
END_TO_END = "hrt end to end"
# What mode="max-autotune-no-cudagraphs" searches, but for coordinate descent, and not for longer than a point is worth.
AUTOTUNE: Any = {"max_autotune": True, "test_configs.max_mm_configs": 8}
TIME_IS_OVER = "not measured: the time was over"

Reference = tuple[Tensor, Tensor]  # inputs float32 (rows, n) and float64 answers (rows, m)


@dataclass(frozen=True)
class Layer:
    """A layer to measure. reference: answers of the stored numbers, so that an error is the arithmetic's alone."""

    program: Program
    precision: str
    reference: Reference

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.program.constants["w"].shape  # type: ignore[return-value]


@dataclass(frozen=True)
class Limits:
    """What a run may do. is_over: whether its time is.  largest_dense: batch beside which dense is still timed.
    judges: whether wrong answers count; a card that computes nothing has none.  quick: time once, and no copies, where
    times say nothing.
    """

    is_over: Callable[[], bool] = lambda: False
    largest_dense: int = 1 << 16
    judges: bool = True
    quick: bool = False


@dataclass(frozen=True)
class Timed:
    """A method to time: a call of so many copies of a network, and what its row says besides. error: relative to
    float64, on rows that were checked before anything was timed.  work: for the floor, see `hrt.schedule.roofline`.
    """

    call: Call
    copies: int
    error: float
    nbytes: int
    work: tuple[Load, ...]
    remark: str = ""


class Report:
    """Rows of one step, handed to `write` after every point: microseconds of a network, the floor without launches."""

    def __init__(
        self, write: Callable[[dict[str, Any]], None], bench: device.Bench, chip: Chip, limits: Limits
    ) -> None:
        self.write, self.bench, self.chip, self.limits = write, bench, chip, limits
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[dict[str, Any]] = []

    def begin(self, point: dict[str, Any]) -> bool:
        """Whether there is time for a point; one for which there is none is named."""
        if self.limits.is_over():
            self.leave_out(point, TIME_IS_OVER)
            return False
        return True

    def leave_out(self, point: dict[str, Any], remark: str) -> None:
        """A point that has no rows, and why."""
        self.left_out.append({**point, "remark": remark})
        print(f"{_named(point)} {remark}", flush=True)
        self._hand_on()

    def give_up(self, point: dict[str, Any], problem: Exception) -> list[str]:
        """A point that failed. Returns a line, but for want of memory, which is no fault."""
        self.leave_out(point, _first_line(problem))
        is_memory = isinstance(problem, torch.cuda.OutOfMemoryError) or "free memory" in str(problem)
        return [] if is_memory else [f"{_named(point)}: {_first_line(problem)}"]

    def time(self, point: dict[str, Any], methods: Mapping[str, Timed], repeats: int) -> None:
        """Time methods at one point, whose entries begin their rows; print and write these."""
        calls = {name: method.call for name, method in methods.items()}
        times = self.bench.seconds(calls, 1 if self.limits.quick else repeats, on_host=(END_TO_END,))
        micro = {name: [1e6 * t / methods[name].copies for t in values] for name, values in times.items()}
        best = min((values[0] for name, values in micro.items() if name.startswith("dense")), default=math.nan)
        for name, m in methods.items():
            p50, p05, p95 = micro[name]
            least = schedule_floor(m.work, point["batch"], point["precision"], self.chip)
            floor = 1e6 * least.ideal_s
            row = {**point, "method": name, "p50_us": p50, "p05_us": p05, "p95_us": p95, "error": _known(m.error)}
            row |= {"nbytes": m.nbytes, "moved_bytes": least.bytes, "flops": least.flops, "floor_us": floor}
            row |= {"roofline_fraction": floor / p50, "ratio_vs_best_dense": _known(best / p50), "remark": m.remark}
            self.rows.append(row)
            print(
                f"{_named(point)} {name:16} {p50:10.2f} us ({p05:.2f} to {p95:.2f})  {floor / p50:5.0%} of floor  "
                f"{best / p50:6.2f}x best dense  error {m.error:.1e} {m.remark}",
                flush=True,
            )
        self._hand_on()

    def copies_for(self, nbytes: int) -> int:
        """Copies of weights and activations to rotate through, so that together they are twice the L2 cache."""
        return 1 if self.limits.quick else max(1, min(256, math.ceil(2 * self.bench.cache_bytes / max(1, nbytes))))

    def _hand_on(self) -> None:
        self.write({"chip": asdict(self.chip), "rows": self.rows, "left_out": self.left_out})


def _known(number: float) -> float | None:
    """JSON has no NaN: what was not measured is null."""
    return None if math.isnan(number) else number


def _named(point: Mapping[str, Any]) -> str:
    return f"{point['workload']:16} {point['precision']:6} batch {point['batch']:6}"


def stand_in() -> Chip:
    """Where there is no card."""
    return replace(CHIPS["h100"], name="none", source="not a GPU: figures of an H100 stand in")


def measured_chip(bench: device.Bench) -> Chip:
    """This card's copy and matmul rates, measured; multiprocessors as the driver says."""
    base = CHIPS["h100"]
    a, b = (torch.empty(COPIED, dtype=torch.uint8, device=bench.device).random_() for _ in range(2))
    copy = 2 * COPIED / bench.seconds({"copy": lambda: b.copy_(a)}, 10)["copy"][0]
    rates = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("tf32", torch.float32)):
        x, y = (torch.randn(SIDE, SIDE, device=bench.device, dtype=dtype) for _ in range(2))
        rates[name] = 2 * SIDE**3 / bench.seconds({name: lambda x=x, y=y: x @ y}, 10)[name][0]
    rates |= {"tf32x3": rates["tf32"] / 3, "ieee": base.matmul_flops["ieee"]}
    properties = torch.cuda.get_device_properties(bench.device)
    source = "copy and matmul rates measured in this run; tf32x3 taken as a third of tf32, ieee as on an H100"
    arch = f"sm_{properties.major}{properties.minor}"
    return Chip(properties.name, arch, copy, rates, properties.multi_processor_count, source)


def our_calls(first: CudaProgram, batch: int, report: Report) -> tuple[Call, int]:
    """Runs several copies of the compressed network once each, and how many."""
    moved = first.plan.tables.nbytes + batch * first.pitch * first.dtype.itemsize
    count = report.copies_for(moved)
    programs = [first, *(first.copy() for _ in range(count - 1))]
    workspaces = [p.new_workspace(batch) for p in programs]
    for w in workspaces:
        for port in first.plan.entries:
            w[:, port.span.start : port.span.start + port.span.size].normal_()

    def run() -> None:
        for copied, workspace in zip(programs, workspaces, strict=True):
            copied.execute(workspace, batch, "step")

    return run, count


def dense_calls(shape: tuple[int, int], batch: int, precision: str, report: Report) -> tuple[dict[str, Call], int]:
    """F.linear and its compiled form over rotated copies of random numbers, and how many copies."""
    dtype, (m, n) = DTYPE[precision], shape
    bench, count = report.bench, report.copies_for((m * n + batch * (m + n)) * dtype.itemsize)
    weights = [torch.randn(m, n, device=bench.device, dtype=dtype) for _ in range(count)]
    inputs = [torch.randn(batch, n, device=bench.device, dtype=dtype) for _ in range(count)]
    outputs = [torch.empty(batch, m, device=bench.device, dtype=dtype) for _ in range(count)]

    def plain() -> None:
        for x, w, y in zip(inputs, weights, outputs, strict=True):
            torch.mm(x, w.T, out=y)

    calls: dict[str, Call] = {"dense linear": plain}
    if bench.on_gpu:
        function = device.compiled(torch.nn.functional.linear, options=AUTOTUNE)
        calls["dense compiled"] = lambda: [function(x, w) for x, w in zip(inputs, weights, strict=True)]
    return calls, count


def error_of(session: CudaSession, reference: Reference, batch: int) -> float:
    """Relative L2 error of the session's answers against float64, in the form of that batch, over all rows together:
    one row by itself may exceed what all of them keep.
    """
    x, y = reference
    times = max(1, -(-min(batch, CHECKED_ROWS) // len(x)))
    parts = x.repeat(times, 1).to(session.device).split(batch)
    answer = torch.cat([session.run([part])[0] for part in parts]).cpu().double()
    return float((answer - y.repeat(times, 1)).norm() / (y.norm() * math.sqrt(times)))


def one_layer(report: Report, name: str, subject: Layer, batches: Sequence[int]) -> list[str]:
    """Check one layer, then time it and dense at every batch size. Returns a line for every wrong answer."""
    bench, precision, (m, n) = report.bench, subject.precision, subject.shape
    point = {"workload": name, "precision": precision, "batch": batches[0]}
    try:
        session = CudaSession(subject.program, bench.device, precision, warm=False, densify=False)
    except RuntimeError as problem:
        return report.give_up(point, problem)
    wrong = []
    for batch in batches:
        point |= {"batch": batch}
        if not report.begin(point):
            continue
        try:
            run, count = our_calls(session.program, batch, report)
            error = error_of(session, subject.reference, batch)
            allowed = 5 * UNIT[precision]  # x, V, T, U and y are rounded
            if report.limits.judges and not error <= allowed:
                wrong.append(f"{name} {precision} batch {batch}: error {error:.2e}. Expected at most {allowed:.2e}.")
            work, nbytes = dense_work(m, n, precision), m * n * DTYPE[precision].itemsize
            ours = bench.captured(run), count, error, session.resident_bytes, work_of(session.program.schedule)
            methods = {"hrt": Timed(*ours)}
            if batch <= report.limits.largest_dense:
                dense, dense_count = dense_calls((m, n), batch, precision, report)
                for form, call in _captured(report, point, dense).items():
                    methods[form] = Timed(call, dense_count, math.nan, nbytes, work)
            report.time(point, methods, REPEATS)
            del run, ours, methods
        except RuntimeError as problem:
            wrong += report.give_up(point, problem)
        bench.release()
    return wrong


def network(
    report: Report, name: str, model: CompressedModel, reference: Reference, batches: Sequence[int]
) -> list[str]:
    """A compressed network: one request after the other, in its graph and end to end, beside torch.compile's. Returns a
    line where an answer is wrong.
    """
    bench = report.bench
    dtype = DTYPE.get(model.precision, torch.float32)
    net: Any = module_of(written_out(model.program)).to(bench.device, dtype)
    session = CudaSession(model.program, bench.device, model.precision)
    launched = session.program
    error, tol = error_of(session, reference, CHECKED_ROWS), model.certificate.tol
    remark, work = f"{len(launched.dense_layers)} layers written out", work_of(launched.schedule)
    # the certificate's limit is for new inputs of the same kind, at 99 %
    is_wrong = report.limits.judges and not error <= 1.05 * tol
    wrong = [f"{name}: error {error:.2e} where {tol:g} was certified, in {model.precision}."] if is_wrong else []
    for batch in batches:
        point = {"workload": name, "precision": model.precision, "batch": batch}
        if not report.begin(point):
            continue
        x = reference[0].repeat(-(-batch // len(reference[0])), 1)[:batch].to(bench.device)
        try:
            forms: dict[str, Call] = {
                f"hrt {kernel}": partial(launched.execute, launched.new_workspace(batch), batch, kernel)
                for kernel in launched.worth_timing(batch)
            }
            forms["dense linear"] = partial(net, x.to(dtype))
            if bench.on_gpu:
                forms["dense compiled"] = partial(device.compiled(net, options=AUTOTUNE), x.to(dtype))
            with torch.no_grad():
                calls = _captured(report, point, forms)
            calls[END_TO_END] = partial(session.run, [x])
            errors = {n: error if n.startswith("hrt") else math.nan for n in calls}
            methods = {n: Timed(c, 1, errors[n], session.resident_bytes, work, remark) for n, c in calls.items()}
            report.time(point, methods, 10 * REPEATS)
        except RuntimeError as problem:
            wrong += report.give_up(point, problem)
        bench.release()
    return wrong


def _captured(report: Report, point: dict[str, Any], calls: Mapping[str, Call]) -> dict[str, Call]:
    """Each call in a graph. One of dense that cannot be had here, for want of a C compiler say, is named."""
    captured: dict[str, Call] = {}
    for name, call in calls.items():
        try:
            captured[name] = report.bench.captured(call)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as problem:
            if not name.startswith("dense"):
                raise
            report.leave_out(point, f"{name}: {_first_line(problem)}")
    return captured


def _first_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]}"
