"""compress_matrix: the bound holds for any matrix, and nothing is ever larger than dense."""

import math

import numpy as np
import pytest
import scipy.sparse
import torch

import hrt
from hrt.perf.networks.operators import laplace_2d, log_kernel

EPS32 = torch.finfo(torch.float32).eps


def spectrum_matrix(m: int, n: int, decay: float, seed: int) -> torch.Tensor:
    """Random singular vectors, singular values exp(-decay k): flat for 0, numerically singular for large decay."""
    g = torch.Generator().manual_seed(seed)
    k = min(m, n)
    u = torch.linalg.qr(torch.randn(m, k, dtype=torch.float64, generator=g)).Q
    v = torch.linalg.qr(torch.randn(n, k, dtype=torch.float64, generator=g)).Q
    return (u * torch.exp(-decay * torch.arange(k))) @ v.T


@pytest.mark.parametrize("n", [512, 1024])
def test_log_kernel_compresses_where_global_svd_cannot(n):
    w = torch.as_tensor(log_kernel(n))
    h = hrt.compress_matrix(w, tol=1e-3)
    sigma2 = torch.linalg.svdvals(w) ** 2
    tail = torch.sqrt(sigma2.flip(0).cumsum(0).flip(0) / sigma2.sum())
    svd_rank = int((tail > 1e-3).sum())
    assert svd_rank * 2 * n > n * n, "a global SVD at this tolerance takes more numbers than the matrix"
    assert h.error(w) <= 1e-3
    assert h.nbytes * 10 < 4 * n * n


def test_gram_angles_recover_a_permuted_kernel():
    w = torch.as_tensor(log_kernel(512))
    g = torch.Generator().manual_seed(1)
    shuffled = w[torch.randperm(512, generator=g)][:, torch.randperm(512, generator=g)]
    plain = hrt.compress_matrix(w, tol=1e-2)
    natural = hrt.compress_matrix(shuffled, tol=1e-2, ordering="natural")
    recovered = hrt.compress_matrix(shuffled, tol=1e-2)
    assert recovered.error(shuffled) <= 1e-2
    assert recovered.nbytes <= 1.2 * plain.nbytes < 0.5 * natural.nbytes


def test_coordinates_help_a_two_dimensional_kernel():
    w, points = laplace_2d(24**2)
    h = hrt.compress_matrix(w, tol=1e-2, row_points=points, column_points=points, ordering="coordinates")
    lexicographic = hrt.compress_matrix(w, tol=1e-2, ordering="natural")
    assert h.error(w) <= 1e-2
    assert h.nbytes < lexicographic.nbytes


def test_same_bytes_whatever_the_number_of_threads():
    w = torch.as_tensor(log_kernel(300))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 1, 2):
            torch.set_num_threads(threads)
            results.append(hrt.compress_matrix(w, tol=1e-4, storage="auto", seed=3))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0].leaves, other.leaves, strict=True):
            assert a.place == b.place and all(map(torch.equal, a.tensors, b.tensors))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 3), (17, 1), (0, 5), (5, 0), (0, 0)])
def test_degenerate_shapes(shape):
    w = torch.randn(*shape, dtype=torch.float64)
    h = hrt.compress_matrix(w, tol=1e-3)
    assert h.shape == shape
    assert tuple(h.to_dense().shape) == shape
    assert h.apply(torch.ones(2, shape[1])).shape == (2, shape[0])
    assert h.error(w) <= 1e-3


def test_zero_matrix_costs_next_to_nothing():
    h = hrt.compress_matrix(torch.zeros(200, 100), tol=1e-3)
    assert float(h.to_dense().abs().max()) == 0
    assert h.nbytes < 64
    for shape in ((1, 1), (1, 2), (2, 1), (3, 3)):
        assert hrt.compress_matrix(torch.zeros(shape), tol=1e-3).nbytes <= 4 * shape[0] * shape[1]


def test_kinds_of_input_and_output():
    w = spectrum_matrix(20, 30, 0.5, 0)
    for given_w in (w, w.float(), w.numpy(), w.float().numpy(), w.tolist()):
        assert hrt.compress_matrix(given_w, tol=1e-2).error(w) <= 1e-2 + EPS32
    h = hrt.compress_matrix(w, tol=1e-2)
    assert isinstance(h.apply(np.ones((2, 30))), np.ndarray)
    assert h.apply(np.ones((2, 30), np.float32)).dtype == np.float32
    assert isinstance(h.apply(torch.ones(2, 30)), torch.Tensor)


def test_tolerance_below_float32_is_refused_or_met():
    exact = torch.randn(40, 40)  # float32 numbers can be kept exactly, whatever the tolerance
    assert hrt.compress_matrix(exact, tol=1e-12).error(exact) <= 1e-12
    with pytest.raises(hrt.ToleranceError, match="float32"):
        hrt.compress_matrix(torch.randn(40, 40, dtype=torch.float64), tol=1e-12)


