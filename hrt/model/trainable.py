"""`to_trainable`: a compressed network as an nn.Module that is trained on, its H-matrices in the place of weights."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hrt.errors import InputError
from hrt.hmatrix.hmatrix import HMatrix
from hrt.matrix_compression.hlinear import HLinear
from hrt.model.model import CompressedModel
from hrt.program.names import unique_name
from hrt.program.program import Constant, Program


class TrainableNetwork(nn.Module):
    """The function of a Program as a module. `weights`: an `HLinear` for every H-matrix. `values`: parameters, which
    are biases, what layer_norm scales and shifts by, and weights that are plain tensors. `fixed`: buffers, every other
    constant (numbers, normalisation). Nodes and orderings are those of the program.

    Inputs are (batch, *shape) of the parameters' dtype; one output, or a tuple. Raises InputError for inputs that do
    not fit. `hrt.network_compression.compress` takes this module and keeps its partitions.
    """

    def __init__(self, program: Program, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.program = program
        linear = {name for node in program.linear_nodes for name in node.inputs[1:]}
        affine = {name for node in program.nodes if node.op == "layer_norm" for name in node.inputs[1:]}
        self.weights, self.values, self.fixed = nn.ModuleDict(), nn.ParameterDict(), nn.Module()
        self._homes: dict[str, tuple[str, str]] = {}  # of every constant: which of the three, and its key there
        for name, constant in program.constants.items():
            key = self._key(name)
            if isinstance(constant, HMatrix):
                self.weights[key] = HLinear(constant, dtype=dtype)
                self._homes[name] = ("weights", key)
            elif name in linear | affine:
                self.values[key] = nn.Parameter(constant.to(dtype, copy=True))
                self._homes[name] = ("values", key)
            else:
                self.fixed.register_buffer(key, constant.to(dtype, copy=True))
                self._homes[name] = ("fixed", key)
        self._steps = tuple((n.name, n.row.torch, n.inputs, dict(n.attrs)) for n in program.nodes)

    def _key(self, name: str) -> str:
        """A name that modules allow, without dots, and that nobody has."""
        return unique_name(name.replace(".", "/") or "constant", {k for _, k in self._homes.values()}, separator="_")

    def constant(self, name: str) -> Any:
        """The live constant of the program's `name`: an HLinear, a parameter or a buffer."""
        home, key = self._homes[name]
        return getattr(self.fixed, key) if home == "fixed" else getattr(self, home)[key]

    def is_parameter(self, name: str) -> bool:
        """Whether the program's constant `name` is a plain tensor that is trained."""
        return self._homes[name][0] == "values"

    @property
    def layers(self) -> dict[str, HLinear]:
        """The H-matrix layers by the names of their weights in the program."""
        return {name: self.weights[key] for name, (home, key) in self._homes.items() if home == "weights"}  # type: ignore[misc]

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The network's output for one (batch, *shape) tensor per input."""
        self.program.check_inputs(inputs)
        values: dict[str, Any] = {name: self.constant(name) for name in self._homes}
        values.update({v.name: x for v, x in zip(self.program.inputs, inputs, strict=True)})
        for name, function, arguments, attrs in self._steps:
            values[name] = function([values[a] for a in arguments], attrs)
        outputs = tuple(values[name] for name in self.program.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def replace_layer(self, name: str, matrix: HMatrix) -> HLinear:
        """A new layer over another partition in the place of weight `name`; its parameters are new ones."""
        old = self.layers[name]
        if matrix.shape != (old.out_features, old.in_features):
            raise InputError(f"Found a matrix of shape {matrix.shape} for {name!r}. Expected {tuple(old.table.shape)}.")
        new = HLinear(matrix, dtype=old.dtype).to(old.table.device)
        self.weights[self._homes[name][1]] = new
        return new

    def constants(self, dtype: torch.dtype = torch.float64) -> dict[str, Constant]:
        """All constants as they stand: H-matrices with leaves of `dtype`, tensors on the CPU."""
        found: dict[str, Constant] = {}
        for name in self._homes:
            value = self.constant(name)
            found[name] = (
                value.to_hmatrix(dtype) if isinstance(value, HLinear) else value.detach().to("cpu", dtype, copy=True)
            )
        return found

    def to_program(self, dtype: torch.dtype = torch.float64) -> Program:
        """The program with the constants as they stand."""
        return self.program.with_constants(self.constants(dtype))


def to_trainable(model: CompressedModel | Program, *, dtype: torch.dtype = torch.float32) -> TrainableNetwork:
    """A module with the function of `model` whose partitions stay while its numbers are trained.

    Narrow storage types are decoded to `dtype`; `hrt.network_compression.compress` chooses them again. Raises InputError for anything
    that is no compressed model.
    """
    program = model.program if isinstance(model, CompressedModel) else model
    if not isinstance(program, Program):
        raise InputError(f"Found {type(model).__name__}. Expected a CompressedModel, from hrt.compress or hrt.load.")
    return TrainableNetwork(program, dtype)


def partitions(constants: Mapping[str, Constant]) -> dict[str, HMatrix]:
    """The H-matrices among constants that have a structure to keep: more than one dense leaf."""
    return {k: c for k, c in constants.items() if isinstance(c, HMatrix) and not c.is_dense}


def densified(net: nn.Module) -> tuple[nn.Module, dict[str, HMatrix]]:
    """A copy of `net` with an nn.Linear in the place of every HLinear, and their partitions by the weights' names."""
    found = {path: m for path, m in net.named_modules() if isinstance(m, HLinear)}
    copied = copy.deepcopy(net) if found else net
    for path, layer in found.items():
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        plain.weight = nn.Parameter(layer.to_hmatrix(torch.float64).to_dense().to(layer.table.device, layer.dtype))
        if layer.bias is not None:
            plain.bias = layer.bias
        parent, _, name = path.rpartition(".")
        if path:
            setattr(copied.get_submodule(parent), name, plain)
        else:
            copied = plain
    names = {f"{path}.weight".lstrip("."): layer.to_hmatrix(torch.float64) for path, layer in found.items()}
    return copied, partitions(names)


def dense_program(program: Program) -> Program:
    """`program` with every H-matrix multiplied out in float64."""
    return replace(
        program,
        constants={
            k: c.to_dense() if isinstance(c, HMatrix) else c.to(torch.float64) for k, c in program.constants.items()
        },
    )
