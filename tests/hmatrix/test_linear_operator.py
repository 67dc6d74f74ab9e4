"""HMatrix as a linear operator: products by the prepared plan, `@`, `.T` and SciPy's operator, on every structure."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import gmres
from torch.overrides import TorchFunctionMode

from hrt import HMatrix, InputError, Leaf, compress_matrix
from hrt.perf.networks.operators import log_kernel

from models import absolute, allowed, any_hmatrix


def low_rank(*orders) -> HMatrix:
    u, vt = torch.randn(30, 3), torch.randn(3, 20)
    return HMatrix((30, 20), (Leaf(0, 30, 0, 20, u=u, vt=vt),), *orders)


def int8_dense() -> HMatrix:
    numbers = torch.randint(-127, 128, (6, 9), dtype=torch.int8)
    return HMatrix((6, 9), (Leaf(0, 6, 0, 9, dense=numbers, scale=torch.rand(6).bfloat16()),))


STRUCTURES = {
    "dense": lambda: HMatrix.from_dense(torch.randn(7, 5)),
    "dense float16": lambda: HMatrix.from_dense(torch.randn(7, 5), torch.float16),
    "dense int8": int8_dense,
    "low rank": low_rank,
    "low rank, ordered": lambda: low_rank(torch.randperm(30), torch.randperm(20)),
    "zero": lambda: HMatrix((3, 4), (Leaf(0, 3, 0, 4, u=torch.zeros(3, 0), vt=torch.zeros(0, 4)),)),
    "empty": lambda: HMatrix((0, 4), ()),
    "HODLR": lambda: compress_matrix(log_kernel(128), tol=1e-4),
    "mixed storage": lambda: any_hmatrix(3, 60, 90, depth=4),
    "bfloat16": lambda: compress_matrix(log_kernel(64), tol=1e-1, storage="bfloat16"),
}


@pytest.fixture(params=STRUCTURES)
def h(request: pytest.FixtureRequest) -> HMatrix:
    torch.manual_seed(0)
    return STRUCTURES[request.param]()


def close(y: torch.Tensor | np.ndarray, x: np.ndarray, size: np.ndarray, k: int) -> bool:
    """Whether y is x but for what rounding does to sums of k float64 products with absolute values that add to size."""
    return bool((np.abs(np.asarray(y) - x) <= 4 * (k + 8) * np.finfo(np.float64).eps * size + 1e-300).all())


def dense_and_size(h: HMatrix) -> tuple[np.ndarray, np.ndarray]:
    """The matrix, and the sums of the absolute values that its products are rounded with."""
    return h.to_dense().numpy(), absolute(h).numpy()


def test_dot(h: HMatrix) -> None:
    """<A x, y> = <x, A^T y>, of the matrix and of SciPy's operator, in float64."""
    (m, n), generator = h.shape, np.random.default_rng(0)
    w, size = dense_and_size(h)
    x, y = generator.standard_normal(n), generator.standard_normal(m)
    operator, terms = h.to_scipy(), 4 * (m + n + 8) * np.finfo(np.float64).eps * float(np.abs(y) @ size @ np.abs(x))
    for ax, aty in ((h @ x, h.T @ y), (operator.matvec(x), operator.rmatvec(y)), (operator @ x, y @ h)):
        assert ax.dtype == aty.dtype == np.float64
        assert abs(ax @ y - x @ aty) <= terms
        assert close(ax, w @ x, size @ np.abs(x), n) and close(aty, w.T @ y, size.T @ np.abs(y), m)


