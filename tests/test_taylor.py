"""Taylor rules of the elementwise ops against automatic differentiation in float64, to the third order."""

from typing import Any

import pytest
import torch
from test_ops import ACTIVATIONS, grid

from hrt.derivatives import differentiate
from hrt.ops import TABLE, Op
from hrt.program import Node, Program, Value
from hrt.taylor import KINKED, RULES, Series, composed, times_x

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
    assert set(RULES) == {op.name for op in TABLE.values() if op.is_activation} | {"step"}
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
