"""Gauss-Newton: its direction by the textbook, exact on linear problems, and its Jacobian by autograd."""

import math

import pytest
import torch
from torch import Tensor

from hrt.training.gauss_newton import GaussNewton, Term, direction


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def line(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return parameters["w"] @ x + parameters["c"] - y


@pytest.mark.parametrize("rows, columns", [(5, 9), (9, 5)])
def test_direction_minimises_what_it_says(rows: int, columns: int) -> None:
    j, r, q, damping = randn(rows, columns), randn(rows, seed=1), randn(columns, seed=2), 0.3
    p = direction(j, r, q, damping)
    slope = j.T @ (j @ p - r) + damping * (p - q)
    assert float(slope.norm()) <= 1e-12 * float((j.T @ r).norm())


def test_jacobian_is_autograds() -> None:
    w, c, x, y = randn(2, 3), randn(2, seed=1), randn(4, 3, seed=2), randn(4, 2, seed=3)
    term = Term(lambda p, x, y: torch.tanh(line(p, x, y)), (x, y), 0.5)
    r, j = term.jacobian({"w": w, "c": c}, ["w", "c"])

    def every(w: Tensor, c: Tensor) -> Tensor:
        return 0.5 * torch.tanh(x @ w.T + c - y).reshape(-1)

    expected = torch.autograd.functional.jacobian(every, (w, c))
    assert torch.allclose(j, torch.cat([e.reshape(8, -1) for e in expected], dim=1), atol=1e-13)
    assert torch.allclose(r, every(w, c)) and torch.allclose(term.residuals({"w": w, "c": c}), r)
    assert torch.equal(term.jacobian({"w": w, "c": c}, ["c"])[1], j[:, 6:])


def solver_and_term(noise: float = 0.0) -> tuple[GaussNewton, Term]:
    x = randn(60, 3)
    w, c = randn(2, 3, seed=1), randn(2, seed=2)
    y = x @ w.T + c + noise * randn(60, 2, seed=3)
    shapes = {"w": torch.Size((2, 3)), "c": torch.Size((2,))}
    return GaussNewton(shapes, torch.zeros(8, dtype=torch.float64)), Term(line, (x, y), 60**-0.5)


def test_linear_problem_is_solved() -> None:
    solver, term = solver_and_term()
    losses = [solver.step([term]) for _ in range(40)]
    assert losses[-1] < 1e-10 * losses[0]
    assert torch.allclose(solver.parameters()["w"], randn(2, 3, seed=1), atol=1e-4)


def test_a_loss_that_is_not_finite_moves_nothing() -> None:
    solver, term = solver_and_term()
    solver.numbers[0] = math.nan
    before = solver.numbers.clone()
    assert math.isnan(solver.step([term]))
    assert torch.equal(solver.numbers.nan_to_num(7.0), before.nan_to_num(7.0))


def test_a_parameter_that_is_not_free_costs_nothing_and_stays() -> None:
    (one, term), (two, _) = solver_and_term(), solver_and_term()
    free = torch.tensor([False] * 6 + [True] * 2)
    some = torch.tensor([True] + [False] * 5 + [True] * 2)  # all columns of w are made, one of them is used
    for solver, which in ((one, free), (two, some)):
        solver.step([term], which)
        assert torch.equal(solver.numbers[~which], torch.zeros(int((~which).sum()), dtype=torch.float64))
        assert bool((solver.numbers[which] != 0).all())
    r, j = term.jacobian(GaussNewton(one.shapes, torch.zeros(8, dtype=torch.float64)).parameters(), ["w", "c"])
    start = direction(j[:, free], r, torch.zeros(2, dtype=torch.float64), 1e-2)
    assert torch.allclose(one.numbers[free], -start, rtol=1e-12)
