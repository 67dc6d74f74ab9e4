"""The reference backend: torch multiplies as the matrices say, in few products; what every session keeps to."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.hmatrix.torch_products import LowRank, Product
from hrt.perf.networks.operators import log_kernel
from hrt.program.program import Node, Program, Value
from hrt.runtime import TorchSession, open_session
from hrt.runtime.torch_session import WORKSPACE

from forked import forked
from helpers import random_hmatrix
from models import allowed, any_hmatrix, as_int8, linear_program, mixed_model

CPU = torch.device("cpu")
EPS = torch.finfo(torch.float32).eps


def assert_product(h: HMatrix, batch: int, seed: int = 0) -> None:
    """Product.apply equals x W^T with W = to_dense, entry by entry, within what float32 rounding allows."""
    x = torch.randn(batch, h.shape[1], generator=torch.Generator().manual_seed(seed))
    y = Product(h, CPU).apply(x)
    assert y.dtype == torch.float32 and tuple(y.shape) == (batch, h.shape[0])
    error = (y.double() - x.double() @ h.to_dense().T).abs()
    assert bool((error <= allowed(x, h)).all())


def weak_kernel(n: int, rank: int = 3) -> HMatrix:
    """A HODLR matrix of a log kernel: off-diagonal blocks by SVD, finest diagonal blocks dense."""
    w = torch.from_numpy(log_kernel(n))
    leaves: list[Leaf] = []

    def divide(start: int, size: int) -> None:
        if size <= 16:
            rows = slice(start, start + size)
            leaves.append(Leaf(start, size, start, size, dense=w[rows, rows].float()))
            return
        half = size // 2
        divide(start, half)
        divide(start + half, size - half)
        for r, rs, c, cs in ((start, half, start + half, size - half), (start + half, size - half, start, half)):
            u, s, vt = torch.linalg.svd(w[r : r + rs, c : c + cs], full_matrices=False)
            k = min(rank, len(s))
            leaves.append(Leaf(r, rs, c, cs, u=(u[:, :k] * s[:k]).float(), vt=vt[:k].float()))

    divide(0, n)
    return HMatrix((n, n), tuple(leaves))


class TestProduct:
    @settings(max_examples=120, deadline=None)
    @given(
        m=st.integers(1, 300),
        n=st.integers(1, 300),
        seed=st.integers(0, 2**32 - 1),
        depth=st.integers(0, 5),
        batch=st.sampled_from([0, 1, 2, 33]),
    )
    def test_equals_the_dense_matrix(self, m, n, seed, depth, batch):
        assert_product(any_hmatrix(seed, m, n, depth=depth, max_rank=9), batch)

    @pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
    def test_of_a_matrix_without_entries(self, shape):
        session = open_session(linear_program(HMatrix(shape, ())))
        (y,) = session.run([torch.ones(3, shape[1])])
        assert torch.equal(y, torch.zeros(3, shape[0]))

    def test_of_rows_that_cross_at_different_heights(self):
        # a dense column block over all rows beside short ones, which nothing can be cut to cheaply
        t = torch.Generator().manual_seed(0)
        leaves = [Leaf(0, 32, 0, 64, dense=torch.randn(32, 64, generator=t))]
        leaves += [Leaf(k, 1, 64, 3, dense=torch.randn(1, 3, generator=t)) for k in range(32)]
        h = HMatrix((32, 67), tuple(leaves))
        assert len(Product(h, CPU).index) == 2
        assert_product(h, 5)

    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 90), bad=st.sampled_from([np.nan, np.inf, -np.inf]))
    def test_padding_carries_nothing_from_one_sample_to_another(self, seed, size, bad):
        product = Product(any_hmatrix(seed, size, size + 3, depth=4), CPU)
        x = torch.randn(5, size + 3, generator=torch.Generator().manual_seed(1))
        clean = product.apply(x)
        x[2] = bad
        y = product.apply(x)
        others = [0, 1, 3, 4]
        assert torch.equal(y[others], clean[others]) and bool(torch.isfinite(y[others]).all())

    def test_a_single_bad_entry_reaches_the_rows_that_read_it_and_no_other(self):
        h = random_hmatrix(4, 60, 60, depth=4, ordered=False)
        product, x = Product(h, CPU), torch.ones(1, 60)
        for column in (0, 31, 59):
            x[:] = 1
            x[0, column] = torch.nan
            readers = torch.zeros(60, dtype=torch.bool)
            for e in h.leaves:
                if e.rank and e.col <= column < e.col + e.cols:
                    readers[e.row : e.row + e.rows] = True
            assert torch.equal(torch.isnan(product.apply(x)[0]), readers)

    def test_does_not_depend_on_memory_that_was_never_written(self, monkeypatch):
        product = Product(random_hmatrix(8, 200, 190, depth=5, max_rank=9), CPU)
        x = torch.randn(4, 190, generator=torch.Generator().manual_seed(0))
        expected = product.apply(x)
        empty = torch.Tensor.new_empty
        monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
        assert torch.equal(product.apply(x), expected)

    @pytest.mark.parametrize("n, levels", [(64, 2), (256, 4), (777, 6)])
    def test_takes_a_product_per_level_and_one_more_however_many_leaves(self, n, levels, monkeypatch):
        h = weak_kernel(n)
        product, calls = Product(h, CPU), []
        for name in ("bmm", "baddbmm", "matmul", "mm", "addmm"):
            original = getattr(torch, name)
            monkeypatch.setattr(torch, name, lambda *a, o=original, **k: calls.append(1) or o(*a, **k))
        product.apply(torch.ones(2, n))
        assert len(calls) == levels + 1
        assert len(h.leaves) == 3 * 2**levels - 2

    def test_holds_little_more_than_the_numbers(self):
        for n in (512, 1000):
            h = weak_kernel(n)
            assert h.nbytes * 0.9 <= Product(h, CPU).nbytes <= 1.3 * h.nbytes

    def test_of_one_low_rank_leaf_is_two_plain_products(self):
        leaf = Leaf(0, 30, 0, 20, u=torch.ones(30, 2).half(), vt=torch.ones(2, 20).half())
        product = Product.of(HMatrix((30, 20), (leaf,)), CPU)
        assert isinstance(product, LowRank) and product.nbytes == 4 * 2 * 50
        assert torch.equal(product.apply(torch.ones(3, 20)), torch.full((3, 30), 40.0))
        h = HMatrix((30, 20), (leaf, as_int8(leaf)))
        both = Product.of(h, CPU)
        assert isinstance(both, LowRank)
        assert torch.allclose(both.apply(torch.ones(3, 20)).double(), h.to_dense().sum(1).expand(3, 30), rtol=1e-5)
        ordered = HMatrix((30, 20), (leaf,), torch.arange(29, -1, -1))
        assert isinstance(Product.of(ordered, CPU), Product)
        assert_product(ordered, 3)

    @pytest.mark.parametrize("batch", [1, 3])
    def test_takes_any_layout_and_keeps_its_input(self, batch):
        product = Product(random_hmatrix(2, 50, 40, depth=3, ordered=True), CPU)
        x = torch.randn(batch, 40, generator=torch.Generator().manual_seed(0))
        kept, expected = x.clone(), product.apply(x)
        assert torch.equal(product.apply(x.T.contiguous().T), expected)
        assert torch.equal(product.apply(torch.stack((x, x), 2)[:, :, 0]), expected)
        assert torch.equal(x, kept)


class TestTorchSession:
    def test_runs_the_whole_program(self):
        program = mixed_model().program
        t = torch.Generator().manual_seed(0)
        x = [torch.randn(6, *v.shape, generator=t) for v in program.inputs]
        dense = {k: c.to_dense() if isinstance(c, HMatrix) else c.double() for k, c in program.constants.items()}
        with torch.no_grad():
            expected = program.run(x, constants=dense)
        for a, b in zip(TorchSession(program).run(x), expected, strict=True):
            assert a.dtype == torch.float32
            assert float((a - b).abs().max()) <= 1e3 * EPS * float(b.abs().max())

    @pytest.mark.parametrize("setting", ["default dtype", "autocast", "inference mode", "grad mode"])
    @pytest.mark.parametrize("weights", [random_hmatrix(1, 40, 30, depth=3), torch.rand(40, 30)], ids=["H", "dense"])
    def test_computes_in_float32_whatever_is_set_around_it(self, weights, setting):
        program = linear_program(weights)
        x = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
        (expected,) = TorchSession(program).run([x])
        if setting == "default dtype":
            torch.set_default_dtype(torch.float64)
            try:
                (y,) = TorchSession(program).run([x])
            finally:
                torch.set_default_dtype(torch.float32)
        elif setting == "autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                (y,) = TorchSession(program).run([x])
        elif setting == "inference mode":
            with torch.inference_mode():
                (y,) = TorchSession(program).run([x])
        else:
            (y,) = TorchSession(program).run([x.requires_grad_()])
            assert not y.requires_grad
        assert torch.equal(y, expected)

    def test_counts_what_it_holds(self):
        h = HMatrix.from_dense(torch.ones(10, 20), torch.float16)
        assert TorchSession(linear_program(h, torch.ones(10))).resident_bytes == 4 * (200 + 10)

    @pytest.mark.parametrize("rows", [33, 48, 1000])
    def test_large_batches_are_computed_in_parts_of_one_size(self, rows):
        h = any_hmatrix(0, 30, 20, depth=4, ordered=True)
        session, x = TorchSession(linear_program(h), workspace=32 * 4 * 150), torch.randn(rows, 20)
        assert session.part in (16, 32)
        (y,) = session.run([x])
        starts = [min(start, rows - session.part) for start in range(0, rows, session.part)]
        for start in starts:
            here = slice(start, start + session.part)
            assert torch.equal(y[here], session.run([x[here]])[0])
        assert bool(((y.double() - x.double() @ h.to_dense().T).abs() <= allowed(x, h)).all())
        (z,) = session.run([x.numpy()])
        assert np.array_equal(z, y.numpy())

    def test_the_memory_of_a_large_batch_is_bounded(self):
        nodes = (
            Node("wide", "linear", ("x", "w"), (512,), {}),
            Node("bent", "tanh", ("wide",), (512,), {}),
            Node("y", "linear", ("bent", "v"), (1,), {}),
        )
        constants = {"w": HMatrix.from_dense(torch.ones(512, 1)), "v": HMatrix.from_dense(torch.ones(1, 512))}
        session = TorchSession(Program((Value("x", (1,)),), nodes, ("y",), constants))

        def peak_bytes() -> int:
            lines = Path("/proc/self/status").read_text().splitlines()
            return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))

        def grown() -> str:
            session.run([torch.zeros(session.part, 1)])
            before = peak_bytes()
            session.run([torch.zeros(6 * session.part, 1)])
            return str(peak_bytes() - before)

        # Six parts at once would take five workspaces more; the allocator may hold a piece of an old one beside a new.
        text, _ = forked(grown)
        assert session.part * 2 * 512 * 4 <= WORKSPACE and int(text) < WORKSPACE

    def test_may_be_shared_by_threads(self):
        session = TorchSession(linear_program(weak_kernel(128)))
        x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
        expected = [session.run([x[k : k + 8]])[0] for k in range(0, 64, 8)]
        found: dict[int, list[torch.Tensor]] = {}

        def work(k: int) -> None:
            found[k] = [session.run([x[8 * k : 8 * k + 8]])[0] for _ in range(50)]

        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(y, expected[k]) for k in range(8) for y in found[k])

    @pytest.mark.parametrize("name", ["torch", "onnxruntime"])
    def test_takes_arrays_or_tensors_and_answers_in_new_memory(self, name):
        """The protocol that every session keeps: the kind of the first input, float32, contiguous, nobody else's."""
        program = mixed_model().program
        session = open_session(program, name)
        assert session.device == CPU and session.resident_bytes > 0
        t = torch.Generator().manual_seed(0)
        tensors = [torch.randn(3, *v.shape, generator=t) for v in program.inputs]
        as_tensors, as_arrays = session.run(tensors), session.run([x.numpy() for x in tensors])
        for a, b in zip(as_tensors, as_arrays, strict=True):
            assert isinstance(a, torch.Tensor) and isinstance(b, np.ndarray)
            assert a.is_contiguous() and b.flags.c_contiguous and a.dtype == torch.float32 and b.dtype == np.float32
            assert np.array_equal(a.numpy(), b)
        kept = as_arrays[0].copy()
        session.run([2 * x for x in tensors])
        assert np.array_equal(as_arrays[0], kept)
