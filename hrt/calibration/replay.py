"""One network on the same rows for many sets of constants: only what lies behind a changed constant is computed."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hrt.calibration.moments import CHUNK, rows_at_once
from hrt.hmatrix.hmatrix import HMatrix
from hrt.hmatrix.torch_products import LowRank, is_low_rank
from hrt.program.dense_view import to_float64
from hrt.program.program import Constant, Node, Program

KEPT = 1 << 28  # bytes of values of nodes, those asked for last
SMALL = 1 << 16  # numbers; constants up to it are told apart by their content, others by being the same object
EDGE = 64  # of a leaf: moving a row or a column of values takes as long as multiplying by so many numbers


@dataclass(frozen=True, eq=False)
class Replay:
    """A program and the rows, one tensor per input, that it is run on again and again, in one arithmetic."""

    program: Program
    inputs: Sequence[Tensor]
    dtype: torch.dtype = torch.float64
    _names: dict[Hashable, tuple[int, Any]] = field(default_factory=dict)  # of values; with what must stay alive
    _values: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # by first row and name, last used last

    def outputs(self, constants: Mapping[str, Constant]) -> Tensor:
        """All outputs side by side, (rows, features) float64. constants: to replace the program's."""
        used = {**self.program.constants, **constants}
        names = {v.name: self._name(v.name) for v in self.program.inputs}
        names |= {k: self._name(k, *_content(c), keep=c) for k, c in used.items()}
        for node in self.program.nodes:  # a value is what its node does to these arguments
            names[node.name] = self._name(node.name, *(names[k] for k in node.inputs))
        rows, at_once = self.inputs[0].shape[0], rows_at_once(self.program, CHUNK)
        with torch.no_grad():
            parts = [self._chunk(slice(k, k + at_once), names, used) for k in range(0, max(rows, 1), at_once)]
            return torch.cat(parts)

    def _name(self, *what: Hashable, keep: Any = None) -> int:
        return self._names.setdefault(what, (len(self._names), keep))[0]

    def _chunk(self, rows: slice, names: Mapping[str, int], constants: Mapping[str, Constant]) -> Tensor:
        values: dict[str, Any] = {
            v.name: x[rows].to(self.dtype) for v, x in zip(self.program.inputs, self.inputs, strict=True)
        }
        needed, missing = set(self.program.outputs), []
        for node in reversed(self.program.nodes):
            if node.name not in needed:
                continue
            value = self._values.pop((rows.start, names[node.name]), None)
            if value is None:
                missing.append(node)
                needed.update(node.inputs)
            else:
                values[node.name] = self._values[rows.start, names[node.name]] = value
        for node in reversed(missing):
            arguments = (
                values[k] if k in values else self._constant(node, i, constants[k]) for i, k in enumerate(node.inputs)
            )
            value = values[node.name] = node.row.torch(tuple(arguments), node.attrs)
            if value.nbytes <= KEPT // len(self.program.nodes):
                self._values[rows.start, names[node.name]] = value
            for name in self.program.last_use.get(node.name, ()):
                values.pop(name, None)
        self._forget()
        ys = [values[k] if k in values else to_float64(constants[k]) for k in self.program.outputs]
        return torch.cat([y.reshape(y.shape[0], -1) for y in ys], dim=1).to(torch.float64)

    def _constant(self, node: Node, place: int, c: Constant) -> Tensor | HMatrix | LowRank:
        """Written out unless a product by the leaves is less work."""
        if isinstance(c, Tensor):
            return c.to(self.dtype)
        if node.op == "linear" and place == 1:
            numbers = sum(sum(t.numel() for t in leaf.tensors) + EDGE * (leaf.rows + leaf.cols) for leaf in c.leaves)
            if is_low_rank(c):
                return LowRank(c.leaves, torch.device("cpu"), self.dtype)
            if numbers < c.shape[0] * c.shape[1]:
                return c
        return c.to_dense(self.dtype)

    def _forget(self) -> None:
        excess = sum(v.nbytes for v in self._values.values()) - KEPT
        while excess > 0:
            excess -= self._values.pop(next(iter(self._values))).nbytes


def _content(c: Constant) -> tuple[Hashable, ...]:
    if isinstance(c, HMatrix) or c.numel() > SMALL:
        return (id(c),)
    return c.dtype, c.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
