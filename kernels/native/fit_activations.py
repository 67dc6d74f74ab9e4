"""Coefficients of activations.h, made with 40 digits: python -m hrt.kernels.native.fit_activations writes them.

Polynomials by Remez's exchange; rationals by weighted least squares with Lawson's weights. What a table of two columns
says of a function's error is approximation alone; kernels/native/accuracy.csv holds what is measured with rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpmath as mp
import numpy as np

HEADER = Path(__file__).with_name("coefficients.h")
DIGITS = 40
DENSITY = 16  # points per coefficient on which the exchange looks for extrema
WORDS = 44  # of 32 bits of 2 / pi, behind two of zeros: enough for every double
Real = Any  # of mpmath, which has no types


@dataclass(frozen=True)
class Fit:
    """f(t) ~ sum c_k t^k on [low, high], least max weight |f - p|. terms: for float32 and float64, 0 for neither."""

    name: str
    f: Callable[[Real], Real]
    weight: Callable[[Real], Real]
    low: Real
    high: Real
    terms: tuple[int, int]


def minimax(fit: Fit, terms: int, rounds: int = 20) -> list[Real]:
    """Coefficients by Remez's exchange."""
    count = DENSITY * (terms + 1)
    low, high = mp.mpf(fit.low), mp.mpf(fit.high)
    grid = [low + (high - low) * (1 - mp.cos(mp.pi * (i + mp.mpf(0.5)) / count)) / 2 for i in range(count)]
    values, weights = [fit.f(t) for t in grid], [fit.weight(t) for t in grid]
    places = [int((i + 0.5) * count / (terms + 1)) for i in range(terms + 1)]
    coefficients: list[Real] = []
    for _ in range(rounds):
        rows = [[grid[i] ** k for k in range(terms)] + [(-1) ** r / weights[i]] for r, i in enumerate(places)]
        solution = mp.lu_solve(mp.matrix(rows), mp.matrix([values[i] for i in places]))
        coefficients = [solution[k] for k in range(terms)]
        errors = [w * (f - mp.polyval(coefficients[::-1], t)) for t, f, w in zip(grid, values, weights, strict=True)]
        extrema = _extrema(errors, terms + 1)
        if len(extrema) <= terms or extrema == places:
            break
        places = extrema
    return coefficients


def _extrema(errors: Sequence[Real], count: int) -> list[int]:
    """Where the error is largest between its changes of sign; the least at either end go where there are too many."""
    places: list[int] = []
    for i, e in enumerate(errors):
        if not places or (e > 0) != (errors[places[-1]] > 0):
            places.append(i)
        elif abs(e) > abs(errors[places[-1]]):
            places[-1] = i
    while len(places) > count:
        places.pop(0 if abs(errors[places[0]]) < abs(errors[places[-1]]) else -1)
    return places


def odd_rational(f: Callable[[Real], Real], limit: float, p: int, q: int, rounds: int = 100) -> tuple[Any, Any]:
    """f(x) ~ x P(u) / Q(u), u = x^2, on [0, limit], least relative error, in float64: for float32 alone."""
    x = limit * (0.5 - 0.5 * np.cos(np.pi * (np.arange(1000) + 0.5) / 1000))
    y, u = np.array([float(f(v)) for v in x]), (x / limit) ** 2
    lawson, below, least = np.ones_like(x), np.ones_like(x), np.inf
    numerator, denominator = np.ones(p + 1), np.ones(q + 1)
    for _ in range(rounds):
        w = np.sqrt(lawson) / (y * below)
        powers = u[:, None] ** np.arange(max(p, q) + 1)
        a = np.concatenate([x[:, None] * powers[:, : p + 1], -y[:, None] * powers[:, 1 : q + 1]], 1)
        c = np.linalg.lstsq(w[:, None] * a, w * y, rcond=1e-17)[0]
        over, under = c[: p + 1], np.concatenate([[1.0], c[p + 1 :]])
        below = powers[:, : q + 1] @ under
        error = np.abs(x * (powers[:, : p + 1] @ over) / below / y - 1)
        if error.max() < least:
            least, numerator, denominator = error.max(), over, under
        lawson = lawson * error / np.mean(lawson * error)
    scale = float(limit) ** -2.0
    return numerator * scale ** np.arange(p + 1), denominator * scale ** np.arange(q + 1)


