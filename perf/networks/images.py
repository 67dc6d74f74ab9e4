"""A U-Net and a small CNN on images, trained here in a minute from a fixed seed.

    -u_xx - u_yy = f on the unit square, u = 0 on its sides

f is a smooth random image of SIDE x SIDE inner points and u the solution by the five-point formula. The U-Net gives u,
the CNN what flows out through the four sides.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from hrt.perf.networks.pinn_training import adam

SIDE, SMOOTH = 32, 3.0  # points of a side; modes of f fade like exp(-(k / SMOOTH)^2)
CHANNELS, BATCH, IMAGES = 16, 32, 2048
UNET_STEPS, CNN_STEPS = 400, 800


@cache
def _modes(side: int) -> tuple[np.ndarray, np.ndarray]:
    """The sine modes (side, side) of the second difference, orthonormal and symmetric, and its eigenvalues (side,)."""
    k = np.arange(1, side + 1)
    modes = np.sqrt(2 / (side + 1)) * np.sin(np.pi * np.outer(k, k) / (side + 1))
    return modes, (2 * (side + 1) * np.sin(np.pi * k / (2 * (side + 1)))) ** 2


def sources(count: int, seed: int, side: int = SIDE) -> Tensor:
    """Random images f (count, 1, side, side), float32, of root mean square about 1."""
    modes, _ = _modes(side)
    k = np.arange(1, side + 1)
    fading = np.exp(-(k[:, None] ** 2 + k**2) / SMOOTH**2)
    spectrum = np.random.default_rng(seed).standard_normal((count, side, side)) * fading / np.sqrt((fading**2).sum())
    return torch.from_numpy(side * modes @ spectrum @ modes).float()[:, None]


def solutions(f: Tensor) -> Tensor:
    """u (count, 1, side, side) by the five-point formula, times 20, which makes it about 1."""
    modes, values = _modes(f.shape[-1])
    spectrum = modes @ f.double().numpy() @ modes / (values[:, None] + values)
    return torch.from_numpy(20 * modes @ spectrum @ modes).float()


def fluxes(f: Tensor) -> Tensor:
    """What flows out through the four sides (count, 4): sums of differences next to them."""
    u = solutions(f)[:, 0]
    return torch.stack([u[:, 0].sum(1), u[:, -1].sum(1), u[:, :, 0].sum(1), u[:, :, -1].sum(1)], dim=1)


def _double(inputs: int, outputs: int) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GELU(), nn.Conv2d(outputs, outputs, 3, padding=1), nn.GELU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Two levels down by averages, two up by transposed convolutions, with skips; (batch, 1, n, n) to the same."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        c = channels
        self.first, self.second, self.bottom = _double(1, c), _double(c, 2 * c), _double(2 * c, 4 * c)
        self.up_second, self.up_first = nn.ConvTranspose2d(4 * c, 2 * c, 2, 2), nn.ConvTranspose2d(2 * c, c, 2, 2)
        self.back_second, self.back_first = _double(4 * c, 2 * c), _double(2 * c, c)
        self.last, self.pool = nn.Conv2d(c, 1, 1), nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """u of images f."""
        first = self.first(x)
        second = self.second(self.pool(first))
        y = self.back_second(torch.cat([self.up_second(self.bottom(self.pool(second))), second], dim=1))
        return self.last(self.back_first(torch.cat([self.up_first(y), first], dim=1)))


def small_cnn() -> nn.Sequential:
    """Four convolutions, a pool and a head: (batch, 1, 32, 32) to (batch, 4)."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.SiLU()]
    layers += [nn.Conv2d(64, 64, 3, padding=1), nn.SiLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64 * (SIDE // 8) ** 2, 64), nn.SiLU(), nn.Linear(64, 4))


def train_images(kind: str, seed: int = 0, steps: int | None = None) -> tuple[nn.Module, float]:
    """The network "unet" or "cnn" in float32 and evaluation mode, and its relative L2 error on 128 unseen images."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = UNet() if kind == "unet" else small_cnn()
    answer, count = (solutions, UNET_STEPS) if kind == "unet" else (fluxes, CNN_STEPS)
    images = sources(IMAGES, seed)
    expected = answer(images)
    scale = expected.square().mean()

    def loss(step: int) -> Tensor:
        rows = torch.randint(IMAGES, (BATCH,), generator=generator)
        return (net(images[rows]) - expected[rows]).square().mean() / scale

    adam(net, loss, count if steps is None else steps, (2e-3, 1e-5), lambda step, value: None)
    unseen = sources(128, seed + 1)
    with torch.no_grad():
        error = float((net(unseen) - answer(unseen)).norm() / answer(unseen).norm())
    return net.eval(), error
