"""What the harness measures on: a registry of networks with the data that they are used on, and any user's own.

Three sets of rows of one distribution: calibration (second moments), search (on which knobs are set) and fresh (on
which errors are reported, and nothing was tuned). hrt gets the first two together and splits them itself.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import torch
from torch import Tensor, nn

import hrt
from hrt.calibration.input_files import read_array
from hrt.calibration.moments import evaluate
from hrt.capture.checkpoints import read_network
from hrt.capture.onnx.file import read_onnx
from hrt.capture.torch_export import capture
from hrt.derivatives.differentiate import differentiate
from hrt.errors import InputError
from hrt.perf.networks import burgers, deeponet, fno, images, neuralfoil, operators, pinns, qlknn, surrogates
from hrt.perf.networks.as_torch_module import written_out
from hrt.perf.networks.pinn_training import one_thread
from hrt.program.program import Program
from hrt.support.atomic_files import usable

ROWS, FRESH = 8192, 4096  # of calibration and search together; of fresh rows
CALIBRATION, SEARCH, HELD_OUT = 1, 2, 2024  # seeds
SUFFIXES = (".pt2", ".onnx", ".hrt")
WEIGHTS_MARGIN = 0.98  # of tol, asked of hrt where it bounds weights: that holds for the mean over inputs, not for each

Tensors = tuple[Tensor, ...]
Rows = Callable[[int, int], Tensor | Tensors]  # count and seed to rows


class MissingError(hrt.HrtError):
    """A package that a workload or method needs is not installed; the message says how to get it."""


@dataclass(frozen=True, eq=False)
class Workload:
    """A network and its data, all float32 (rows, *shape), one tensor per input.

    net: what hrt.compress takes; None where there is only a `.hrt` file, `served`.  program: the dense network.
    by_weights: whether hrt is asked to bound weights because the rows are white noise.  derivatives: what `program`
    gives besides what `net` does.  graph: ONNX, as others' exporters write the dense network.
    """

    name: str
    about: str
    net: Any
    program: Program
    calibration: Tensors
    search: Tensors
    fresh: Tensors
    batches: tuple[int, ...] = (1, 256)
    by_weights: bool = False
    served: hrt.CompressedModel | None = None
    derivatives: tuple[str, ...] = ()
    graph: Any = None
    memo: dict[Any, Any] = field(default_factory=dict)  # what several methods need, made once

    @property
    def dense_nbytes(self) -> int:
        return sum(4 * int(np.prod(c.shape)) for c in self.program.stored_constants.values())

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returned when `key` was first asked for."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def reference(self, rows: str) -> Tensor:
        """The dense network's outputs on "search" or "fresh" rows in float64, all outputs side by side (rows, n)."""
        return self.once(("reference", rows), lambda: evaluate(self.program, getattr(self, rows)))


@dataclass(frozen=True)
class Entry:
    """A line of the registry. size: the default, of an operator."""

    about: str
    build: Callable[[str, "Entry", int], Workload]
    size: int = 0
    batches: tuple[int, ...] = (1, 256)


def build(name: str) -> Workload:
    """The workload of a name in REGISTRY (`log-1d:4096` gives a size of its own) or of a user's file."""
    if name.endswith(SUFFIXES):
        return from_file(Path(name))
    entry, size = _entry(name)
    # an operator's matrix in float64 some ten times over, and rows of data
    needed = 80 * size**2 + 12 * (ROWS + FRESH) * size if size else 1 << 29
    free = psutil.virtual_memory().available
    if needed > free:
        raise MemoryError(f"{name} needs about {needed / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free")
    try:
        return entry.build(name, entry, size)
    except FileNotFoundError as error:
        raise MissingError(str(error)) from error


def check(name: str) -> None:
    """Raise InputError unless `name` is in the registry or a file that may hold a network."""
    if name.endswith(SUFFIXES):
        if not usable(name).is_file():
            raise InputError(f"{name} does not exist. Expected a .pt2, .onnx or .hrt file.")
        return
    _entry(name)


def _entry(name: str) -> tuple[Entry, int]:
    stem, _, size = name.partition(":")
    if stem not in REGISTRY or (size and not (REGISTRY[stem].size and re.fullmatch(r"[1-9]\d*", size))):
        known = ", ".join(f"{k}[:SIZE]" if e.size else k for k, e in REGISTRY.items())
        raise InputError(f"Found workload {name!r}. Expected one of {known}, or a .pt2, .onnx or .hrt file.")
    return REGISTRY[stem], int(size) if size else REGISTRY[stem].size


