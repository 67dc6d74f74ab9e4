"""The backends that there are: torch, which batches leaves of like shape, and the GPU's (see `hrt.cuda`)."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hrt.backends import Session, open_session, register_backend
from hrt.devices import missing_for_cuda
from hrt.errors import BackendError
from hrt.hmatrix import HMatrix, Leaf
from hrt.program import Program

__all__ = ["LowRank", "Product", "Session", "TorchSession", "open_session", "register_backend"]

FREE_PADDING = 2048  # numbers of padding that cost less than one more product


class TorchSession:
    """The reference on the CPU (or any torch device): float32 arithmetic, narrow storage decoded once at loading.

    resident_bytes: what this session holds; more than the artifact's `nbytes` where narrow types were decoded.
    Raises BackendError for a device that is unknown or absent.
    """

    def __init__(self, program: Program, device: Any = None):
        self.program = program
        try:
            self.device = torch.device("cpu" if device is None else device)
            probe = torch.zeros((), device=self.device)
            probe.cpu()
            self.device = probe.device  # with its number, as tensors name it
            self.constants = {k: prepare(c, self.device) for k, c in program.constants.items()}
        except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
            why = str(error).partition("\n")[0]
            raise BackendError(f"Device {str(device)!r} cannot be used: {why}. Use 'cpu'.") from error
        self.resident_bytes = sum(
            c.numel() * c.element_size() if isinstance(c, Tensor) else c.nbytes for c in self.constants.values()
        )
        names = [v.name for v in program.inputs] + list(self.constants) + [n.name for n in program.nodes]
        slot = {name: k for k, name in enumerate(names)}
        self._start = [*self.constants.values(), *([None] * len(program.nodes))]
        dead = program.last_use
        self._steps = [
            (n.row.torch, [slot[i] for i in n.inputs], n.attrs, slot[n.name], [slot[d] for d in dead.get(n.name, ())])
            for n in program.nodes
        ]
        self._outputs = [slot[name] for name in program.outputs]

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Evaluate in float32, without gradients and whatever autocast is set to around the call."""
        with torch.no_grad():
            if torch.is_autocast_enabled(self.device.type):
                with torch.autocast(self.device.type, enabled=False):
                    return self._run(inputs)
            return self._run(inputs)

    def _run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """`Program.run` with names resolved beforehand: at batch 1 the look-ups would cost more than the arithmetic."""
        values: list[Any] = [x if x.device == self.device else x.to(self.device) for x in inputs]
        values += self._start
        for function, arguments, attrs, out, dead in self._steps:
            values[out] = function([values[k] for k in arguments], attrs)
            for k in dead:
                values[k] = None
        return tuple(values[k] for k in self._outputs)


def prepare(constant: Any, device: torch.device) -> Any:
    """A constant of a program as the table's torch functions take it, in float32 on `device`."""
    if isinstance(constant, Tensor):
        return constant.to(device, torch.float32)
    if constant.is_dense:
        return constant.to_dense(torch.float32).to(device)
    return Product.of(constant, device)


@dataclass(frozen=True)
class _Block:
    """One product before batching: `weight` (r, k) times the workspace rows `sources` (k of them)."""

    sources: Sequence[int]
    weight: Tensor


@dataclass(frozen=True)
class _Step:
    """One batched product: weights (count, wide, tall) take the workspace rows `sources` (count * wide) to count * tall
    rows from `top` on.
    """

    sources: slice | Tensor
    weights: Tensor
    top: int

    def run(self, work: Tensor, out: Tensor) -> None:
        count, wide, tall = self.weights.shape
        batch = work.shape[1]
        rows = _take(work, self.sources)
        target = out[self.top : self.top + count * tall]
        if batch == 1:  # the same numbers in memory; as a row times a matrix they take a fifth of the time
            torch.bmm(rows.view(count, 1, wide), self.weights, out=target.view(count, 1, tall))
        else:
            torch.bmm(self.weights.mT, rows.view(count, wide, batch), out=target.view(count, tall, batch))


