"""The certificate: what was measured, what was estimated, what is guaranteed. The three never share a field."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Context
from typing import Any, Literal

import msgspec

from hrt.certificate.figures import Count, check_figures

DIGITS = 6  # significant, of a layer's figures
SEVERAL, DIGITS_OF_SEVERAL = 16, 4  # of the figures of more layers than that, and in a longer list
LONG, DIGITS_OF_LONG = 64, 2
UPWARDS = {"bound", "spectral_upper", "spectral_bound", "per_output_upper_99"}  # limits
HOLDS, VIOLATED, VACUOUS = "holds", "violated", "vacuous"


@dataclass(frozen=True)
class Statement:
    """measured <= bound (None where infinite), and whether it is so: HOLDS, VIOLATED, or VACUOUS: it tells nothing."""

    name: str
    bound: float | None
    measured: float | None
    verdict: str
    remark: str = ""


@dataclass(frozen=True)
class LayerRecord:
    """One weight matrix W, and H, the stored numbers that replace it. All errors are relative, in float64.

    Args:
        name: Of the weight in the network.
        shape: (rows, columns).
        structure: In words, such as "H 22 blocks, 8 dense, ranks 1-9 float16".
        nbytes: Bytes of H.
        dense_nbytes: Bytes of W in float32.
        frobenius: Measured error in the Frobenius norm.
        weighted: Measured error in the norm of the calibration inputs. None without inputs.
        spectral_estimate: Estimated error in the spectral norm, of Lanczos values. None where `spectral` is measured.
        reason: Why this structure.
        spectral: Measured error in the spectral norm, by singular values. None for large matrices.
        spectral_upper: Estimated limit, exceeded with probability at most 1e-6. None where `spectral` is measured.
        spectral_bound: Guaranteed error in the spectral norm.
        condition: Measured condition number of W. None where infinite or not computed, as `condition_note` says.
        condition_compressed: The same of H.
        condition_note: In words.
        statements: The paper's bounds beside the measured figures.

    Example:
        >>> import torch, hrt
        >>> record = hrt.compress(torch.nn.Linear(16, 16), tol=1e-2, progress=False).certificate.layers[0]
        >>> record.shape, record.frobenius <= 1e-2
        ((16, 16), True)
    """

    name: str
    shape: tuple[Count, Count]
    structure: str
    nbytes: Count
    dense_nbytes: Count
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

    Args:
        tol: The tolerance asked for.
        kind: "output" (relative L2 error of the output on held-out inputs) or "layers" (relative Frobenius error of
            every weight; no inputs were given).
        layers: A record of every weight.
        measured: Figures computed on the stored numbers, on the held-out rows: `output_error` (float64 arithmetic),
            `runtime_error` (float32, the worst of the CPU backends in `runtimes`), and `per_output`, `output_rms` and
            `max_abs_error` of each output column. `capture_difference`, of the network's own answers (its types, casts
            and autocast) from those in float64: beyond a tenth of `tol` the errors are against its own answers, and a
            remark says so; missing for a file that no runtime here runs. `ntk_drift`,
            ||Theta - Theta_H||_F / ||Theta||_F of the value's neural tangent kernel on the first `ntk_points` rows;
            `no_ntk_drift` says why it is missing. Where derivatives were asked for, by name: `derivative_error`,
            `derivative_runtime_error`, `derivative_rms`.
        estimated: `unseen_probability_99`, 1 - 0.01^(1/rows): of kinds of input that are rarer the certificate says
            nothing. `output_error_upper_99`, the one-sided 99 % upper confidence limit for new inputs of the same
            distribution, and `derivative_error_upper_99`, by name; `per_output_upper_99` of each output column, where
            each was held to `tol`. For the target "cuda" also
            `output_error_upper_99_in_bf16`, `_in_fp16` and `_in_tf32`, with the rounding of that arithmetic emulated.
        guaranteed: What holds for every input; empty where nothing can be said. BOX_BOUND: |f - f_h| of each output
            column over the whole hrt.Box, for the stored numbers in exact arithmetic, without a runtime's rounding.
        context: How many rows calibrated and verified, the seed, versions, remarks. `reference`: what evaluated the
            network as its author does ("torch 2.13.0", "onnxruntime 1.32.0"). `no_output_bound`: why there is none.
            `precision`: the arithmetic chosen for a GPU. `runtimes`: the CPU backends that kept `tol`,
            `compiler`: what made the code of "native", and its flags.
            `derivatives`: the names held to `tol`. `kinks`: the ops whose derivatives jump ("relu (layers.1)").
            `outputs`: what each is held to `tol` as, "value", a derivative's name, or "not bounded".
        statements: Bounds of the whole network beside the measured figures.

    Example:
        >>> import torch, hrt
        >>> certificate = hrt.compress(torch.nn.Linear(3, 2), tol=1e-2, progress=False).certificate
        >>> certificate.kind, certificate.guaranteed
        ('layers', {'relative_frobenius_error_of_every_weight': 0.01})
    """

    tol: float
    kind: Literal["output", "layers"]
    layers: tuple[LayerRecord, ...]
    measured: Mapping[str, Any] = field(default_factory=dict)
    estimated: Mapping[str, Any] = field(default_factory=dict)
    guaranteed: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    statements: tuple[Statement, ...] = ()

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The CPU backends whose arithmetic was verified; where only weights are promised, those that were there."""
        named = self.context.get("runtimes")
        if isinstance(named, (list, tuple)):
            return tuple(named)
        return ("torch",) if self.kind == "output" else ("torch", "onnxruntime")  # as older files have it

    @property
    def derivatives(self) -> tuple[str, ...]:
        """The derivatives, by name, that are held to `tol` beside the value."""
        return tuple(self.context.get("derivatives", ()))

    @property
    def precision(self) -> str | None:
        """The arithmetic for GPU tensor cores that was found to keep `tol`; None where none was worked out."""
        return self.context.get("precision")

    def brief(self) -> "Certificate":
        """With 6 significant digits in the records of layers, 4 where there are more than 16 of them and in lists of
        more than 16 figures, and 2 in lists of more than 64: a file needs no more. Limits and bounds are rounded up.
        A figure keeps all its digits where fewer would take it across `tol`.

        Returns:
            The certificate.
        """
        header = self.to_header()
        digits = DIGITS if len(self.layers) <= SEVERAL else DIGITS_OF_SEVERAL
        records = {k: _rounded(header[k], self.tol, digits) for k in ("layers", "statements")}
        figures = {k: _rounded(header[k], self.tol) for k in ("measured", "estimated")}
        guaranteed = _rounded(header["guaranteed"], self.tol, up=True)
        return Certificate.from_header({**header, **records, **figures, "guaranteed": guaranteed})

    def to_header(self) -> dict[str, Any]:
        """The certificate as JSON.

        Returns:
            Its fields by name.
        """
        return asdict(self)

    @staticmethod
    def from_header(header: Mapping[str, Any]) -> "Certificate":
        """The inverse of `to_header`.

        Args:
            header: As JSON. Fields that an older version did not write keep their defaults.

        Returns:
            The certificate.

        Raises:
            TypeError: There are unknown fields; msgspec would ignore those of a dataclass.
            ValueError: A field that something reads has another type than was written.
        """
        records = ({**r, "shape": tuple(r["shape"]), "statements": _statements(r)} for r in header["layers"])
        layers = tuple(LayerRecord(**r) for r in records)
        certificate = Certificate(**{**header, "layers": layers, "statements": _statements(header)})
        plain = msgspec.convert(asdict(certificate), Certificate)
        check_figures(plain.measured, plain.estimated, plain.guaranteed, plain.context)
        return certificate


BOX_BOUND = "max_abs_error_over_box_exact_arithmetic"


def _rounded(value: Any, tol: float, digits: int | None = None, up: bool = False) -> Any:
    """Every float in `value` with so many significant digits, None: all. It keeps all where it would cross `tol`."""
    if isinstance(value, Mapping):
        return {k: _rounded(v, tol, digits, up or k in UPWARDS) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        if len(value) > SEVERAL and isinstance(value[0], float):
            digits = DIGITS_OF_LONG if len(value) > LONG else DIGITS_OF_SEVERAL
        return [_rounded(v, tol, digits, up) for v in value]
    if not isinstance(value, float) or digits is None:
        return value
    context = Context(digits, ROUND_CEILING if up else ROUND_HALF_EVEN)
    shorter = float(context.create_decimal(repr(value)))
    return shorter if (shorter <= tol) == (value <= tol) else value


def _statements(header: Mapping[str, Any]) -> tuple[Statement, ...]:
    return tuple(Statement(**s) for s in header.get("statements", ()))