def from_file(path: Path, inputs: Sequence[Path] = ()) -> Workload:
    """A user's network. inputs: files of rows, one per input; without them rows are standard normal, which is said."""
    check(str(path))
    served = hrt.load(path) if path.suffix == ".hrt" else None
    net = None if served else read_network(str(path))
    program = (
        served.program if served else read_onnx(path) if path.suffix == ".onnx" else capture(cast("nn.Module", net), ())
    )
    if inputs:
        rows = tuple(torch.from_numpy(np.asarray(read_array(p), dtype=np.float32)) for p in inputs)
        program.check_inputs(rows)
        if len(rows[0]) < 64:
            raise InputError(f"Found {len(rows[0])} rows of inputs. Expected 64 or more, of which a third judges.")
        order = torch.randperm(len(rows[0]), generator=torch.Generator().manual_seed(HELD_OUT))
        parts = [tuple(x[chosen] for x in rows) for chosen in order.chunk(3)]
        about = f"{len(rows[0])} rows of {', '.join(map(str, inputs))}"
    else:
        parts = _three(partial(_normal, program))
        about = "standard normal inputs, for want of --inputs"
    if served:
        about += "; its own written-out dense network stands for the original, which is not in the file"
        program = written_out(program)
    return Workload(path.name, about, net, program, parts[0], parts[1], parts[2], served=served)


def _normal(program: Program, count: int, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, *v.shape, generator=generator) for v in program.inputs)