class Product:
    """y = x H^T in a handful of batched products instead of one or two per leaf.

    The workspace's rows are features, its columns samples: [x ; one row of zeros ; T]. First wave: leaves that share a
    column range are stacked into one V^T, and stacks of like shape are one batched product. Second wave: the leaves
    that cross a row range, dense or low-rank, are one block [D | U | U ...] that reads its rows of x and T through an
    index; tall blocks are first cut to the height of the short ones they cover, so that mostly one product remains and
    every row of y is summed inside it. Where blocks are padded to a common shape they read the row of zeros.
    """

    def __init__(self, matrix: HMatrix, device: torch.device):
        self.shape = matrix.shape
        self.cols = None if matrix.col_order is None else matrix.col_order.to(device, torch.int32)
        leaves = [leaf for leaf in matrix.leaves if leaf.rank != 0 and leaf.rows and leaf.cols]
        blocks, stacked = _stacks(leaves)
        zero = self.shape[1]
        self.first, starts, self.height = _batched(blocks, zero + 1, zero, 0, device)
        place = {key: starts[stack] + at for key, (stack, at) in stacked.items()}
        pieces = _cut(_rows(leaves, place))
        self.second, starts, out = _batched([block for _, _, block in pieces], 0, zero, FREE_PADDING, device)
        self.out_height = out + 1  # and one row of zeros
        place_of = slice(None) if matrix.row_order is None else matrix.row_order.long().argsort()
        self.index = [_index(rows[place_of], device) for rows in _layers(pieces, starts, self.shape[0], out)]

    @staticmethod
    def of(matrix: HMatrix, device: torch.device) -> "Product | LowRank":
        """The cheapest executor: two plain products where the whole matrix is one low-rank block."""
        kinds = {(leaf.rows, leaf.cols, leaf.is_dense) for leaf in matrix.leaves}
        if kinds == {(*matrix.shape, False)} and matrix.row_order is None and matrix.col_order is None:
            return LowRank(matrix.leaves, device)
        return Product(matrix, device)

    @property
    def nbytes(self) -> int:
        """Bytes held, decoded."""
        steps = (*self.first, *self.second)
        held = [*(s.weights for s in steps), *(s.sources for s in steps), *self.index, self.cols]
        return sum(t.numel() * t.element_size() for t in held if isinstance(t, Tensor))

    def apply(self, x: Tensor) -> Tensor:
        """x (batch, n) to (batch, m), float32."""
        n, batch = self.shape[1], x.shape[0]
        work = x.new_empty(self.height, batch)
        if self.cols is None:
            work[:n] = x.T
        else:
            torch.index_select(x.T, 0, self.cols, out=work[:n])
        work[n] = 0
        for step in self.first:
            step.run(work, work)
        out = x.new_empty(self.out_height, batch)
        out[-1] = 0
        for step in self.second:
            step.run(work, out)
        y = _take(out, self.index[0])
        for index in self.index[1:]:
            y = y + _take(out, index)
        return y.T


class LowRank:
    """y = (x V) U^T: the whole matrix is one low-rank block, the sum of `leaves`."""

    def __init__(self, leaves: Sequence[Leaf], device: torch.device):
        us, vts = zip(*(leaf.decoded(torch.float32) for leaf in leaves), strict=True)
        self.u, self.vt = torch.cat(us, dim=1).to(device), torch.cat(vts).to(device)
        self.shape = (leaves[0].rows, leaves[0].cols)
        self.nbytes = 4 * (self.u.numel() + self.vt.numel())

    def apply(self, x: Tensor) -> Tensor:
        """x (batch, n) to (batch, m), float32."""
        return self.affine(x, None)

    def affine(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., n) to (..., m), plus the bias (m,) in the same pass."""
        return torch.nn.functional.linear(torch.nn.functional.linear(x, self.vt), self.u, bias)


def _stacks(leaves: Sequence[Leaf]) -> tuple[list[_Block], dict[int, tuple[int, int]]]:
    """V^T of all low-rank leaves, one block per column range; and each leaf's block and row therein."""
    groups: dict[tuple[int, int], list[int]] = {}
    for k, leaf in enumerate(leaves):
        if not leaf.is_dense:
            groups.setdefault((leaf.col, leaf.cols), []).append(k)
    blocks: list[_Block] = []
    stacked: dict[int, tuple[int, int]] = {}
    for (col, cols), members in sorted(groups.items()):
        at = 0
        for k in members:
            stacked[k] = (len(blocks), at)
            at += leaves[k].rank
        stack = torch.cat([leaves[k].decoded(torch.float32)[1] for k in members])
        blocks.append(_Block(range(col, col + cols), stack))
    return blocks, stacked


def _rows(leaves: Sequence[Leaf], place: dict[int, int]) -> dict[tuple[int, int], _Block]:
    """The leaves of every row range (row, rows) side by side; `place`: where a leaf's T stands in the workspace."""
    groups: dict[tuple[int, int], list[int]] = {}
    for k, leaf in enumerate(leaves):
        groups.setdefault((leaf.row, leaf.rows), []).append(k)
    blocks = {}
    for key, members in groups.items():
        sources: list[int] = []
        for k in members:
            leaf = leaves[k]
            start, count = (leaf.col, leaf.cols) if leaf.is_dense else (place[k], leaf.rank)
            sources += range(start, start + count)
        blocks[key] = _Block(sources, torch.cat([leaves[k].decoded(torch.float32)[0] for k in members], dim=1))
    return blocks


