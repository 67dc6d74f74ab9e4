"""Compressed layers on the GPU here, beside the best dense form, each checked, then timed.

Dense is given its best: F.linear and torch.compile max-autotune, in the same precision, both captured in a CUDA graph;
the faster one counts. Layers run through several copies of weights and inputs in one graph, together twice the L2
cache, so that nothing stays there between runs (the PINN fits any cache, and stays there in use too). Candidates are
interleaved in random order, and medians are compared. The floor beside each time is `hrt.schedule.roofline`'s with
the copy and matmul rates of this card, measured first.

    python -m hrt.perf.bench.gpu_layers --out perf/results/h100            (what `make gpu` runs)
    python -m hrt.perf.bench.gpu_layers --size 4096 --kernel log --batch 1 4096 --out /tmp/few

Rows are written as they come: what was measured before an interruption is kept.
"""

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hrt
from hrt.errors import HrtError, InputError
from hrt.kernels.launch import is_interpreted
from hrt.matrix_compression.compress_matrix import compress_for
from hrt.matrix_compression.request import MatrixRequest
from hrt.perf.measuring import gpu_timing as device
from hrt.perf.measuring.gpu_timing import Call
from hrt.perf.measuring.provenance import commit, gpu, versions
from hrt.perf.networks.burgers import load_burgers
from hrt.perf.networks.integral_kernels import KERNELS, SETTINGS, layer
from hrt.program.program import Program
from hrt.runtime.cuda_session import CudaSession
from hrt.schedule.roofline import CHIPS, Chip, Load, dense_work, schedule_floor, work_of

BATCHES = (1, 16, 256, 4096, 65536)
SIZES = (4096, 8192, 16384)
MIN_LEAF = 128
DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}
UNIT = {"bf16": 2.0**-9, "fp16": 2.0**-12, "tf32": 2.0**-10}  # relative error of one rounded number
CHECKED_ROWS = 512  # at most; from 128 on all batches have one form
REPEATS = 30


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
    """Rows of one run, written to a file after every point: microseconds of one network, the floor without launches."""

    def __init__(self, file: Path, facts: dict[str, Any], bench: device.Bench, chip: Chip) -> None:
        self.file, self.facts, self.bench, self.chip = file, facts, bench, chip
        self.rows: list[dict[str, Any]] = []

    def time(self, point: dict[str, Any], methods: Mapping[str, Timed], repeats: int) -> None:
        """Time methods at one point, whose entries begin their rows; print and write these."""
        times = self.bench.seconds({name: method.call for name, method in methods.items()}, repeats)
        micro = {name: [1e6 * t / methods[name].copies for t in values] for name, values in times.items()}
        best = min(values[0] for name, values in micro.items() if name.startswith("dense"))
        for name, m in methods.items():
            p50, p05, p95 = micro[name]
            floor = 1e6 * schedule_floor(m.work, point["batch"], point["precision"], self.chip).ideal_s
            row = {**point, "method": name, "p50_us": p50, "p05_us": p05, "p95_us": p95, "error": m.error}
            row |= {"nbytes": m.nbytes, "floor_us": floor, "roofline_fraction": floor / p50}
            self.rows.append(row | {"ratio_vs_best_dense": best / p50, "remark": m.remark})
            print(
                f"{point['workload']:10} {point['size']:6} {point['precision']:6} batch {point['batch']:6} {name:16} "
                f"{p50:10.2f} us ({p05:.2f} to {p95:.2f})  {floor / p50:5.0%} of floor  "
                f"{best / p50:6.2f}x best dense  error {m.error:.1e} {m.remark}",
                flush=True,
            )
        self.file.write_text(json.dumps({**self.facts, "rows": self.rows}, indent=1) + "\n", "utf-8")


def measured_chip(bench: device.Bench) -> Chip:
    """This card's copy and matmul rates, measured; multiprocessors as the driver says."""
    base = CHIPS["h100"]
    if bench.device.type != "cuda":
        return replace(base, name="interpreter", source="not a GPU: figures of an H100 stand in")
    count = 1 << 30
    a, b = (torch.empty(count, dtype=torch.uint8, device=bench.device).random_() for _ in range(2))
    copy = 2 * count / bench.seconds({"copy": lambda: b.copy_(a)}, 10)["copy"][0]
    rates = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("tf32", torch.float32)):
        x, y = (torch.randn(8192, 8192, device=bench.device, dtype=dtype) for _ in range(2))
        rates[name] = 2 * 8192**3 / bench.seconds({name: lambda x=x, y=y: x @ y}, 10)[name][0]
    rates |= {"tf32x3": rates["tf32"] / 3, "ieee": base.matmul_flops["ieee"]}
    properties = torch.cuda.get_device_properties(bench.device)
    source = "copy and matmul rates measured in this run; tf32x3 taken as a third of tf32, ieee as on an H100"
    arch = f"sm_{properties.major}{properties.minor}"
    return Chip(properties.name, arch, copy, rates, properties.multi_processor_count, source)


