"""The relative error of a network's output over rows, with its 99 % limit."""

import math
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor


@dataclass(frozen=True)
class OutputError:
    """Relative L2 error of a network's output: value, 99 % upper limit, per output column, and of every derivative.

    columns: the limit of every column, where each is held to the tolerance by itself; 0 for a column of zeros.
    """

    value: float
    upper_99: float
    per_output: tuple[float, ...]
    derivatives: tuple["OutputError", ...] = ()
    columns: tuple[float, ...] = ()

    @property
    def largest(self) -> float:
        """The largest error of the output, of its derivatives, and of the columns that are held to the tolerance."""
        columns = (v for v, limit in zip(self.per_output, self.columns, strict=False) if limit > 0)
        return max(self.value, *(d.largest for d in self.derivatives), *columns, 0.0)

    @property
    def limit(self) -> float:
        """The largest 99 % upper limit of these."""
        return max(self.upper_99, *(d.limit for d in self.derivatives), *self.columns, 0.0)


def output_error(reference: Tensor, actual: Tensor, each: bool = False) -> OutputError:
    """||Y - Y_h||_F / ||Y||_F for (rows, features) outputs, and how far it may lie higher on new rows.

    The squared error is a ratio of means over rows; its standard error comes from the linearised ratio (delta
    method, Cochran, Sampling Techniques, 1977, section 6.3), the limit from Student's t at 99 %, one-sided, with the
    first Edgeworth correction for skewness (Johnson, JASA 73, 1978), since squared errors have long upper tails. What
    is seen once in n rows may with 99 % confidence be as likely as ln(100) / n, so that the largest squared error
    counts ln(100) times. Heavier tails exceed the limit more often (tests/network_compression/test_promises.py).

    A reference of zeros has error 0 where it is met exactly and infinity elsewhere. NaN counts as infinite. One row
    gives no confidence: its limit is infinite unless it is met exactly.

    each: hold every column to the tolerance, too. A column of zeros has no relative error and counts in the whole
    alone.
    """
    reference, lost = _near_one(reference, reference - actual)
    e2, y2 = lost.square(), reference.square()
    (value,), (upper_99,) = _limits(e2.sum(1, keepdim=True), y2.sum(1, keepdim=True))
    per_output = tuple(_ratio(e2.sum(0), y2.sum(0)).tolist())
    columns: tuple[float, ...] = ()
    if each:
        reference, lost = _near_one(reference, lost, columns=True)
        is_zero = (reference == 0).all(0)
        columns = tuple(torch.where(is_zero, 0.0, _limits(lost.square(), reference.square())[1]).tolist())
    return OutputError(float(value), float(upper_99), per_output, (), columns)


def _near_one(reference: Tensor, lost: Tensor, columns: bool = False) -> tuple[Tensor, Tensor]:
    """Both over the reference's largest entry, or each column's: squares of others could leave the range of float64."""
    if not reference.numel():
        return reference, lost
    size = reference.abs().amax(0) if columns else reference.abs().max()
    size = torch.where((size > 0) & torch.isfinite(size), size, 1.0)
    return reference / size, lost / size


def _limits(e2: Tensor, y2: Tensor) -> tuple[Tensor, Tensor]:
    """Relative errors (k,) of k ratios of squares (rows, k), and their 99 % limits."""
    rows = len(e2)
    e2 = torch.where(torch.isfinite(e2), e2, torch.inf)
    total, scale = e2.sum(0), y2.sum(0)
    ratio = total / scale
    upper2 = torch.full_like(ratio, torch.inf)
    if rows >= 2:
        residual = e2 - ratio * y2
        spread = residual.std(0)
        skew = ((residual - residual.mean(0)) / spread).pow(3).mean(0)
        skew = torch.where(spread > 0, skew, 0.0).clamp_min(0)
        t = float(stdtrit(rows - 1, 0.99))
        t = t + skew * (1 + 2 * t * t) / (6 * math.sqrt(rows))
        upper2 = ratio + (t * spread * math.sqrt(rows) + (math.log(100) - 1) * e2.amax(0)) / scale
    is_wrong = (scale == 0) | ~torch.isfinite(total)
    values, limits = (torch.where(is_wrong, torch.inf, v.sqrt()) for v in (ratio, upper2))
    return torch.where(total == 0, 0.0, values), torch.where(total == 0, 0.0, limits)


def _ratio(e2: Tensor, y2: Tensor) -> Tensor:
    out = (e2 / y2).sqrt()
    return torch.where(e2 == 0, torch.zeros_like(out), out)
