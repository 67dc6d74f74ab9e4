"""Convolutional networks on signals, images and volumes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.checked import Family

IMAGES = Family("images")


@IMAGES.add([(2, 16)], fast=True, openvino=True)
def conv1d_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 8, 5, padding=2),
        nn.Tanh(),
        nn.Conv1d(8, 8, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(128, 1),
    )


@IMAGES.add([(3, 12)])
def conv1d_kernel_one() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 24, 1), nn.GELU(), nn.Conv1d(24, 24, 1), nn.GELU(), nn.Conv1d(24, 2, 1))


@IMAGES.add([(1, 12, 12)])
def cnn_encoder_regressor() -> nn.Module:
    layers = [nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))


@IMAGES.add([(1, 8, 8)])
def cnn_flatten_mlp_head() -> nn.Module:
    layers = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(96, 64), nn.Tanh(), nn.Linear(64, 2))


class UNet(nn.Module):
    """Down, up and a skip, in one to three dimensions."""

    def __init__(self, axes: int, width: int):
        super().__init__()
        conv, up = getattr(nn, f"Conv{axes}d"), getattr(nn, f"ConvTranspose{axes}d")
        self.first, self.low = conv(1, width, 3, padding=1), conv(width, 2 * width, 3, padding=1)
        self.up, self.last = up(2 * width, width, 2, 2), conv(2 * width, 1, 3, padding=1)
        self.pool = getattr(nn, f"MaxPool{axes}d")(2)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.tanh(self.first(x))
        return self.last(torch.cat([torch.tanh(self.up(F.gelu(self.low(self.pool(skip))))), skip], dim=1))


@IMAGES.add([(1, 16)])
def unet_1d() -> nn.Module:
    return UNet(1, 8)


@IMAGES.add([(1, 8, 8)])
def unet_2d() -> nn.Module:
    return UNet(2, 6)


@IMAGES.add([(1, 4, 4, 4)])
def unet_3d() -> nn.Module:
    return UNet(3, 4)


@IMAGES.add([(1, 8, 8)])
def conv_autoencoder() -> nn.Module:
    down = [nn.Conv2d(1, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, 8, 3, 2, 1), nn.GELU()]
    up = [nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1), nn.GELU(), nn.ConvTranspose2d(8, 1, 4, 2, 1)]
    return nn.Sequential(*down, *up)


@IMAGES.add([(2, 20)])
class CausalTCN(nn.Module):
    """Dilated convolutions that see the past alone."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(n, 8, 3, dilation=2**k) for k, n in enumerate((2, 8, 8)))
        self.last = nn.Conv1d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        for k, layer in enumerate(self.layers):
            x = torch.tanh(layer(F.pad(x, (2 * 2**k, 0))))
        return self.last(x)


@IMAGES.add([(1, 6, 6)])
class ConvGRU(nn.Module):
    """Three steps of one cell."""

    def __init__(self):
        super().__init__()
        self.gates, self.state = nn.Conv2d(5, 8, 3, padding=1), nn.Conv2d(5, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], 4, 6, 6, dtype=x.dtype)
        for _ in range(3):
            update, reset = torch.sigmoid(self.gates(torch.cat([x, h], dim=1))).chunk(2, dim=1)
            h = (1 - update) * h + update * torch.tanh(self.state(torch.cat([x, reset * h], dim=1)))
        return self.last(h)


@IMAGES.add([(2, 8, 8)])
class PatchEmbedding(nn.Module):
    """As vision transformers and AFNO begin, with a layer on every patch behind."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Conv2d(2, 24, 4, stride=4), nn.Linear(24, 24), nn.Linear(24, 32)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        y = self.head(F.gelu(self.mix(tokens)))
        return F.pixel_shuffle(y.transpose(1, 2).reshape(-1, 32, 2, 2), 4)


@IMAGES.add([(3, 8, 8)])
def depthwise_separable_cnn() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 1), nn.GELU()]
    for _ in range(2):
        layers += [nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1), nn.GELU()]
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 2))


@IMAGES.add([(1, 8, 8)])
def grouped_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Tanh(), nn.Conv2d(8, 1, 1)
    )


@IMAGES.add([(1, 8, 8)])
def reflecting_generator() -> nn.Module:
    """Reflections, instance norms, a step down and one up, as Pix2Pix has them."""
    layers = [nn.ReflectionPad2d(2), nn.Conv2d(1, 8, 5), nn.InstanceNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 12, 3, 2, 1), nn.InstanceNorm2d(12), nn.ReLU()]
    layers += [nn.ConvTranspose2d(12, 8, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.ReflectionPad2d(1), nn.Conv2d(8, 1, 3), nn.Tanh())


@IMAGES.add([(1, 6, 6)])
class BilinearDecoder(nn.Module):
    """Interpolation in place of transposed convolutions, with group norms and periodic sides."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1, padding_mode="circular")
        self.norm, self.last = nn.GroupNorm(2, 8), nn.Conv2d(8, 1, 3, padding="same", padding_mode="replicate")

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm(self.first(x)))
        return self.last(F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False))
