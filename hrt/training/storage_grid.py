"""What a trained network may be stored as: of every number, in one vector, the grid of its storage type.

A direction of an int8 leaf has integers for vt and integers times its one scale, chosen once, for u.
"""

from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from hrt.hmatrix.hmatrix import Leaf
from hrt.matrix_compression.rounding import INT8_LEVELS, int8_scale
from hrt.model.trainable import TrainableNetwork
from hrt.program.program import Constant, Program

ROOM = 0.95  # of int8's range that a scale uses at first: numbers that are trained on may grow
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def numbers_of(network: TrainableNetwork) -> Tensor:
    """All parameters as one float64 vector (P,), a copy."""
    return torch.cat([p.detach().reshape(-1).to(torch.float64) for p in network.parameters()])


def load_numbers(network: TrainableNetwork, numbers: Tensor) -> None:
    """The inverse of `numbers_of`."""
    with torch.no_grad():
        parts = numbers.split([p.numel() for p in network.parameters()])
        for p, part in zip(network.parameters(), parts, strict=True):
            p.copy_(part.view_as(p))


class Grid:
    """The grids of a network's numbers (P,), from the storage types of `stored`. coarse: int8.  narrow: 16 bits.

    int8 directions are rescaled so that their vt are near whole numbers; u vt stays.
    """

    def __init__(self, network: TrainableNetwork, stored: Program):
        self.network, self.stored = network, stored
        self.numbers: Tensor = numbers_of(network)
        index = deepcopy(network).double()
        load_numbers(index, torch.arange(len(self.numbers), dtype=torch.float64))
        self._places = {  # of every constant that is trained: positions of (dense,) or (u, vt), block by block
            name: [tuple(t.long() for t in leaf.tensors) for leaf in layer.leaves]
            for name, layer in index.layers.items()
        }
        self._values = {name: index.constant(name).long() for name in stored.constants if index.is_parameter(name)}
        self.step: Tensor = torch.zeros_like(self.numbers)  # of int8 numbers, else 0
        self.kind: Tensor = torch.full(self.numbers.shape, FLOATS.index(torch.float32))
        self._scales: dict[tuple[str, int], Tensor] = {}
        for name, place in self._values.items():
            self.kind[place] = FLOATS.index(stored.constants[name].dtype)  # type: ignore[union-attr]
        for name in self._places:
            for number, leaf, places in self._parts(name):
                if leaf.dtype != torch.int8:
                    for place in places:
                        self.kind[place] = FLOATS.index(leaf.dtype)
                elif leaf.is_dense:
                    self._scales[name, number] = self._fit(places[0], axis=1)
                else:
                    u, vt = places
                    top = self.numbers[vt].abs().amax(1).clamp_min(1e-300) / (ROOM * INT8_LEVELS)
                    self.numbers[vt] /= top[:, None]
                    self.numbers[u] *= top
                    self.step[vt] = 1.0
                    self._scales[name, number] = self._fit(u, axis=0)
        self.coarse: Tensor = self.step > 0
        self.narrow: Tensor = ~self.coarse & (self.kind != FLOATS.index(torch.float32))

    def _parts(self, name: str) -> list[tuple[int, Leaf, tuple[Tensor, ...]]]:
        """The stored leaves of a matrix with the positions of their numbers: several share a block's directions."""
        matrix = self.stored.constants[name]
        blocks = matrix.blocks()  # type: ignore[union-attr]
        places = dict(zip(blocks, self._places[name], strict=True))
        behind = dict.fromkeys(blocks, 0)
        parts = []
        for number, leaf in enumerate(matrix.leaves):  # type: ignore[union-attr]
            key = leaf.place
            if leaf.is_dense:
                parts.append((number, leaf, places[key]))
            else:
                (u, vt), at = places[key], behind[key]
                parts.append((number, leaf, (u[:, at : at + leaf.rank], vt[at : at + leaf.rank])))
                behind[key] += leaf.rank
        return parts

    def _fit(self, place: Tensor, axis: int) -> Tensor:
        """bfloat16 scales along the other axis, and the steps they mean."""
        scale = int8_scale(self.numbers[place].abs().amax(axis) / ROOM)
        self.step[place] = scale.to(torch.float64).unsqueeze(axis).expand(place.shape)
        return scale

    def rounded(self, numbers: Tensor) -> Tensor:
        """Every number (P,) as it is stored."""
        out = numbers.clone()
        for k, dtype in enumerate(FLOATS):
            out = torch.where(self.kind == k, numbers.to(dtype).to(torch.float64), out)
        step = torch.where(self.coarse, self.step, 1.0)
        return torch.where(self.coarse, (numbers / step).round().clamp(-INT8_LEVELS, INT8_LEVELS) * step, out)

    def program(self, numbers: Tensor) -> Program:
        """The stored program with these numbers (P,), rounded, in the place of its own."""
        numbers = self.rounded(numbers)
        stored = self.stored.constants
        changed: dict[str, Constant] = {
            name: numbers[place].to(stored[name].dtype)  # type: ignore[union-attr]
            for name, place in self._values.items()
        }
        for name in self._places:
            matrix, leaves = stored[name], []
            for number, leaf, places in self._parts(name):
                scale = self._scales.get((name, number))
                parts = (numbers[p] if scale is None else (numbers[p] / self.step[p]).round() for p in places)
                named = zip(("dense",) if leaf.is_dense else ("u", "vt"), parts, strict=True)
                leaves.append(replace(leaf, scale=scale, **{part: p.to(leaf.dtype) for part, p in named}))
            changed[name] = replace(matrix, leaves=tuple(leaves))  # type: ignore[type-var]
        return self.stored.with_constants(changed)
