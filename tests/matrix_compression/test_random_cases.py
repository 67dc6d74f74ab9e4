"""Random matrices against the promises of `compress_matrix`. Every error is measured here, through `HMatrix.apply` on
the unit vectors and in extended precision, never by the code that chose the partition.
"""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hrt
from hrt.errors import ToleranceError

LARGEST_SIDE = 150
STORAGES = ("float32", "auto", "float16", "bfloat16", "int8")
LADDER = np.geomspace(1e-6, 0.3, 5)
SLACK = 0.01  # share by which bytes may rise when the tolerance is loosened or the choice of storage widened


@dataclass(frozen=True, eq=False)
class Case:
    """`w` (m, n) and the second moment `c` (n, n) or None, float64, and the request."""

    w: np.ndarray
    c: np.ndarray | None
    tol: float
    storage: str

    def nbytes(self, **changes) -> float:
        """Bytes, or those of dense float32 where that alone keeps the error, if at all."""
        try:
            request = {"tol": self.tol, "storage": self.storage, **changes}
            return hrt.compress_matrix(self.w, second_moment=self.c, **request).nbytes
        except ToleranceError:
            return 4 * self.w.size


def spectrum(rng, m, n):
    """Singular values flat, exponential, algebraic or a step, condition numbers to 1e14."""
    k = min(m, n)
    left, right = (np.linalg.qr(rng.standard_normal((side, k)))[0] for side in (m, n))
    place, decades = np.arange(k), rng.uniform(0, 14)
    kinds = (
        np.ones(k),
        10.0 ** (-decades * place / max(1, k - 1)),
        (1.0 + place) ** -rng.uniform(0.5, 4),
        np.where(place < rng.integers(1, k + 1), 1.0, 10.0**-decades),
    )
    return (left * kinds[rng.integers(len(kinds))]) @ right.T


def kernel(rng, m, n):
    """A smooth kernel on random points."""
    distance = np.abs(np.sort(rng.random(m))[:, None] - np.sort(rng.random(n))) + 1e-4
    return (np.log(distance), np.exp(-20 * distance), 1 / distance)[rng.integers(3)]


def noise(rng, m, n):
    """Nothing to compress but zeros."""
    return np.where(rng.random((m, n)) < rng.choice([0.0, 0.5, 0.95]), 0.0, rng.standard_normal((m, n)))


def zero_block(rng, w):
    rows, cols = (slice(*sorted(rng.integers(0, side + 1, 2))) for side in w.shape)
    w = w.copy()
    w[rows, cols] = 0.0
    return w


CHANGES = (
    lambda rng, w: w[rng.integers(0, rng.integers(1, len(w) + 1), len(w))],  # duplicated rows
    zero_block,
    lambda rng, w: np.where(rng.random(w.shape) < 0.5, rng.choice([1e-310, 1e-45, 1e-40, 1e-7]) * w, w),  # denormals
    lambda rng, w: w * 10.0 ** rng.uniform(-8, 8, (len(w), 1)),  # rows of very different sizes
    lambda rng, w: w[rng.permutation(w.shape[0])][:, rng.permutation(w.shape[1])],
    lambda rng, w: w / (np.abs(w).max() or 1.0) * 10.0 ** rng.choice([-42, -38, -30, -5, 5, 20, 30, 38]),
)


def second_moment(rng, n):
    """Of few rows (singular), of inputs that are zero, of any scale."""
    rows = int(rng.choice([1, max(1, n // 4), n, 4 * n]))
    x = rng.standard_normal((rows, n)) * 10.0 ** (-rng.uniform(0, 6) * np.arange(n) / n)
    x[:, rng.random(n) < rng.choice([0.0, 0.5])] = 0.0
    return rng.choice([1.0, 1e-20, 1e20]) * (x.T @ x) / rows


@st.composite
def cases(draw):
    """One draw of everything."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    m, n = draw(st.tuples(*[st.integers(1, LARGEST_SIDE)] * 2))
    w = draw(st.sampled_from((spectrum, kernel, noise)))(rng, m, n)
    for change in draw(st.lists(st.sampled_from(CHANGES), max_size=2)):
        w = change(rng, w)
    c = second_moment(rng, n) if draw(st.booleans()) else None
    return Case(w, c, 10 ** draw(st.floats(-6, -0.5)), draw(st.sampled_from(STORAGES)))


def relative_error(w: np.ndarray, h: hrt.HMatrix, c: np.ndarray | None = None) -> float:
    """The error promised, in extended precision; 0/0 is 0."""
    columns = h.apply(torch.eye(w.shape[1], dtype=torch.float64)).T.numpy()
    error2, norm2 = (squared_norm(v.astype(np.longdouble), c) for v in (w - columns, w))
    return float(np.sqrt(error2 / norm2)) if norm2 > 0 else (0.0 if error2 <= 0 else np.inf)


def squared_norm(e: np.ndarray, c: np.ndarray | None) -> np.longdouble:
    """tr(E C E^T) as a sum of positive terms in the eigenvectors of C; entry by entry it cancels."""
    if c is None:
        return (e * e).sum()
    values, vectors = np.linalg.eigh(c)
    return ((e @ vectors.astype(np.longdouble)) ** 2 * np.maximum(values, 0)).sum()


@settings(max_examples=50)
@given(cases())
def test_the_error_and_the_bytes_are_as_promised(case):
    dense = hrt.HMatrix.from_dense(torch.from_numpy(case.w))
    try:
        h = hrt.compress_matrix(case.w, second_moment=case.c, tol=case.tol, storage=case.storage)
    except ToleranceError:
        assert relative_error(case.w, dense, case.c) > 0.999 * case.tol, "float32 itself would do"
        return
    assert relative_error(case.w, h, case.c) <= case.tol
    numbers = sum(t.numel() * t.element_size() for leaf in h.leaves for t in leaf.tensors)
    assert numbers <= h.nbytes <= 4 * case.w.size


@settings(max_examples=4, derandomize=True)
@given(cases())
def test_a_looser_tolerance_takes_no_more_bytes(case):
    sizes = [case.nbytes(tol=float(tol)) for tol in LADDER]
    assert all(looser <= (1 + SLACK) * min(sizes[: k + 1]) for k, looser in enumerate(sizes[1:])), sizes


@settings(max_examples=4, derandomize=True)
@given(cases())
def test_the_choice_of_every_storage_takes_no_more_than_one(case):
    sizes = {storage: case.nbytes(storage=storage) for storage in STORAGES}
    assert sizes["auto"] <= (1 + SLACK) * min(sizes.values()), sizes
