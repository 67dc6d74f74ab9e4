"""`python -m hrt.perf.paper.ntk`: how far compression moves the Burgers PINN's neural tangent kernel, over the tolerance.

    python -m hrt.perf.paper.ntk --out build/ntk            # ntk.json and ntk.png; some minutes on one core
    python -m hrt.perf.paper.ntk --out build/ntk --quick    # fewer tolerances, points and steps

Kernels of the value u and of the residual u_t + u u_x - nu u_xx, in the dense weights, float64, on points as the
network was trained on. Two meanings of the tolerance: of every weight (relative Frobenius norm, no inputs: the
theorem's case) and of the output on held-out inputs (what hrt usually promises). Exponents are least-squares slopes on
a log-log plot with 95 % intervals. Over a short training of the same network: how far its kernel has come from the
initial one, and how far compression at one tolerance would move it there.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.func import jvp

import hrt
from hrt.errors import HrtError
from hrt.perf.bench.charts import as_png
from hrt.perf.measuring.provenance import commit, versions
from hrt.perf.networks.burgers import NU, BurgersPINN, burgers_network, burgers_points, load_burgers, train
from hrt.perf.paper.ntk_figures import picture
from hrt.support.atomic_files import replacing
from hrt.tangent_kernel.kernel_drift import Drift, drift
from hrt.tangent_kernel.ntk import Residual, ntk
from hrt.tangent_kernel.ntk_statements import fit_power_law, ntk_drift, ntk_statements

Rows = list[dict[str, Any]]
CALIBRATION = 10_000
SHOWN = 10  # eigenvalues in the result


@dataclass(frozen=True)
class Setting:
    """How much is measured. tols: from loose to tight.  points: of the kernels.  adam, newton: steps of the training.
    checkpoints: steps at which its kernels are compared.  training_tol: of the weights there.
    """

    tols: tuple[float, ...] = tuple(10.0 ** (-k / 2) for k in range(2, 11))
    points: int = 64
    adam: int = 300
    newton: int = 60
    checkpoints: tuple[int, ...] = (10, 30, 100, 300, 310, 330, 360)
    training_tol: float = 1e-2

    @staticmethod
    def quick() -> "Setting":
        """The same with fewer of everything."""
        return Setting((1e-1, 1e-2, 1e-3), 16, 20, 2, (10, 22))


def burgers_residual(u: Any, points: Tensor) -> Tensor:
    """u_t + u u_x - nu u_xx of a network (rows, 2) -> (rows, 1), by forward differentiation: (rows, 1)."""
    along_x, along_t = (torch.zeros_like(points) + points.new_tensor(axis) for axis in ((1.0, 0.0), (0.0, 1.0)))
    twice = jvp(lambda p: jvp(u, (p,), (along_x,)), (points,), (along_x,))
    (value, u_x), (_, u_xx) = twice[0], twice[1]
    u_t = jvp(u, (points,), (along_t,))[1]
    return u_t + value * u_x - NU * u_xx


KERNELS: dict[str, Residual | None] = {"value": None, "residual": burgers_residual}


def over_tolerance(
    net: Any, x: Tensor, calibration: Tensor, tols: Sequence[float], kernels: Mapping[str, Residual | None] = KERNELS
) -> Rows:
    """Drift of the kernels on points x at every tolerance, of the weights and of the output on `calibration`."""
    before = {name: ntk(net, x, residual=residual) for name, residual in kernels.items()}
    inputs = {"weights": None, "output": calibration}
    rows: Rows = []
    for tol in tols:
        for bound, given in inputs.items():
            model = hrt.compress(net, inputs=given, tol=tol, target="bytes", progress=False)
            for name, residual in kernels.items():
                found = drift(before[name], ntk(model, x, residual=residual), leading=5)
                known = {"bound": bound, "kernel": name, "tol": tol, "ratio": model.compression_ratio}
                known["weight_error"] = max(r.frobenius for r in model.certificate.layers)
                rows.append(known | figures(found))
            print(f"tol {tol:.1e} of the {bound}: {rows[-2]['drift']:.1e}, {rows[-1]['drift']:.1e}", file=sys.stderr)
    return rows


def figures(d: Drift) -> dict[str, Any]:
    """What is kept of a comparison."""
    found: dict[str, Any] = {"drift": d.relative, "cosines": list(d.cosines), "gap": d.gap, "spectral": d.spectral}
    for when, s in (("before", d.before), ("after", d.after)):
        found[when] = {
            "eigenvalues": s.values[:SHOWN].tolist(),
            "least": s.least,
            "rounding": s.rounding,
            "positive_definite": s.is_positive_definite,
            "effective_rank": s.effective_rank,
            "trace_rank": s.trace_rank,
        }
    return found | {"verdicts": {s.name: s.verdict for s in ntk_statements(d)}}


def fits(rows: Rows) -> Rows:
    """A power law for each bound and kernel, and what becomes of drift <= C tol."""
    found: Rows = []
    for bound, kernel in dict.fromkeys((r["bound"], r["kernel"]) for r in rows):
        some = [r for r in rows if (r["bound"], r["kernel"]) == (bound, kernel)]
        law = fit_power_law([r["tol"] for r in some], [r["drift"] for r in some])
        statement = ntk_drift(law)
        found.append({"bound": bound, "kernel": kernel, **asdict(law), "verdict": statement.verdict})
    return found


def over_training(setting: Setting, seed: int = 0) -> Rows:
    """At every checkpoint of a short training: drift from the initial kernel, and by compression of the weights."""
    x = burgers_points(setting.points, 2024)
    kept: list[tuple[int, float, BurgersPINN]] = []

    def on_step(network: BurgersPINN, step: int, loss: float) -> None:
        if step in setting.checkpoints:
            kept.append((step, loss, copy.deepcopy(network)))

    train(seed, setting.adam, setting.newton, on_step=on_step)
    start = burgers_network(seed=seed).double()
    options: dict[str, Any] = {"tol": setting.training_tol, "target": "bytes", "progress": False}
    states = [(step, loss, net, hrt.compress(net, **options)) for step, loss, net in [(0, None, start), *kept]]
    rows: Rows = []
    for name, residual in KERNELS.items():
        first = ntk(start, x, residual=residual)
        for step, loss, network, model in states:
            theta = ntk(network, x, residual=residual)
            compressed = drift(theta, ntk(model, x, residual=residual))
            row = {"kernel": name, "step": step, "loss": loss, "from_start": drift(first, theta).relative}
            rank = compressed.before.effective_rank
            rows.append(row | {"compression": compressed.relative, "effective_rank": rank})
    return rows


def tables(result: dict[str, Any]) -> list[Table]:
    """Exponents, every tolerance, and the training."""
    laws = Table(title="NTK drift = factor tol^exponent, 95 % interval; C: fitted with exponent 1, and the largest")
    for name in ("tol bounds", "kernel", "exponent", "interval", "C", "C covers all", "drift <= C tol"):
        laws.add_column(name)
    for f in result["fits"]:
        cells = [
            f"{f['exponent']:.2f}",
            f"{f['low']:.2f} to {f['high']:.2f}",
            f"{f['constant']:.2g}",
            f"{f['worst']:.2g}",
        ]
        laws.add_row(f["bound"], f["kernel"], *cells, f["verdict"])
    drifts = Table(title="relative drift; least eigenvalue against its rounding; effective rank; worst of 5 cosines")
    for name in ("tol bounds", "kernel", "tol", "drift", "lambda_min", "rounding", "definite", "eff. rank", "cosine"):
        drifts.add_column(name)
    for r in result["tolerance"]:
        least = f"{r['before']['least']:.1e} -> {r['after']['least']:.1e}"
        definite = " -> ".join("yes" if r[when]["positive_definite"] else "no" for when in ("before", "after"))
        rank = f"{r['before']['effective_rank']:.2f} -> {r['after']['effective_rank']:.2f}"
        cells = [f"{r['tol']:.1e}", f"{r['drift']:.1e}", least, f"{r['after']['rounding']:.0e}", definite, rank]
        drifts.add_row(r["bound"], r["kernel"], *cells, f"{r['cosines'][-1]:.6f}")
    steps = Table(title=f"over training; compression of weights at {result['setting']['training_tol']:g}")
    for name in ("kernel", "step", "loss", "drift from the start", "drift by compression", "eff. rank"):
        steps.add_column(name)
    for r in result["training"]:
        loss = "-" if r["loss"] is None else f"{r['loss']:.1e}"
        cells = [loss, f"{r['from_start']:.1e}", f"{r['compression']:.1e}", f"{r['effective_rank']:.2f}"]
        steps.add_row(r["kernel"], str(r["step"]), *cells)
    return [drifts, steps, laws]


def measure(setting: Setting) -> dict[str, Any]:
    """Everything, as JSON."""
    start = time.perf_counter()
    rows = over_tolerance(
        load_burgers(), burgers_points(setting.points, 2024), burgers_points(CALIBRATION, 1), setting.tols
    )
    training = over_training(setting)
    facts = {"commit": commit(), "versions": versions(), "seconds": round(time.perf_counter() - start)}
    facts["threads"] = torch.get_num_threads()
    return {"facts": facts, "setting": asdict(setting), "fits": fits(rows), "tolerance": rows, "training": training}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write ntk.json and ntk.png. Returns 0, or 2 for a mistake, said on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m hrt.perf.paper.ntk",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("build/ntk"), help="folder to write to, made if missing")
    parser.add_argument("--quick", action="store_true", help="fewer tolerances, points and steps")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        result = measure(Setting.quick() if args.quick else Setting())
        with replacing(args.out / "ntk.json") as file:
            file.write((json.dumps(result, indent=1) + "\n").encode())
        as_png(partial(picture, result), args.out / "ntk.png")
    except HrtError as error:
        print(f"hrt.perf.paper.ntk: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"hrt.perf.paper.ntk: {args.out}: {error.strerror}. Expected a folder to write to.", file=sys.stderr)
        return 2
    for table in tables(result):
        Console(width=118).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
