"""The paper's statements about W and H (Mango and Katende, arXiv 2409.07028), each beside the measured figure.

A statement is vacuous where its bound tells nothing new. Comparisons of singular values grant them
LAPACK's rounding (`svd_rounding`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hrt.certificate.certificate import HOLDS, VACUOUS, VIOLATED, Statement
from hrt.certificate.norms import has_exact_spectrum, svd_rounding


def verdict(bound: float, measured: float, vacuous: bool, rounding: float = 0.0) -> str:
    """Which of the three words applies; a bound that is vacuous is called so even where it happens to hold."""
    if vacuous or not math.isfinite(bound):
        return VACUOUS
    return HOLDS if measured <= bound + rounding else VIOLATED


@dataclass(frozen=True, eq=False)
class Spectra:
    """Singular values in float64, descending, of W, H and E = W - H, which are `w`, `h` and `e`."""

    w: Tensor
    h: Tensor
    e: Tensor
    rounding: float

    @staticmethod
    def of(w: Tensor, h: Tensor) -> "Spectra | None":
        """None where the matrix is empty, too large for it (`has_exact_spectrum`) or not finite."""
        if not has_exact_spectrum(w) or not bool(torch.isfinite(w).all() and torch.isfinite(h).all()):
            return None
        values = [torch.linalg.svdvals(a) for a in (w, h, w - h)]
        return Spectra(*values, rounding=svd_rounding(w))

    @property
    def error(self) -> float:
        """||E||_2"""
        return float(self.e[0])

    @property
    def slack(self) -> float:
        """What rounding may do to a difference of singular values."""
        return 4 * self.rounding * float(torch.maximum(self.w[0], self.h[0]))

    def condition(self, values: Tensor) -> float:
        """sigma_1 / sigma_min, infinite where sigma_min is not distinguishable from 0 in float64."""
        top, least = float(values[0]), float(values[-1])
        return top / least if least > self.rounding * top else math.inf

    def rank(self, values: Tensor) -> int:
        """How many singular values are distinguishable from 0."""
        return int((values > self.rounding * values[0]).sum())


def global_frobenius(w: Tensor, h: Tensor, tol: float) -> Statement:
    """||W - H||_F <= tol ||W||_F. Vacuous for tol >= 1, which H = 0 meets."""
    return _frobenius(w, h, tol * float(w.norm()), tol >= 1, "tol ||W||_F")


def leaf_frobenius(w: Tensor, h: Tensor, leaf_errors: Sequence[float]) -> Statement:
    """||W - H||_F <= sqrt(sum of squared block errors), for disjoint blocks an equality. Vacuous from ||W||_F on."""
    bound = math.sqrt(sum(v * v for v in leaf_errors))
    return _frobenius(w, h, bound, bound >= float(w.norm()) > 0, "sum of blocks")


def _frobenius(w: Tensor, h: Tensor, bound: float, vacuous: bool, remark: str) -> Statement:
    measured, rounding = float((w - h).norm()), 1e-12 * (float(w.norm()) + float(h.norm()))
    return Statement("Frobenius", bound, measured, verdict(bound, measured, vacuous, rounding), remark)


def singular_values(s: Spectra) -> Statement:
    """max_i |sigma_i(W) - sigma_i(H)| <= ||E||_2 (Weyl, Math. Ann. 71, 1912). Vacuous from sigma_1(W) on."""
    return _below_error(s, "singular values", float((s.w - s.h).abs().max()), "Weyl: ||E||_2")


def product(s: Spectra, e: Tensor, second: Tensor | None) -> Statement:
    """||W x - H x|| <= ||E||_2 ||x||, measured in root mean square over the inputs seen, sqrt(tr(E C E^T) / tr C) with
    C = E[x x^T], or without inputs over the unit vectors (the longest column). Vacuous from ||W||_2 on: so does H = 0.
    """
    if second is None:
        return _below_error(s, "product", float(e.norm(dim=0).max()), "worst unit vector")
    power = float(second.diagonal().sum())
    measured = math.sqrt(max(0.0, float(((e @ second) * e).sum())) / power) if power > 0 else 0.0
    return _below_error(s, "product", measured, "rms over the inputs seen")


def _below_error(s: Spectra, name: str, measured: float, remark: str) -> Statement:
    word = verdict(s.error, measured, s.error >= float(s.w[0]) > 0, s.slack)
    return Statement(name, s.error, measured, word, remark)


def condition(s: Spectra) -> Statement:
    """kappa(H) <= kappa(W) (1 + tau / sigma_k), taken literally: tau = ||E||_2, sigma_k the least singular value of W.

    Vacuous for tau >= sigma_k: H may then be singular, which no finite bound can cover. For smaller tau it is true only
    to first order: W = I and H = I - tau e e^T have kappa(H) = 1 / (1 - tau) > 1 + tau. `condition_exact` is correct.
    """
    kappa, least = s.condition(s.w), float(s.w[-1])
    bound = kappa * (1 + s.error / least) if math.isfinite(kappa) else math.inf
    return _condition(s, "condition (paper)", bound, "kappa(W)(1 + tau/sigma_k)")


def condition_first(s: Spectra) -> Statement:
    """kappa(H) <= kappa(W) (1 + tau / (sigma_k - tau)), theorem 1 (c). W = I, H = diag(1 + tau, 1 - tau) violate it."""
    kappa, gap = s.condition(s.w), float(s.w[-1]) - s.error
    bound = kappa * (1 + s.error / gap) if gap > 0 and math.isfinite(kappa) else math.inf
    return _condition(s, "condition (theorem 1c)", bound, "kappa(W)(1 + tau/(sigma_k - tau))")


def condition_exact(s: Spectra) -> Statement:
    """kappa(H) <= (sigma_1 + tau) / (sigma_k - tau) for tau < sigma_k, which follows from Weyl; vacuous otherwise."""
    gap = float(s.w[-1]) - s.error
    bound = (float(s.w[0]) + s.error) / gap if gap > 0 and math.isfinite(s.condition(s.w)) else math.inf
    return _condition(s, "condition (Weyl)", bound, "(sigma_1 + tau)/(sigma_k - tau)")


def _condition(s: Spectra, name: str, bound: float, formula: str) -> Statement:
    kappa, tau, least = s.condition(s.h), s.error, float(s.w[-1])
    vacuous = tau >= least or not math.isfinite(bound)
    # a relative error of kappa(H) from rounding sigma_min
    rounding = s.slack / float(s.h[-1]) * kappa if math.isfinite(kappa) else 0.0
    if not math.isfinite(s.condition(s.w)):
        formula += ": W is singular"
    elif vacuous:
        formula += f": tau {tau:.1e} >= sigma_k {least:.1e}, H may be singular"
    return Statement(name, finite(bound), finite(kappa), verdict(bound, kappa, vacuous, rounding), formula)


def spectral_statements(s: Spectra, e: Tensor, second: Tensor | None) -> tuple[Statement, ...]:
    """All that the spectra can tell."""
    return singular_values(s), product(s, e, second), condition(s), condition_exact(s)


def box_statement(per_output: Sequence[float], worst: Tensor, rms: Tensor) -> Statement:
    """|f - f_h| over the whole box, all outputs together: ||bounds||_2 / ||rms||_2 bounds the relative L2 error of any
    inputs in the box whose outputs have that root mean square. Vacuous from 1 on, beyond the outputs' own magnitude.
    """
    bound, measured, size = math.hypot(*per_output), float(worst.norm()), float(rms.norm())
    # both sides differ by float64 arithmetic: `measured` is not rounded outwards
    word = verdict(bound, measured, bound >= size and bound > 0, 1e-12 * size)
    share = f"{bound / size:.2e} of the outputs' rms" if size > 0 else "the outputs are zero"
    return Statement("output over the box", bound, measured, word, share)


def finite(value: float) -> float | None:
    """None for infinity and NaN, which JSON does not know."""
    return value if math.isfinite(value) else None