def _cut(blocks: dict[tuple[int, int], _Block]) -> list[tuple[int, int, _Block]]:
    """Blocks as (row, rows, block), cut where shorter ones begin or end and joined with them.

    A block that is cut into p pieces is read p times; one that is not costs another pass over its rows of y.
    """
    ends = sorted({e for row, rows in blocks for e in (row, row + rows)})
    joined: dict[tuple[int, int], list[_Block]] = {}
    for (row, rows), block in sorted(blocks.items()):
        inner = ends[bisect_left(ends, row) : bisect_left(ends, row + rows) + 1]
        if len(block.sources) * (len(inner) - 1) > 2 * rows + len(block.sources):
            inner = [row, row + rows]
        for a, b in pairwise(inner):
            joined.setdefault((a, b - a), []).append(_Block(block.sources, block.weight[a - row : b - row]))
    return [
        (row, rows, _Block([s for b in parts for s in b.sources], torch.cat([b.weight for b in parts], dim=1)))
        for (row, rows), parts in sorted(joined.items())
    ]


def _batched(
    blocks: Sequence[_Block], top: int, zero: int, free: int, device: torch.device
) -> tuple[list[_Step], list[int], int]:
    """Blocks of like shape as one step each, writing from row `top` on; where each block's rows begin, and the end.

    Padding may add a quarter to the numbers of a step, or a few thousand, because one more step would cost more.
    Columns are padded by a quarter, or by `free` numbers in all, and then read the workspace row `zero`.
    """
    buckets: list[list[int]] = []
    tall = wide = true = 0  # of the last bucket: its largest shape, and its numbers without padding
    for k in sorted(range(len(blocks)), key=lambda k: (blocks[k].weight.shape[::-1], k), reverse=True):
        r, c = blocks[k].weight.shape
        padded = (len(buckets[-1]) + 1) * max(tall, r) * wide if buckets else 0
        like = padded <= 1.25 * (true + r * c) + FREE_PADDING and (wide <= 1.25 * c or padded - true - r * c <= free)
        if buckets and like:
            buckets[-1].append(k)
            tall, true = max(tall, r), true + r * c
        else:
            buckets.append([k])
            tall, wide, true = r, c, r * c
    steps, starts = [], [0] * len(blocks)
    for bucket in buckets:
        bucket.sort()
        tall, wide = (max(blocks[k].weight.shape[d] for k in bucket) for d in (0, 1))
        weights = torch.zeros(len(bucket), wide, tall, dtype=torch.float32, device="cpu")
        sources: list[int] = []
        for g, k in enumerate(bucket):
            r, c = blocks[k].weight.shape
            weights[g, :c, :r] = blocks[k].weight.T
            sources += [*blocks[k].sources, *([zero] * (wide - c))]
            starts[k] = top + g * tall
        steps.append(_Step(_index(sources, device), weights.to(device), top))
        top += len(bucket) * tall
    return steps, starts, top


def _layers(pieces: Sequence[tuple[int, int, _Block]], starts: Sequence[int], m: int, zero: int) -> list[Tensor]:
    """Per layer of pieces that do not overlap, the output row of each of the m positions; `zero` where there is none.
    y is the sum of the layers, nearly always one.
    """
    layers: list[Tensor] = []
    ends: list[int] = []
    for (row, rows, _), start in zip(pieces, starts, strict=True):
        k = next((k for k, end in enumerate(ends) if end <= row), len(ends))
        if k == len(ends):
            ends.append(0)
            layers.append(torch.full((m,), zero, dtype=torch.int64))
        layers[k][row : row + rows] = torch.arange(start, start + rows)
        ends[k] = row + rows
    return layers or [torch.full((m,), zero, dtype=torch.int64)]


def _index(rows: Any, device: torch.device) -> slice | Tensor:
    """Workspace rows as a slice where they follow each other, else as an index table."""
    index = torch.as_tensor(rows, dtype=torch.int32)
    if len(index) and bool((index[1:] == index[:-1] + 1).all()):
        return slice(int(index[0]), int(index[0]) + len(index))
    return index.to(device)


def _take(work: Tensor, rows: slice | Tensor) -> Tensor:
    return work[rows] if isinstance(rows, slice) else work.index_select(0, rows)


def _open_cuda(program: Program, device: Any, precision: str) -> Session:
    from hrt.cuda import CudaSession  # Triton is not there on every machine

    return CudaSession(program, device, precision)


def _open_onnxruntime(program: Program, device: Any, precision: str) -> Session:
    from hrt.export.session import OnnxSession  # onnx is not imported by those who do not use it

    return OnnxSession(program, device)


def _missing_onnxruntime() -> str | None:
    found = find_spec("onnxruntime") is not None
    return None if found else "ONNX Runtime is not installed (pip install onnxruntime)."


register_backend("onnxruntime", _open_onnxruntime, _missing_onnxruntime)
register_backend("torch", lambda program, device, _: TorchSession(program, device), lambda: None)
register_backend("cuda", _open_cuda, missing_for_cuda)
