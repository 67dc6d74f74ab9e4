"""`python -m hrt.perf.studies.random_cases`: random matrices against the promises of `compress_matrix`.

Shapes from 1 x 1 to 300 x 300, spectra from flat to exponential, condition numbers to 1e14, kernels, permutations,
duplicated rows, zero blocks, denormals and huge scales; every storage; with and without a second moment, singular
ones too. Every error is measured here, through `HMatrix.apply` on the unit vectors and in extended precision, never
by the code that chose the partition. A failing case is printed with the command that repeats it alone.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import hrt
from hrt.errors import ToleranceError

LARGEST_SIDE = 300
LOOSEST, TIGHTEST = 0.3, 1e-6
STORAGES = ("float32", "auto", "float16", "bfloat16", "int8")
LADDER = 8  # tolerances per monotonicity check
SLACK = 0.01  # share by which bytes may rise when the tolerance is loosened or the choice of storage widened
TARGET_MEDIAN = 0.7  # of measured error over tolerance, where the compression loses anything
LOSSY = 10.0  # times the error of dense float32: below, the structure is exact (duplicates, zeros, true rank)


@dataclass(frozen=True, eq=False)
class Case:
    """One draw: `w` (m, n) and `c` (n, n) or None in float64, the request, and how the matrix was made."""

    index: int
    seed: int
    title: str
    w: np.ndarray
    c: np.ndarray | None
    tol: float
    storage: str

    def compress(self, tol: float | None = None, storage: str | None = None) -> hrt.HMatrix:
        """The call under test."""
        options = {"tol": tol or self.tol, "storage": storage or self.storage}
        return hrt.compress_matrix(self.w, second_moment=self.c, **options)


@dataclass(frozen=True)
class Outcome:
    """What became of a case: `error` relative (NaN where refused) beside that of dense float32, `nbytes`, and what is
    wrong with it.
    """

    error: float
    floor: float
    nbytes: int
    faults: tuple[str, ...] = ()
    refused: bool = False


def make_case(index: int, seed: int) -> Case:
    """Case `index` of the run `seed`; it depends on nothing else."""
    rng = np.random.default_rng([seed, index])
    m, n = (_side(rng) for _ in range(2))
    base = rng.choice(["spectrum", "kernel", "noise"], p=[0.6, 0.25, 0.15])
    w, title = {"spectrum": _spectrum, "kernel": _kernel, "noise": _noise}[base](rng, m, n)
    for change in (_duplicate_rows, _zero_block, _denormals, _row_scales, _permute, _scale):
        if rng.random() < 0.2:
            w, words = change(rng, w)
            title += f", {words}"
    c, words = _second_moment(rng, n) if rng.random() < 0.5 else (None, "")
    tol = float(np.exp(rng.uniform(np.log(TIGHTEST), np.log(LOOSEST))))
    storage = str(rng.choice(STORAGES, p=[0.3, 0.4, 0.1, 0.1, 0.1]))
    return Case(index, seed, f"{m}x{n} {title}{words}", w, c, tol, storage)


def _side(rng: np.random.Generator) -> int:
    uniform = rng.random() < 0.5
    return int(rng.integers(1, LARGEST_SIDE + 1) if uniform else np.exp(rng.uniform(0, np.log(LARGEST_SIDE))))


def _spectrum(rng: np.random.Generator, m: int, n: int) -> tuple[np.ndarray, str]:
    k = min(m, n)
    left = np.linalg.qr(rng.standard_normal((m, k)))[0]
    right = np.linalg.qr(rng.standard_normal((n, k)))[0]
    decades = rng.uniform(0, 14)
    place = np.arange(k) / max(1, k - 1)
    name = rng.choice(["flat", "exponential", "algebraic", "step"])
    values = {
        "flat": np.ones(k),
        "exponential": 10.0 ** (-decades * place),
        "algebraic": (1.0 + np.arange(k)) ** -rng.uniform(0.5, 4),
        "step": np.where(np.arange(k) < rng.integers(1, k + 1), 1.0, 10.0**-decades),
    }[name]
    return (left * values) @ right.T, f"{name} spectrum, condition {values[0] / values[-1]:.1e}"


def _kernel(rng: np.random.Generator, m: int, n: int) -> tuple[np.ndarray, str]:
    x, y = np.sort(rng.random(m)), np.sort(rng.random(n))
    distance = np.abs(x[:, None] - y) + 1e-4
    name = rng.choice(["log", "exponential", "Cauchy"])
    w = {"log": np.log(distance), "exponential": np.exp(-20 * distance), "Cauchy": 1 / distance}[name]
    return w, f"{name} kernel"


def _noise(rng: np.random.Generator, m: int, n: int) -> tuple[np.ndarray, str]:
    dropped = rng.random((m, n)) < rng.choice([0.0, 0.5, 0.95])
    return np.where(dropped, 0.0, rng.standard_normal((m, n))), f"noise, {dropped.mean():.0%} zeros"


def _duplicate_rows(rng: np.random.Generator, w: np.ndarray) -> tuple[np.ndarray, str]:
    kept = rng.integers(1, len(w) + 1)
    return w[rng.integers(0, kept, len(w))], f"rows drawn from {kept}"


def _zero_block(rng: np.random.Generator, w: np.ndarray) -> tuple[np.ndarray, str]:
    rows, cols = (slice(*sorted(rng.integers(0, side + 1, 2))) for side in w.shape)
    w = w.copy()
    w[rows, cols] = 0.0
    return w, f"zeros in [{rows.start}:{rows.stop}, {cols.start}:{cols.stop}]"


def _denormals(rng: np.random.Generator, w: np.ndarray) -> tuple[np.ndarray, str]:
    scale = float(rng.choice([1e-310, 1e-45, 1e-40, 1e-7]))  # denormal in float64, float32, float32, float16
    share = float(rng.choice([0.1, 0.9]))
    return np.where(rng.random(w.shape) < share, scale * w, w), f"{share:.0%} of entries times {scale:g}"


def _row_scales(rng: np.random.Generator, w: np.ndarray) -> tuple[np.ndarray, str]:
    return w * 10.0 ** rng.uniform(-8, 8, (len(w), 1)), "rows scaled over 16 decades"


def _permute(rng: np.random.Generator, w: np.ndarray) -> tuple[np.ndarray, str]:
    return w[rng.permutation(w.shape[0])][:, rng.permutation(w.shape[1])], "permuted"


def _scale(rng: np.random.Generator, w: np.ndarray) -> tuple[np.ndarray, str]:
    largest = float(np.abs(w).max()) or 1.0
    power = float(rng.choice([-42, -38, -30, -5, 5, 20, 30, 38]))
    return w / largest * 10.0**power, f"largest entry 1e{power:.0f}"


def _second_moment(rng: np.random.Generator, n: int) -> tuple[np.ndarray, str]:
    rows = int(rng.choice([1, max(1, n // 4), n, 4 * n]))  # fewer rows than n: singular
    mixing = rng.standard_normal((n, n)) * 10.0 ** (-rng.uniform(0, 6) * np.arange(n) / n)
    x = rng.standard_normal((rows, n)) @ mixing.T
    if rng.random() < 0.3:
        x[:, rng.random(n) < 0.5] = 0.0
    if rng.random() < 0.05:
        x = np.zeros_like(x)
    scale = float(rng.choice([1.0, 1e-20, 1e20], p=[0.8, 0.1, 0.1]))
    return scale * (x.T @ x) / rows, f"; second moment of {rows} rows, scale {scale:g}"


def relative_error(case: Case, h: hrt.HMatrix) -> float:
    """The error promised, of the matrix that `h` multiplies by, in extended precision; 0/0 is 0."""
    columns = h.apply(torch.eye(case.w.shape[1], dtype=torch.float64)).T.numpy()
    error2, norm2 = (_squared_norm(v, case.c) for v in (case.w - columns, case.w))
    return float(np.sqrt(error2 / norm2)) if norm2 > 0 else (0.0 if error2 <= 0 else np.inf)


def _squared_norm(e: np.ndarray, c: np.ndarray | None) -> np.longdouble:
    e = e.astype(np.longdouble)
    if c is None:
        return (e * e).sum()
    # tr(E C E^T) is a sum of positive terms in the eigenvectors of C; entry by entry it cancels.
    values, vectors = np.linalg.eigh(c)
    return ((e @ vectors.astype(np.longdouble)) ** 2 * np.maximum(values, 0)).sum()


def check(case: Case) -> Outcome:
    """Compress one case and measure every promise that one call makes."""
    m, n = case.w.shape
    floor = relative_error(case, hrt.HMatrix.from_dense(torch.from_numpy(case.w)))
    try:
        h = case.compress()
    except ToleranceError as refusal:
        fault = f"refused although dense float32 has error {floor:.3g}: {refusal}"
        return Outcome(np.nan, floor, 4 * m * n, () if floor > 0.999 * case.tol else (fault,), refused=True)
    except Exception:
        return Outcome(np.nan, floor, 4 * m * n, (traceback.format_exc(limit=-3),))
    error, faults = relative_error(case, h), []
    numbers = sum(t.numel() * t.element_size() for leaf in h.leaves for t in leaf.tensors)
    if not error <= case.tol:
        faults.append(f"error {error:.4g} above tol {case.tol:.4g}")
    if h.nbytes > 4 * m * n:
        faults.append(f"{h.nbytes} bytes, dense float32 {4 * m * n}")
    if h.nbytes < numbers:
        faults.append(f"nbytes {h.nbytes} below the {numbers} bytes of its numbers")
    return Outcome(error, floor, h.nbytes, tuple(faults))


def ladder(case: Case) -> tuple[str, ...]:
    """Where the bytes of `case` rise by more than SLACK as the tolerance is loosened."""
    faults, tightest, least = [], 0.0, np.inf
    for tol in np.geomspace(TIGHTEST, LOOSEST, LADDER):
        try:
            nbytes = case.compress(float(tol)).nbytes
        except ToleranceError:
            nbytes = np.inf
        if nbytes > least * (1 + SLACK):
            faults.append(f"{least:.0f} bytes at tol {tightest:.3g} but {nbytes:.0f} at the looser {tol:.3g}")
        if nbytes < least:
            tightest, least = float(tol), nbytes
    return tuple(faults)


def storages(case: Case) -> tuple[str, ...]:
    """Where storage "auto", which may use every type, needs more bytes than one type alone."""
    sizes = {}
    for storage in STORAGES:
        try:
            sizes[storage] = case.compress(storage=storage).nbytes
        except ToleranceError:
            sizes[storage] = 4 * case.w.size
    best = min(sizes, key=lambda name: sizes[name])
    if sizes["auto"] <= sizes[best] * (1 + SLACK):
        return ()
    return (f"storage auto needs {sizes['auto']} bytes, {best} alone {sizes[best]}",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases and print the summary. Returns 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="cases (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the whole run (default 0)")
    parser.add_argument("--only", type=int, nargs="+", help="run these case indices alone")
    parser.add_argument(
        "--ladder-every", type=int, default=10, help="monotonicity of every n-th case, in tol and storage (default 10)"
    )
    args = parser.parse_args(arguments)
    console, start = Console(width=118), time.perf_counter()
    indices = args.only or range(args.count)
    broken, refused, ladders = 0, 0, 0
    lossy: dict[str, list[float]] = {}
    every: list[float] = []
    for index in track(indices, "cases", console=Console(stderr=True), transient=True):
        case = make_case(index, args.seed)
        outcome = check(case)
        faults = outcome.faults
        if args.only or index % args.ladder_every == 0:
            faults += ladder(case) + storages(case)
            ladders += 1
        refused += outcome.refused
        if outcome.nbytes < 4 * case.w.size:
            every.append(outcome.error / case.tol)
            if outcome.error > LOSSY * outcome.floor:
                lossy.setdefault(case.storage, []).append(every[-1])
        if faults:
            broken += 1
            again = f"python -m hrt.perf.studies.random_cases --seed {args.seed} --only {index}"
            console.print(f"case {index}: {case.title}, tol {case.tol:.6g}, {case.storage}", soft_wrap=True)
            console.print("".join(f"    {fault}\n" for fault in faults) + f"    {again}", markup=False)
    console.print(summary(lossy))
    used = float(np.median([v for values in lossy.values() for v in values])) if lossy else np.nan
    console.print(
        f"{len(indices)} cases, seed {args.seed}, {time.perf_counter() - start:.0f} s: {broken} broke a promise; "
        f"{refused} rightly refused (float32 itself misses tol); {ladders} ladders of {LADDER} tolerances.\n"
        f"Median of error / tol: {used:.3f} where compression loses anything, "
        f"{'above' if used > TARGET_MEDIAN else 'NOT above'} the target of {TARGET_MEDIAN:g}; "
        f"{np.median(every) if every else np.nan:.3f} over all {len(every)} that got smaller."
    )
    return 1 if broken else 0


def summary(ratios: dict[str, list[float]]) -> Table:
    """How much of the tolerance was used, by storage."""
    table = Table(title=f"error / tolerance, where compressed with more than {LOSSY:g} times float32's own error")
    for name in ("storage", "cases", "5 %", "25 %", "median", "75 %", "largest"):
        table.add_column(name, justify="left" if name == "storage" else "right")
    for storage, values in sorted(ratios.items()):
        cells = [f"{v:.3f}" for v in np.quantile(values, [0.05, 0.25, 0.5, 0.75, 1.0])]
        table.add_row(storage, str(len(values)), *cells)
    return table


if __name__ == "__main__":
    sys.exit(main())
