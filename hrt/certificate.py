"""The certificate: what was measured, what was estimated, what is guaranteed. The three never share a field."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

HOLDS, VIOLATED, VACUOUS = "holds", "violated", "vacuous"


@dataclass(frozen=True)
class Statement:
    """measured <= bound, as a theorem or the paper has it, and whether it is so.

    bound, measured: None where infinite.  verdict: "holds", "violated", or "vacuous" where the bound tells nothing.
    """

    name: str
    bound: float | None
    measured: float | None
    verdict: str
    remark: str = ""


@dataclass(frozen=True)
class LayerRecord:
    """One weight matrix W, what became of it (H, the numbers as stored), and why. All errors are relative, in float64.

    Measured: `frobenius`; `weighted`, in the norm of the calibration inputs (None without inputs); `spectral`, by
    singular values (None for large matrices); `condition` and `condition_compressed`, of W and H (None where infinite,
    as `condition_note` says, or not computed).
    Estimated, where `spectral` is not measured: `spectral_estimate`, the ratio of two Lanczos values, each at most the
    norm it stands for; `spectral_upper`, exceeded with probability at most 1e-6 (`hrt.norms`).
    Guaranteed: `spectral_bound`, ||E||_2 <= min(||E||_F, the singular value with its rounding) over ||W||_2 from below.
    statements: the paper's bounds beside the measured figures.
    """

    name: str
    shape: tuple[int, int]
    structure: str
    nbytes: int
    dense_nbytes: int
    frobenius: float
    weighted: float | None
    spectral_estimate: float | None
    reason: str
    spectral: float | None = None
    spectral_upper: float | None = None
    spectral_bound: float | None = None
    condition: float | None = None
    condition_compressed: float | None = None
    condition_note: str = ""
    statements: tuple[Statement, ...] = ()


@dataclass(frozen=True)
class Certificate:
    """What is promised of a compressed network, and on what grounds.

    tol: the tolerance asked for.  kind: "output" (relative L2 error of the output on held-out inputs) or "layers"
    (relative Frobenius error of every weight; no inputs were given).
    measured: figures computed on the stored numbers: `output_error` (float64 arithmetic), `runtime_error` (float32
        arithmetic, the worst of the CPU backends in `runtimes`), `per_output` (relative error of each output column),
        `output_rms` and `max_abs_error` of each output column on the held-out rows (float64 arithmetic), `ntk_drift`,
        ||Theta - Theta_H||_F / ||Theta||_F of the value's neural tangent kernel (`hrt.ntk`) on the first `ntk_points`
        held-out rows; missing where it is too large to compute beside a compression (`no_ntk_drift` says so). Where
        derivatives were asked for, by name such as "d0d0": `derivative_error`, `derivative_runtime_error` and
        `derivative_rms`, each derivative of all outputs together, as the three above.
    estimated: `unseen_probability_99`, the probability of the rarest kind of input that the held-out rows contain with
        99 % confidence, 1 - 0.01^(1/rows): of rarer ones the certificate says nothing. `output_error_upper_99`, the
        one-sided 99 % upper confidence limit for new inputs from the same distribution, `derivative_error_upper_99`
        that of each derivative by name; for the target "cuda" also `output_error_upper_99_in_bf16`, `_in_fp16`,
        `_in_tf32`, with the rounding of that arithmetic emulated, the largest of value and derivatives.
    guaranteed: what holds for every input; empty where nothing can be said. BOX_BOUND: |f - f_h| of each output column
        over the whole hrt.Box, for the stored numbers in exact arithmetic (the rounding of a runtime is not in it).
        Of derivatives nothing is guaranteed.
    context: how many rows calibrated and verified, the seed, versions, remarks; `no_output_bound`: why there is none;
        `precision`: the arithmetic chosen for a GPU (see `precision`); `runtimes`: the CPU backends that kept `tol`;
        `derivatives`: the names held to `tol`; `kinks`: the ops whose derivatives jump somewhere ("relu (layers.1)");
        `outputs`, of a network that is served with derivatives among its outputs: what each of them is held to `tol`
        as, "value", a derivative's name, or "not bounded" (see `hrt.outputs`).
    statements: bounds of the whole network beside the measured figures.
    """

    tol: float
    kind: str
    layers: tuple[LayerRecord, ...]
    measured: Mapping[str, Any] = field(default_factory=dict)
    estimated: Mapping[str, Any] = field(default_factory=dict)
    guaranteed: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    statements: tuple[Statement, ...] = ()

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The CPU backends that this certificate speaks of: those whose arithmetic was verified, or, where only weights
        are promised, any.
        """
        if self.kind != "output":
            return ("torch", "onnxruntime")
        named = self.context.get("runtimes")
        return tuple(named) if isinstance(named, (list, tuple)) else ("torch",)

    @property
    def derivatives(self) -> tuple[str, ...]:
        """The derivatives, by name, that are held to `tol` beside the value."""
        return tuple(self.context.get("derivatives", ()))

    @property
    def precision(self) -> str | None:
        """The arithmetic for GPU tensor cores that was found to keep `tol`; None where none was worked out."""
        return self.context.get("precision")

    def to_header(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @staticmethod
    def from_header(header: Mapping[str, Any]) -> "Certificate":
        """The inverse of `to_header`; fields that an older version did not write keep their defaults."""
        layers = tuple(
            LayerRecord(**{**r, "shape": tuple(r["shape"]), "statements": _statements(r)}) for r in header["layers"]
        )
        return Certificate(**{**header, "layers": layers, "statements": _statements(header)})


BOX_BOUND = "max_abs_error_over_box_exact_arithmetic"
IN_PRECISION = "output_error_upper_99_in_"  # and the name of the arithmetic


def _statements(header: Mapping[str, Any]) -> tuple[Statement, ...]:
    return tuple(Statement(**s) for s in header.get("statements", ()))


@dataclass(frozen=True)
class OutputError:
    """Relative L2 error of a network's output, over rows: value, 99 % upper limit, and per output column; the same of
    every derivative that is held to the same tolerance.
    """

    value: float
    upper_99: float
    per_output: tuple[float, ...]
    derivatives: tuple["OutputError", ...] = ()

    @property
    def largest(self) -> float:
        """The largest error of the output and its derivatives."""
        return max(self.value, *(d.value for d in self.derivatives)) if self.derivatives else self.value

    @property
    def limit(self) -> float:
        """The largest 99 % upper limit of the output and its derivatives."""
        return max(self.upper_99, *(d.upper_99 for d in self.derivatives)) if self.derivatives else self.upper_99


def output_error(reference: Tensor, actual: Tensor) -> OutputError:
    """||Y - Y_h||_F / ||Y||_F for (rows, features) outputs, and how far it may lie higher on new rows.

    The squared error is a ratio of means over rows; its standard error comes from the linearised ratio (delta
    method, Cochran, Sampling Techniques, 1977, section 6.3), the limit from Student's t at 99 %, one-sided, with the
    first Edgeworth correction for skewness (Johnson, JASA 73, 1978), since squared errors have long upper tails. What
    is seen once in n rows may with 99 % confidence be as likely as ln(100) / n, so that the largest squared error
    counts ln(100) times. Where 1 % of the rows hold half of the squared error the limit on 750 rows is still exceeded
    in up to 6 of 100 draws (`python -m hrt.perf.coverage`). A reference of zeros has error 0 where it is met exactly
    and infinity elsewhere. NaN counts as infinite. One row alone gives no confidence: its limit is infinite unless it
    is met exactly.
    """
    size = float(reference.abs().max()) if reference.numel() else 0.0
    if 0 < size < math.inf:  # squares of very small or very large outputs would leave the range of float64
        reference, actual = reference / size, actual / size
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
    skew = float(((centred / spread) ** 3).mean()) if spread > 0 else 0.0
    t = float(stdtrit(rows - 1, 0.99))
    t += max(0.0, skew) * (1 + 2 * t * t) / (6 * math.sqrt(rows))
    upper2 = ratio + (t * spread * math.sqrt(rows) + (math.log(100) - 1) * float(e2.max())) / scale
    return OutputError(math.sqrt(ratio), math.sqrt(upper2), per_output)


def _ratio(e2: Tensor, y2: Tensor) -> Tensor:
    out = (e2 / y2).sqrt()
    return torch.where(e2 == 0, torch.zeros_like(out), out)
