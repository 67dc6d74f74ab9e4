"""What every architecture must hold, from capture to a fresh process, and the table of what came out.

A family is a module `networks_<family>.py` of small functions that make networks, and a file `test_<family>.py` of a
few lines (see test_plain.py). `python tests/architectures/table.py FILE` checks all of them and writes the table.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import hrt
from hrt.export.onnx import check_onnx, to_onnx
from hrt.export.other_runtimes import check_openvino, web
from hrt.model.model import CompressedModel

ROWS = 256  # to calibrate on, and as many fresh ones
STEP = 1e-4  # of central differences in float64: their error is some 1e-8
SECONDS = 300  # for one process that opens all files of a family

# Reads what `FreshProcess` wrote beside itself, and names the networks that answer otherwise here.
REOPEN = """
import sys, pathlib, torch, hrt
for file in sorted(pathlib.Path(sys.argv[1]).glob("*.hrt")):
    x, expected = torch.load(file.with_suffix(".pt"), weights_only=True)
    y = hrt.load(file).predict(x)
    y = y if isinstance(y, tuple) else (y,)
    if len(y) != len(expected) or not all(torch.equal(a, b) for a, b in zip(y, expected)):
        print(file.stem)
"""


@dataclass(frozen=True)
class Architecture:
    """A network: how to make it and what it is given.

    inputs: shapes of one sample of every input, drawn from (0, 1); or a function of (rows, generator) that gives what a
    user would pass as inputs=. call: how the network is called with that; None: net(x), or net(*x) for a tuple.
    derivatives: that are held to tol too and checked against central differences.  fast: checked by `make test` too, in
    ONNX Runtime alone, unless openvino says otherwise; the others run in every runtime that is installed.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Sequence[tuple[int, ...]] | Callable[[int, torch.Generator], Any]
    call: Callable[[nn.Module, Any], Any] | None = None
    tol: float = 1e-2
    derivatives: tuple[str, ...] = ()
    openvino: bool = False
    fast: bool = False

    def build(self) -> nn.Module:
        """The same network on every call, in evaluation mode."""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            torch.manual_seed(7)
            return self.make().eval()

    def rows(self, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        if callable(self.inputs):
            return self.inputs(ROWS, generator)
        parts = tuple(torch.rand(ROWS, *shape, generator=generator) for shape in self.inputs)
        return parts[0] if len(parts) == 1 else parts


@dataclass
class Family:
    """Architectures by name, in the order in which they were added."""

    name: str
    members: dict[str, Architecture] = field(default_factory=dict)

    def add(self, inputs: Any, *, name: str | None = None, **options: Any) -> Callable:
        """Register a class or a function without arguments that makes a network. fast: checked by `make test` too."""

        def register(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
            key = name or make.__name__
            assert key not in self.members, f"two networks are called {key}"
            self.members[key] = Architecture(key, make, inputs, **options)
            return make

        return register

    def cases(self) -> list[Any]:
        """One test each; those that are not fast are left to `make test-all`."""
        slow = pytest.mark.slow
        return [pytest.param(a, id=a.name, marks=() if a.fast else slow) for a in self.members.values()]


@dataclass(frozen=True)
class Line:
    """A line of the table. reach: the share of the dense float32 bytes that are weights the planner may compress.
    runtimes: in which it runs, and by how much it differs from `predict` there.  operators: of the ONNX graph.
    """

    name: str
    ratio: float
    reach: float
    error: float
    derivatives: str
    runtimes: dict[str, float]
    operators: frozenset[str]

    def __str__(self) -> str:
        runtimes = ", ".join(f"{name} ({difference:.0e})" for name, difference in self.runtimes.items())
        cells = (self.name, f"{self.ratio:.1f}x", f"{self.reach:.0%}", f"{self.error:.1e}", self.derivatives, runtimes)
        return f"| {' | '.join(cells)} |"


HEADER = (
    "| network | ratio | bytes in reach | error on fresh rows | derivatives | also runs in (differs by) |\n"
    "|---|---|---|---|---|---|"
)


class FreshProcess:
    """Files of a family, opened together by one new process at the end."""

    def __init__(self, folder: Path):
        self.folder, self.lines = folder, list[Line]()

    def check(self, architecture: Architecture) -> Line:
        """The whole promise for one network. Its file is opened later, by `compare`."""
        net, fresh = architecture.build(), architecture.rows(2)
        model = checked(
            net,
            architecture.rows(1),
            fresh,
            call=architecture.call,
            tol=architecture.tol,
            derivatives=architecture.derivatives,
        )
        proto = to_onnx(model)
        checks = {"ONNX Runtime": check_onnx}
        checks |= {"OpenVINO": check_openvino} if architecture.openvino or not architecture.fast else {}
        checks |= {web.PACKAGE: web.check_web} if web.installed(web.home()) and not architecture.fast else {}
        runtimes = {name: max(check(proto, model, fresh).values()) for name, check in checks.items()}
        model.save(self.folder / f"{architecture.name}.hrt")
        torch.save((plain(fresh), answers(model, fresh)), self.folder / f"{architecture.name}.pt")
        self.lines.append(
            Line(
                architecture.name,
                model.compression_ratio,
                sum(layer.dense_nbytes for layer in model.certificate.layers) / max(model.dense_nbytes, 1),
                relative_error(flat(answers(model, fresh)), flat(reference(net, fresh, architecture.call))),
                " ".join(architecture.derivatives),
                runtimes,
                frozenset(node.op_type for node in proto.graph.node),
            )
        )
        return self.lines[-1]

    def compare(self) -> None:
        """Every file that was saved, loaded in one new process, answers bit for bit as the model did here."""
        command = [sys.executable, "-W", "ignore", "-c", REOPEN, str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "", f"another process answers otherwise: {done.stdout}"


def checked(
    net: nn.Module,
    calibration: Any,
    fresh: Any,
    *,
    call: Callable[[nn.Module, Any], Any] | None = None,
    tol: float = 1e-2,
    derivatives: Sequence[str] = (),
) -> CompressedModel:
    """Compress `net` on the calibration rows; the promise must hold on fresh ones, of derivatives as of the value, and
    nothing may grow.
    """
    options = {"derivatives": list(derivatives)} if derivatives else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*output column")  # tol is of all columns together
        model = hrt.compress(net, inputs=calibration, tol=tol, progress=False, **options)
    assert model.nbytes <= model.dense_nbytes
    expected = reference(net, fresh, call)
    outputs = answers(model, fresh)
    assert [y.shape for y in outputs] == [y.shape for y in expected]
    assert relative_error(flat(outputs), flat(expected)) <= tol
    for name in derivatives:
        (_, derivative) = model.predict(fresh, derivatives=[name])
        derivative = derivative if isinstance(derivative, tuple) else (derivative,)
        assert relative_error(flat(derivative), differences(net, fresh, call, name)) <= tol, name
    return model


def answers(model: CompressedModel, x: Any) -> tuple[Tensor, ...]:
    y = model.predict(x)
    return y if isinstance(y, tuple) else (y,)


def reference(net: nn.Module, x: Any, call: Callable[[nn.Module, Any], Any] | None = None) -> list[Tensor]:
    """What the network itself says, in its own type."""
    dtype = next((t.dtype for t in net.parameters() if t.is_floating_point()), torch.float32)
    x = tree_map(lambda v: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v, x)
    with torch.no_grad():
        y = call(net, x) if call else net(*x) if isinstance(x, tuple) else net(x)
    return [v.detach() for v in tree_leaves(y) if isinstance(v, Tensor)]


def differences(net: nn.Module, x: Any, call: Callable[[nn.Module, Any], Any] | None, name: str) -> Tensor:
    """A derivative such as "d0" or "d0d1" of all outputs by central differences in float64."""
    net = net.double()
    parts = [v.double() for v in tree_leaves(x)]
    widths = [v[0].numel() for v in parts]
    together = torch.cat([v.flatten(1) for v in parts], dim=1)

    def value(z: Tensor) -> Tensor:
        cut = iter(piece.reshape(v.shape) for piece, v in zip(z.split(widths, dim=1), parts, strict=True))
        return flat(reference(net, tree_map(lambda _: next(cut), x), call))

    def along(f: Callable[[Tensor], Tensor], k: int) -> Callable[[Tensor], Tensor]:
        step = torch.zeros(together.shape[1], dtype=torch.float64).index_fill(0, torch.tensor([k]), STEP)
        return lambda z: (f(z + step) - f(z - step)) / (2 * STEP)

    for k in map(int, name[1:].split("d")):
        value = along(value, k)
    result = value(together)
    net.float()
    return result


def flat(outputs: Sequence[Tensor]) -> Tensor:
    """All outputs in float64, (rows, features)."""
    return torch.cat([y.double().reshape(y.shape[0], -1) for y in outputs], dim=1)


def relative_error(y: Tensor, expected: Tensor) -> float:
    return float((y - expected).norm() / expected.norm())


def plain(x: Any) -> Any:
    """Inputs as lists, tuples, dictionaries and tensors, which torch reads without code."""
    return tree_map(lambda v: v.detach().clone() if isinstance(v, Tensor) else v, x)


def report(lines: Sequence[Line]) -> Iterator[str]:
    yield HEADER
    yield from map(str, lines)
