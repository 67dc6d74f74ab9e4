"""`to_trainable`: a compressed network as an nn.Module that is trained on, its H-matrices in the place of weights."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hrt.errors import InputError
from hrt.hmatrix.hmatrix import HMatrix
from hrt.matrix_compression.hlinear import HLinear
from hrt.model.contents import Contents
from hrt.program.names import unique_name
from hrt.program.program import Constant, Program
from hrt.support.torch_state import guarded


class TrainableNetwork(nn.Module):
    """The function of a Program as a module, from `hrt.to_trainable`. `hrt.compress` takes it and keeps its partitions.

    `weights` holds an `HLinear` for every H-matrix. `values` holds parameters: biases, what layer_norm scales and
    shifts by, and weights that are plain tensors. `fixed` holds every other constant as a buffer.

    Args:
        program: The network as data.
        dtype: Of the parameters, and of the inputs (batch, *shape).

    Raises:
        InputError: Inputs do not fit.

    Example:
        >>> import torch, hrt
        >>> net = hrt.to_trainable(hrt.compress(torch.nn.Linear(16, 16), tol=1e-2, progress=False))
        >>> isinstance(net, hrt.TrainableNetwork), sorted(net.layers)
        (True, ['weight'])
    """

    weights: nn.ModuleDict
    fixed: nn.Module

    def __init__(self, program: Program, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.program = program
        linear = {name for node in program.linear_nodes for name in node.inputs[1:]} - program.generated.keys()
        affine = {name for node in program.nodes if node.op == "layer_norm" for name in node.inputs[1:]}
        self.weights, self.values, self.fixed = nn.ModuleDict(), nn.ParameterDict(), nn.Module()
        self._keys: dict[str, str] = {}  # of every constant, in one of the three
        for name, constant in program.constants.items():
            taken = set(self._keys.values())
            key = self._keys[name] = unique_name(name.replace(".", "/") or "constant", taken, separator="_")
            if isinstance(constant, HMatrix):
                self.weights[key] = HLinear(constant, dtype=dtype)
            elif name in linear | affine:
                self.values[key] = nn.Parameter(constant.to(dtype, copy=True))
            else:
                self.fixed.register_buffer(key, constant.to(dtype, copy=True))
        self._steps = _steps(program)

    def __getstate__(self) -> dict[str, Any]:
        """Without the functions of the op table, which cannot be pickled."""
        return {k: v for k, v in self.__dict__.items() if k != "_steps"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """From a pickle or a copy."""
        super().__setstate__(state)
        self._steps = _steps(self.program)

    def constant(self, name: str) -> Any:
        """The live constant of the program's `name`.

        Args:
            name: Of the constant.

        Returns:
            An HLinear, a parameter or a buffer.
        """
        key = self._keys[name]
        home = self.weights if key in self.weights else self.values
        return home[key] if key in home else getattr(self.fixed, key)

    def is_parameter(self, name: str) -> bool:
        """Whether the program's constant `name` is a plain tensor that is trained.

        Args:
            name: Of the constant.

        Returns:
            False for weights that are H-matrices, and for buffers.
        """
        return self._keys[name] in self.values

    @property
    def layers(self) -> dict[str, HLinear]:
        """The H-matrix layers by the names of their weights in the program."""
        return {name: self.constant(name) for name, key in self._keys.items() if key in self.weights}

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The network's output. The arithmetic is that of the parameters, autocast plays no part.

        Args:
            inputs: One tensor (batch, *shape) per input.

        Returns:
            A tensor, or a tuple for several outputs.
        """
        self.program.check_inputs(inputs)
        if torch.is_autocast_enabled(inputs[0].device.type):
            with torch.autocast(inputs[0].device.type, enabled=False):
                return self._run(inputs)
        return self._run(inputs)

    def _run(self, inputs: Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # what was made in inference mode cannot be kept for a backward pass; torch.compile cannot ask
            inputs = [x.clone() if x.is_inference() else x for x in inputs]
        values: dict[str, Any] = {name: self.constant(name) for name in self._keys}
        values.update({v.name: x for v, x in zip(self.program.inputs, inputs, strict=True)})
        for name, function, arguments, attrs in self._steps:
            values[name] = function([values[a] for a in arguments], attrs)
        outputs = tuple(values[name] for name in self.program.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def constants(self, dtype: torch.dtype = torch.float64) -> dict[str, Constant]:
        """All constants as they stand.

        Args:
            dtype: Of the leaves and tensors.

        Returns:
            H-matrices and tensors by name, on the CPU.
        """
        live = {name: self.constant(name) for name in self._keys}
        return {
            name: v.to_hmatrix(dtype) if isinstance(v, HLinear) else v.detach().to("cpu", dtype, copy=True)
            for name, v in live.items()
        }

    def to_program(self, dtype: torch.dtype = torch.float64) -> Program:
        """The program with the constants as they stand.

        Args:
            dtype: Of their numbers.

        Returns:
            The program.
        """
        return self.program.with_constants(self.constants(dtype))


def _steps(program: Program) -> tuple[tuple[str, Any, tuple[str, ...], dict[str, Any]], ...]:
    """Of every node its name, function, arguments and attributes."""
    return tuple((n.name, n.row.torch, n.inputs, dict(n.attrs)) for n in program.nodes)


@guarded
def to_trainable(model: Contents | Program, *, dtype: torch.dtype = torch.float32) -> TrainableNetwork:
    """A module with the function of `model`. Its partitions stay while its numbers are trained.

    Args:
        model: From `hrt.compress` or `hrt.load`, or its program.
        dtype: Of the parameters. Narrow storage types are decoded to it; `hrt.compress` chooses them again.

    Returns:
        The module, on the CPU.

    Raises:
        InputError: `model` is no compressed model.

    Example:
        >>> import torch, hrt
        >>> model = hrt.compress(torch.nn.Linear(16, 16), tol=1e-2, progress=False)
        >>> net = hrt.to_trainable(model)
        >>> net(torch.zeros(4, 16)).requires_grad
        True
    """
    program = model.program if isinstance(model, Contents) else model
    if not isinstance(program, Program):
        raise InputError(f"Found {type(model).__name__}. Expected a CompressedModel, from hrt.compress or hrt.load.")
    return TrainableNetwork(program, dtype)


def partitions(constants: Mapping[str, Constant]) -> dict[str, HMatrix]:
    """The H-matrices among constants that have a structure to keep: more than one dense leaf."""
    return {k: c for k, c in constants.items() if isinstance(c, HMatrix) and not c.is_dense}


def densified(net: nn.Module) -> tuple[nn.Module, dict[str, HMatrix]]:
    """A copy of `net` with an nn.Linear in the place of every HLinear, and their partitions by the weights' names."""
    layers = {path: m for path, m in net.named_modules() if isinstance(m, HLinear)}
    copied = copy.deepcopy(net) if layers else net
    for path, layer in layers.items():
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        plain.weight = nn.Parameter(layer.to_hmatrix(torch.float64).to_dense().to(layer.table.device, layer.dtype))
        if layer.bias is not None:
            plain.bias = layer.bias
        parent, _, name = path.rpartition(".")
        if path:
            setattr(copied.get_submodule(parent), name, plain)
        else:
            copied = plain
    names = {f"{path}.weight".lstrip("."): layer.to_hmatrix(torch.float64) for path, layer in layers.items()}
    return copied, partitions(names)