def copies_for(nbytes: int, bench: device.Bench) -> int:
    """Copies of weights and activations to rotate through, so that together they are twice the L2 cache."""
    return max(1, min(256, math.ceil(2 * bench.cache_bytes / max(1, nbytes))))


def our_calls(program: Program, precision: str, batch: int, bench: device.Bench) -> tuple[Call, int, Any]:
    """Runs several copies of the compressed network once each, how many, and a session of it."""
    session = CudaSession(program, bench.device, precision, warm=False, densify=False)
    first = session.program
    moved = first.plan.tables.nbytes + batch * first.pitch * first.dtype.itemsize
    count = copies_for(moved, bench)
    programs = [first, *(first.copy() for _ in range(count - 1))]
    workspaces = [p.new_workspace(batch) for p in programs]
    for w in workspaces:
        for port in first.plan.entries:
            w[:, port.span.start : port.span.start + port.span.size].normal_()

    def run() -> None:
        for copied, workspace in zip(programs, workspaces, strict=True):
            copied.execute(workspace, batch, "step")

    return run, count, session


def dense_calls(weight: Tensor, batch: int, precision: str, bench: device.Bench) -> tuple[dict[str, Call], int]:
    """F.linear and its compiled form over rotated copies, and how many copies."""
    dtype, n = DTYPE[precision], weight.shape[1]
    count = copies_for((weight.numel() + 2 * batch * n) * dtype.itemsize, bench)
    weights = [weight.to(bench.device, dtype).clone() for _ in range(count)]
    inputs = [torch.randn(batch, n, device=bench.device, dtype=dtype) for _ in range(count)]
    outputs = [torch.empty(batch, weight.shape[0], device=bench.device, dtype=dtype) for _ in range(count)]

    def plain() -> None:
        for x, w, y in zip(inputs, weights, outputs, strict=True):
            torch.mm(x, w.T, out=y)

    calls: dict[str, Call] = {"dense linear": plain}
    if bench.device.type == "cuda":
        function = torch.compile(torch.nn.functional.linear, mode="max-autotune-no-cudagraphs", dynamic=False)
        calls["dense compiled"] = lambda: [function(x, w) for x, w in zip(inputs, weights, strict=True)]
    return calls, count


def error_of(session: CudaSession, matrix: Tensor, rows: int) -> float:
    """Relative L2 error of the session's answers against float64, on fresh random rows, in the forms of that batch."""
    x = torch.randn(rows, matrix.shape[1], dtype=torch.float64)
    (y,) = session.run([x.to(session.device, torch.float32)])
    exact = (matrix @ x.T).T
    return float((y.cpu().double() - exact).norm() / exact.norm())