def test_like_an_ordinary_matrix(h: HMatrix) -> None:
    (m, n), generator = h.shape, np.random.default_rng(1)
    w, size = dense_and_size(h)
    assert np.array_equal(h.T.to_dense().numpy(), w.T) or close(h.T.to_dense(), w.T, size.T, m + n)
    assert h.T.shape == (n, m) and h.T.T.shape == (m, n)
    for right in ((n,), (n, 1), (n, 3), (2, n, 3)):
        x = generator.standard_normal(right)
        assert close(h @ x, w @ x, size @ np.abs(x), n) and (h @ x).shape == (w @ x).shape
        tensor = h @ torch.from_numpy(x)
        assert isinstance(tensor, torch.Tensor) and close(tensor, w @ x, size @ np.abs(x), n)
    for left in ((m,), (1, m), (3, m), (2, 3, m)):
        x = generator.standard_normal(left)
        assert close(x @ h, x @ w, np.abs(x) @ size, m) and (x @ h).shape == (x @ w).shape
        tensor = torch.from_numpy(x) @ h
        assert isinstance(tensor, torch.Tensor) and close(tensor, x @ w, np.abs(x) @ size, m)
    z = generator.standard_normal(n) + 1j * generator.standard_normal(n)
    assert np.allclose(h @ z, w @ z, rtol=1e-12, atol=1e-12 * (1 + float(size.sum())))
    assert np.allclose(h @ np.arange(n), w @ np.arange(n), rtol=1e-12, atol=1e-12 * (1 + n * float(size.sum())))
    matrix = generator.standard_normal((n, 2))
    assert close(h.to_scipy().matmat(matrix), w @ matrix, size @ np.abs(matrix), n)


def test_what_is_prepared_stays_here(h: HMatrix) -> None:
    """A matrix that was multiplied is pickled and copied as it was before."""
    before = len(pickle.dumps(h))
    x = torch.randn(2, h.shape[1], dtype=torch.float64)
    y = h.apply(x), h.T, h.apply(x.float())
    assert len(pickle.dumps(h)) == before
    assert torch.equal(pickle.loads(pickle.dumps(h)).apply(x), y[0]) and torch.equal(copy.deepcopy(h).apply(x), y[0])
    assert h.T is y[1]


def test_prepared_in_any_state_it_has_gradients(h: HMatrix) -> None:
    """By x, of any order; also where the first call was made without them."""
    with torch.inference_mode():
        h.apply(torch.ones(1, h.shape[1], dtype=torch.float64))
    x = torch.randn(2, h.shape[1], dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(h.apply, (x,), fast_mode=True)
    torch.autograd.gradgradcheck(lambda v: h.apply(v).square(), (x,), fast_mode=True)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: h.apply(row[None])[0]))(x.detach())
    assert torch.allclose(jacobian, h.to_dense().expand(2, -1, -1), rtol=1e-10, atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(m=st.integers(1, 90), n=st.integers(1, 90), seed=st.integers(0, 2**32 - 1), rows=st.sampled_from([0, 1, 2, 64]))
def test_apply_in_float32(m: int, n: int, seed: int, rows: int) -> None:
    h = any_hmatrix(seed, m, n, depth=4, max_rank=9)
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(seed % 1000))
    for matrix, w, z in ((h, h.to_dense(), x), (h.T, h.to_dense().T, torch.randn(rows, m))):
        assert bool(((matrix.apply(z).double() - z.double() @ w.T).abs() <= allowed(z, matrix)).all())


class Counting(TorchFunctionMode):
    """How many operations of torch are called."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_few_operations_where_there_were_several_for_each_leaf() -> None:
    h, x = compress_matrix(log_kernel(256), tol=1e-3), torch.randn(1, 256)
    h.apply(x)
    with Counting() as counting:
        h.apply(x)
    assert len(h.leaves) > 40 and counting.count < 2 * len(h.leaves)


def test_a_solver_takes_it() -> None:
    w = np.eye(64) + 0.01 * log_kernel(64)
    h, b = compress_matrix(w, tol=1e-6), np.ones(64)
    solution, info = gmres(h.to_scipy(), b, rtol=1e-10)
    assert info == 0 and np.linalg.norm(h.to_dense().numpy() @ solution - b) <= 1e-9 * np.linalg.norm(b)


@pytest.mark.parametrize("x", [np.ones(4), np.ones((4, 2)), np.ones(()), torch.ones(2, 4, 3)])
def test_wrong_sizes_are_refused(x: np.ndarray) -> None:
    h = HMatrix.from_dense(torch.ones(5, 3))
    with pytest.raises(InputError, match="side of 3"):
        h @ x
    with pytest.raises(InputError, match="side of 5"):
        x @ h
    with pytest.raises(TypeError):
        h @ h  # pyright: ignore[reportOperatorIssue]
