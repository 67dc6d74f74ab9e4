"""The relative error of a network's output over rows, with its 99 % limit."""

import math
from dataclasses import dataclass, replace

import torch
from scipy.special import stdtrit
from torch import Tensor

RISK = 0.01  # that new inputs exceed a limit
# From a tail index of a half on, squared errors have no variance, and what is seen of their tail says less about the
# rest. These were fitted so that of populations with indices up to 1.5 the limits of 50, 100 and 400 rows are exceeded
# by 1.4, 0.8 and 0.3 % of samples on average (by 2.9, 1.9 and 0.6 % without); test_output_error.py has such. From
# MANY rows on those whose squares have a mean worth the name keep 1 % without; Pareto tails of index 0.7 and more do
# not with it either (4 to 40 % exceed at any number of rows).
LIGHT, STEEPER, HEAVIEST = 0.5, 1.5, 0.75
FEW, MANY = 400, 1000  # rows between which that fades out
UNSETTLED, LEVERAGE = 1.0, 0.1  # a tail index without a mean; the share of the largest row from which that counts


@dataclass(frozen=True)
class OutputError:
    """Relative L2 error of a network's output: value, 99 % upper limit, per output column, and of every derivative.

    columns: the limit of every column, where each is held to the tolerance by itself; 0 for a column of zeros.
    tail, leverage: Hill's index of the rows' squared errors, and the share of the largest.  risk: see `output_error`.
    expected: the value, or that of the account whose limit counts.
    """

    value: float
    upper_99: float
    per_output: tuple[float, ...]
    derivatives: tuple["OutputError", ...] = ()
    columns: tuple[float, ...] = ()
    tail: float = 0.0
    leverage: float = 0.0
    risk: float = RISK
    expected: float = 0.0

    @property
    def unsettled(self) -> bool:
        """Whether rows like these have so heavy a tail that they do not settle what new ones are like."""
        return self.tail >= UNSETTLED and self.leverage >= LEVERAGE

    @property
    def largest(self) -> float:
        """The largest error of the output, of its derivatives, and of the columns that are held to the tolerance."""
        columns = (v for v, limit in zip(self.per_output, self.columns, strict=False) if limit > 0)
        return max(self.value, *(d.largest for d in self.derivatives), *columns, 0.0)

    @property
    def limit(self) -> float:
        """The largest 99 % upper limit of these."""
        return max(self.upper_99, *(d.limit for d in self.derivatives), *self.columns, 0.0)


def output_error(
    reference: Tensor, actual: Tensor, each: bool = False, risk: float = RISK, other: Tensor | None = None
) -> OutputError:
    """||Y - Y_h||_F / ||Y||_F for (rows, features) outputs, and how far it may lie higher on new rows.

    The squared error is a ratio of means over rows; its standard error comes from the linearised ratio (delta
    method, Cochran, Sampling Techniques, 1977, section 6.3), the limit from Student's t at 1 - `risk`, one-sided, with
    the first Edgeworth correction for skewness (Johnson, JASA 73, 1978), since squared errors have long upper tails.
    What is seen once in n rows may with 99 % confidence be as likely as ln(100) / n, so that the largest squared error
    counts ln(1 / risk) times. Beyond it, a tail of index xi is 1 / (1 - xi) times as large on average (Pareto's; Hill,
    Annals of Statistics 3, 1975); that counts where rows are few.

    A reference of zeros has error 0 where it is met exactly and infinity elsewhere. NaN counts as infinite. One row
    gives no confidence: its limit is infinite unless it is met exactly.

    each: hold every column to the tolerance, too. A column of zeros has no relative error and counts in the whole
    alone.  risk: that new inputs exceed the limit; smaller where several such tests are made (`upper_99` then holds
    with 99 % over all of them).  other: of the first rows, reference - actual by
    another account: the larger limit counts.
    """
    if other is not None:
        first = reference[: len(other)]
        error = output_error(reference, actual, each, risk)
        more = output_error(first, first - other, each, risk)
        columns = tuple(max(pair) for pair in zip(error.columns, more.columns, strict=True))
        larger = max(error, more, key=lambda e: e.upper_99)
        return replace(error, upper_99=larger.upper_99, columns=columns, expected=larger.value)
    reference, lost = _near_one(reference, reference - actual)
    e2, y2 = lost.square(), reference.square()
    whole = e2.sum(1, keepdim=True)
    (value,), (upper_99,) = _limits(whole, y2.sum(1, keepdim=True), risk)
    per_output = tuple(_ratio(e2.sum(0), y2.sum(0)).tolist())
    columns: tuple[float, ...] = ()
    if each:
        reference, lost = _near_one(reference, lost, columns=True)
        is_zero = (reference == 0).all(0)
        columns = tuple(torch.where(is_zero, 0.0, _limits(lost.square(), reference.square(), risk)[1]).tolist())
    leverage = float(whole.amax() / whole.sum()) if whole.numel() and 0 < float(whole.sum()) < math.inf else 0.0
    tail, value = float(_tail(whole)[0]), float(value)
    return OutputError(value, float(upper_99), per_output, (), columns, tail, leverage, risk, value)


def _near_one(reference: Tensor, lost: Tensor, columns: bool = False) -> tuple[Tensor, Tensor]:
    """Both over the reference's largest entry, or each column's: squares of others could leave the range of float64."""
    if not reference.numel():
        return reference, lost
    size = reference.abs().amax(0) if columns else reference.abs().max()
    size = torch.where((size > 0) & torch.isfinite(size), size, 1.0)
    return reference / size, lost / size


def _limits(e2: Tensor, y2: Tensor, risk: float) -> tuple[Tensor, Tensor]:
    """Relative errors (k,) of k ratios of squares (rows, k), and their limits."""
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
        t = float(stdtrit(rows - 1, 1 - risk))
        t = t + skew * (1 + 2 * t * t) / (6 * math.sqrt(rows))
        fading = min(1.0, math.log(MANY / rows) / math.log(MANY / FEW))
        # searches ask for thousands of limits, most of many rows
        steep = (STEEPER * (_tail(e2) - LIGHT)).clamp(0, fading * HEAVIEST) if fading > 0 else 0.0
        beyond = 1 / (1 - steep)
        upper2 = ratio + (t * spread * math.sqrt(rows) + (math.log(1 / risk) * beyond - 1) * e2.amax(0)) / scale
    is_wrong = (scale == 0) | ~torch.isfinite(total)
    values, limits = (torch.where(is_wrong, torch.inf, v.sqrt()) for v in (ratio, upper2))
    return torch.where(total == 0, 0.0, values), torch.where(total == 0, 0.0, limits)


def _tail(e2: Tensor) -> Tensor:
    """Hill's index (k,) of squares (rows, k), from the largest sqrt(rows); 0 where there are fewer than three rows."""
    rows = len(e2)
    if rows < 3:
        return torch.zeros(e2.shape[1], dtype=e2.dtype)
    count = min(rows - 1, max(5, round(math.sqrt(rows))))
    logs = e2.topk(count + 1, dim=0).values.clamp_min(torch.finfo(e2.dtype).tiny).log()
    return torch.nan_to_num((logs[:-1] - logs[-1]).mean(0), nan=0.0, posinf=0.0)


def _ratio(e2: Tensor, y2: Tensor) -> Tensor:
    out = (e2 / y2).sqrt()
    return torch.where(e2 == 0, torch.zeros_like(out), out)
