"""Whether a Program that was read from a file is one: every op takes its attributes, every value has its shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hrt.hmatrix.hmatrix import HMatrix
from hrt.program.program import Node, Program

ROWS = 2


@dataclass(frozen=True)
class _Weight:
    """A matrix (m, n) of which nothing is known but its shape."""

    shape: tuple[int, ...]

    def affine(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """What a product with it looks like."""
        if x.shape[-1:] != self.shape[1:]:
            raise ValueError(f"a matrix {self.shape} multiplies values of shape {tuple(x.shape)}")
        return torch.empty(*x.shape[:-1], self.shape[0], device="meta")


def check_program(program: Program) -> None:
    """Raise, anything at all, unless every op takes its attributes and every value has the shape that its node claims.
    It runs on two rows of tensors without numbers, so that nothing is allocated for what a file claims.
    """
    values: dict[str, Any] = {k: torch.empty(c.shape, device="meta") for k, c in program.constants.items()}
    values |= {k: _Weight(tuple(program.constants[k].shape)) for k in program.weights}
    values |= {v.name: torch.empty(ROWS, *v.shape, device="meta") for v in program.inputs}
    with torch.no_grad():
        for node in program.nodes:
            others = [k for i, k in enumerate(node.inputs) if i != 1 or node.op != "linear"]
            if any(isinstance(program.constants.get(k), HMatrix) for k in others):
                raise TypeError(f"node {node.name} has an H-matrix where only numbers can be")
            value = values[node.name] = _result(node, [values[name] for name in node.inputs])
            if tuple(value.shape) != (ROWS, *node.shape):
                raise ValueError(f"{node.name} has the shape {('batch', *value.shape[1:])}, it claims {node.shape}")
    constant = [name for name in program.outputs if name in program.constants]
    if constant:
        raise ValueError(f"output {constant[0]} is a constant")


def _result(node: Node, arguments: Sequence[Any]) -> Tensor:
    """What the op makes of tensors without numbers. An elementwise op takes its attributes if it does so for single
    numbers; asked for tensors without any, torch would first import its compiler, which takes seconds.
    """
    if not node.row.elementwise:
        return node.row.torch(arguments, node.attrs)
    if node.row.torch([torch.ones(1) for _ in arguments], node.attrs).shape != (1,):
        raise ValueError(f"node {node.name} makes several numbers of one")
    return torch.broadcast_tensors(*arguments)[0]
