"""An emulator such as climate and cosmology use: few parameters to a long spectrum. Trained here from a fixed seed.

Six numbers in [-1, 1] to 2,507 values of a smooth curve, sin(w_k x + p_k) times twelve modes, by four layers of 512.
"""

import torch
from torch import Tensor, nn

from hrt.perf.networks.pinn_training import adam

PARAMETERS, WIDTH, DEPTH, VALUES, MODES = 6, 512, 4, 2507, 12
STEPS, BATCH = 300, 256


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
