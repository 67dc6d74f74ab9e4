"""A value of the original network, that of the compressed one, and their difference, enclosed together."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hrt.certificate.intervals import Interval
from hrt.certificate.norms import length


@dataclass(frozen=True, eq=False)
class Enclosure:
    """x and y lie in these intervals, their difference in d, its 2-norm over one sample is at most `norm`.

    Shapes (boxes, *shape), or (*shape) for a constant; norm (boxes,) or (1,); size: entries of one sample.
    """

    x: Interval
    y: Interval
    d: Interval
    norm: Tensor
    size: int

    @staticmethod
    def make(x: Interval, y: Interval, d: Interval, size: int, norm: Tensor | None = None) -> "Enclosure":
        """All that follows from the four together."""
        d = d.meet(x - y)
        total = length(d.magnitude, size)
        norm = total if norm is None else torch.fmin(norm, total)
        limit = like(norm, d.lo).expand_as(d.lo)
        d = d.meet(Interval(-limit, limit))
        return Enclosure(x.meet(y + d), y.meet(x - d), d, norm, size)


def like(norm: Tensor, v: Tensor) -> Tensor:
    """One number per sample, shaped to broadcast with v (samples, ...)."""
    return norm.reshape(-1, *(1,) * (v.ndim - 1)) if v.ndim else norm.reshape(())
