"""What the paper says of the neural tangent kernel (arXiv 2409.07028: compression preserves it, definiteness included),
beside what is true.

Theta is the network's kernel, Theta_H the compressed one's, D their difference, lambda_i eigenvalues, descending.
Weyl's and Davis and Kahan's theorems always hold; the paper's statements need assumptions that it leaves out
(`tests/tangent_kernel/test_ntk_statements.py` has a counter-example to each).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from hrt.certificate.certificate import VACUOUS, Statement
from hrt.certificate.paper_statements import finite, verdict
from hrt.errors import InputError
from hrt.tangent_kernel.kernel_drift import Drift

FEWEST = 3  # points of a line with an interval


@dataclass(frozen=True)
class PowerLaw:
    """drift = factor * error^exponent, by least squares of logarithms, over `points` pairs.

    low, high: 95 % interval of the exponent (Student's t).  constant: the geometric mean of drift / error, the fit of
    C with the exponent held at 1.  worst: the largest drift / error, the least C that covers every pair.
    """

    exponent: float
    low: float
    high: float
    factor: float
    constant: float
    worst: float
    points: int


def fit_power_law(errors: Sequence[float], drifts: Sequence[float]) -> PowerLaw:
    """Fit the drift over the error of what is compressed. Pairs without drift are left out: they have no logarithm."""
    if len(errors) != len(drifts):
        raise InputError(f"Found {len(errors)} errors and {len(drifts)} drifts. Expected one drift for each.")
    if not all(0 < t < math.inf for t in errors) or not all(0 <= d < math.inf for d in drifts):
        raise InputError(f"Found errors {list(errors)} and drifts {list(drifts)}. Expected positive finite numbers.")
    pairs = [(t, d) for t, d in zip(errors, drifts, strict=True) if d > 0]
    if len({t for t, _ in pairs}) < FEWEST:
        raise InputError(f"Found {len(pairs)} pair(s) with a drift. Expected {FEWEST} different errors or more.")
    x, y = np.log([t for t, _ in pairs]), np.log([d for _, d in pairs])
    centred = x - x.mean()
    exponent = float(centred @ y / (centred @ centred))
    start = float(y.mean() - exponent * x.mean())
    left = y - start - exponent * x
    deviation = math.sqrt(float(left @ left) / (len(x) - 2) / float(centred @ centred))
    half = float(stdtrit(len(x) - 2, 0.975)) * deviation
    ratios = y - x
    factor, constant, worst = (math.exp(float(v)) for v in (start, ratios.mean(), ratios.max()))
    return PowerLaw(exponent, exponent - half, exponent + half, factor, constant, worst, len(x))


def ntk_drift(law: PowerLaw) -> Statement:
    """||Theta - Theta_H||_F <= C tol ||Theta||_F with one C for all tol, which means an exponent of 1 or more: violated
    where the whole interval of the measured exponent lies below 1, vacuous where it does not even exclude 0.

    True where tol bounds the weights' error and the activations' derivatives are Lipschitz; C belongs to the network
    and the points. False for ReLU, whose kernel jumps, and where tol bounds the output only.
    """
    remark = (
        f"exponent {law.exponent:.2f} ({law.low:.2f} to {law.high:.2f}) from {law.points} errors; "
        f"C = {law.constant:.2g} fitted, {law.worst:.2g} covers all"
    )
    return Statement("NTK drift <= C tol", law.high, 1.0, verdict(law.high, 1.0, law.low <= 0), remark)


def ntk_eigenvalues(d: Drift) -> Statement:
    """max_i |lambda_i(Theta) - lambda_i(Theta_H)| <= ||D||_2 (Weyl). Vacuous from lambda_1(Theta) on."""
    measured = float((d.before.values - d.after.values).abs().max())
    vacuous = d.spectral >= d.before.largest > 0
    word = verdict(d.spectral, measured, vacuous, d.before.rounding + d.after.rounding)
    return Statement("NTK eigenvalues", d.spectral, measured, word, "Weyl: ||D||_2")


def ntk_definite(d: Drift) -> Statement:
    """Theta_H is positive definite if Theta is, as the paper has it: the rounding is below the smallest eigenvalue.

    Vacuous where Theta is singular in this arithmetic itself. True for small D only: weights of low rank, or zeros,
    leave a singular kernel. `ntk_definite_exact` has the condition.
    """
    least, rounding = d.after.least, d.after.rounding
    word = verdict(least, rounding, not d.before.is_positive_definite)
    remark = f"lambda_min {d.before.least:.1e} before, {least:.1e} after"
    return Statement("NTK definite (paper)", finite(least), finite(rounding), word, remark)


def ntk_definite_exact(d: Drift) -> Statement:
    """lambda_min(Theta_H) >= lambda_min(Theta) - ||D||_2, and so Theta_H is positive definite, if ||D||_2 is below
    lambda_min(Theta); vacuous otherwise.
    """
    bound, measured = d.after.least, d.before.least - d.spectral
    rounding = d.before.rounding + d.after.rounding
    word = verdict(bound, measured, measured <= rounding, rounding)
    return Statement("NTK definite (Weyl)", bound, measured, word, "lambda_min(Theta) - ||D||_2 <= lambda_min(Theta_H)")


def ntk_eigenspaces(d: Drift) -> Statement:
    """||sin of the principal angles||_2 <= 2 min(sqrt(k) ||D||_2, ||D||_F) / (lambda_k - lambda_(k+1)) of the k leading
    eigenvectors (Yu, Wang and Samworth, Biometrika 102, 2015, theorem 2, on Davis and Kahan's). Vacuous from sqrt(k)
    on; without a gap leading eigenvectors may change places under the smallest D.
    """
    k = len(d.cosines)
    measured = math.sqrt(sum(max(0.0, 1 - c * c) for c in d.cosines))
    distance = 2 * min(math.sqrt(k) * d.spectral, d.frobenius)
    rounding = (d.before.rounding + d.after.rounding) * 2 * math.sqrt(k)
    if not 0 < d.gap < math.inf:  # the whole space, or no gap
        return Statement("NTK eigenspaces", None, measured, VACUOUS, "no gap follows these eigenvalues")
    bound = distance / d.gap
    # cosines near 1 say an angle only to the root of their rounding
    word = verdict(bound, measured, bound >= math.sqrt(k), rounding / d.gap + 1e-7)
    return Statement("NTK eigenspaces", finite(bound), measured, word, f"{k} leading, gap {d.gap:.1e}")


def ntk_statements(d: Drift) -> tuple[Statement, ...]:
    """All that one pair of kernels can tell."""
    return (ntk_eigenvalues(d), ntk_definite(d), ntk_definite_exact(d), ntk_eigenspaces(d))
