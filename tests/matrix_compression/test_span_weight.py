"""Weights of errors are factored once, plans that differ by little share factors, and numpy rounds as torch does."""

import numpy as np
import pytest
import torch

from hrt.hmatrix.hmatrix import STORAGE
from hrt.matrix_compression import build_leaves, span_weight
from hrt.matrix_compression.block_choices import Choice
from hrt.matrix_compression.block_source import BlockSource
from hrt.matrix_compression.planner import Plan, Planner
from hrt.matrix_compression.request import MatrixRequest
from hrt.matrix_compression.rounding import FLOATS
from hrt.matrix_compression.span_weight import SpanWeight, compensated_weights, inverse_factor


def moment(n: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(3 * n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.T @ x / len(x)


def source(n: int = 64) -> BlockSource:
    x = torch.linspace(0, 1, n, dtype=torch.float64)
    return BlockSource(torch.exp(-8 * (x[:, None] - x).abs()), moment(n, 1), moment(n, 2))


def test_the_factors_are_those_of_the_moment():
    s = moment(20)
    weight = SpanWeight(s)
    assert torch.allclose(weight.factor @ weight.factor.T, s, rtol=1e-9)
    assert torch.allclose(
        weight.solve(s @ torch.ones(20, 1, dtype=s.dtype)), torch.ones(20, 1, dtype=s.dtype), rtol=1e-6
    )
    assert torch.equal(weight.inverse_factor, inverse_factor(s))
    assert torch.equal(weight.compensated, compensated_weights(s))


def test_a_planner_factors_the_weight_of_every_span_once(monkeypatch):
    count, factor = [], span_weight.cholesky_psd
    monkeypatch.setattr(span_weight, "cholesky_psd", lambda c: count.append(c.shape) or factor(c))
    planner = Planner(source(128), MatrixRequest(storage="auto"), 1e-4)
    spans = sum(len(level.rows) + len(level.cols) - 2 for level in planner.levels)
    blocks = sum(rows * cols for rows, cols in (level.grid for level in planner.levels))
    assert len(count) <= 4 * spans < blocks, "its factor, its inverse's, which takes two, and the one to solve with"


def test_plans_that_differ_in_storage_share_factors(monkeypatch):
    count, factors = [], build_leaves.low_rank_factors
    monkeypatch.setattr(build_leaves, "low_rank_factors", lambda *a: count.append(a) or factors(*a))
    planner = Planner(source(), MatrixRequest(storage="auto"), 1e-2)
    for counts in ((5, 0, 0, 0), (0, 5, 0, 0), (2, 2, 0, 1), (0, 0, 0, 5)):
        h = planner.build(Plan((Choice((0, 0, 0), (0, 64), (0, 64), None, counts),), 0.0, 0.0))
        assert sum(e.rank for e in h.leaves) == 5
    assert len(count) == 1


@pytest.mark.parametrize("storage", FLOATS)
def test_numbers_are_rounded_as_torch_rounds_them(storage):
    generator = np.random.default_rng(0)
    x = np.concatenate([generator.standard_normal(4000) * 10.0**e for e in range(-50, 39)])
    halves = (1 + (2 * np.arange(256) + 1) / 2**9) * 2.0 ** generator.integers(-10, 10, 256)  # between two bfloat16
    x = np.concatenate([x, halves, [0.0, -0.0, np.inf, -np.inf]])
    with np.errstate(over="ignore"):
        rounded = torch.from_numpy(FLOATS[storage](x))
    assert torch.equal(rounded, torch.from_numpy(x).to(STORAGE[storage]).to(torch.float64))


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_spans_together_are_what_they_are_alone(rank):
    half = torch.randn(3, 12, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(rank))
    half[2] *= 1e-6
    moments = half @ half.mT
    together, right = SpanWeight(moments), torch.randn(3, 12, 4, dtype=torch.float64)
    for k, moment in enumerate(moments):
        alone = SpanWeight(moment)
        assert torch.equal(together.factor[k], alone.factor)
        assert torch.equal(together.compensated[k], alone.compensated)
        assert torch.equal(together.solve(right)[k], alone.solve(right[k]))
