"""`python -m hrt.perf.studies.derivatives`: value, gradient and one second derivative of the Burgers PINN, beside torch.

    OMP_NUM_THREADS=2 python -m hrt.perf.studies.derivatives
    python -m hrt.perf.studies.derivatives --batch 1024 --rounds 40 --json build/derivatives.json

u, u_x, u_t and u_xx on random points, by `predict(x, derivatives=["d0", "d1", "d0d0"])` of the dense and of the
compressed network (tol 1e-3 in the value), in ONNX Runtime and in torch. Torch: reverse over reverse by autograd
(parameters frozen), torch.func's jvp of jvp, and torch.compile of the better one (for reverse over reverse as
torch.func.grad of grad, which is what torch.compile takes). Answers are checked before anything is timed: the dense
network's against float64, within what torch's own float32 derivatives miss it by, times 20.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import grad, jvp

import hrt
from hrt.calibration.samples import sample_boxes
from hrt.capture.torch_export import capture
from hrt.certificate.certificate import Certificate
from hrt.export.onnx.check import relative
from hrt.model.model import CompressedModel
from hrt.perf.measuring.bursts import Latency, bursts
from hrt.perf.measuring.provenance import commit, versions
from hrt.perf.networks.burgers import load_burgers

DERIVATIVES = ("d0", "d1", "d0d0")
TARGET = (1024, 3.0)  # batch, and how many times faster than the best of torch's ways
ROUNDING = 20  # of torch's own float32 error in a derivative: what another order of summation may miss it by
Call = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One way at one batch size. errors: relative L2 of value and derivatives against the dense network in float64.
    ratio: the best torch way's median over this one's, above 1 it is faster; low, high: its 95 % bootstrap interval.
    """

    batch: int
    method: str
    errors: tuple[float, ...]
    p50_us: float
    p05_us: float
    p95_us: float
    ratio: float
    low: float
    high: float


def reverse(net: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """u, u_x, u_t, u_xx by reverse over reverse."""
    x = x.detach().requires_grad_(True)
    u = net(x)
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first[:, 0].sum(), x)
    return u.detach(), first[:, :1].detach(), first[:, 1:].detach(), second[:, :1]