def _three(rows: Rows, share: int = 1) -> list[Tensors]:
    """Calibration, search and fresh rows, the `share`-th part of the usual numbers."""
    counts = (ROWS // 2, CALIBRATION), (ROWS // 2, SEARCH), (FRESH, HELD_OUT)
    parts = [rows(count // share, seed) for count, seed in counts]
    return [p if isinstance(p, tuple) else (p,) for p in parts]


def _of(
    make: Callable[[str, int], tuple[Any, Rows] | tuple[Any, Rows, float]], by_weights: bool = False, share: int = 1
) -> Callable[[str, Entry, int], Workload]:
    """A builder of workloads from what makes, by name and size, a network, its rows and, where it was trained here, its
    relative error on data that it never saw. share: see `_three`.
    """

    def built(name: str, entry: Entry, size: int) -> Workload:
        net, rows, *error = make(name, size)
        parts = _three(rows, 2 if entry.size else share)  # rows of operators are long
        program = capture(net, parts[0]) if isinstance(net, nn.Module) else read_onnx(net)
        about = ", ".join([entry.about, *(f"{e:.1e} off what it learned" for e in error)])
        return Workload(name, about, net, program, parts[0], parts[1], parts[2], entry.batches, by_weights)

    return built


_burgers = _of(lambda name, size: (burgers.load_burgers(), burgers.burgers_points))
_pinn = _of(lambda name, size: (pinns.load_pinn(name), partial(pinns.pinn_points, name)))
_neuralfoil = _of(lambda name, size: (neuralfoil.load_neuralfoil(name.partition("-")[2]), neuralfoil.sample_inputs))
_qlknn = _of(lambda name, size: (str(qlknn.qlknn_path()), qlknn.qlknn_inputs))


def _derivatives(name: str, entry: Entry, size: int) -> Workload:
    workload, asked = _burgers(name, entry, size), burgers.DERIVATIVES
    return replace(workload, program=differentiate(workload.program, asked).program, derivatives=asked)


def _operator(matrix: Callable[[int], np.ndarray]) -> Callable[[str, Entry, int], Workload]:
    """An operator that any right-hand side may enter: rows are white noise."""

    def make(name: str, size: int) -> tuple[nn.Module, Rows]:
        net = operators.operator_network(matrix(size))
        shape = (net.linear.in_features,)
        return net, lambda count, seed: torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))

    return _of(make, by_weights=True)


def _green(name: str, size: int) -> tuple[nn.Module, Rows]:
    smooth = partial(operators.smooth_inputs, points=operators.interior_grid(size))
    net = operators.operator_network(operators.reaction_diffusion_green(size))
    return net, lambda count, seed: torch.from_numpy(smooth(size, count, seed)).float()


def _deeponet(name: str, size: int) -> tuple[nn.Module, Rows, float]:
    with one_thread():
        net, error = deeponet.train_deeponet()
    return net, deeponet.deeponet_inputs, error


def _emulator(name: str, size: int) -> tuple[nn.Module, Rows]:
    with one_thread():
        return surrogates.train_emulator(), surrogates.parameters


def _transformer(name: str, size: int) -> tuple[nn.Module, Rows, float]:
    with one_thread():
        net, error = surrogates.train_transformer()
    return net, surrogates.forces, error


def _ensemble(name: str, size: int) -> tuple[nn.Module, Rows, float]:
    with one_thread():
        net = burgers.train_ensemble()
        return (
            net,
            burgers.burgers_points,
            burgers.BURGERS.error(lambda x: net(x).mean(-1, keepdim=True), torch.float32),
        )


def _fno(name: str, entry: Entry, size: int) -> Workload:
    with one_thread():
        net = fno.train_fno()
    error = fno.test_error(net)
    workload = _of(lambda name, size: (net, fno.flows, error), share=8)(name, entry, size)
    return replace(workload, graph=fno.dft_graph(net))


def _images(name: str, size: int) -> tuple[nn.Module, Rows, float]:
    with one_thread():
        net, error = images.train_images(name.partition("-")[0])
    return net, images.sources, error


def _laplace(size: int) -> np.ndarray:
    return operators.laplace_2d(round(size**0.5) ** 2)[0]


REGISTRY: Mapping[str, Entry] = {
    "burgers": Entry("PINN of Burgers' equation, 2 -> 4 x 128 tanh -> 1, trained to 1e-4", _burgers),
    "burgers-derivatives": Entry("the same PINN's u, u_x, u_t and u_xx", _derivatives, batches=(1, 1024)),
    "helmholtz": Entry("PINN of Helmholtz' equation, 2 -> 4 x 256 tanh -> 1, trained for seconds", _pinn),
    "navier-stokes": Entry("PINN of 2-D Navier-Stokes, 3 -> 6 x 256 tanh -> 3, trained for seconds", _pinn),
    "log-1d": Entry("log-kernel operator in 1-D, any right-hand side", _operator(operators.log_kernel), 2048),
    "green-1d": Entry("reaction-diffusion Green's operator in 1-D, smooth functions", _of(_green), 2048),
    "laplace-2d": Entry("log-kernel operator in 2-D, any right-hand side", _operator(_laplace), 2025),
    "deeponet": Entry(
        "DeepONet of the log-kernel operator, 128 sensors, 192 wide, trained for seconds", _of(_deeponet)
    ),
    "fno": Entry(
        "Fourier neural operator of Burgers' equation, 64 points, 4 x 32 channels, 12 modes, trained for minutes",
        _fno,
        batches=(1, 16, 256),
    ),
    "emulator": Entry("emulator of a spectrum, 6 -> 4 x 512 SiLU -> 2507, trained for seconds", _of(_emulator)),
    "unet-poisson": Entry(
        "U-Net of Poisson's equation on 32 x 32 points, trained for a minute", _of(_images, share=32)
    ),
    "cnn-poisson": Entry("CNN of the fluxes of Poisson's equation, trained for seconds", _of(_images, share=16)),
    "transformer-pendulum": Entry(
        "Transformer of a driven pendulum's trajectory, 32 times, 6 layers of 64, trained for a minute",
        _of(_transformer, share=8),
    ),
    "pinn-ensemble": Entry("deep ensemble of five PINNs of Burgers' equation, 4 x 128 tanh each", _of(_ensemble)),
    "neuralfoil-xlarge": Entry("NeuralFoil xlarge, an airfoil surrogate that others trained", _neuralfoil),
    "neuralfoil-xxxlarge": Entry("NeuralFoil xxxlarge, 6 x 512 swish, trained by others", _neuralfoil),
    "qlknn": Entry("QLKNN 7_11, a tokamak turbulence surrogate, 5 x 133 tanh, an ONNX file of others", _qlknn),
    "random": Entry("independent Gaussian weights: nothing can win", _operator(operators.gaussian_random), 512),
}
QUICK = ("burgers",)
