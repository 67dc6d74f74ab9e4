"""A Fourier neural operator of the viscous Burgers equation (Li et al., 2021), trained here in about two minutes.

    u_t + u u_x = nu u_xx,   u(x, 0) = a(x),   periodic on [0, 1),   nu = 0.01

a -> u(., 1) on 64 points: 4 spectral layers of 12 modes, 32 channels wide. a is drawn from N(0, 625 (-Laplace + 25)^-2)
as in that paper; the data come from a spectral solver.

    python -m hrt.perf.networks.fno train --out fno.safetensors
"""

import time
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import torch
import typer
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save
from torch import Tensor, nn

from hrt.perf.networks.pinn_training import one_thread
from hrt.support.atomic_files import replacing

NU, END = 0.01, 1.0
POINTS, FINE = 64, 256  # of the network's grid; of the solver's
WIDTH, MODES, LAYERS, HEAD = 32, 12, 4, 128
TRAIN, BATCH, STEPS, RATE = 2048, 64, 1600, 4e-3
TIME_STEPS = 200
SCALE, SHIFT = 625.0, 25.0  # of the covariance SCALE (-Laplace + SHIFT)^-2


def initial_states(count: int, seed: int) -> np.ndarray:
    """(count, FINE) periodic random functions of mean zero, by their Fourier coefficients."""
    rng = np.random.default_rng(seed)
    k = np.arange(FINE // 2 + 1)
    size = np.where(k > 0, SCALE**0.5 / ((2 * np.pi * k) ** 2 + SHIFT), 0.0)
    spectrum = size * (rng.standard_normal((count, len(k))) + 1j * rng.standard_normal((count, len(k))))
    return np.fft.irfft(spectrum * FINE / 2**0.5, FINE)


def solve(start: np.ndarray, nu: float = NU, end: float = END, steps: int = TIME_STEPS) -> np.ndarray:
    """u(., end) of initial states (count, n): Fourier in space, products without aliases (the 2/3 rule), Runge and
    Kutta's fourth order in time with the diffusion integrated exactly.
    """
    n, h = start.shape[1], end / steps
    k = 2 * np.pi * np.arange(n // 2 + 1)
    half, alias_free = np.exp(-nu * k**2 * h / 2), np.arange(len(k)) < n / 3

    def slope(v: np.ndarray) -> np.ndarray:
        u = np.fft.irfft(v * alias_free, n)
        return -0.5j * k * np.fft.rfft(u * u) * alias_free

    v = np.fft.rfft(start)
    for _ in range(steps):
        a = slope(v)
        b = slope(half * (v + h / 2 * a))
        c = slope(half * v + h / 2 * b)
        d = slope(half**2 * v + h * half * c)
        v = half**2 * v + h / 6 * (half**2 * a + 2 * half * (b + c) + d)
    return np.fft.irfft(v, n)


class SpectralConv(nn.Module):
    """The lowest Fourier modes of (batch, channels, points), each times its own complex matrix."""

    def __init__(self, channels: int, modes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.modes = modes
        weight = torch.randn(channels, channels, modes, 2, generator=generator) / channels
        self.weight = nn.Parameter(torch.view_as_complex(weight))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[-1]
        spectrum = torch.fft.rfft(x)[..., : self.modes]
        out = torch.zeros(x.shape[0], x.shape[1], n // 2 + 1, dtype=spectrum.dtype, device=x.device)
        out[:, :, : self.modes] = torch.einsum("bix,iox->box", spectrum, self.weight)
        return torch.fft.irfft(out, n=n)


class FNO(nn.Module):
    """a (batch, points) -> u (batch, points)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.lift = nn.Linear(1, WIDTH)
            self.spectral = nn.ModuleList(SpectralConv(WIDTH, MODES, generator) for _ in range(LAYERS))
            self.skips = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
            self.head = nn.Sequential(nn.Linear(WIDTH, HEAD), nn.GELU(), nn.Linear(HEAD, 1))

    def forward(self, a: Tensor) -> Tensor:
        x = self.lift(a[..., None])  # (batch, points, channels)
        for k, (spectral, skip) in enumerate(zip(self.spectral, self.skips, strict=True)):
            x = spectral(x.mT).mT + skip(x)
            x = nn.functional.gelu(x) if k < LAYERS - 1 else x
        return self.head(x)[..., 0]


def dft_graph(net: FNO) -> onnx.ModelProto:
    """The network as an ONNX graph of opset 20 with DFT nodes, as exporters of others write it: (batch, POINTS), dense.

    A mode's complex matrix is a real one over (re, im); the inverse transform reads the whole spectrum, because ONNX
    has none of half a one before opset 23.
    """
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(value: Any) -> str:
        array = value.detach().numpy() if isinstance(value, Tensor) else np.array(value)
        constants.append(numpy_helper.from_array(np.ascontiguousarray(array), f"c{len(constants)}"))
        return constants[-1].name

    def add(op: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"v{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def reshaped(x: str, *shape: int) -> str:
        return add("Reshape", x, constant(shape))

    def sliced(x: str, start: int, stop: int, axis: int, step: int = 1) -> str:
        return add("Slice", x, *(constant([v]) for v in (start, stop, axis, step)))

    def linear(x: str, layer: Any) -> str:
        return add("Add", add("MatMul", x, constant(layer.weight.T)), constant(layer.bias))

    def spectral(x: str, weight: Any) -> str:
        spectrum = add("DFT", reshaped(add("Transpose", x, perm=[0, 2, 1]), -1, WIDTH, POINTS, 1), onesided=1)
        modes = add("Transpose", sliced(spectrum, 0, MODES, 2), perm=[2, 0, 3, 1])
        w = weight.detach().permute(2, 0, 1)
        block = torch.cat([torch.cat([w.real, w.imag], 2), torch.cat([-w.imag, w.real], 2)], 1)
        product = add("MatMul", reshaped(modes, MODES, -1, 2 * WIDTH), constant(block))
        half = add("Transpose", reshaped(product, MODES, -1, 2, WIDTH), perm=[1, 3, 0, 2])
        mirrored = add("Mul", sliced(half, MODES - 1, 0, 2, -1), constant(np.array([1, -1], dtype=np.float32)))
        zeros = add("Pad", half, constant([0, 0, 0, 0, 0, 0, POINTS + 1 - 2 * MODES, 0]))
        values = add("DFT", add("Concat", zeros, mirrored, axis=2), inverse=1)
        return add("Transpose", reshaped(sliced(values, 0, 1, 3), -1, WIDTH, POINTS), perm=[0, 2, 1])

    x = linear(reshaped("a", -1, POINTS, 1), net.lift)
    for k, (layer, skip) in enumerate(zip(net.spectral, net.skips, strict=True)):
        x = add("Add", spectral(x, layer.weight), linear(x, skip))
        x = add("Gelu", x) if k < LAYERS - 1 else x
    first, _, last = net.head
    x = reshaped(linear(add("Gelu", linear(x, first)), last), -1, POINTS)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", POINTS]) for name in ("a", x)]
    graph = helper.make_graph(nodes, "fno", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def flows(count: int, seed: int) -> Tensor:
    """Initial states (count, POINTS), float32: what the network is used on."""
    return torch.from_numpy(initial_states(count, seed)[:, :: FINE // POINTS]).float()


@cache
def pairs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Initial states and solutions, (count, POINTS) float32."""
    start = initial_states(count, seed)
    step = FINE // POINTS
    return tuple(torch.from_numpy(v[:, ::step]).float() for v in (start, solve(start)))  # type: ignore[return-value]


def train_fno(seed: int = 0, steps: int = STEPS) -> FNO:
    """The trained network, in evaluation mode. Same seed, same weights on one thread."""
    inputs, answers = pairs(TRAIN, seed + 1)
    network, generator = FNO(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(0, TRAIN, (BATCH,), generator=generator)
        shift = int(torch.randint(0, POINTS, (), generator=generator))  # the equation is the same everywhere
        a, u = (v[rows].roll(shift, 1) for v in (inputs, answers))
        loss = ((network(a) - u).norm(dim=1) / u.norm(dim=1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def test_error(network: nn.Module, count: int = 512, seed: int = 2024) -> float:
    """Relative L2 error against the solver on states that training never saw."""
    inputs, answers = pairs(count, seed)
    with torch.no_grad():
        return float((network(inputs) - answers).norm() / answers.norm())


def load_fno(path: str | Path) -> FNO:
    """A network that `train` wrote."""
    network = FNO()
    network.load_state_dict({k: _complex(k, v) for k, v in load_file(path).items()})
    return network.eval()


def _complex(name: str, tensor: Tensor) -> Tensor:
    return torch.view_as_complex(tensor) if name.startswith("spectral") else tensor


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help="The Fourier neural operator of Burgers.")


@app.command("train")
def train_command(
    out: Annotated[Path, typer.Option(help="File to write.")],
    seed: Annotated[int, typer.Option(help="Of weights, data and draws.")] = 0,
) -> None:
    """Train on the solver's data and write the weights."""
    start = time.perf_counter()
    with one_thread():
        network = train_fno(seed)
    seconds = time.perf_counter() - start
    state = {k: torch.view_as_real(v) if v.is_complex() else v for k, v in network.state_dict().items()}
    with replacing(out) as file:
        file.write(save({k: v.contiguous() for k, v in state.items()}))
    print(f"{out}: relative L2 error {test_error(network):.2e} against the solver, {seconds:.0f} s")


@app.callback()
def _main() -> None:
    """So that `train` is a command by name."""


if __name__ == "__main__":
    app(prog_name="python -m hrt.perf.networks.fno")