def one_layer(report: Report, kernel: str, size: int, precision: str, batches: Sequence[int]) -> None:
    """Compress one layer, check it, then time it and dense at every batch size."""
    bench, (built, points), (storage, tol) = report.bench, KERNELS[kernel].build(size), SETTINGS[precision]
    matrix, name = torch.from_numpy(built), f"{kernel} {size} {precision}"
    start = time.perf_counter()
    request = MatrixRequest(
        tol=tol,
        storage=storage,
        min_leaf=min(MIN_LEAF, size // 4),
        row_points=points,
        column_points=points,
        ordering="natural" if points is None else "coordinates",
        target="cuda",
    )
    program = layer(h := compress_for(built, request))
    print(f"# {name}: {h}, {time.perf_counter() - start:.1f} s", flush=True)
    for batch in batches:
        try:
            run, count, session = our_calls(program, precision, batch, bench)
            error = error_of(session, matrix, min(batch, CHECKED_ROWS))
            # On few random rows the compression's error is not quite that of the matrix; x, V, T, U and y are rounded.
            allowed = 1.5 * tol + 5 * UNIT[precision]
            if not error <= allowed:
                raise HrtError(f"{name}: error {error:.2e}. Expected at most {allowed:.2e}.")
            dense, dense_count = dense_calls(matrix, batch, precision, bench)
            work, nbytes = dense_work(size, size, precision), matrix.numel() * DTYPE[precision].itemsize
            ours = bench.captured(run), count, error, session.resident_bytes, work_of(session.program.schedule)
            methods = {"hrt": Timed(*ours)}
            for form, call in dense.items():
                methods[form] = Timed(bench.captured(call), dense_count, math.nan, nbytes, work)
            point = {"workload": kernel, "size": size, "precision": precision, "batch": batch}
            report.time(point, methods, REPEATS)
            del run, session, dense, ours, methods
        except torch.cuda.OutOfMemoryError as problem:
            print(f"# {name} batch {batch}: out of memory: {problem}", flush=True)
        bench.release()


def burgers(report: Report, batches: Sequence[int]) -> None:
    """The Burgers PINN: one request after the other, in its graph and end to end, beside torch.compile's."""
    net, bench = load_burgers().float(), report.bench
    model = hrt.compress(net, inputs=hrt.Box([-1.0, 0.0], [1.0, 1.0]), tol=1e-3, target="cuda", progress=False)
    session = CudaSession(model.program, bench.device, model.precision)
    launched = session.program
    exact = copy.deepcopy(net).double()
    net = net.to(bench.device)
    checked = torch.rand(4096, 2, dtype=torch.float64) * torch.tensor([2.0, 1.0]) - torch.tensor([1.0, 0.0])
    y, expected = session.run([checked.float().to(bench.device)])[0].cpu().double(), exact(checked).detach()
    error = float((y - expected).norm() / expected.norm())
    if not error <= 1.05e-3:  # the certificate's limit is for new inputs of the same kind, at 99 %
        raise HrtError(f"Burgers: error {error:.2e} where 1e-3 was certified, in {model.precision} arithmetic.")
    remark, work = f"{len(launched.dense_layers)} layers written out", work_of(launched.schedule)
    for batch in batches:
        x = checked[:batch].float().to(bench.device)
        calls: dict[str, Call] = {}
        for kernel in launched.kernels:
            execute = partial(launched.execute, launched.new_workspace(batch), batch, kernel)
            calls[f"hrt {kernel}"] = bench.captured(execute)
        with torch.no_grad():
            calls["dense linear"] = bench.captured(partial(net, x))
            if bench.on_gpu:
                compiled: Any = torch.compile(net, mode="max-autotune-no-cudagraphs", dynamic=False)
                calls["dense compiled"] = bench.captured(partial(compiled, x))
        calls["hrt end to end"] = partial(session.run, [x])
        errors = {name: error if name.startswith("hrt") else math.nan for name in calls}
        methods = {n: Timed(c, 1, errors[n], session.resident_bytes, work, remark) for n, c in calls.items()}
        point = {"workload": "burgers", "size": 128, "precision": model.precision, "batch": batch}
        report.time(point, methods, 10 * REPEATS)
        bench.release()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure everything asked for. Returns 2 where there is no GPU, 1 where an error was larger than promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--kernel", nargs="*", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--precision", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--minutes", type=float, default=60.0, help="begin nothing new after so many minutes")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file")
    args = parser.parse_args(arguments)
    try:
        if not torch.cuda.is_available() and not is_interpreted():
            raise InputError("torch sees no CUDA device here. Nothing was measured.")
        if min(args.size) < 64 or any(b < 1 or b & (b - 1) for b in args.batch):
            raise InputError("expected sizes from 64 on, and batches that are powers of two.")
        args.out.mkdir(parents=True, exist_ok=True)
        _measure(args, list(sys.argv[1:] if arguments is None else arguments))
    except (HrtError, OSError) as error:
        print(f"hrt.perf.bench.gpu_layers: {error}", file=sys.stderr)
        return 2 if isinstance(error, (InputError, OSError)) else 1
    return 0


def _measure(args: argparse.Namespace, words: Sequence[str]) -> None:
    start = time.perf_counter()
    torch.set_float32_matmul_precision("high")  # tf32 for dense, as for ours, and for the ceiling
    bench = device.Bench()
    chip = measured_chip(bench)
    facts = {
        "command": f"python -m hrt.perf.bench.gpu_layers {' '.join(words)}",
        "commit": commit(),
        "versions": versions(),
        "gpu": gpu() if bench.on_gpu else {"name": "none: Triton's interpreter; times say nothing"},
        "chip": asdict(chip),
    }
    print(f"# {chip.name}: copy {chip.copy_bytes_per_s / 1e12:.2f} TB/s, {chip.source}", flush=True)
    report = Report(args.out / f"gpu-{'-'.join(map(str, args.size))}.json", facts, bench, chip)
    burgers(report, [b for b in args.batch if b <= 4096])
    for size, kernel, precision in product(args.size, args.kernel, args.precision):
        if time.perf_counter() - start > 60 * args.minutes:
            print(f"# {kernel} {size} {precision}: left out, {args.minutes:g} minutes are over", flush=True)
        else:
            one_layer(report, kernel, size, precision, args.batch)
    print(f"# wrote {report.file}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
