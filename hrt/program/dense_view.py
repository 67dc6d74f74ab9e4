"""The constants of a program written out, and programs whose constants are kept in another form."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hrt.hmatrix.hmatrix import HMatrix
from hrt.program.program import Constant, Program

NARROW = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class DenseView:
    """A program and its constants as float64 tensors, written out once. It is large: for one piece of work."""

    program: Program

    @cached_property
    def constants(self) -> dict[str, Tensor]:
        """By name, on the program's device."""
        return {k: to_float64(c) for k, c in self.program.constants.items()}


def to_float64(c: Constant) -> Tensor:
    """A constant written out in float64."""
    return c.to(torch.float64) if isinstance(c, Tensor) else c.to_dense()


def stored(program: Program) -> Program:
    """The program with every plain constant rounded as the artifact keeps it: to float32, where it is not narrower."""
    wide = {k: c for k, c in program.constants.items() if isinstance(c, Tensor) and c.dtype not in NARROW}
    return program.with_constants({k: c.to(torch.float32) for k, c in wide.items()})


def written_out(program: Program, names: Iterable[str], dtype: torch.dtype = torch.float32) -> Program:
    """The same network with some weights as plain matrices of `dtype`."""
    changed: dict[str, Constant] = {}
    for name in names:
        weight = program.constants[name]
        changed[name] = (weight.to_dense(torch.float32) if isinstance(weight, HMatrix) else weight).to(dtype)
    return program.with_constants(changed)


def compressed_weights(program: Program) -> list[str]:
    """The weights that are not one dense leaf."""
    weights = ((name, program.constants[name]) for name in program.weights)
    return [name for name, w in weights if isinstance(w, HMatrix) and not w.is_dense]
