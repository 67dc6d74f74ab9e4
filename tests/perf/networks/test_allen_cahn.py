"""Allen-Cahn: the integrator against exact solutions and another integrator, and the network's derivatives."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from hrt.perf.networks import allen_cahn
from hrt.perf.networks.allen_cahn import (
    DIFFUSION,
    RATE,
    REACTION,
    AllenCahnPINN,
    diffusion_symbol,
    exponential_runge_kutta,
)

from pinn import shaken

N = 64
X = -1.0 + 2.0 * np.arange(N) / N


def initial(x):
    return x * x * np.cos(np.pi * x)


def reaction(u, t):
    return REACTION * (u - u**3)


# --- spectral solution


def test_diffusion_alone_is_exact():
    start = np.cos(np.pi * X) + 0.5 * np.sin(5 * np.pi * X)
    end = exponential_runge_kutta(start, diffusion_symbol(N), lambda u, t: 0 * u, 7)[-1]
    decay = [math.exp(-DIFFUSION * (k * math.pi) ** 2) for k in (1, 5)]
    expected = decay[0] * np.cos(np.pi * X) + decay[1] * 0.5 * np.sin(5 * np.pi * X)
    np.testing.assert_allclose(end, expected, atol=1e-13)


def test_uniform_values_follow_the_ordinary_differential_equation():
    # u' = 5 (u - u^3) from u0: u^2 = u0^2 e^(10 t) / (1 + u0^2 (e^(10 t) - 1))
    start = 0.1
    states = exponential_runge_kutta(np.full(N, start), diffusion_symbol(N), reaction, 400)
    growth = np.exp(2 * REACTION * np.linspace(0, 1, 401))
    expected = np.sqrt(start**2 * growth / (1 + start**2 * (growth - 1)))
    np.testing.assert_allclose(states, np.broadcast_to(expected[:, None], states.shape), rtol=1e-8)


def manufactured(steps):
    """Error at t = 1 for u = cos(pi x) e^(-t) + sin(2 pi x) / 2, kept so by a forcing."""

    def exact(t):
        return np.cos(np.pi * X) * math.exp(-t) + 0.5 * np.sin(2 * np.pi * X)

    def forcing(u, t):
        v = exact(t)
        v_t = -np.cos(np.pi * X) * math.exp(-t)
        v_xx = -(np.pi**2) * np.cos(np.pi * X) * math.exp(-t) - 2 * np.pi**2 * np.sin(2 * np.pi * X)
        return reaction(u, t) + v_t - DIFFUSION * v_xx - reaction(v, t)

    states = exponential_runge_kutta(exact(0), diffusion_symbol(N), forcing, steps)
    return float(np.abs(states[-1] - exact(1)).max())


def test_a_manufactured_solution_is_met_to_fourth_order():
    errors = [manufactured(steps) for steps in (20, 40, 80)]
    assert errors[-1] < 1e-5
    for coarse, fine in pairwise(errors):
        assert 3.5 < math.log2(coarse / fine) < 4.5


def test_another_integrator_on_the_same_modes_agrees():
    symbol = diffusion_symbol(N)

    def slope(t, u):
        return np.fft.irfft(symbol * np.fft.rfft(u), N) + reaction(u, t)

    other = solve_ivp(slope, (0, 1), initial(X), method="DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
    ours = exponential_runge_kutta(initial(X), symbol, reaction, 400)[-1]
    assert np.linalg.norm(ours - other) < 1e-7 * np.linalg.norm(other)


def test_the_solution_has_converged_in_modes_and_steps():
    ours = allen_cahn.solution()
    finer = allen_cahn.solution(2 * allen_cahn.MODES, 2 * allen_cahn.STEPS)[::2, ::2]
    assert np.linalg.norm(ours - finer) < 1e-5 * np.linalg.norm(finer)
    assert not ours.flags.writeable and np.abs(ours).max() <= 1 + 1e-6


def test_the_solution_is_even_and_starts_at_the_initial_value():
    u = allen_cahn.solution()
    x = -1.0 + 2.0 * np.arange(allen_cahn.MODES) / allen_cahn.MODES
    np.testing.assert_allclose(u[0], initial(x), atol=1e-14)
    np.testing.assert_allclose(u[:, 1:], u[:, :0:-1], atol=1e-9)


def test_the_grid_is_the_solutions_own():
    points, u = allen_cahn.exact_solution(256, 51)
    assert points.shape == (51 * 256, 2) and points.dtype == u.dtype == torch.float64
    assert points[0].tolist() == [-1.0, 0.0] and points[-1].tolist() == [1.0 - 2 / 256, 1.0]
    first = points[:, 1] == 0
    np.testing.assert_allclose(u[first].numpy(), initial(points[first, 0].numpy()), atol=1e-14)
    at = int(((points[:, 0] == 0.5) & (points[:, 1] == 0.5)).nonzero())
    expected = allen_cahn.solution()[allen_cahn.STEPS // 2, 3 * allen_cahn.MODES // 4]
    assert float(u[at]) == pytest.approx(expected)


# --- network


def test_initial_value_and_period_hold_whatever_the_weights():
    network, x = shaken(AllenCahnPINN(7, 3, 5)), torch.linspace(-1, 1, 33, dtype=torch.float64)
    start = network(torch.stack((x, torch.zeros_like(x)), 1))[:, 0].detach().numpy()
    np.testing.assert_allclose(start, initial(x.numpy()), atol=1e-15)
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    left, right = (network(torch.stack((torch.full_like(t, end), t), 1)) for end in (-1.0, 1.0))
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-14)


def test_jet_matches_automatic_differentiation():
    network = shaken(AllenCahnPINN(7, 3, 5))
    p = allen_cahn.sample(20, torch.Generator().manual_seed(7)).requires_grad_()
    u = network(p)[:, 0]
    (first,) = torch.autograd.grad(u.sum(), p, create_graph=True)
    (second,) = torch.autograd.grad(first[:, 0].sum(), p)
    expected = torch.stack((u, first[:, 0], first[:, 1], second[:, 0]))
    torch.testing.assert_close(allen_cahn.jet(network, p.detach()), expected, rtol=1e-10, atol=1e-11)


def test_the_rate_is_that_at_which_one_is_reached():
    assert reaction(1 - 1e-6, 0) == pytest.approx(RATE * 1e-6, rel=1e-5)


def test_sample_covers_the_domain_and_its_steep_places():
    p = allen_cahn.sample(6000, torch.Generator().manual_seed(7))
    assert p.shape == (6000, 2) and p[:, 0].abs().max() <= 1 and 0 <= p[:, 1].min() <= p[:, 1].max() <= 1
    for centre in (-0.5, 0.0, 0.5):
        near = ((p[:, 0] - centre).abs() < 0.02).double().mean()
        assert near > 0.07, "uniform points would give 0.02"
        assert ((p[:, 0] > centre) & (p[:, 0] < centre + 0.02)).any()
