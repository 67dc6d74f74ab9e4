"""`python -m hrt.perf.studies.cpu`: the time of `hrt.load(path).predict` on this CPU, beside the best dense forms.

    python -m hrt.perf.studies.cpu                       # a 4096-wide log-kernel layer and the Burgers PINN, at tol 1e-3
    python -m hrt.perf.studies.cpu --case burgers --threads 1 --json build/cpu.json

Answers are checked before anything is timed. The network is saved and loaded again, and asked through `predict` with
numpy arrays, as a user would. Dense: torch eager, torch.compile, ONNX Runtime by `session.run`, and ONNX Runtime with
inputs and outputs bound to fixed memory (what nothing that returns a new array can do). Calls come in short bursts in
random order, after a pause in which the threads of whoever came before go to sleep.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import hrt
from hrt.calibration.samples import sample_boxes
from hrt.capture.torch_export import capture
from hrt.export.onnx.check import open_runtime
from hrt.export.onnx.exporter import graph_of
from hrt.perf.measuring.bursts import Latency, bursts
from hrt.perf.measuring.provenance import commit, versions
from hrt.perf.networks.burgers import load_burgers
from hrt.perf.networks.operators import log_kernel, operator_network, smooth_inputs

TARGETS = {("log", 1): 6.0, ("log", 16): 6.0, ("log", 256): 12.0, ("burgers", 1): 1.0, ("burgers", 1024): 2.0}
BATCHES = {"log": (1, 16, 256), "burgers": (1, 16, 128, 1024)}
DENSE = ("torch", "torch.compile", "ONNX Runtime")  # what hrt's ratio is against
Call = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One method at one batch size. error: relative L2 against the dense network in float64. ratio: the fastest dense
    method over this one (`Latency.ratio`), above 1 it is faster; low, high: its 95 % bootstrap interval.
    """

    case: str
    batch: int
    method: str
    error: float
    p50_us: float
    p05_us: float
    p95_us: float
    ratio: float
    low: float
    high: float
    note: str = ""


def main() -> int:
    """Run and print. Returns 1 where an answer was outside the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=list(BATCHES), nargs="+", default=list(BATCHES), help="which networks")
    parser.add_argument("--tol", type=float, default=1e-3, help="relative error asked for (default 1e-3)")
    parser.add_argument("--size", type=int, default=4096, help="width of the log-kernel layer (default 4096)")
    parser.add_argument("--batch", type=int, nargs="+", help="batch sizes instead of the usual ones")
    parser.add_argument("--threads", type=int, default=2, help="threads of every method (default 2)")
    parser.add_argument("--rounds", type=int, default=20, help="bursts of every method (default 20)")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    for case in args.case:
        net, x, model = burgers(args.tol) if case == "burgers" else operator(args.size, args.tol)
        rows += measure(case, net, model, x, args.batch or BATCHES[case], args.threads, args.rounds)
        show(case, [r for r in rows if r.case == case], model, args.threads)
    if args.json:
        facts = {"command": sys.argv[1:], "commit": commit(), "versions": versions(), "threads": args.threads}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**facts, "rows": [asdict(r) for r in rows]}, indent=1) + "\n")
    return 1 if any(not r.error <= args.tol for r in rows if r.method.startswith("hrt")) else 0


def burgers(tol: float) -> tuple[nn.Module, np.ndarray, hrt.CompressedModel]:
    """The PINN, points it was not calibrated on, and the compressed network."""
    box = hrt.Box([-1.0, 0.0], [1.0, 1.0])
    net = load_burgers()
    model = hrt.compress(net, inputs=sample_boxes([box], 10_000, seed=1)[0].float(), tol=tol)
    fresh = np.random.default_rng(2024).uniform([-1.0, 0.0], [1.0, 1.0], (4096, 2))
    return net, fresh.astype(np.float32), model


def operator(size: int, tol: float) -> tuple[nn.Module, np.ndarray, hrt.CompressedModel]:
    """A layer that applies the log kernel, smooth functions, and the compressed layer."""
    net = operator_network(log_kernel(size))
    return net, smooth_inputs(size, 1024, seed=7).astype(np.float32), hrt.compress(net, tol=tol)


def measure(
    case: str,
    net: nn.Module,
    model: hrt.CompressedModel,
    inputs: np.ndarray,
    batches: Sequence[int],
    threads: int,
    rounds: int,
) -> list[Row]:
    """Every method at every batch size: first its error, then its time."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "net.hrt")
        served = {b: hrt.load(Path(folder) / "net.hrt", backend=b) for b in ("auto", "torch", "onnxruntime")}
    program = capture(net, [torch.from_numpy(inputs[:2])])
    runtime = open_runtime(graph_of(program), threads)
    name, out = runtime.get_inputs()[0].name, runtime.get_outputs()[0].name
    compiled, why = _compiled(net, inputs)
    rows = []
    for batch in batches:
        x = np.ascontiguousarray(np.resize(inputs, (batch, *inputs.shape[1:])))
        tensor = torch.from_numpy(x)
        (exact,) = program.run([tensor.double()])
        y = np.empty(tuple(exact.shape), np.float32)
        binding = runtime.io_binding()
        binding.bind_input(name, "cpu", 0, np.float32, x.shape, x.ctypes.data)
        binding.bind_output(out, "cpu", 0, np.float32, y.shape, y.ctypes.data)

        def bound(b: object = binding, y: np.ndarray = y) -> np.ndarray:
            runtime.run_with_iobinding(b)
            return y

        calls: dict[str, Call] = {
            "torch": lambda t=tensor: net(t),
            **({"torch.compile": lambda t=tensor: compiled(t)} if compiled is not None else {}),
            "ONNX Runtime": lambda x=x: runtime.run(None, {name: x})[0],
            "ONNX Runtime, fixed memory": bound,
            "hrt": lambda x=x: served["auto"].predict(x),
            "hrt, torch backend": lambda x=x: served["torch"].predict(x),
        }
        with torch.no_grad():
            errors = {k: relative(exact.numpy(), np.asarray(call(), dtype=np.float64)) for k, call in calls.items()}
            times = bursts(calls, rounds=rounds)
        best = min((times[k] for k in DENSE if k in times), key=lambda t: t.p50_us)
        for k, t in times.items():
            rows.append(_row(case, batch, k, errors[k], t, best))
        if compiled is None:
            rows.append(Row(case, batch, "torch.compile", np.nan, *([np.nan] * 6), note=why))
    return rows


