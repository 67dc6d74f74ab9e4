"""Allen and Cahn's equation: its network, its residuals and a spectral solution.

    u_t = D u_xx + 5 (u - u^3),   u(x, 0) = x^2 cos(pi x),   periodic on [-1, 1],   D = 1e-4,   t in [0, 1]

The second problem of Raissi, Perdikaris and Karniadakis (2019). Periodicity and the initial value are built into the
network; the spectral solution only measures it. Residuals count less the later they are: with equal weights half of
all trainings ended in a wrong solution with a small residual.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from hrt.perf.networks.pinn_training import Equation
from hrt.perf.networks.taylor_pass import Pinn, Tap, by_jvp, through

DIFFUSION, REACTION = 1e-4, 5.0
RATE = 2.0 * REACTION  # at which u next to 1 or -1 tends to it: the derivative of 5 (u - u^3) there
# of a residual's weight over time: next to u = 0 an error grows like e^(REACTION (1 - t)) until t = 1
FADING = REACTION
ADAM_STEPS, NEWTON_STEPS, BATCH, WIDTH = 200, 150, 512, 64  # to an error of 1e-4
MODES, STEPS = 1024, 400  # points in x and time steps of the spectral solution
CONTOUR = 32  # points of the contour integrals in the exponential integrator


def exponential_runge_kutta(
    values: np.ndarray,
    symbol: np.ndarray,
    forcing: Callable[[np.ndarray, float], np.ndarray],
    steps: int,
    duration: float = 1.0,
) -> np.ndarray:
    """u_t = L u + forcing(u, t) from `values` (n,) at t = 0, by ETDRK4: all states, (steps + 1, n) float64.

    Cox and Matthews (J. Comput. Phys. 176, 2002), coefficients by contour integrals (Kassam and Trefethen, SIAM J. Sci.
    Comput. 26, 2005): order 4 in the step. symbol: (n // 2 + 1,), L on the modes of numpy.fft.rfft.
    """
    h, n = duration / steps, len(values)
    circle = np.exp(1j * np.pi * (np.arange(CONTOUR) + 0.5) / CONTOUR)
    z = h * symbol[:, None] + circle  # L is real: half a circle is enough, and the real part of the mean

    def mean(of: np.ndarray) -> np.ndarray:
        return h * np.real(of.mean(axis=1))

    whole, half = np.exp(h * symbol), np.exp(h * symbol / 2)
    q = mean((np.exp(z / 2) - 1) / z)
    f1 = mean((-4 - z + np.exp(z) * (4 - 3 * z + z**2)) / z**3)
    f2 = mean((2 + z + np.exp(z) * (z - 2)) / z**3)
    f3 = mean((-4 - 3 * z - z**2 + np.exp(z) * (4 - z)) / z**3)

    def rate(modes: np.ndarray, t: float) -> np.ndarray:
        return np.fft.rfft(forcing(np.fft.irfft(modes, n), t))

    states = np.empty((steps + 1, n))
    states[0], v = values, np.fft.rfft(values)
    for step in range(steps):
        t = step * h
        at_start = rate(v, t)
        a = half * v + q * at_start
        at_a = rate(a, t + h / 2)
        at_b = rate(half * v + q * at_a, t + h / 2)
        at_end = rate(half * a + q * (2 * at_b - at_start), t + h)
        v = whole * v + f1 * at_start + 2 * f2 * (at_a + at_b) + f3 * at_end
        states[step + 1] = np.fft.irfft(v, n)
    return states


def diffusion_symbol(modes: int) -> np.ndarray:
    """D u_xx on the modes of numpy.fft.rfft of `modes` points of the period 2: (modes // 2 + 1,)."""
    return -DIFFUSION * (np.pi * np.arange(modes // 2 + 1)) ** 2


@cache
def solution(modes: int = MODES, steps: int = STEPS) -> np.ndarray:
    """The solution (steps + 1, modes) at t = i / steps and x = -1 + 2 j / modes, read-only, to 1e-5 in relative L2."""
    x = -1.0 + 2.0 * np.arange(modes) / modes
    initial = x * x * np.cos(np.pi * x)
    states = exponential_runge_kutta(initial, diffusion_symbol(modes), lambda u, t: REACTION * (u - u**3), steps)
    states.setflags(write=False)
    return states


@cache
def exact_solution(columns: int = 512, rows: int = 101) -> tuple[Tensor, Tensor]:
    """Points (rows * columns, 2) of the whole domain, rows of times, and the solution there, float64."""
    x, t = np.meshgrid(-1.0 + 2.0 * np.arange(columns) / columns, np.linspace(0.0, 1.0, rows))
    u = solution()[:: STEPS // (rows - 1), :: MODES // columns]
    return torch.from_numpy(np.stack((x.ravel(), t.ravel()), axis=1)), torch.from_numpy(u.ravel())


class AllenCahnPINN(Pinn):
    """u = g u_0(x) + (1 - g) N(cos pi x, sin pi x, t), g = e^(-RATE t): (x, t) -> u with u_0 its initial value.

    The slope of u_0 jumps from one period to the next. g dies as the solution forgets it, so that N need not undo it.
    """

    def __init__(self, width: int = WIDTH, depth: int = 4, seed: int = 0) -> None:
        super().__init__([3] + [width] * depth + [1], seed)

    def forward(self, points: Tensor) -> Tensor:
        x, t = points[:, :1], points[:, 1:]
        cosine = torch.cos(math.pi * x)
        g = torch.exp(-RATE * t)
        n = self.layers(torch.cat((cosine, torch.sin(math.pi * x), t), dim=1))
        return g * (x * x * cosine) + (1.0 - g) * n


def jet(network: AllenCahnPINN, points: Tensor, taps: list[Tap] | None = None) -> Tensor:
    """u, u_x, u_t, u_xx (4, N) of the network at points (N, 2) of its dtype, by one forward Taylor pass."""
    x, t = points.unbind(dim=1)
    c, s = torch.cos(math.pi * x), torch.sin(math.pi * x)
    zero, p = torch.zeros_like(x), math.pi
    features = ((c, s, t), (-p * s, p * c, zero), (zero, zero, zero + 1.0), (-p * p * c, -p * p * s, zero))
    streams = torch.stack([torch.stack(stream, dim=1) for stream in features])
    n, n_x, n_t, n_xx = through(network.layers, streams, taps=taps)[..., 0]
    u0, u0_x = x * x * c, 2.0 * x * c - p * x * x * s
    u0_xx = 2.0 * c - 4.0 * p * x * s - p * p * x * x * c
    g = torch.exp(-RATE * t)
    u_t = RATE * g * (n - u0) + (1.0 - g) * n_t
    return torch.stack((g * u0 + (1.0 - g) * n, g * u0_x + (1.0 - g) * n_x, u_t, g * u0_xx + (1.0 - g) * n_xx))


def residuals(network: AllenCahnPINN, points: Tensor, taps: list[Tap] | None = None) -> Tensor:
    """e^(-FADING t) (u_t - D u_xx - 5 (u - u^3)) at points (N, 2), which is what training makes small: (N,)."""
    u, _, u_t, u_xx = jet(network, points, taps)
    return torch.exp(-FADING * points[:, 1]) * (u_t - DIFFUSION * u_xx - REACTION * (u - u**3))


def allen_cahn_operator(u: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """u_t - D u_xx - 5 (u - u^3) of any function (rows, 2) -> (rows, 1), by forward differentiation: (rows, 1)."""
    value, _, u_t, u_xx = by_jvp(u, points)
    return u_t - DIFFUSION * u_xx - REACTION * (value - value**3)


def sample(count: int, generator: torch.Generator) -> Tensor:
    """Points (count, 2) float64: half of all x uniform, half log-uniform in the distance from the zeros of u(x, 0)."""
    unit = torch.rand(5, count, generator=generator, dtype=torch.float64)
    offset = torch.sign(unit[0] - 0.5) * 0.5 * 0.005 ** unit[1]
    centre = 0.5 * (torch.floor(3.0 * unit[2]) - 1.0)
    x = torch.where(unit[3] < 0.5, 2.0 * unit[0] - 1.0, centre + offset)
    return torch.stack((x, unit[4]), dim=1)


ALLEN_CAHN = Equation(
    name="Allen-Cahn",
    network=lambda width, depth, seed: AllenCahnPINN(width, depth, seed).double(),
    rows=sample,
    residuals=residuals,
    operator=allen_cahn_operator,
    exact=exact_solution,
)
