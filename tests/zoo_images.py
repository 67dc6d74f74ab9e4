"""Small networks on signals and images."""

from __future__ import annotations

import torch
from torch import nn

from zoo_pinns import entry


@entry(3, (2, 9))
def convolutions_1d():
    """Strides, dilation, groups of channels, and a flat end."""
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=2, dilation=2),
        nn.Tanh(),
        nn.Conv1d(4, 4, 3, stride=2, padding=1, groups=4),
        nn.Tanh(),
        nn.Conv1d(4, 3, 1),
        nn.Flatten(),
        nn.Linear(15, 2),
    )


@entry(4, (1, 6, 6))
class SmallUNet(nn.Module):
    """Down, up again, and the skip beside it."""

    def __init__(self):
        super().__init__()
        self.first, self.down = nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular"), nn.Conv2d(3, 4, 2, stride=2)
        self.up, self.last = nn.ConvTranspose2d(4, 3, 2, stride=2), nn.Conv2d(6, 1, 3, padding="same")

    def forward(self, x):
        skip = torch.tanh(self.first(x))
        y = torch.tanh(self.up(torch.sin(self.down(skip))))
        return self.last(torch.cat([skip, y], dim=1))