def _row(case: str, batch: int, method: str, error: float, t: Latency, best: Latency) -> Row:
    low, high = best.ratio_interval(t)
    return Row(case, batch, method, error, t.p50_us, t.p05_us, t.p95_us, best.ratio(t), low, high)


def _compiled(net: nn.Module, inputs: np.ndarray) -> tuple[Callable[..., object] | None, str]:
    """torch.compile of the network, or why there is none."""
    try:
        found = torch.compile(net, dynamic=False)  # a kernel of its own for every batch size
        with torch.no_grad():
            found(torch.from_numpy(inputs[:2]))
        return found, ""
    except Exception as error:  # it wants a C++ compiler, which not every machine has
        return None, f"not run: {str(error).strip().splitlines()[0][:80]}"


def relative(expected: np.ndarray, found: np.ndarray) -> float:
    """||expected - found|| / ||expected||."""
    return float(np.linalg.norm(expected - found) / np.linalg.norm(expected))


def show(case: str, rows: Sequence[Row], model: hrt.CompressedModel, threads: int) -> None:
    """The table, losses included."""
    title = f"{case}: {model.nbytes:,} bytes, {model.compression_ratio:.1f}x smaller; {threads} threads"
    table = Table(title=title)
    for column in (
        "batch",
        "method",
        "error",
        "median us",
        "5 % to 95 %",
        "best dense / this",
        "95 % interval",
        "asked",
    ):
        table.add_column(column, justify="left" if column == "method" else "right")
    for r in rows:
        asked = TARGETS.get((case, r.batch)) if r.method == "hrt" else None
        spread = f"{r.p05_us:,.1f} to {r.p95_us:,.1f}" if not r.note else r.note
        cells = [f"{r.error:.1e}", f"{r.p50_us:,.1f}", spread, f"{r.ratio:.2f}", f"{r.low:.2f} to {r.high:.2f}"]
        style = "bold" if r.method == "hrt" else None
        table.add_row(str(r.batch), r.method, *cells, "" if asked is None else f"{asked:g}", style=style)
    Console(width=150).print(table)


if __name__ == "__main__":
    sys.exit(main())
