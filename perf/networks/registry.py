"""What the harness measures on: a registry of networks with the data that they are used on, and any user's own.

Every workload has three sets of rows of one distribution: calibration (second moments), search (on which knobs are set)
and fresh (on which errors are reported, and nothing was tuned). hrt gets the first two together and splits them itself.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

import hrt
from hrt.calibration.input_files import read_array
from hrt.calibration.moments import evaluate
from hrt.capture.checkpoints import read_network
from hrt.capture.onnx_file import read_onnx
from hrt.capture.torch_export import capture
from hrt.errors import InputError
from hrt.perf.networks import burgers, deeponet, neuralfoil, operators, pinns, qlknn
from hrt.perf.networks.as_torch_module import written_out
from hrt.perf.networks.pinn_training import one_thread
from hrt.program.program import Program
from hrt.support.atomic_files import usable

ROWS, FRESH = 8192, 4096  # of calibration and search together; of fresh rows
CALIBRATION, SEARCH, HELD_OUT = 1, 2, 2024  # seeds
SUFFIXES = (".pt2", ".onnx", ".hrt")
WEIGHTS_MARGIN = 0.98  # of tol, asked of hrt where it bounds weights: that holds for the mean over inputs, not for each

Tensors = tuple[Tensor, ...]


class MissingError(hrt.HrtError):
    """A package that a workload or method needs is not installed; the message says how to get it."""


@dataclass(frozen=True, eq=False)
class Workload:
    """A network and its data, all float32 (rows, *shape), one tensor per input.

    net: what hrt.compress and torch take (nn.Module, ExportedProgram, path of an .onnx file, or None where there is
    only a `.hrt` file).  program: the dense network in the op table.  by_weights: whether hrt is asked to bound weights
    because the rows are white noise (any input alike).  served: the model of a user's `.hrt` file.
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
    memo: dict[Any, Any] = field(default_factory=dict)  # what several methods need, made once

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the constants in float32."""
        return sum(4 * int(np.prod(c.shape)) for c in self.program.constants.values())

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
    """A line of the registry. build(size) makes it; size, where it has one, is its default.  batches: by default.

    needs(size): bytes of memory that building and compressing takes, about.
    """

    about: str
    build: Callable[[str, "Entry", int], Workload]
    size: int = 0
    batches: tuple[int, ...] = (1, 256)
    needs: Callable[[int], int] = lambda size: 1 << 29


def build(name: str) -> Workload:
    """The workload of a name in REGISTRY (`log-1d:4096` gives a size of its own) or of a user's file.

    Raises InputError for an unknown name or a file that cannot be used, MissingError where a package is missing,
    MemoryError, saying how much, where it does not fit the memory that is free.
    """
    if name.endswith(SUFFIXES):
        return from_file(Path(name))
    entry, size = _entry(name)
    free, needed = psutil.virtual_memory().available, entry.needs(size)
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
    """A user's network. inputs: files of rows, one per input; without them rows are standard normal, which is said.

    For a `.hrt` file the dense original is not there: it is compared with its own written-out dense network.
    """
    check(str(path))
    served = hrt.load(path) if path.suffix == ".hrt" else None
    net = None if served else read_network(str(path))
    program = served.program if served else read_onnx(path) if path.suffix == ".onnx" else capture(net, ())
    if inputs:
        rows = tuple(torch.from_numpy(np.asarray(read_array(p), dtype=np.float32)) for p in inputs)
        program.check_inputs(rows)
        if len(rows[0]) < 64:
            raise InputError(f"Found {len(rows[0])} rows of inputs. Expected 64 or more, of which a third judges.")
        order = torch.randperm(len(rows[0]), generator=torch.Generator().manual_seed(HELD_OUT))
        parts = [tuple(x[chosen] for x in rows) for chosen in order.chunk(3)]
        about = f"{len(rows[0])} rows of {', '.join(map(str, inputs))}"
    else:
        counts = (ROWS // 2, CALIBRATION), (ROWS // 2, SEARCH), (FRESH, HELD_OUT)
        parts = [_normal(program, count, seed) for count, seed in counts]
        about = "standard normal inputs, for want of --inputs"
    if served:
        about += "; its own written-out dense network stands for the original, which is not in the file"
        program = written_out(program)
    return Workload(path.name, about, net, program, parts[0], parts[1], parts[2], served=served)


def _normal(program: Program, count: int, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, *v.shape, generator=generator) for v in program.inputs)


def _sampled(name: str, entry: Entry, net: Any, rows: Callable[[int, int], Tensor | Tensors], **more: Any) -> Workload:
    """A workload of a network and a function (count, seed) to rows."""
    share = 2 if entry.size else 1  # of operators, whose rows are long
    counts = (ROWS // 2 // share, CALIBRATION), (ROWS // 2 // share, SEARCH), (FRESH // share, HELD_OUT)
    parts = [rows(n, seed) for n, seed in counts]
    sets = [p if isinstance(p, tuple) else (p,) for p in parts]
    program = capture(net, sets[0]) if isinstance(net, nn.Module) else read_onnx(net)
    return Workload(name, entry.about, net, program, sets[0], sets[1], sets[2], batches=entry.batches, **more)


def _burgers(name: str, entry: Entry, size: int) -> Workload:
    return _sampled(name, entry, burgers.load_burgers(), burgers.burgers_points)


def _pinn(name: str, entry: Entry, size: int) -> Workload:
    return _sampled(name, entry, pinns.load_pinn(name), lambda n, seed: pinns.pinn_points(name, n, seed))


def _operator(matrix: Callable[[int], np.ndarray]) -> Callable[[str, Entry, int], Workload]:
    """A workload of an operator that any right-hand side may enter: rows are white noise."""

    def make(name: str, entry: Entry, size: int) -> Workload:
        net = operators.operator_network(matrix(size))
        columns = net.linear.in_features

        def rows(count: int, seed: int) -> Tensor:
            return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed))

        return _sampled(name, entry, net, rows, by_weights=True)

    return make


def _green(name: str, entry: Entry, size: int) -> Workload:
    net = operators.operator_network(operators.reaction_diffusion_green(size))
    points = operators.interior_grid(size)

    def rows(count: int, seed: int) -> Tensor:
        return torch.from_numpy(operators.smooth_inputs(size, count, seed, points=points)).float()

    return _sampled(name, entry, net, rows)


def _deeponet(name: str, entry: Entry, size: int) -> Workload:
    with one_thread():
        net = deeponet.train_deeponet()[0]
    return _sampled(name, entry, net, deeponet.deeponet_inputs)


def _neuralfoil(name: str, entry: Entry, size: int) -> Workload:
    net = neuralfoil.load_neuralfoil(name.partition("-")[2])
    return _sampled(name, entry, net, neuralfoil.sample_inputs)


def _qlknn(name: str, entry: Entry, size: int) -> Workload:
    return _sampled(name, entry, str(qlknn.qlknn_path()), qlknn.qlknn_inputs)


def _matrix_needs(size: int) -> int:
    """A matrix in float64 some ten times over, and rows of data."""
    return 80 * size**2 + 12 * (ROWS + FRESH) * size


REGISTRY: Mapping[str, Entry] = {
    "burgers": Entry("PINN of Burgers' equation, 2 -> 4 x 128 tanh -> 1, trained to 1e-4", _burgers),
    "helmholtz": Entry("PINN of Helmholtz' equation, 2 -> 4 x 256 tanh -> 1, trained for seconds", _pinn),
    "navier-stokes": Entry("PINN of 2-D Navier-Stokes, 3 -> 6 x 256 tanh -> 3, trained for seconds", _pinn),
    "log-1d": Entry(
        "log-kernel operator in 1-D, any right-hand side", _operator(operators.log_kernel), 2048, needs=_matrix_needs
    ),
    "green-1d": Entry(
        "reaction-diffusion Green's operator in 1-D, smooth functions", _green, 2048, needs=_matrix_needs
    ),
    "laplace-2d": Entry(
        "log-kernel operator in 2-D, any right-hand side",
        _operator(lambda size: operators.laplace_2d_kernel(round(size**0.5))[0]),
        2025,
        needs=_matrix_needs,
    ),
    "deeponet": Entry("DeepONet of the log-kernel operator, 128 sensors, 192 wide, trained for seconds", _deeponet),
    "neuralfoil-xlarge": Entry("NeuralFoil xlarge, an airfoil surrogate that others trained", _neuralfoil),
    "neuralfoil-xxxlarge": Entry("NeuralFoil xxxlarge, 6 x 512 swish, trained by others", _neuralfoil),
    "qlknn": Entry("QLKNN 7_11, a tokamak turbulence surrogate, 5 x 133 tanh, an ONNX file of others", _qlknn),
    "random": Entry(
        "independent Gaussian weights: nothing can win", _operator(operators.gaussian_random), 512, needs=_matrix_needs
    ),
}
QUICK = ("burgers",)