def ending_at_one(over: Sequence[float], under: Sequence[float], limit: float) -> np.float32:
    """The largest float32 below `limit` where x P(u) / Q(u), in float32, is 1, and nowhere below it more: beyond it an
    odd function that ends at 1 stands still. Compilers may round a * b + c once or twice.
    """
    x = np.arange(*np.array([0.75 * limit, limit], np.float32).view(np.int32), dtype=np.int32).view(np.float32)
    u = x * x

    def value(once: bool) -> np.ndarray:
        sums = []
        for coefficients in (over, under):
            y = np.full_like(u, coefficients[-1])
            for c in np.array(coefficients[-2::-1], np.float32):
                y = (u.astype(np.float64) * y + c).astype(np.float32) if once else u * y + c
            sums.append(y)
        return x * sums[0] / sums[1]

    values = np.stack([value(once=True), value(once=False)])
    beyond = np.nonzero((values > 1).any(0))[0]
    ends = np.nonzero((values == 1).all(0)[: beyond[0] if len(beyond) else None])[0]
    return np.float32(x[ends[-1]])


def series(f: Callable[[Real], Real], first: Callable[[Real], Real], limit: Real) -> Callable[[Real], Real]:
    """u -> (f(x) / x - first) / u for x = sqrt(u), and its limit at 0: what follows x in an odd function."""
    return lambda u: limit if u < mp.mpf(10) ** -15 else (f(mp.sqrt(u)) / mp.sqrt(u) - first(u)) / u


def fits() -> list[Fit]:
    """Every polynomial of activations.h."""
    tiny, third = mp.mpf(10) ** -12, mp.mpf(1) / 3
    edge = mp.mpf(1.001)  # rounding takes an argument over the end of its interval

    def one(_: Real) -> Real:
        return mp.mpf(1)

    def relative(u: Real) -> Real:
        return u + tiny

    def exp(r: Real) -> Real:
        return (mp.expm1(r) - r) / r**2 if abs(r) > tiny else mp.mpf(1) / 2

    def erf(u: Real) -> Real:
        return mp.erf(mp.sqrt(u)) / mp.sqrt(u) if u > tiny**2 else 2 / mp.sqrt(mp.pi)

    def tail(t: Real) -> Real:
        return mp.erfc(1 / (t + middle)) * mp.exp(1 / (t + middle) ** 2)

    def odd(name: str, f: Callable[[Real], Real], cubic: Real, high: Real, terms: tuple[int, int]) -> Fit:
        return Fit(name, series(f, one, cubic), relative, 0, high, terms)

    half = mp.log(2) / 2 * edge
    middle, half_length = mp.mpf(0.5625), mp.mpf(0.4375)  # of 1 / x for x in [1, 8]
    return [
        Fit("EXP", exp, lambda r: r * r + tiny, -half, half, (5, 11)),
        Fit("LOG", series(lambda s: 2 * mp.atanh(s), lambda _: 2, 2 * third), relative, 0, 0.02945, (3, 7)),
        odd("SIN", mp.sin, -third / 2, (mp.pi / 2) ** 2 * edge, (5, 9)),
        odd("SINPI", lambda x: mp.sin(mp.pi * x) / mp.pi, -(mp.pi**2) / 6, 0.25, (5, 9)),
        odd("TAN", mp.tan, third, (mp.pi / 4) ** 2 * edge, (7, 16)),
        odd("ATAN", mp.atan, -third, 1, (9, 21)),
        odd("ASIN", mp.asin, third / 2, 0.25, (6, 13)),
        Fit("ERF", erf, one, 0, 1, (0, 13)),
        Fit("ERFC", tail, lambda t: mp.exp(-1 / (t + middle) ** 2) + tiny**2, -half_length, half_length, (0, 19)),
    ]


def split(value: Real, bits: int, parts: int) -> list[float]:
    """Parts of `bits` bits, then one of float64's 53, whose sum is `value`: k times a part is exact for k small."""
    numbers = []
    for _ in range(parts):
        unit = mp.mpf(2) ** (mp.floor(mp.log(abs(value), 2)) + 1 - bits)
        numbers.append(float(mp.nint(value / unit) * unit))
        value -= numbers[-1]
    return [*numbers, float(value)]


def digits(value: Any, double: bool) -> str:
    """A literal that reads back as `value` rounded."""
    if double:
        return repr(float(value))
    text = str(np.float32(float(value)))
    return (text if "." in text or "e" in text else text + ".0") + "f"


def horner(name: str, coefficients: Sequence[Any], double: bool) -> str:
    """A macro."""
    text = digits(coefficients[-1], double)
    for c in coefficients[-2::-1]:
        text = f"{digits(c, double)} + (u) * ({text})"
    return f"#define HRT_{name}(u) ({text})"


