"""Surrogates of simulations, trained here from a fixed seed.

An emulator such as climate and cosmology use, few parameters to a long spectrum: six numbers in [-1, 1] to 2,507 values
of a smooth curve, sin(w_k x + p_k) times twelve modes, by four layers of 512.

A Transformer that answers with a whole trajectory, from the force on a damped pendulum at 32 times to its angle there:

    x'' + FRICTION x' + sin x = f(t),   x(0) = x'(0) = 0,   f: a few random harmonics on [0, DURATION]

Forces are weak enough that the pendulum swings, up to 100 degrees, and never goes over the top: with forces of rms 0.8
whole turns (x up to 9.4) were all that the loss saw, and the network learned nothing.
"""

import numpy as np
import torch
from torch import Tensor, nn

from hrt.perf.networks.pinn_training import adam

PARAMETERS, WIDTH, DEPTH, VALUES, MODES = 6, 512, 4, 2507, 12
STEPS, BATCH = 300, 256
TIMES, DURATION, FRICTION, HARMONICS, FORCE = 32, 10.0, 0.4, 4, 0.15
SUBSTEPS = 4  # of Runge and Kutta's fourth order between two times
CHANNELS, HEADS, LAYERS = 64, 4, 6
TRAJECTORIES, TRANSFORMER_STEPS, TRANSFORMER_BATCH = 8192, 1200, 32
RATE, WARM_UP, LONGEST_GRADIENT = 1.5e-3, 0.1, 1.0  # without warm-up it stands at the mean for hundreds of steps


def parameters(count: int, seed: int) -> Tensor:
    """Rows (count, 6), uniform in [-1, 1]."""
    return torch.rand(count, PARAMETERS, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def train_emulator(seed: int = 0, steps: int = STEPS) -> nn.Sequential:
    """The float32 network in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    directions, phases = torch.randn(PARAMETERS, MODES, generator=generator), torch.rand(2, MODES, generator=generator)
    places, order = torch.linspace(0, 1, VALUES), torch.arange(1, MODES + 1)
    modes = torch.sin(3 * torch.outer(order, places) + 2 * torch.pi * phases[0, :, None]) / order[:, None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Linear(PARAMETERS, WIDTH), nn.SiLU()]
        for _ in range(DEPTH - 1):
            layers += [nn.Linear(WIDTH, WIDTH), nn.SiLU()]
        net = nn.Sequential(*layers, nn.Linear(WIDTH, VALUES))

    def loss(step: int) -> Tensor:
        x = parameters(BATCH, seed + step)
        return (net(x) - torch.sin(x @ directions + 2 * torch.pi * phases[1]) @ modes).square().mean()

    adam(net, loss, steps, (1e-3, 1e-4), lambda step, value: None)
    return net.eval()


def _force(amplitudes: np.ndarray, t: np.ndarray | float) -> np.ndarray:
    """f at times t of amplitudes (count, 2, HARMONICS): (count, *t)."""
    angles = np.multiply.outer(2 * np.pi / DURATION * np.arange(1, HARMONICS + 1), t)
    return np.tensordot(amplitudes[:, 0], np.sin(angles), 1) + np.tensordot(amplitudes[:, 1], np.cos(angles), 1)


def _amplitudes(count: int, seed: int) -> np.ndarray:
    return FORCE * np.random.default_rng(seed).standard_normal((count, 2, HARMONICS))


def forces(count: int, seed: int) -> Tensor:
    """f (count, TIMES), float32."""
    times = DURATION / TIMES * np.arange(1, TIMES + 1)
    return torch.from_numpy(_force(_amplitudes(count, seed), times)).float()


def angles(count: int, seed: int) -> Tensor:
    """x (count, TIMES) under the forces of the same seed, float32."""
    amplitudes, h = _amplitudes(count, seed), DURATION / TIMES / SUBSTEPS

    def slope(state: np.ndarray, t: float) -> np.ndarray:
        return np.stack([state[1], _force(amplitudes, t) - FRICTION * state[1] - np.sin(state[0])])

    state, answers = np.zeros((2, count)), []
    for step in range(TIMES * SUBSTEPS):
        t = step * h
        a = slope(state, t)
        b = slope(state + h / 2 * a, t + h / 2)
        c = slope(state + h / 2 * b, t + h / 2)
        state = state + h / 6 * (a + 2 * b + 2 * c + slope(state + h * c, t + h))
        answers.append(state[0])
    return torch.from_numpy(np.stack(answers[SUBSTEPS - 1 :: SUBSTEPS], axis=1)).float()


class Transformer(nn.Module):
    """f (batch, TIMES) to x (batch, TIMES): a token for every time, LAYERS encoder layers of CHANNELS."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.read = nn.Linear(1, CHANNELS), nn.Linear(CHANNELS, 1)
        self.places = nn.Parameter(0.5 * torch.randn(TIMES, CHANNELS))
        layer = nn.TransformerEncoderLayer(
            CHANNELS, HEADS, 4 * CHANNELS, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, f: Tensor) -> Tensor:
        """x of forces f."""
        return self.read(self.layers(self.embed(f[..., None]) + self.places))[..., 0]


def train_transformer(seed: int = 0, steps: int = TRANSFORMER_STEPS) -> tuple[Transformer, float]:
    """The float32 network in evaluation mode, and its relative L2 error on 256 trajectories that it never saw."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Transformer()
        for layer in net.layers.layers[1:]:  # torch gives every layer the numbers of the first
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
    f, x = forces(TRAJECTORIES, seed + 1), angles(TRAJECTORIES, seed + 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=WARM_UP)
    for _ in range(steps):
        rows = torch.randint(TRAJECTORIES, (TRANSFORMER_BATCH,), generator=generator)
        optimizer.zero_grad()
        (net(f[rows]) - x[rows]).square().mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), LONGEST_GRADIENT)
        optimizer.step()
        schedule.step()
    net.eval()
    with torch.no_grad():
        unseen = angles(256, seed + 2)
        return net, float((net(forces(256, seed + 2)) - unseen).norm() / unseen.norm())
