"""Complex numbers and transforms of fixed length: the same numbers as torch, by products with truncated matrices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hrt.capture.torch_export import capture
from hrt.errors import CaptureError
from hrt.program.parallel_linears import joined
from hrt.program.program import Program

fft = torch.fft
SHAPE = (3, 6, 8)  # of one sample
C = torch.complex128


def constant(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=C)


class Called(nn.Module):
    """A function of the network and x; with a few constants and weights."""

    def __init__(self, function: Callable):
        super().__init__()
        self.function = function
        self.modes = nn.Parameter(constant(3, 5, 4) / 2)
        self.grid = nn.Parameter(constant(3, 5, 2, 4, seed=1) / 2)
        self.other = nn.Parameter(constant(3, 5, 2, 4, seed=2) / 2)
        self.square = nn.Parameter(constant(8, 8, seed=3) / 3)
        self.phase = nn.Buffer(constant(6, 5, seed=4))
        shapes = (2, 2, 3), (3, 2), (5, 2), (4, 3)
        self.factors = nn.ParameterList(constant(*shape, seed=k) for k, shape in enumerate(shapes))
        self.real = nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def real(z: Tensor) -> Tensor:
    """All of a complex value."""
    return torch.view_as_real(z.resolve_conj())


def fno_1d(m: Called, x: Tensor) -> Tensor:
    spectrum = fft.rfft(x[:, :, 0])
    out = torch.zeros(x.shape[0], 5, 5, dtype=spectrum.dtype)
    out[:, :, :4] = torch.einsum("bix,iox->box", spectrum[:, :, :4], m.modes)
    return fft.irfft(out, n=8)


def fno_2d(m: Called, x: Tensor) -> Tensor:
    spectrum = fft.rfft2(x)
    out = torch.zeros(x.shape[0], 5, 6, 5, dtype=spectrum.dtype)
    out[:, :, :2, :4] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :2, :4], m.grid)
    out[:, :, -2:, :4] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, -2:, :4], m.other)
    return fft.irfft2(out, s=(6, 8))


def shifted_2d(m: Called, x: Tensor) -> Tensor:
    """As neuraloperator does it: low frequencies in the middle."""
    spectrum = fft.fftshift(fft.rfftn(x, dim=(-2, -1), norm="forward"), dim=(-2,))
    out = torch.zeros(x.shape[0], 5, 6, 5, dtype=spectrum.dtype)
    middle = (slice(None), slice(None), slice(2, 4), slice(None, 4))
    out[middle] = torch.einsum("bixy,ioxy->boxy", spectrum[middle], m.grid)
    return fft.irfftn(fft.ifftshift(out, dim=(-2,)), s=(6, 8), dim=(-2, -1), norm="forward")


def channels_last(m: Called, x: Tensor) -> Tensor:
    spectrum = fft.rfft(x.permute(0, 3, 2, 1), dim=1)
    y = torch.einsum("bxni,iox->bxno", spectrum[:, :4], m.modes)
    return fft.irfft(y, n=12, dim=1)


def padded(m: Called, x: Tensor) -> Tensor:
    spectrum = nn.functional.pad(fft.rfft(x)[..., 1:3], (1, 4))
    return fft.irfft(spectrum, n=12)


def tucker(m: Called, x: Tensor) -> Tensor:
    core, rows, columns, modes = m.factors
    y = torch.einsum("bix,fgh,if,og,xh->box", fft.rfft(x[:, :, 0])[..., :4], core, rows, columns, modes)
    return fft.irfft(y, n=8)


CASES: dict[str, Callable[[Called, Tensor], Tensor]] = {
    "fft": lambda m, x: real(fft.fft(x)),
    "fft of another length": lambda m, x: real(fft.fft(x, n=11, dim=1)),
    "fft cropped": lambda m, x: real(fft.fft(x, n=5)),
    "ifft": lambda m, x: real(fft.ifft(x)),
    "rfft ortho": lambda m, x: real(fft.rfft(x, norm="ortho")),
    "rfft of an odd length": lambda m, x: real(fft.rfft(x, n=7)),
    "rfft2": lambda m, x: real(fft.rfft2(x)),
    "rfftn of all axes": lambda m, x: real(fft.rfftn(x, dim=(1, 2, 3))),
    "fft2 of sizes": lambda m, x: real(fft.fft2(x, s=(4, 10))),
    "fftn": lambda m, x: real(fft.fftn(x, dim=(1, 2, 3), norm="forward")),
    "ifft2": lambda m, x: real(fft.ifft2(fft.fft2(x)[..., :4])),
    "ifftn": lambda m, x: real(fft.ifftn(x, dim=(2, 3))),
    "irfft": lambda m, x: fft.irfft(fft.rfft(x)[..., :3] * (2 + 1j), n=8),
    "irfft of an odd length": lambda m, x: fft.irfft(fft.rfft(x, n=7) * 1j, n=7),
    "irfft of the usual length": lambda m, x: fft.irfft(fft.rfft(x) * m.phase[0]),
    "irfft2": lambda m, x: fft.irfft2(fft.rfft2(x) * m.phase),
    "irfftn": lambda m, x: fft.irfftn(fft.rfftn(x, dim=(1, 2, 3)), s=(3, 6, 8), dim=(1, 2, 3), norm="ortho"),
    "irfft of a real value": lambda m, x: fft.irfft(torch.complex(x, 0 * x), n=9),
    "fno 1d": fno_1d,
    "fno 2d": fno_2d,
    "fno 2d, shifted": shifted_2d,
    "fno, channels last": channels_last,
    "padded": padded,
    "tucker": tucker,
    "shifts": lambda m, x: real(fft.fftshift(fft.fft(x), dim=(-1, -2))[..., 2:5]),
    "flip and roll": lambda m, x: real(fft.fft(x).flip(-1).roll((2,), (3,))),
    "picked": lambda m, x: real(fft.fft(x)[..., [0, 3, 3, 1]]),
    "select": lambda m, x: real(fft.rfft(x)[:, :, 2, 1:3]),
    "split": lambda m, x: real(torch.cat([p * (k + 1) for k, p in enumerate(fft.rfft(x).split(2, dim=-1))], dim=-1)),
    "cat with unlike lines": lambda m, x: real(torch.cat([fft.fft(x), fft.ifft(x)], dim=1)),
    "stack": lambda m, x: real(torch.stack([fft.rfft(x), fft.rfft(2 * x)], dim=2)),
    "transposes": lambda m, x: real(fft.rfft(x).permute(0, 3, 1, 2).transpose(1, 2)),
    "reshape": lambda m, x: real(fft.rfft(x).reshape(-1, 18, 5).unsqueeze(1)),
    "select_scatter": lambda m, x: real(torch.select_scatter(fft.rfft(x), fft.rfft(x)[:, :, 0] * 2, 2, -1)),
    "real and imaginary": lambda m, x: fft.rfft(x).real + 2 * fft.rfft(x).imag,
    "imaginary part of a product": lambda m, x: torch.einsum("bixy,iy->bxy", fft.rfft(x)[..., :4], m.modes[:, 0]).imag,
    "conj": lambda m, x: real(torch.conj(fft.fft(x)) + 1j * x),
    "conj of a product": lambda m, x: real(torch.conj(fft.ifft(torch.conj(fft.rfft(x)), dim=1))),
    "abs": lambda m, x: fft.rfft(x).abs(),
    "angle": lambda m, x: (fft.rfft(x) + 1).angle(),
    "polar": lambda m, x: real(torch.polar(x.exp(), x)),
    "view_as_complex": lambda m, x: real(torch.view_as_complex(x.reshape(-1, 3, 6, 4, 2).contiguous()) * 1j),
    "complex": lambda m, x: real(torch.complex(x, x.sin()) - 2),
    "complex times complex": lambda m, x: real(fft.rfft(x) * fft.rfft(x.sin())),
    "complex times a real value": lambda m, x: real(fft.rfft(x) * x[..., :5]),
    "a complex constant times a real value": lambda m, x: real(m.phase * x[..., :5]),
    "over": lambda m, x: real(fft.rfft(x) / m.phase / 3.0),
    "sum": lambda m, x: real(fft.rfft(x).sum(dim=1) - fft.rfft(x).mean(dim=(1,))),
    "a train": lambda m, x: real(torch.einsum("eiy,biny->bn", m.modes[:, :3], fft.rfft(x)[..., :4])),
    "matmul": lambda m, x: real(fft.fft(x) @ m.square),
    "matmul from the left": lambda m, x: real(m.square[:, :6] @ fft.fft(x)),
    "matmul of a real value": lambda m, x: real(torch.matmul(x.to(C), m.square)),
    "a real weight": lambda m, x: real(torch.einsum("bixy,iy->bxy", fft.rfft(x)[..., :4], m.real.to(C))),
    "tensordot": lambda m, x: real(torch.tensordot(fft.rfft(x), m.factors[1], dims=([1], [0]))),
    "modes alone": lambda m, x: real(torch.einsum("biny,iny->biny", fft.rfft(x), m.phase.expand(3, 6, 5))),
    "zeros": lambda m, x: real(torch.zeros(x.shape[0], 3, dtype=C) + fft.rfft(x)[:, :, 0, 0]),
    "the whole assigned": lambda m, x: real(torch.zeros_like(fft.rfft(x)).copy_(fft.rfft(x[:, :, :1]))),
}  # fmt: skip


def program_of(function: Callable) -> tuple[Called, Tensor, Program]:
    net = Called(function).double().eval()
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    return net, x, capture(net, [x])


GROUPS = [list(CASES)[k::6] for k in range(6)]  # tracing takes longer than everything else


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
def test_torch_says_the_same(names):
    net, x, program = program_of(lambda m, x: tuple(CASES[name](m, x) for name in names))
    with torch.no_grad():
        expected = net(x)
    for outputs in (program.run([x]), joined(program).run([x])):
        for name, y, truth in zip(names, outputs, expected, strict=True):
            torch.testing.assert_close(y, truth, rtol=1e-11, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


def test_only_the_modes_that_are_used_are_computed():
    _, _, program = program_of(fno_1d)
    assert {c.shape for k, c in program.constants.items() if k in program.generated} == {(8, 8), (8, 16)}


def test_a_complex_weight_is_stored_once_as_its_two_parts():
    net, _, program = program_of(fno_1d)
    assert list(program.weights) == [f"modes.{k}" for k in range(4)]
    weight = net.modes.detach()[:, :, 2].T
    assert torch.equal(program.constants["modes.2"], torch.cat([weight.real, weight.imag]))


def test_slices_of_one_spectrum_share_its_transforms():
    _, _, program = program_of(fno_2d)
    assert len([n for n in program.nodes if n.inputs[1:2] == ("generated/dft8",)]) == 1


def test_layers_share_generated_constants():
    def twice(m: Called, x: Tensor) -> Tensor:
        for _ in range(2):
            x = fft.irfft(fft.rfft(x)[..., :3], n=8).sin()
        return x

    assert len(program_of(twice)[2].generated) == 2


def test_modes_run_as_one_product():
    _, _, program = program_of(fno_2d)
    assert len(program.weights) == 16
    assert len(joined(program).weights) == 2


REFUSED = {
    "a length that varies": (lambda m, x: fft.rfft(x, n=x.shape[0]).abs(), "fft_rfft.*fixed length"),
    "along the batch": (lambda m, x: fft.rfft(x, dim=0).abs(), "fft_rfft.*along the batch"),
    "no rule": (lambda m, x: torch.view_as_real(fft.rfft(x).sqrt()), "sqrt.*complex"),
    "a complex result": (lambda m, x: fft.rfft(x), "view_as_real"),
    "two spectra in an equation": (
        lambda m, x: real(torch.einsum("bcny,bdny->bcd", fft.rfft(x), fft.rfft(x))), "einsum.*depend"),
    "too long": (lambda m, x: fft.rfft(x, n=1 << 21).abs(), "abs.*fewer modes"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_errors_name_the_op_the_module_and_the_remedy(name):
    function, message = REFUSED[name]
    with pytest.raises(CaptureError, match=f"(?s)(Op .*|Output .*){message}"):
        program_of(function)