@pytest.mark.parametrize("size", [1e-200, 1e-60, 1e60, 1e200])
def test_numbers_outside_float32_are_refused(size):
    with pytest.raises(hrt.ToleranceError, match="float32"):
        hrt.compress_matrix(spectrum_matrix(20, 20, 0.2, 1) * size, tol=1e-2, storage="auto")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        *(({"tol": tol}, "tol .* up to 1,") for tol in (0, 1.5, -1e-3, math.nan, math.inf, "1e-3", None)),
        *(({"seed": seed}, "seed") for seed in (2**70, 1.5, "a", None, -1)),
        *(({"min_leaf": side}, "min_leaf") for side in ("3", 0, -1, 2.5, True)),
        *(({"storage": name}, "storage") for name in (["auto"], [], None, "int4")),
        ({"second_moment": torch.ones(3, 3)}, "shape"),
        ({"second_moment": torch.triu(torch.ones(4, 4))}, "symmetric"),
        ({"second_moment": -torch.eye(4)}, "positive semidefinite"),
        ({"ordering": "random"}, "ordering"),
        ({"ordering": "coordinates"}, "row_points"),
        ({"row_points": [[0.0], [1.0]]}, "row_points"),
        ({"row_points": "abc"}, "row_points"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(hrt.ToleranceError if "tol" in options else hrt.InputError, match=words):
        hrt.compress_matrix(torch.ones(4, 4), **options)


def test_a_matrix_beyond_memory_is_refused_before_anything_is_allocated():
    for huge in (torch.zeros(1, 1).expand(10**6, 10**6), np.broadcast_to(np.float64(1), (10**6, 10**6))):
        with pytest.raises(hrt.InputError, match=r"takes about [\d,.]+ GiB .* Nothing was allocated"):
            hrt.compress_matrix(huge)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("storage", ["float32", "auto"])
def test_large_matrices_take_the_fast_way_within_tolerance(dtype, storage):
    """From 2^20 entries on sketches are taken in float32, in place, and one ordering is chosen by an estimate."""
    w = torch.as_tensor(log_kernel(1100)).to(dtype)
    w[:, 700:] *= 1e3  # badly scaled columns
    before = w.clone()
    for tol in (1e-2, 1e-5):
        h = hrt.compress_matrix(w, tol=tol, storage=storage)
        assert h.error(w) <= tol and h.nbytes < 0.5 * 4 * w.numel()
    assert torch.equal(w, before)


def test_large_permuted_kernels_are_recovered_by_the_estimate():
    w = torch.as_tensor(log_kernel(1024))
    rows, cols = (torch.randperm(1024, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    plain = hrt.compress_matrix(w, tol=1e-2)
    h = hrt.compress_matrix(w[rows][:, cols], tol=1e-2)
    assert plain.row_order is None and h.row_order is not None
    assert h.error(w[rows][:, cols]) <= 1e-2 and h.nbytes <= 1.2 * plain.nbytes


def test_arrays_of_every_layout_and_byte_order():
    w = log_kernel(96)
    expected = hrt.compress_matrix(w, tol=1e-3).to_dense()
    w.setflags(write=False)
    for same in (np.asfortranarray(w), w[::-1][::-1], w.astype(">f8"), np.ma.asarray(w).data, w.astype(np.longdouble)):
        assert torch.equal(hrt.compress_matrix(same, tol=1e-3).to_dense(), expected)
    flipped = hrt.compress_matrix(w[::-1, ::-1], tol=1e-3)
    assert flipped.error(w[::-1, ::-1].copy()) <= 1e-3


@pytest.mark.parametrize(
    "wrong, words",
    [
        (None, "numbers"),
        ("abc", "numbers"),
        ([[1, 2], [3]], "numbers"),
        (np.array([[object()]]), "numbers"),
        (np.ma.masked_greater(np.eye(3), 0.5), "masked"),
        (torch.ones(3), "Expected a real"),
        (torch.ones(2, 2, 2), "Expected a real"),
        (torch.ones(2, 2, dtype=torch.complex64), "Expected real"),
        (torch.ones(3, 3, device="meta"), "meta"),
        (torch.tensor([[1.0, math.nan], [2.0, 3.0]]), "1 NaN or infinite"),
        (torch.tensor([[1.0, 2.0], [-math.inf, 3.0]]), "1 NaN or infinite"),
        (scipy.sparse.eye(4), "sparse"),
        (torch.eye(4).to_sparse(), "dense"),
        (np.broadcast_to(np.zeros((1, 1), np.longdouble), (10**6, 10**6)), "GiB"),
    ],
)
def test_what_holds_no_dense_numbers_is_refused(wrong, words):
    with pytest.raises(hrt.InputError, match=words):
        hrt.compress_matrix(wrong)
    with pytest.raises(hrt.InputError):
        hrt.compress_matrix(np.eye(4), second_moment=wrong if wrong is not None else "x")


def test_a_storage_too_coarse_for_the_tolerance_gives_way_to_float32():
    w = torch.randn(20, 20, generator=torch.Generator().manual_seed(0))
    for storage in ("int8", "float16", "bfloat16"):
        h = hrt.compress_matrix(w, tol=1e-5, storage=storage)
        assert h.error(w) <= 1e-5 and h.nbytes == 4 * w.numel() and h.leaves[0].dense.dtype == torch.float32
    with pytest.raises(hrt.ToleranceError, match="dense float32 has error"):
        hrt.compress_matrix(w.double() / 3, tol=1e-9, storage="int8")
