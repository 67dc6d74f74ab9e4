"""Spectral layers: Fourier neural operators as their authors write them, and networks of parallel parts."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.checked import Family

SPECTRAL = Family("spectral")


class Modes(nn.Module):
    """The lowest modes of (batch, channels, points), each times its own complex matrix."""

    def __init__(self, channels: int, modes: int):
        super().__init__()
        self.modes = modes
        self.weight = nn.Parameter(torch.randn(channels, channels, modes, dtype=torch.cfloat) / channels)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x)
        out = torch.zeros_like(spectrum)
        out[:, :, : self.modes] = torch.einsum("bix,iox->box", spectrum[:, :, : self.modes], self.weight)
        return torch.fft.irfft(out, n=x.shape[-1])


@SPECTRAL.add([(32, 1)], fast=True, openvino=True)
class FNO1d(nn.Module):
    def __init__(self, channels: int = 8):
        super().__init__()
        self.lift, self.last = nn.Linear(1, channels), nn.Linear(channels, 1)
        self.spectral = nn.ModuleList(Modes(channels, 4) for _ in range(2))
        self.skips = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x).permute(0, 2, 1)
        for spectral, skip in zip(self.spectral, self.skips, strict=True):
            x = F.gelu(spectral(x) + skip(x))
        return self.last(x.permute(0, 2, 1))


class Modes2d(nn.Module):
    """The lowest modes of both signs of the first axis."""

    def __init__(self, channels: int, modes: int):
        super().__init__()
        self.modes, shape = modes, (channels, channels, modes, modes)
        self.low, self.high = (nn.Parameter(torch.randn(*shape, dtype=torch.cfloat) / channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        m, spectrum = self.modes, torch.fft.rfft2(x)
        out = torch.zeros(*x.shape[:2], x.shape[-2], x.shape[-1] // 2 + 1, dtype=torch.cfloat)
        out[:, :, :m, :m] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :m, :m], self.low)
        out[:, :, -m:, :m] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, -m:, :m], self.high)
        return torch.fft.irfft2(out, s=x.shape[-2:])


@SPECTRAL.add([(1, 12, 10)])
class FNO2d(nn.Module):
    def __init__(self, channels: int = 4):
        super().__init__()
        self.lift, self.last = nn.Conv2d(1, channels, 1), nn.Conv2d(channels, 1, 1)
        self.spectral, self.skip = Modes2d(channels, 2), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        return self.last(F.gelu(self.spectral(x) + self.skip(x)))


@SPECTRAL.add([(24,)], derivatives=("d3",))
class FNORealMatrices(nn.Module):
    """The transform as matrices of its own, real and imaginary."""

    def __init__(self, points: int = 24, modes: int = 5, channels: int = 6):
        super().__init__()
        angle = 2 * math.pi * torch.outer(torch.arange(modes), torch.arange(points)) / points
        self.register_buffer("cosine", angle.cos())
        self.register_buffer("sine", angle.sin())
        self.lift, self.last = nn.Linear(1, channels), nn.Linear(channels, 1)
        self.real, self.imaginary = (nn.Parameter(torch.randn(modes, channels, channels) / channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x[..., None])
        re, im = self.cosine @ h, self.sine @ h
        re, im = (
            torch.einsum("bki,kio->bko", re, self.real) - torch.einsum("bki,kio->bko", im, self.imaginary),
            torch.einsum("bki,kio->bko", re, self.imaginary) + torch.einsum("bki,kio->bko", im, self.real),
        )
        h = torch.tanh(h + (self.cosine.T @ re + self.sine.T @ im) / len(self.sine))
        return self.last(h)[..., 0]


@SPECTRAL.add([(8, 8, 8)])
class AFNOBlock(nn.Module):
    """Two layers of block-diagonal complex matrices on all modes, and a soft threshold (Guibas et al., 2022)."""

    def __init__(self, channels: int = 8, blocks: int = 2):
        super().__init__()
        self.blocks, size = blocks, channels // blocks
        self.w1, self.w2 = (nn.Parameter(0.3 * torch.randn(2, blocks, size, size)) for _ in range(2))
        self.b1, self.b2 = (nn.Parameter(0.1 * torch.randn(2, blocks, size)) for _ in range(2))

    def layer(self, re: Tensor, im: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        def product(x: Tensor, weight: Tensor) -> Tensor:
            return torch.einsum("...bi,bio->...bo", x, weight)

        return product(re, w[0]) - product(im, w[1]) + b[0], product(im, w[0]) + product(re, w[1]) + b[1]

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, dim=(1, 2), norm="ortho")
        parts = spectrum.reshape(x.shape[0], x.shape[1], x.shape[2] // 2 + 1, self.blocks, -1)
        re, im = self.layer(parts.real, parts.imag, self.w1, self.b1)
        re, im = self.layer(F.relu(re), F.relu(im), self.w2, self.b2)
        out = torch.view_as_complex(F.softshrink(torch.stack([re, im], dim=-1), lambd=0.01))
        return x + torch.fft.irfft2(out.reshape(spectrum.shape), s=x.shape[1:3], dim=(1, 2), norm="ortho")


@SPECTRAL.add([(16,)], derivatives=("d1",))
class ChebyshevConv(nn.Module):
    """A convolution in Chebyshev coefficients, by the cosine transform of an even extension."""

    def __init__(self, points: int = 16, modes: int = 6):
        super().__init__()
        self.modes, self.weight = modes, nn.Parameter(torch.randn(modes, modes) / modes)
        self.out = nn.Linear(points, points)

    def forward(self, x: Tensor) -> Tensor:
        even = torch.cat([x, x[:, 1:-1].flip(1)], dim=1)
        coefficients = torch.fft.rfft(even).real[:, : self.modes] @ self.weight
        spectrum = torch.complex(coefficients, torch.zeros_like(coefficients))
        y = torch.fft.irfft(F.pad(spectrum, (0, x.shape[1] - self.modes)), n=2 * x.shape[1] - 2)
        return self.out(torch.tanh(y[:, : x.shape[1]]))


@SPECTRAL.add([(16,)])
class ComplexWeights(nn.Module):
    """Layers of complex matrices with a threshold on the modulus between them."""

    def __init__(self):
        super().__init__()
        self.w1, self.w2 = (nn.Parameter(torch.randn(*s, dtype=torch.cfloat) / 4) for s in ((16, 12), (12, 4)))
        self.b1 = nn.Parameter(torch.randn(12, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        z = x.to(torch.cfloat) @ self.w1 + self.b1
        z = z * torch.relu(z.abs() - 0.1) / (z.abs() + 1e-3)
        return torch.view_as_real(z @ self.w2).flatten(1)


@SPECTRAL.add([(4, 20)])
class FactorizedFNO(nn.Module):
    """The modes' matrices as a Tucker product, as tensorly gives it to einsum."""

    def __init__(self, channels: int = 4, modes: int = 4, rank: int = 3):
        super().__init__()
        shapes = (rank, rank, rank), (channels, rank), (channels, rank), (modes, rank)
        self.factors = nn.ParameterList(torch.randn(*s, dtype=torch.cfloat) / rank for s in shapes)
        self.modes, self.last = modes, nn.Linear(20, 20)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.fftshift(torch.fft.fft(x, norm="forward"), dim=-1)[..., 8 : 8 + self.modes]
        y = torch.einsum("bix,fgh,if,og,xh->box", spectrum, *self.factors)
        full = torch.fft.ifftshift(F.pad(y, (8, 12 - self.modes)), dim=-1)
        return self.last(torch.fft.ifft(full, norm="forward").real)


@SPECTRAL.add([(3,)], derivatives=("d0",))
class PFNN(nn.Module):
    """DeepXDE's parallel networks: one for each output."""

    def __init__(self):
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(3, 12) for _ in range(3))
        self.second = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.last = nn.ModuleList(nn.Linear(12, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        parts = [torch.tanh(layer(x)) for layer in self.first]
        parts = [torch.tanh(layer(h)) for layer, h in zip(self.second, parts, strict=True)]
        return torch.cat([layer(h) for layer, h in zip(self.last, parts, strict=True)], dim=1)
