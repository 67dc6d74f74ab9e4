"""Taylor rules of the elementwise ops against automatic differentiation in float64, to the third order."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hrt.capture.torch_export import capture
from hrt.derivatives.differentiate import differentiate
from hrt.program.op_table import TABLE, Op
from hrt.program.program import Node, Program, Value
from hrt.program.taylor_table import KINKED, RULES, Series, composed, times_x

from op_cases import ACTIVATIONS, grid
from zoo import Apply

NAMES = ["d0", "d0d0", "d0d0d0"]


def of_op(name: str, attrs: dict[str, Any]) -> Program:
    return Program((Value("x", (1,)),), (Node("y", name, ("x",), (1,), attrs),), ("y",), {})


@pytest.mark.parametrize(("op", "attrs"), ACTIVATIONS)
def test_three_derivatives_are_those_of_autograd(op: Op, attrs: dict[str, Any]) -> None:
    x = grid(op, attrs, 801)
    if op.name == "elu":
        x = x[x != 0]
    found = differentiate(of_op(op.name, attrs), NAMES).program.run([x[:, None]])
    z = x.clone().requires_grad_()
    y = op.torch((z,), attrs)
    torch.testing.assert_close(found[0][:, 0], y.detach(), rtol=1e-15, atol=0)
    for derivative in found[1:]:
        y = torch.autograd.grad(y.sum(), z, create_graph=True)[0] if y.requires_grad else torch.zeros_like(x)
        # 1 - tanh^2 and the like lose what is below the rounding of 1; times x or, for a cubic inside, times x (x^2)^3
        lost = 1e-14 * (1 + x.abs()) ** (7 if attrs.get("approximate") == "tanh" else 1)
        assert bool(((derivative[:, 0] - y.detach()).abs() <= 1e-11 * y.detach().abs() + lost).all())


def test_every_elementwise_op_has_a_rule() -> None:
    assert set(RULES) == {op.name for op in TABLE.values() if op.is_activation} | {"step", "floor", "round"}
    assert all(op.taylor is RULES.get(op.name) for op in TABLE.values())


@pytest.mark.parametrize("name", sorted(KINKED))
def test_at_a_kink_the_derivative_is_torchs(name: str) -> None:
    attrs = {"leaky_relu": {"slope": 0.1}, "elu": {"alpha": 2.0}, "clamp": {"low": 0.0, "high": 0.0}}.get(name, {})
    attrs = {"at_zero": 0.5} if name == "step" else attrs
    x = torch.zeros(1, 1, dtype=torch.float64)
    found = differentiate(of_op(name, attrs), ["d0"])
    expected = torch.zeros(1)
    if name != "step":
        z = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(TABLE[name].torch((z,), attrs).sum(), z)
    assert float(found.program.run([x])[1]) == float(expected)
    assert found.kinks == (f"{name} (y)",)


def test_composition_and_product_with_x_keep_zeros() -> None:
    x = Series(1.0)
    assert composed(Series(2.0, (3.0, 5.0)), x).terms == [2.0, 3.0, 5.0]
    assert composed(Series(None), x).terms == [None, None, None]
    assert times_x(7.0, None, Series(None)).terms == [None, None, None]


def both(function: Callable[[torch.Tensor], torch.Tensor], points: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """y, y', y'', y''' in float32 by the derived program, and by reverse differentiation in float64, (4, points)."""
    program = capture(Apply(function), [torch.rand(3, 1)])
    found = differentiate(program, NAMES).program.run([torch.tensor(points)[:, None]], dtype=torch.float32)
    z = torch.tensor(points, dtype=torch.float64).requires_grad_()
    expected = [function(z)]
    for _ in NAMES:
        expected.append(torch.autograd.grad(expected[-1].sum(), z, create_graph=True)[0])
    return torch.cat(found, 1).T.double(), torch.stack(expected).detach()


FAR = [-80.0, -50.0, -44.5, 44.5, 60.0, 80.0]
# a coefficient that is zero or tiny meets derivatives whose squares float32 cannot hold
FLAT_OR_STEEP = [
    (lambda x: torch.sqrt(torch.exp(x)), [-40.0, 32.0, 43.0]),
    (lambda x: F.silu(torch.exp(x)), [-60.0, 29.8, 40.0]),
    (lambda x: torch.cosh(x) ** -2, [-46.0, 32.0, 46.0]),
    (lambda x: (1 + torch.exp(x)) ** -2, [-80.0, 32.0, 46.0]),
    (lambda x: torch.tanh(torch.exp(x)), [-60.0, 32.0, 46.0]),
    (lambda x: torch.exp(-torch.exp(x)), [-60.0, 32.0, 46.0]),
    (lambda x: torch.exp(-torch.cosh(x)), [-50.0, 32.0, 50.0]),
    (lambda x: torch.exp(-1 / x**2), [1e-5, 1.0]),
]
SQUARED = [torch.cosh, torch.sinh, lambda x: 1 / torch.cosh(x), lambda x: 1 / (1 + x * x), lambda x: torch.log(x**2)]


@pytest.mark.parametrize(
    ("function", "points", "lost"), [*((f, FAR, 1e-37) for f in SQUARED), *((*case, 1e-25) for case in FLAT_OR_STEEP)]
)
def test_derivatives_in_float32_outlive_squares_of_values_and_slopes(function, points, lost) -> None:
    """lost: below 1e-37 of a value; a coefficient below 1e-38 meets three slopes, of up to 1e13 together."""
    found, expected = both(function, points)
    # exp rounds by |x| half ulps of its argument's, and products by one each; a third derivative has four such factors
    limit = 4 * 2.0**-24 * (8 + torch.tensor(points).abs())
    assert bool(((found - expected).abs() <= limit * expected.abs() + lost).all())


@pytest.mark.parametrize("function", [torch.sinh, torch.expm1])
def test_differences_that_vanish_keep_their_digits(function) -> None:
    points = [-80.0, -1.0, -1e-3, -1e-9, 1e-12, 1e-9, 1e-6, 0.01, 1.0, 20.0, 80.0]
    found, expected = both(function, points)
    # exp rounds by |x| half ulps of its argument's; three products and a sum add one each
    limit = 2.0**-24 * (8 + torch.tensor(points).abs())
    assert bool(((found[0] - expected[0]).abs() <= limit * expected[0].abs()).all())
    assert bool(((found[1] - expected[1]).abs() <= limit * (1 + expected[1].abs())).all())


def test_what_an_inner_kink_has_switched_off_stays_off() -> None:
    found, expected = both(lambda x: torch.relu(x) ** 1.5, [-2.0, 0.0, 0.25, 3.0])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_prelu_has_torchs_slope_at_zero() -> None:
    found, _ = both(lambda x: F.prelu(x, torch.tensor([0.25], dtype=x.dtype)) + x**4, [0.0])
    assert found[:, 0].tolist() == [0.0, 0.25, 0.0, 0.0]


@pytest.mark.parametrize("function", [lambda x: torch.linalg.vector_norm(x, dim=-1, keepdim=True), lambda x: x**2.5])
def test_a_root_is_named_among_the_kinks(function) -> None:
    (kink,) = differentiate(capture(Apply(function), [torch.rand(3, 2)]), ["d0"]).kinks
    assert kink.startswith(("sqrt", "power"))
