"""The certificate: what was measured, what was estimated, what is guaranteed. The three never share a field."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor


@dataclass(frozen=True)
class LayerRecord:
    """One weight matrix: what became of it and why.

    Measured, on the stored numbers in float64: `frobenius` (relative), `weighted` (relative, in the norm of the
    calibration inputs; None without inputs). Estimated: `spectral` (relative; Lanczos-free power iteration, a lower
    estimate of ||E||_2 / ||W||_2).
    """

    name: str
    shape: tuple[int, int]
    structure: str
    nbytes: int
    dense_nbytes: int
    frobenius: float
    weighted: float | None
    spectral_estimate: float
    reason: str


@dataclass(frozen=True)
class Certificate:
    """What is promised of a compressed network, and on what grounds.

    tol: the tolerance asked for.  kind: "output" (relative L2 error of the output on held-out inputs) or "layers"
    (relative Frobenius error of every weight; no inputs were given).
    measured: figures computed on the stored numbers: `output_error` (float64 arithmetic), `runtime_error` (float32
        arithmetic of the torch backend), `per_output` (relative error of each output column).
    estimated: `output_error_upper_99`, the one-sided 99 % upper confidence limit for new inputs from the same
        distribution.
    guaranteed: what holds by construction for every input; empty where nothing can be said.
    context: how many rows calibrated and verified, the seed, versions, remarks.
    """

    tol: float
    kind: str
    layers: tuple[LayerRecord, ...]
    measured: Mapping[str, Any] = field(default_factory=dict)
    estimated: Mapping[str, Any] = field(default_factory=dict)
    guaranteed: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)

    def to_header(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @staticmethod
    def from_header(header: Mapping[str, Any]) -> "Certificate":
        """The inverse of `to_header`."""
        layers = tuple(LayerRecord(**{**r, "shape": tuple(r["shape"])}) for r in header["layers"])
        return Certificate(**{**header, "layers": layers})


@dataclass(frozen=True)
class OutputError:
    """Relative L2 error of a network's output, over rows: value, 99 % upper limit, and per output column."""

    value: float
    upper_99: float
    per_output: tuple[float, ...]


def output_error(reference: Tensor, actual: Tensor) -> OutputError:
    """||Y - Y_h||_F / ||Y||_F for (rows, features) outputs, and how far it may lie higher on new rows.

    The squared error is a ratio of means over rows; its standard error comes from the linearised ratio (delta
    method, Cochran, Sampling Techniques, 1977, section 6.3), the limit from Student's t at 99 %, one-sided, with the
    first Edgeworth correction for skewness (Johnson, JASA 73, 1978), since squared errors have long upper tails. A
    reference of zeros has error 0 where it is met exactly and infinity elsewhere. NaN counts as infinite. One row
    alone gives no confidence: its limit is infinite unless it is met exactly.
    """
    e2 = ((reference - actual) ** 2).sum(1)
    y2 = (reference**2).sum(1)
    e2 = torch.where(torch.isfinite(e2), e2, torch.inf)
    columns = _ratio(((reference - actual) ** 2).sum(0), (reference**2).sum(0))
    rows, total, scale = len(e2), float(e2.sum()), float(y2.sum())
    per_output = tuple(float(v) for v in columns)
    if total == 0:
        return OutputError(0.0, 0.0, per_output)
    if scale == 0 or not math.isfinite(total):
        return OutputError(math.inf, math.inf, per_output)
    ratio = total / scale
    if rows < 2:
        return OutputError(math.sqrt(ratio), math.inf, per_output)
    residual = e2 - ratio * y2
    centred = residual - residual.mean()
    spread = float(residual.std())
    skew = float((centred**3).mean()) / max(spread, 1e-300) ** 3
    t = float(stdtrit(rows - 1, 0.99))
    t += max(0.0, skew) * (1 + 2 * t * t) / (6 * math.sqrt(rows))
    upper2 = ratio + t * spread * math.sqrt(rows) / scale
    return OutputError(math.sqrt(ratio), math.sqrt(upper2), per_output)


def _ratio(e2: Tensor, y2: Tensor) -> Tensor:
    out = (e2 / y2).sqrt()
    return torch.where(e2 == 0, torch.zeros_like(out), out)


def spectral_norm_estimate(matrix: Tensor, steps: int = 30, seed: int = 0) -> float:
    """||A||_2 by power iteration on A^T A from a random start: a lower estimate, float64."""
    if not matrix.numel():
        return 0.0
    v = torch.randn(matrix.shape[1], dtype=matrix.dtype, generator=torch.Generator().manual_seed(seed))
    norm = 0.0
    for _ in range(steps):
        u = matrix @ (v / v.norm().clamp_min(1e-300))
        norm = float(u.norm())
        v = matrix.T @ u
        if norm == 0:
            break
    return norm
