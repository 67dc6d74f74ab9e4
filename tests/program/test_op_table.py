"""The op table: derivatives against autograd, Lipschitz constants that hold and are sharp, every row in use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hrt.hmatrix.hmatrix import HMatrix
from hrt.program.op_table import TABLE, Op, multiply

from op_cases import ACTIVATIONS, CASES, A, W, grid

BOUNDED = [p for p in ACTIVATIONS if p.values[0].lipschitz is not None]


class TestDerivative:
    @pytest.mark.parametrize(("op", "attrs"), ACTIVATIONS)
    def test_is_that_of_autograd(self, op: Op, attrs: dict[str, Any]) -> None:
        x = grid(op, attrs).requires_grad_()
        (expected,) = torch.autograd.grad(op.torch((x,), attrs).sum(), x)
        assert op.derivative is not None
        found = op.derivative(x.detach(), attrs)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize(("op", "attrs"), ACTIVATIONS)
    def test_keeps_float32_and_the_empty_batch_and_stays_finite_far_out(self, op: Op, attrs: dict[str, Any]) -> None:
        assert op.derivative is not None
        for x in (torch.full((2, 3), 0.5), torch.zeros(0, 3), torch.tensor([-1e4, -50.0, 50.0, 1e4])):
            for y in (op.torch((x,), attrs), op.derivative(x, attrs)):
                assert (y.dtype, y.shape) == (torch.float32, x.shape)
                assert op.lipschitz is None or bool(torch.isfinite(y).all())

    def test_only_elementwise_rows_of_one_argument_are_activations(self) -> None:
        assert {op.name for op in TABLE.values() if op.is_activation} == {p.values[0].name for p in ACTIVATIONS}
        assert all(op.arity == 1 for op in TABLE.values() if op.derivative is not None)


class TestLipschitz:
    @pytest.mark.parametrize(("op", "attrs"), BOUNDED)
    def test_no_pair_violates_it(self, op: Op, attrs: dict[str, Any]) -> None:
        assert op.lipschitz is not None
        generator = torch.Generator().manual_seed(5)
        x, y = (torch.randn(100_000, generator=generator, dtype=torch.float64) * 6 for _ in range(2))
        y[::2] = x[::2] + 1e-3 * torch.randn(50_000, generator=generator, dtype=torch.float64)  # and close pairs
        rise = (op.torch((x,), attrs) - op.torch((y,), attrs)).abs()
        assert bool((rise <= op.lipschitz(attrs) * (x - y).abs() + 1e-14 * (1 + x.abs())).all())

    @pytest.mark.parametrize(("op", "attrs"), BOUNDED)
    def test_is_attained(self, op: Op, attrs: dict[str, Any]) -> None:
        assert op.lipschitz is not None
        assert op.derivative is not None
        steepest = op.derivative(grid(op, attrs, 400_001), attrs).abs().max().item()
        assert 0.99 * op.lipschitz(attrs) <= steepest <= op.lipschitz(attrs) * (1 + 4 * torch.finfo(torch.float64).eps)

    @pytest.mark.parametrize(
        "name", ["exp", "log", "sqrt", "reciprocal", "power", "add", "mul", "linear", "layer_norm"]
    )
    def test_is_missing_where_there_is_none(self, name: str) -> None:
        assert TABLE[name].lipschitz is None

    @given(x=st.floats(-30, 30), step=st.floats(1e-6, 1))
    def test_softplus_has_no_jump(self, x: float, step: float) -> None:
        softplus = TABLE["softplus"]
        low, high = (softplus.torch((torch.tensor(v, dtype=torch.float64),), {"beta": 1.0}) for v in (x, x + step))
        assert 0 <= (high - low).item() <= step * (1 + 1e-8)


class TestRows:
    @pytest.mark.parametrize(("name", "arguments", "attrs", "expected"), CASES)
    def test_is_what_torch_says_also_of_no_rows(
        self, name: str, arguments: tuple, attrs: dict[str, Any], expected: Tensor
    ) -> None:
        torch.testing.assert_close(TABLE[name].torch(arguments, attrs), expected, rtol=1e-13, atol=0)
        empty = tuple(a[:0] if a.ndim and len(a) == 5 else a for a in arguments)
        assert TABLE[name].torch(empty, attrs).shape == (0, *expected.shape[1:])

    def test_every_row_is_tested(self) -> None:
        assert {name for name, *_ in CASES} | {p.values[0].name for p in ACTIVATIONS} == set(TABLE)


class TestMultiply:
    @pytest.mark.parametrize("shape", [(5, 4), (5, 3, 4), (0, 4), (0, 3, 4), (2, 1, 3, 4)])
    def test_hierarchical_weight_is_its_matrix(self, shape: tuple[int, ...]) -> None:
        x = torch.rand(shape, dtype=torch.float64)
        weight = HMatrix.from_dense(W)  # rounds to its storage
        found = multiply(x, weight)
        assert found.shape == (*shape[:-1], 6)
        torch.testing.assert_close(found, multiply(x, weight.to_dense()), rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize(("m", "n"), [(0, 4), (4, 0), (0, 0)])
    def test_no_elements(self, m: int, n: int) -> None:
        weight = torch.rand(m, n, dtype=torch.float64)
        assert torch.equal(multiply(torch.rand(3, n).double(), weight), torch.zeros(3, m).double())

    def test_is_the_layer_in_the_type_of_the_values(self) -> None:
        layer, x = nn.Linear(4, 6).double(), A[:, 0]
        found = TABLE["linear"].torch((x, layer.weight, layer.bias), {})
        torch.testing.assert_close(found, layer(x), rtol=1e-13, atol=0)
        assert multiply(torch.rand(2, 4), W).dtype == torch.float32
