"""Small compressed networks that tests of training go on from."""

import torch
from torch import nn


class Net(nn.Module):
    """Everything that is no plain layer beside some that are: normalisation, a number, layer norm, a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, -0.5, 1.0]))
        self.first, self.second, self.last = nn.Linear(3, 48), nn.Linear(48, 48), nn.Linear(48, 2)
        self.norm = nn.LayerNorm(48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.first((x - self.mean) * 0.7))
        return self.last(self.norm(y + torch.sin(self.second(y))))


def made(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().eval()


def inputs(count: int = 2000, width: int = 3) -> torch.Tensor:
    return torch.rand(count, width, generator=torch.Generator().manual_seed(1)) * 2 - 1