def functional_reverse(net: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """The same by torch.func, which torch.compile takes."""

    def value(z: Tensor) -> tuple[Tensor, Tensor]:
        u = net(z)
        return u.sum(), u

    def slope(z: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        first, u = grad(value, has_aux=True)(z)
        return first[:, 0].sum(), (u, first)

    second, (u, first) = grad(slope, has_aux=True)(x)
    return u, first[:, :1], first[:, 1:], second[:, :1]


def forward(net: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """The same by jvp of jvp, and one more jvp for u_t."""
    along_x, along_t = torch.zeros_like(x), torch.zeros_like(x)
    along_x[:, 0], along_t[:, 1] = 1, 1
    (u, u_x), tangents = jvp(lambda z: jvp(net, (z,), (along_x,)), (x,), (along_x,))[:2]
    return u, u_x, jvp(net, (x,), (along_t,))[1], tangents[1]


def main() -> int:
    """Run and print. Returns 1 where an answer was outside what is allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64, 1024, 4096], help="batch sizes")
    parser.add_argument("--tol", type=float, default=1e-3, help="of the compressed network's value (default 1e-3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of every way (default 2)")
    parser.add_argument("--rounds", type=int, default=20, help="bursts of every way (default 20)")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    net = load_burgers().requires_grad_(False)
    models = subjects(net, args.tol)
    compiled = compiled_best(net)
    rows, faults = [], []
    for batch in args.batch:
        found, wrong = measure(net, models, compiled, batch, args.rounds)
        show(found, args.threads)
        rows, faults = rows + found, faults + wrong
    print("\n".join(faults), file=sys.stderr, end="\n" if faults else "")
    if args.json:
        facts = {"command": sys.argv[1:], "commit": commit(), "versions": versions(), "threads": args.threads}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**facts, "rows": [asdict(r) for r in rows]}, indent=1) + "\n")
    return 1 if faults else 0


def subjects(net: nn.Module, tol: float) -> dict[str, CompressedModel]:
    """The dense and the compressed network in both runtimes."""
    points = sample_boxes([hrt.Box([-1.0, 0.0], [1.0, 1.0])], 10_000, seed=1)[0].float()
    small = hrt.compress(net, inputs=points, tol=tol, progress=False)
    dense = CompressedModel(capture(net, [points[:2]]), Certificate(0.0, "layers", ()))
    runtimes = {"ONNX Runtime": "onnxruntime", "torch": "torch"}
    kinds = {"hrt": small, "hrt, dense weights": dense}
    return {
        f"{kind}, {name}": CompressedModel(m.program, m.certificate, backend=backend)
        for kind, m in kinds.items()
        for name, backend in runtimes.items()
    }


def compiled_best(net: nn.Module) -> tuple[str, Callable[[Tensor], tuple[Tensor, ...]]]:
    """torch.compile of whichever way takes less time at 1024 points."""
    x = points_of(1024)
    ways = {"reverse": lambda: reverse(net, x), "forward": lambda: forward(net, x)}
    times = bursts(ways, rounds=5)
    best = min(times, key=lambda name: times[name].p50_us)
    way = functional_reverse if best == "reverse" else forward
    return f"torch.compile, {best}", torch.compile(lambda x: way(net, x))


def points_of(batch: int) -> Tensor:
    """Uniform points (batch, 2) of the box, float32, which calibration did not see."""
    numbers = np.random.default_rng(2024).uniform([-1.0, 0.0], [1.0, 1.0], (batch, 2))
    return torch.from_numpy(numbers.astype(np.float32))


def measure(
    net: nn.Module,
    models: dict[str, CompressedModel],
    compiled: tuple[str, Callable[[Tensor], tuple[Tensor, ...]]],
    batch: int,
    rounds: int,
) -> tuple[list[Row], list[str]]:
    """Every way at one batch size: first its errors, then its time; and what is wrong."""
    x = points_of(batch)
    array = x.numpy()
    calls: dict[str, Call] = {
        "reverse over reverse": lambda: reverse(net, x),
        "jvp of jvp": lambda: forward(net, x),
        compiled[0]: lambda: compiled[1](x),
    }
    theirs = tuple(calls)
    for name, model in models.items():
        calls[name] = lambda model=model: model.predict(array, derivatives=DERIVATIVES)
    exact = [y.numpy() for y in reverse(load_burgers().double(), x.double())]
    errors = {name: _errors(call, exact) for name, call in calls.items()}
    limits = [max(ROUNDING * e, 1e-5) for e in errors["reverse over reverse"]]
    held = [name for name in calls if not name.startswith("hrt, ONNX") and not name.startswith("hrt, torch")]
    faults = [f"batch {batch}: {n} is off by {errors[n]}" for n in held if any(map(float.__gt__, errors[n], limits))]
    times = bursts(calls, rounds=rounds)
    best = min((times[name] for name in theirs), key=lambda t: t.p50_us)
    return [_row(batch, name, errors[name], times[name], best) for name in calls], faults


def _errors(call: Call, exact: Sequence[np.ndarray]) -> tuple[float, ...]:
    found: Sequence = call()  # type: ignore[assignment]
    return tuple(relative(np.asarray(y), e) for y, e in zip(found, exact, strict=True))


def _row(batch: int, name: str, errors: tuple[float, ...], own: Latency, best: Latency) -> Row:
    low, high = best.ratio_interval(own)
    ratio = float(np.median(best.medians) / np.median(own.medians))
    return Row(batch, name, errors, own.p50_us, own.p05_us, own.p95_us, ratio, low, high)


def show(rows: Sequence[Row], threads: int) -> None:
    """The table of one batch size."""
    title = f"Burgers PINN, batch {rows[0].batch}, {threads} threads: u, u_x, u_t, u_xx"
    table = Table("way", "median us", "5 % to 95 %", "faster than torch's best", "u", "u_x", "u_t", "u_xx", title=title)
    for r in rows:
        spread, ratio = f"{r.p05_us:,.0f} to {r.p95_us:,.0f}", f"{r.ratio:.2f} ({r.low:.2f} to {r.high:.2f})"
        table.add_row(r.method, f"{r.p50_us:,.0f}", spread, ratio, *(f"{e:.1e}" for e in r.errors))
    Console(width=140).print(table)
    if rows[0].batch == TARGET[0]:
        for r in rows:
            if r.method in ("hrt, ONNX Runtime", "hrt, dense weights, ONNX Runtime"):
                verdict = "met" if r.ratio >= TARGET[1] else "missed"
                print(f"{r.method}: at least {TARGET[1]:g} times faster is {verdict} ({r.ratio:.2f})")


if __name__ == "__main__":
    sys.exit(main())
