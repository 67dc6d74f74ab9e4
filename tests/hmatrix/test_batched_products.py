"""The plan of batched products: executed literally it is the matrix, in few products, with little padding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrt.hmatrix.batched_products import STACKED, Limits, Plan, plan
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.matrix_compression.compress_matrix import compress_matrix
from hrt.perf.networks.operators import log_kernel

from models import allowed, any_hmatrix

TYPED = Limits(share=0.05, free=64, free_columns=64, typed=True)


def apply(products: Plan, h: HMatrix, x: np.ndarray, zero: bool = True) -> np.ndarray:
    """x (batch, n) times h^T in float64, by the letter of the plan. zero: padding reads the row of zeros."""
    m, n = products.shape
    work = np.full((products.height, len(x)), np.nan)
    columns = np.arange(n) if h.col_order is None else h.col_order.long().numpy()
    work[:n], work[n] = x.T[columns], 0
    out = np.full((products.out_height + 1, len(x)), np.nan)
    out[-1] = 0
    for wave, target in ((products.first, work), (products.second, out)):
        for bucket in wave:
            rows = work[bucket.sources(n if zero else None)]
            product = np.einsum("gtw,gwb->gtb", bucket.weights().double().numpy(), rows)
            target[bucket.top : bucket.top + len(bucket.blocks) * bucket.tall] = product.reshape(-1, len(x))
    y = sum(out[layer] for layer in products.layers)
    inverse = np.arange(m) if h.row_order is None else h.row_order.long().argsort().numpy()
    return y[inverse].T


@settings(max_examples=80, deadline=None)
@given(
    m=st.integers(1, 200),
    n=st.integers(1, 200),
    seed=st.integers(0, 2**32 - 1),
    depth=st.integers(0, 5),
    limits=st.sampled_from([Limits(), TYPED]),
    zero=st.booleans(),
)
def test_is_the_matrix(m, n, seed, depth, limits, zero):
    h = any_hmatrix(seed, m, n, depth=depth, max_rank=9)
    x = torch.randn(3, n, generator=torch.Generator().manual_seed(seed % 1000))
    y = torch.from_numpy(apply(plan(h, limits), h, x.double().numpy(), zero))
    assert bool(((y - x.double() @ h.to_dense().T).abs() <= allowed(x, h)).all())


@pytest.mark.parametrize("seed", range(8))
def test_kinds_share_a_storage_type_and_are_padded_little(seed):
    h = any_hmatrix(seed, 180, 170, depth=4)
    products = plan(h, TYPED)
    for bucket in (*products.first, *products.second):
        true = sum(p.stored.numel() for b in bucket.blocks for p in b.pieces)
        assert len(bucket.blocks) * bucket.tall * bucket.wide <= 1.05 * true + 64
        types: dict = {}
        for g in range(len(bucket.blocks)):
            ends: dict = {}
            for piece, kind, at in bucket.placed(g):
                start, size = bucket.slots[kind]
                long = piece.stored.shape[bucket.axis]
                assert start <= at and at + long <= start + size and at >= ends.get(kind, start)
                ends[kind] = at + long
                assert types.setdefault(kind, piece.stored.dtype) == piece.stored.dtype
                if piece.is_dense and piece.leaf.scale is not None:
                    assert sum(k == kind for _, k, _ in bucket.placed(g)) == 1, "row scales are a block's own"


def test_one_leaf_object_twice_has_rows_of_its_own_each_time():
    """Its T was products by the object's identity: right by luck, and different after loading."""
    leaf = Leaf(0, 6, 0, 5, u=torch.randn(6, 2), vt=torch.randn(2, 5))
    h = HMatrix((6, 5), (leaf, leaf), torch.arange(5, -1, -1))
    (block,) = plan(h).second[0].blocks
    assert len(set(plan(h).second[0].sources().reshape(-1).tolist())) == 4 == block.shape[1]
    x = np.random.default_rng(0).standard_normal((2, 5))
    assert np.allclose(apply(plan(h), h, x), x @ h.to_dense().numpy().T, rtol=1e-5)


def test_a_kernel_takes_a_product_per_level_and_one_more():
    h = compress_matrix(torch.from_numpy(log_kernel(1024)), tol=1e-3)
    products = plan(h)
    levels = {e.cols for e in h.leaves if not e.is_dense}
    assert len(products.first) == len(levels) and len(products.second) == 1 and len(products.layers) == 1
    assert all(b.axis == STACKED for b in products.first)
    numbers = sum(e.rows * e.cols if e.is_dense else e.rank * (e.rows + e.cols) for e in h.leaves)
    assert products.numbers <= 1.05 * numbers


def test_of_nothing():
    products = plan(HMatrix((3, 4), (Leaf(0, 3, 0, 4, u=torch.zeros(3, 0), vt=torch.zeros(0, 4)),)))
    assert (products.first, products.second, products.height, products.out_height) == ((), (), 5, 0)
    assert [layer.tolist() for layer in products.layers] == [[-1, -1, -1]]
