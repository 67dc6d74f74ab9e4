"""How far compression moves the Burgers PINN's neural tangent kernel (`python -m hrt.perf.paper ntk`).

Kernels of the value u and of the residual u_t + u u_x - nu u_xx, in the dense weights, float64. The tolerance is that
of every weight (Frobenius norm: the theorem's case) or of the output on held-out inputs (what hrt usually promises).
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from torch import Tensor

import hrt
from hrt.perf.networks.burgers import burgers_operator, burgers_points, load_burgers
from hrt.perf.paper.output import Rows, facts, matching, table
from hrt.tangent_kernel.kernel_drift import Drift, drift
from hrt.tangent_kernel.ntk import Residual, ntk
from hrt.tangent_kernel.ntk_statements import FEWEST, fit_power_law, ntk_drift, ntk_statements

SHOWN = 10  # eigenvalues in the result


@dataclass(frozen=True)
class Setting:
    """How much is measured. tols: from loose to tight.  points: of the kernels."""

    tols: tuple[float, ...] = tuple(10.0 ** (-k / 2) for k in range(2, 11))
    points: int = 64
    calibration: int = 10_000

    @staticmethod
    def quick() -> "Setting":
        return Setting((1e-1, 1e-2, 1e-3), 16)


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
                known["achieved"] = achieved(model, bound)
                rows.append(known | figures(change))
            print(f"tol {tol:.1e} of the {bound}: {rows[-2]['drift']:.1e}, {rows[-1]['drift']:.1e}", file=sys.stderr)
    return rows


def achieved(model: hrt.CompressedModel, bound: str) -> float:
    """The error that was reached in the norm that tol bounds: of the worst weight, or of the output."""
    if bound == "output":
        return model.certificate.measured["output_error"]
    return max(r.frobenius for r in model.certificate.layers)


def figures(d: Drift) -> dict[str, Any]:
    """What is written of a comparison."""
    row: dict[str, Any] = {"drift": d.relative, "cosines": list(d.cosines), "gap": d.gap, "spectral": d.spectral}
    for when, s in (("before", d.before), ("after", d.after)):
        row[when] = {"eigenvalues": s.values[:SHOWN].tolist(), "positive_definite": s.is_positive_definite}
        row[when] |= {"least": s.least, "rounding": s.rounding}
        row[when] |= {"effective_rank": s.effective_rank, "trace_rank": s.trace_rank}
    return row | {"verdicts": {s.name: s.verdict for s in ntk_statements(d)}}


def fits(rows: Rows) -> Rows:
    """A power law for each bound and kernel over the error that was reached, and what becomes of drift <= C tol.

    Not over tol: at a loose one the search may keep what it kept at a tighter one, and the line would be bent by that.
    """
    result: Rows = []
    for bound, kernel in dict.fromkeys((r["bound"], r["kernel"]) for r in rows):
        line = matching(rows, bound=bound, kernel=kernel)
        # What is stored exactly has no drift, and what two tolerances store alike is one point.
        line = list({(r.get("seed"), r["achieved"]): r for r in line if r["achieved"] > 0}.values())
        if len({r["achieved"] for r in line if r["drift"] > 0}) < FEWEST:
            continue  # no line through two points
        law = fit_power_law([r["achieved"] for r in line], [r["drift"] for r in line])
        result.append({"bound": bound, "kernel": kernel, **asdict(law), "verdict": ntk_drift(law).verdict})
    return result


def measure(setting: Setting) -> dict[str, Any]:
    """Everything, as JSON."""
    start, x = time.perf_counter(), burgers_points(setting.points, 2024)
    rows = over_tolerance(load_burgers(), x, burgers_points(setting.calibration, 1), setting.tols)
    known = facts(seconds=round(time.perf_counter() - start))
    rows = [{"case": "Burgers PINN", "seed": 0} | row for row in rows]
    return {"facts": known, "setting": asdict(setting), "fits": fits(rows), "tolerance": rows}


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Every tolerance, and exponents."""
    drifts = {
        "tol bounds": "{bound}",
        "kernel": "{kernel}",
        "tol": "{tol:.1e}",
        "reached": "{achieved:.1e}",
        "drift": "{drift:.1e}",
        "lambda_min": "{before[least]:.1e} -> {after[least]:.1e}",
        "rounding": "{after[rounding]:.0e}",
        "definite": "{before[positive_definite]} -> {after[positive_definite]}",
        "eff. rank": "{before[effective_rank]:.2f} -> {after[effective_rank]:.2f}",
        "cosine": "{cosines[4]:.6f}",
    }
    laws = {
        "tol bounds": "{bound}",
        "kernel": "{kernel}",
        "exponent": "{exponent:.2f}",
        "interval": "{low:.2f} to {high:.2f}",
        "C": "{constant:.2g}",
        "C covers all": "{worst:.2g}",
        "drift <= C error": "{verdict}",
    }
    title = "relative drift; least eigenvalue against its rounding; effective rank; worst of 5 cosines"
    law = (
        "NTK drift = factor error^exponent, error as reached, 95 % interval; C: fitted with exponent 1, and the largest"
    )
    return [table(title, result["tolerance"], drifts), table(law, result["fits"], laws)]
