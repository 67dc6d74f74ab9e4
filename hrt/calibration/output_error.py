"""The relative error of a network's output over rows, with its 99 % limit."""

import math
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor


@dataclass(frozen=True)
class OutputError:
    """Relative L2 error of a network's output: value, 99 % upper limit, per output column, and of every derivative."""

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
    counts ln(100) times. Heavier tails exceed the limit more often (tests/network_compression/test_promises.py).

    A reference of zeros has error 0 where it is met exactly and infinity elsewhere. NaN counts as infinite. One row
    gives no confidence: its limit is infinite unless it is met exactly.
    """
    size = float(reference.abs().max()) if reference.numel() else 0.0
    if 0 < size < math.inf:  # squares of very small or very large outputs would leave the range of float64
        reference, actual = reference / size, actual / size
    lost, seen = (reference - actual).square_(), reference.square()  # once: outputs may be thousands
    e2, y2 = lost.sum(1), seen.sum(1)
    e2 = torch.where(torch.isfinite(e2), e2, torch.inf)
    columns = _ratio(lost.sum(0), seen.sum(0))
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
