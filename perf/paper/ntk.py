"""How far compression moves the Burgers PINN's neural tangent kernel (`python -m hrt.perf.paper ntk`).

Kernels of the value u and of the residual u_t + u u_x - nu u_xx, in the dense weights, float64, on points as the
network was trained on. Two meanings of the tolerance: of every weight (relative Frobenius norm, no inputs: the
theorem's case) and of the output on held-out inputs (what hrt usually promises). Exponents are least-squares slopes on
a log-log plot with 95 % intervals. Over a short training of the same network: how far its kernel has come from the
initial one, and how far compression at one tolerance would move it there.
"""

import copy
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from torch import Tensor

import hrt
from hrt.perf.networks.burgers import BATCH, BURGERS, burgers_network, burgers_operator, burgers_points, load_burgers
from hrt.perf.networks.pinn_training import Course, fit
from hrt.perf.networks.taylor_pass import Pinn
from hrt.perf.paper.output import Rows, facts, matching, table
from hrt.tangent_kernel.kernel_drift import Drift, drift
from hrt.tangent_kernel.ntk import Residual, ntk
from hrt.tangent_kernel.ntk_statements import fit_power_law, ntk_drift, ntk_statements

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


KERNELS: dict[str, Residual | None] = {"value": None, "residual": burgers_operator}


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
                change = drift(before[name], ntk(model, x, residual=residual), leading=5)
                known = {"bound": bound, "kernel": name, "tol": tol, "ratio": model.compression_ratio}
                known["weight_error"] = max(r.frobenius for r in model.certificate.layers)
                rows.append(known | figures(change))
            print(f"tol {tol:.1e} of the {bound}: {rows[-2]['drift']:.1e}, {rows[-1]['drift']:.1e}", file=sys.stderr)
    return rows


def figures(d: Drift) -> dict[str, Any]:
    """What is written of a comparison."""
    row: dict[str, Any] = {"drift": d.relative, "cosines": list(d.cosines), "gap": d.gap, "spectral": d.spectral}
    for when, s in (("before", d.before), ("after", d.after)):
        row[when] = {
            "eigenvalues": s.values[:SHOWN].tolist(),
            "least": s.least,
            "rounding": s.rounding,
            "positive_definite": s.is_positive_definite,
            "effective_rank": s.effective_rank,
            "trace_rank": s.trace_rank,
        }
    return row | {"verdicts": {s.name: s.verdict for s in ntk_statements(d)}}


def lines(rows: Rows) -> dict[tuple[str, str], Rows]:
    """Rows by what the tolerance bounds, and whose kernel it is."""
    pairs = dict.fromkeys((r["bound"], r["kernel"]) for r in rows)
    return {(bound, kernel): matching(rows, bound=bound, kernel=kernel) for bound, kernel in pairs}


def fits(rows: Rows) -> Rows:
    """A power law for each bound and kernel, and what becomes of drift <= C tol."""
    result: Rows = []
    for (bound, kernel), line in lines(rows).items():
        law = fit_power_law([r["tol"] for r in line], [r["drift"] for r in line])
        result.append({"bound": bound, "kernel": kernel, **asdict(law), "verdict": ntk_drift(law).verdict})
    return result


def over_training(setting: Setting, seed: int = 0) -> Rows:
    """At every checkpoint of a short training: drift from the initial kernel, and by compression of the weights."""
    x, network = burgers_points(setting.points, 2024), burgers_network(seed=seed).double()
    states: list[tuple[int, float | None, Pinn]] = [(0, None, copy.deepcopy(network))]

    def on_step(step: int, loss: float) -> None:
        if step in setting.checkpoints:
            states.append((step, loss, copy.deepcopy(network)))

    fit(BURGERS, network, Course(setting.adam, setting.newton, BATCH, seed), on_step)
    options: dict[str, Any] = {"tol": setting.training_tol, "target": "bytes", "progress": False}
    models = [hrt.compress(state, **options) for _, _, state in states]
    rows: Rows = []
    for name, residual in KERNELS.items():
        first = ntk(states[0][2], x, residual=residual)
        for (step, loss, state), model in zip(states, models, strict=True):
            theta = ntk(state, x, residual=residual)
            compressed = drift(theta, ntk(model, x, residual=residual))
            row = {"kernel": name, "step": step, "loss": loss, "from_start": drift(first, theta).relative}
            rank = compressed.before.effective_rank
            rows.append(row | {"compression": compressed.relative, "effective_rank": rank})
    return rows


def measure(setting: Setting) -> dict[str, Any]:
    """Everything, as JSON."""
    start, x = time.perf_counter(), burgers_points(setting.points, 2024)
    rows = over_tolerance(load_burgers(), x, burgers_points(CALIBRATION, 1), setting.tols)
    training = over_training(setting)
    known = facts(seconds=round(time.perf_counter() - start))
    return {"facts": known, "setting": asdict(setting), "fits": fits(rows), "tolerance": rows, "training": training}


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Every tolerance, the training, and exponents."""

    def both(row: dict[str, Any], key: str, form: str) -> str:
        return " -> ".join(form.format(row[when][key]) for when in ("before", "after"))

    drifts = table(
        "relative drift; least eigenvalue against its rounding; effective rank; worst of 5 cosines",
        result["tolerance"],
        {
            "tol bounds": lambda r: r["bound"],
            "kernel": lambda r: r["kernel"],
            "tol": lambda r: f"{r['tol']:.1e}",
            "drift": lambda r: f"{r['drift']:.1e}",
            "lambda_min": lambda r: both(r, "least", "{:.1e}"),
            "rounding": lambda r: f"{r['after']['rounding']:.0e}",
            "definite": lambda r: both(r, "positive_definite", "{}"),
            "eff. rank": lambda r: both(r, "effective_rank", "{:.2f}"),
            "cosine": lambda r: f"{r['cosines'][-1]:.6f}",
        },
    )
    steps = table(
        f"over training; compression of weights at {result['setting']['training_tol']:g}",
        result["training"],
        {
            "kernel": lambda r: r["kernel"],
            "step": lambda r: str(r["step"]),
            "loss": lambda r: "-" if r["loss"] is None else f"{r['loss']:.1e}",
            "drift from the start": lambda r: f"{r['from_start']:.1e}",
            "drift by compression": lambda r: f"{r['compression']:.1e}",
            "eff. rank": lambda r: f"{r['effective_rank']:.2f}",
        },
    )
    laws = table(
        "NTK drift = factor tol^exponent, 95 % interval; C: fitted with exponent 1, and the largest",
        result["fits"],
        {
            "tol bounds": lambda f: f["bound"],
            "kernel": lambda f: f["kernel"],
            "exponent": lambda f: f"{f['exponent']:.2f}",
            "interval": lambda f: f"{f['low']:.2f} to {f['high']:.2f}",
            "C": lambda f: f"{f['constant']:.2g}",
            "C covers all": lambda f: f"{f['worst']:.2g}",
            "drift <= C tol": lambda f: f["verdict"],
        },
    )
    return [drifts, steps, laws]
