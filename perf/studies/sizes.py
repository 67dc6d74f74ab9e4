"""`python -m hrt.perf.studies.sizes`: the bytes that each method needs for the same held-out error, on the Burgers PINN.

Baselines are tuned on the very points on which they are reported; hrt sees calibration points only and is asked for
the fewest bytes (target="bytes"). Bytes count weights, scales, indices, tables and float32 biases for all alike. The
ratio is dense float32 bytes over bytes.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import hrt
from hrt.perf.networks.burgers import burgers_points, load_burgers
from hrt.perf.studies import pruning_sizes as pruning
from hrt.perf.studies import quantization
from hrt.perf.studies import svd_sizes as low_rank
from hrt.perf.studies.baselines import Problem, Result

METHODS = {
    "int8 per channel, absmax": quantization.int8_absmax,
    "int8 per channel, GPTQ rounding": quantization.int8_compensated,
    "float16": quantization.float16,
    "bfloat16": quantization.bfloat16,
    **low_rank.METHODS,
    "magnitude pruning, CSR": pruning.magnitude,
}
TARGETS = {1e-2: 18.0, 1e-3: 11.0, 1e-4: 3.5}  # ratios that hrt aims at on the Burgers PINN


@dataclass(frozen=True)
class Row:
    """One method at one tolerance; `result` is None where nothing smaller than dense reaches it."""

    method: str
    tol: float
    result: Result | None
    seconds: float


def compare(
    net: nn.Module, calibration: Tensor, fresh: Tensor, tols: Sequence[float], *, target: str = "bytes", seed: int = 0
) -> tuple[Problem, list[Row]]:
    """Every baseline and hrt at every tolerance; hrt is served by `predict` and measured against float64.

    calibration, fresh: (rows, features), both from the distribution that the network is used on.
    """
    problem = Problem.make(net, calibration, fresh)
    rows = []
    for tol in tols:
        for name, method in METHODS.items():
            start = time.perf_counter()
            result = method(problem, tol)
            rows.append(Row(name, tol, result, time.perf_counter() - start))
        start = time.perf_counter()
        model = hrt.compress(net, inputs=calibration, tol=tol, target=target, seed=seed, progress=False)
        seconds = time.perf_counter() - start
        outputs = model.predict(fresh.float()).double().reshape(len(fresh), -1)
        error = float((outputs - problem.reference).norm() / problem.reference.norm())
        rows.append(Row("hrt", tol, Result(model.nbytes, error), seconds))
    return problem, rows


def faults(net: nn.Module, problem: Problem, rows: Sequence[Row]) -> list[str]:
    """What is wrong with a comparison; empty where its figures may be printed."""
    found = []
    with torch.no_grad():
        own = net(problem.fresh[0].float()).double().reshape(problem.reference.shape)
    captured = float((own - problem.reference).norm() / problem.reference.norm())
    if not captured <= 1e-4:
        found.append(f"the captured program differs from the network by {captured:.2g}")
    for row in rows:
        if row.result is None:
            continue
        if not row.result.error <= row.tol:
            found.append(f"{row.method} at {row.tol:g}: error {row.result.error:.3g} on fresh inputs")
        if row.result.nbytes > problem.dense_nbytes:
            found.append(f"{row.method} at {row.tol:g}: {row.result.nbytes} bytes, dense {problem.dense_nbytes}")
    return found


def table(title: str, problem: Problem, rows: Sequence[Row]) -> Table:
    """Bytes, ratio, error and seconds of every row."""
    out = Table(title=f"{title}: dense float32 {problem.dense_nbytes:,} bytes")
    for name in ("tol", "method", "bytes", "ratio", "held-out error", "seconds"):
        out.add_column(name, justify="left" if name == "method" else "right")
    for previous, row in zip([None, *rows], rows, strict=False):
        if previous is not None and previous.tol != row.tol:
            out.add_section()
        cells = ["", "", "cannot reach"]
        if row.result is not None:
            ratio = problem.dense_nbytes / row.result.nbytes
            cells = [f"{row.result.nbytes:,}", f"{ratio:.2f}x", f"{row.result.error:.2e}"]
        style = "bold" if row.method == "hrt" else None
        out.add_row(f"{row.tol:g}", row.method, *cells, f"{row.seconds:.1f}", style=style)
    return out


def verdicts(problem: Problem, rows: Sequence[Row], targets: Mapping[float, float]) -> list[str]:
    """One line per tolerance: who is smallest, by how much, and whether hrt's target is met."""
    lines = []
    for tol in dict.fromkeys(row.tol for row in rows):
        sizes = {row.method: row.result.nbytes for row in rows if row.tol == tol and row.result is not None}
        ours = sizes.pop("hrt")
        rival = min(sizes, key=lambda name: sizes[name], default=None)
        line = f"tol {tol:g}: "
        if rival is None:
            line += "hrt is smallest; no baseline reaches it below dense"
        elif ours < sizes[rival]:
            line += f"hrt is smallest, {sizes[rival] / ours:.2f} times smaller than the next ({rival})"
        elif ours == sizes[rival]:
            line += f"hrt and {rival} are equally small"
        else:
            line += f"{rival} is smallest; hrt LOSES, {ours / sizes[rival]:.2f} times larger"
        if tol in targets:
            ratio = problem.dense_nbytes / ours
            line += f"; hrt {ratio:.2f}x, target {targets[tol]:g}x {'met' if ratio >= targets[tol] else 'MISSED'}"
        lines.append(line + ".")
    return lines


def show(
    title: str,
    net: nn.Module,
    calibration: Tensor,
    fresh: Tensor,
    tols: Sequence[float],
    targets: Mapping[float, float],
) -> bool:
    """Compare, check, print. Returns whether every promise held."""
    console = Console(width=118)
    problem, rows = compare(net, calibration, fresh, tols)
    wrong = faults(net, problem, rows)
    if wrong:
        console.print("\n".join(f"BROKEN: {line}" for line in wrong), markup=False)
    console.print(table(title, problem, rows))
    for line in verdicts(problem, rows, targets):
        console.print(line)
    return not wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of the Burgers PINN. Returns 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tol", type=float, nargs="+", default=list(TARGETS), help="relative errors to compare at")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    calibration, fresh = burgers_points(10_000, 1), burgers_points(20_000, 2024)
    return (
        0 if show("Burgers PINN, 2 -> 4 x 128 tanh -> 1", load_burgers(), calibration, fresh, args.tol, TARGETS) else 1
    )


if __name__ == "__main__":
    sys.exit(main())
