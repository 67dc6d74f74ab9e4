"""`HLinear`: a linear layer whose weight is a hierarchical matrix that is trained, over a partition that stays.

The parameters are the batched blocks of `hrt.hmatrix.batched_products.plan`; the gradient of padding is exactly zero.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrt.errors import InputError
from hrt.hmatrix.batched_products import STACKED, Plan, plan
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.matrix_compression.compress_matrix import compress_matrix

Slot = tuple[Tensor, slice, slice]  # a parameter block (tall, wide), and the rows and columns of it that are a piece


def merged(matrix: HMatrix, dtype: torch.dtype = torch.float64) -> HMatrix:
    """The same matrix with one leaf per block, its directions side by side, in one floating type."""
    leaves = []
    for place, group in matrix.blocks().items():
        parts = [leaf.decoded(dtype) for leaf in group]
        if len(parts[0]) == 1:
            leaves.append(Leaf(*place, dense=parts[0][0]))
        else:
            us, vts = zip(*parts, strict=True)
            leaves.append(Leaf(*place, u=torch.cat(us, dim=1), vt=torch.cat(vts)))
    return HMatrix(matrix.shape, tuple(leaves), matrix.row_order, matrix.col_order)


class HLinear(nn.Module):
    """nn.Linear with an H-matrix (m, n) in the place of its weight: y = x H^T + bias, (..., n) to (..., m).

    Parameters, buffers and inputs have one floating dtype, as with nn.Linear. Gradients of any order, torch.func and
    torch.compile work. A state_dict of another partition is an InputError when it is loaded.

    Args:
        matrix: the partition with the numbers to start from. Storage types are decoded; several leaves over one block
            become one.
        bias: (m,), or None.
        dtype: of the parameters.

    Raises:
        InputError: no HMatrix, a bias or, in a call, an input of another size.

    Example:
        >>> layer = HLinear.from_dense(torch.eye(16), tol=1e-3)
        >>> layer(torch.ones(2, 16)).shape
        torch.Size([2, 16])
    """

    out_features: int
    in_features: int
    first: nn.ParameterList
    second: nn.ParameterList
    bias: nn.Parameter | None

    table: Tensor
    row_order: Tensor | None
    col_order: Tensor | None

    def __init__(self, matrix: HMatrix, bias: Tensor | None = None, *, dtype: torch.dtype = torch.float32):
        super().__init__()
        if not isinstance(matrix, HMatrix):
            raise InputError(f"Found {type(matrix).__name__}. Expected an HMatrix; HLinear.from_dense takes a weight.")
        if bias is not None and tuple(bias.shape) != matrix.shape[:1]:
            raise InputError(f"Found a bias of shape {tuple(bias.shape)}. Expected ({matrix.shape[0]},).")
        start = merged(matrix)
        batched = plan(start)
        self.out_features, self.in_features = matrix.shape
        self.first, self.second = (
            nn.ParameterList([bucket.weights(torch.float64).to(dtype) for bucket in wave])
            for wave in (batched.first, batched.second)
        )
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype).clone())
        self._blocks = tuple((*leaf.place, leaf.rank) for leaf in start.leaves)
        self.register_buffer("table", torch.tensor(self._blocks, dtype=torch.int64).reshape(-1, 5))
        self.register_buffer("row_order", None if start.row_order is None else start.row_order.long())
        self.register_buffer("col_order", None if start.col_order is None else start.col_order.long())
        ordered = start.row_order is not None or start.col_order is not None
        self._plain = len(start.leaves) == 1 and start.leaves[0].rank != 0 and not ordered
        self._places = _places(batched, start)
        zero = self.in_features
        self._sources = tuple(
            tuple(self._index(f"{name}_{k}", bucket.sources(zero).reshape(-1)) for k, bucket in enumerate(wave))
            for name, wave in (("first", batched.first), ("second", batched.second))
        )
        outputs = enumerate(batched.output_rows(start.row_order))
        self._outputs = tuple(self._index(f"output_{k}", rows) for k, rows in outputs)

    @staticmethod
    def from_dense(
        weight: Tensor, bias: Tensor | None = None, *, dtype: torch.dtype = torch.float32, **options: Any
    ) -> "HLinear":
        """A layer over the partition that `hrt.compress_matrix` finds.

        Args:
            weight: (m, n).
            bias: (m,), or None.
            dtype: of the parameters.
            **options: of `hrt.compress_matrix`.

        Returns:
            The layer.
        """
        return HLinear(compress_matrix(weight.detach(), **options), bias, dtype=dtype)

    @staticmethod
    def from_linear(layer: nn.Linear, partition: HMatrix | None = None, **options: Any) -> "HLinear":
        """A layer in the place of an ordinary one.

        Args:
            layer: stays as it is.
            partition: (m, n), whose numbers are taken; None: what `hrt.compress_matrix` finds for the weight.
            **options: of `hrt.compress_matrix`.

        Returns:
            The layer with the same bias; trained, and in training mode, where `layer` is.

        Raises:
            InputError: a partition of another shape.
        """
        shape = (layer.out_features, layer.in_features)
        if partition is not None and partition.shape != shape:
            raise InputError(f"Found a partition of shape {partition.shape}. The layer's weight has {shape}.")
        matrix = compress_matrix(layer.weight.detach(), **options) if partition is None else partition
        new = HLinear(matrix, layer.bias, dtype=layer.weight.dtype).requires_grad_(layer.weight.requires_grad)
        if new.bias is not None:
            new.bias.requires_grad_(layer.bias.requires_grad)
        return new.train(layer.training)

    def _index(self, name: str, rows: np.ndarray) -> slice | str:
        """Rows that follow each other as a slice, others as the name of a buffer that holds them."""
        if len(rows) and bool((np.diff(rows) == 1).all()):
            return slice(int(rows[0]), int(rows[0]) + len(rows))
        self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(rows)), persistent=False)
        return name

    def _take(self, work: Tensor, rows: slice | str) -> Tensor:
        return work[rows] if isinstance(rows, slice) else work.index_select(0, getattr(self, rows))

    def affine(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product with another bias; hooks see the call.

        Args:
            x: (..., n).
            bias: (m,) in the place of the layer's own, or None.

        Returns:
            (..., m).
        """
        return self(x, bias, own_bias=False)

    def forward(self, x: Tensor, bias: Tensor | None = None, own_bias: bool = True) -> Tensor:
        """Multiply and add the bias.

        Args:
            x: (..., n).
            bias: (m,) or None, instead of the layer's own if `own_bias` is False.
            own_bias: as above.

        Returns:
            (..., m).
        """
        bias = self.bias if own_bias else bias
        if x.shape[-1] != self.in_features:
            raise InputError(f"Found an input of shape {tuple(x.shape)}. Expected (..., {self.in_features}).")
        if self._plain:
            inner = F.linear(x, self.first[0][0]) if len(self.first) else x
            return F.linear(inner, self.second[0][0], bias)
        work = x.reshape(-1, self.in_features).T
        work = work if self.col_order is None else work.index_select(0, self.col_order)
        zero = work[:0].sum(0, keepdim=True)  # unlike a constant, it depends on x where nothing else does
        work = torch.cat([work, zero])
        work = torch.cat([work, *self._wave(0, self.first, work)])
        out = torch.cat([*self._wave(1, self.second, work), zero])
        y = sum((self._take(out, rows) for rows in self._outputs[1:]), self._take(out, self._outputs[0]))
        y = y.T.reshape(*x.shape[:-1], self.out_features)
        return y if bias is None else y + bias

    def _wave(self, which: int, weights: Iterable[Tensor], work: Tensor) -> list[Tensor]:
        outs = []
        for w, rows in zip(weights, self._sources[which], strict=True):
            part = self._take(work, rows).reshape(w.shape[0], w.shape[2], -1)
            outs.append(torch.bmm(w, part).reshape(w.shape[0] * w.shape[1], -1))
        return outs

    def _slots(self, number: int, part: int) -> list[Slot]:
        """Where the rows of a leaf's tensor stand, from the top. part: 0 for dense or u, 1 for vt."""
        waves = (self.second, self.first)
        return [(waves[part][k][g], rows, cols) for k, g, rows, cols in self._places[number][part]]

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The blocks with their live numbers: gradients reach the parameters through them."""
        leaves = []
        for number, (row, rows, col, cols, rank) in enumerate(self._blocks):
            if rank == 0:
                parts = [self.table.new_zeros(shape).to(self.dtype) for shape in ((rows, 0), (0, cols))]
            else:
                slots = (self._slots(number, part) for part in range(1 if rank < 0 else 2))
                parts = [torch.cat([block[r, c] for block, r, c in pieces]) for pieces in slots]
            named = dict(zip(("dense",) if rank < 0 else ("u", "vt"), parts, strict=True))
            leaves.append(Leaf(row, rows, col, cols, **named))
        return tuple(leaves)

    @torch.no_grad()
    def assign(self, number: int, *tensors: Tensor) -> None:
        """Overwrite the numbers of a leaf.

        Args:
            number: which of `leaves`.
            *tensors: (dense,), or (u, vt), of its shapes.
        """
        for part, numbers in enumerate(tensors):
            at = 0
            for block, rows, cols in self._slots(number, part):
                count = rows.stop - rows.start
                block[rows, cols].copy_(numbers[at : at + count])
                at += count

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next((p.dtype for p in self.parameters()), torch.float32)

    def to_hmatrix(self, dtype: torch.dtype = torch.float32) -> HMatrix:
        """The matrix as it stands.

        Args:
            dtype: of the leaves.

        Returns:
            A copy on the CPU.
        """
        leaves = []
        for e in self.leaves:
            numbers = (None if t is None else t.detach().to("cpu", dtype, copy=True) for t in (e.dense, e.u, e.vt))
            leaves.append(Leaf(*e.place, *numbers))
        orders = (None if o is None else o.cpu() for o in (self.row_order, self.col_order))
        return HMatrix((self.out_features, self.in_features), tuple(leaves), *orders)

    def extra_repr(self) -> str:
        """The shape and what it is made of."""
        count = sum(p.numel() for p in (*self.first, *self.second))
        return f"{self.in_features}, {self.out_features}, {len(self._blocks)} blocks, {count} numbers"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("table", "row_order", "col_order"):
            here, there = getattr(self, name), state_dict.get(prefix + name)
            if (here is not there) if here is None or there is None else not torch.equal(here.cpu(), there.cpu()):
                raise InputError(f"Found another partition in {prefix + name}. Build the layer over the saved one.")
        super()._load_from_state_dict(state_dict, prefix, *args)


def _places(batched: Plan, matrix: HMatrix) -> list[tuple[list, list]]:
    """Of every leaf, for (dense or u, vt): where its rows stand, from the top, as (bucket, block, rows, columns)."""
    planned = [k for k, leaf in enumerate(matrix.leaves) if leaf.rank != 0 and leaf.rows and leaf.cols]
    parts: list[tuple[dict, dict]] = [({}, {}) for _ in matrix.leaves]
    for part, wave in enumerate((batched.second, batched.first)):
        for k, bucket in enumerate(wave):
            for g in range(len(bucket.blocks)):
                for piece, _, at in bucket.placed(g):
                    r, c = piece.stored.shape
                    row, col = (at, 0) if bucket.axis == STACKED else (0, at)
                    place = (k, g, slice(row, row + r), slice(col, col + c))
                    parts[planned[piece.number]][part][piece.first] = place
    return [tuple([slots[first] for first in sorted(slots)] for slots in pair) for pair in parts]  # type: ignore[misc]
