"""The PINNs that are trained for seconds: their equations are those of their exact solutions, training is kept."""

from dataclasses import replace

import pytest
import torch

from hrt.perf.networks import pinns
from hrt.perf.networks.pinn_training import one_thread
from hrt.perf.networks.taylor_pass import Pinn


@pytest.mark.parametrize("name", pinns.PROBLEMS)
def test_the_exact_solution_solves_the_equations(name):
    problem, x = pinns.PROBLEMS[name], pinns.pinn_points(name, 5, 0).double()

    def exact(p):
        return problem.exact(p[None])[0]

    first = torch.func.vmap(torch.func.jacrev(exact))(x).permute(2, 0, 1)
    hessian = torch.func.vmap(torch.func.hessian(exact))(x)
    seconds = torch.stack([hessian[..., k, k] for k in (0, 1)])
    residual = problem.residual(torch.cat((problem.exact(x)[None], first, seconds)), x)
    assert residual.abs().max() < 1e-6


def test_training_is_repeatable_learns_and_is_kept(tmp_path, monkeypatch):
    quick = replace(pinns.PROBLEMS["navier-stokes"], widths=(3, 16, 3), steps=30)
    monkeypatch.setitem(pinns.PROBLEMS, "navier-stokes", quick)
    with one_thread():
        one, two = pinns.load_pinn("navier-stokes", folder=tmp_path), pinns.train_pinn("navier-stokes")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    x = pinns.pinn_points("navier-stokes", 1000, 9)
    errors = [float((net(x) - quick.exact(x)).detach().norm()) for net in (one, Pinn((3, 16, 3)))]
    assert errors[0] < errors[1]
    monkeypatch.setattr(pinns, "train_pinn", lambda *a: pytest.fail("trained again"))
    again = pinns.load_pinn("navier-stokes", folder=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