def constants(double: bool) -> dict[str, Any]:
    """Single numbers, and ln 2, pi and pi / 2 in parts."""
    mantissa, bias = (52, 1023) if double else (23, 127)
    bits, parts = (32, 2) if double else (11, 3)
    numbers: dict[str, Any] = {
        "LOG2E": 1 / mp.log(2),
        "LN2": mp.log(2),
        "INV_PI": 1 / mp.pi,
        "TWO_OVER_PI": 2 / mp.pi,
        "PI": mp.pi,
        "HALF_PI": mp.pi / 2,
        "HALF_PI_LOW": mp.pi / 2 - mp.mpf(digits(mp.pi / 2, double).rstrip("f")),
        "PI_LOW": mp.pi - mp.mpf(digits(mp.pi, double).rstrip("f")),
        "SQRT_HALF": mp.sqrt(0.5),
        "GELU": 2 * mp.sqrt(2 / mp.pi),
        "GELU_CUBIC": 2 * mp.sqrt(2 / mp.pi) * mp.mpf("0.044715"),
        "LEAST_NORMAL": mp.mpf(2) ** (1 - bias),
        "TWO_TO_MANTISSA": mp.mpf(2) ** mantissa,
        "MAGIC": mp.mpf(3) * mp.mpf(2) ** (mantissa - 1),
        "EXP_LOW": -mp.log(2) * (bias + mantissa + 2),
        "EXP_HIGH": mp.log(2) * (bias + 1.5),
        "LARGE_ANGLE": mp.mpf(2) ** (20 if double else 13),
        "HUGE": mp.mpf(2) ** (60 if double else 28),
    }
    for name, value in (("LN2", mp.log(2)), ("PI", mp.pi)):
        for k, part in enumerate(split(value, bits, parts if name == "PI" else 1)):
            numbers[f"{name}_{k}"] = part
    for k in range(parts + 1):
        numbers[f"HALF_PI_{k}"] = numbers[f"PI_{k}"] / 2
    return numbers


def precision_text(double: bool) -> list[str]:
    """The macros of one precision."""
    lines = [f"#define HRT_{name} {digits(value, double)}" for name, value in constants(double).items()]
    for fit in fits():
        if terms := fit.terms[double]:
            lines.append(horner(fit.name, minimax(fit, terms), double))
    if not double:
        for name, f, limit, degree in (("TANH", mp.tanh, 8.2, 4), ("ERF", mp.erf, 4.0, 5)):
            over, under = odd_rational(f, limit, degree, degree)
            limit = ending_at_one(over, under, limit) if name == "TANH" else limit
            lines += [
                horner(f"{name}_OVER", over, double),
                horner(f"{name}_UNDER", under, double),
                f"#define HRT_{name}_LIMIT {digits(limit, double)}",
            ]
    return lines


def always_double_text() -> list[str]:
    """What float32 needs too: large angles and real powers are computed in float64."""
    sine = next(fit for fit in fits() if fit.name == "SIN")
    log = next(fit for fit in fits() if fit.name == "LOG")
    exp = next(fit for fit in fits() if fit.name == "EXP")
    with mp.workprec(32 * WORDS + 64):
        bits = int(mp.floor(2 / mp.pi * mp.mpf(2) ** (32 * WORDS)))
    words = [0, 0, *((bits >> (32 * (WORDS - 1 - k))) & 0xFFFFFFFF for k in range(WORDS))]
    rows = [", ".join(f"0x{w:08x}u" for w in words[k : k + 8]) for k in range(0, len(words), 8)]
    numbers = [f"#define HRT_D_{name} {digits(value, True)}" for name, value in constants(True).items()]
    return [
        *(horner(f"D_{fit.name}", minimax(fit, fit.terms[1]), True) for fit in (sine, log, exp)),
        *(line for line in numbers if line.split()[1] in DOUBLES),
        f"static const uint32_t hrt_two_over_pi[{len(words)}] = {{",
        *(f"    {row}," for row in rows),
        "};",
    ]


DOUBLES = {f"HRT_D_{name}" for name in ("HALF_PI", "HALF_PI_LOW", "LOG2E", "LN2_0", "LN2_1", "MAGIC")}


def text() -> str:
    """All of coefficients.h."""
    mp.mp.dps = DIGITS
    lines = [
        "/* Made by python -m hrt.kernels.native.fit_activations. */",
        "#ifdef HRT_DOUBLE",
        *precision_text(True),
        "#else",
        *precision_text(False),
        "#endif",
        *always_double_text(),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    HEADER.write_text(text(), "utf-8")
