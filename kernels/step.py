"""The step kernel in Triton: one launch executes a run of tiles of a schedule, whatever the structure of its layers.

out[:, tile] = epilogue(sum over steps of workspace[:, column(step)] @ weight(step)^T + bias), summed in registers in
the order of the steps and stored once: no atomics, the same bits every time. Two forms: `tl.dot` for batches (with the
operands swapped for small ones, so that the tensor core's long side is the weight's), and plain sums for single rows.

The column of the next step is carried in a register and columns are stored in units, so that the loop keeps its
pipeline and the compiler the alignment (measured ahead of time: a look-up inside the loop halves the depth).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

# pyright: reportArgumentType=false
# (inside a kernel numbers and slices stand for compile-time constants)
import torch
import triton
import triton.language as tl
from torch import Tensor

from hrt.kernels.tables import BIAS_OFFSET, OUT_COLUMN, OUT_LENGTH, WEIGHT_OFFSET, StepTables

MOST_BUFFERS = 4
EPILOGUES = ("relu", "sigmoid", "silu", "gelu", "gelu_tanh", "tanh", "sin", "cos", "exp", "neg", "abs", "softplus")
ROW_FORM = 8  # up to this batch the row form is used


@triton.jit
def _activate(v, NAME: tl.constexpr):
    """The epilogues that a tile can apply in registers."""
    if NAME == "relu":
        v = tl.where(v > 0, v, tl.where(v != v, v, 0.0))  # NaN stays NaN
    elif NAME == "sigmoid":
        v = tl.sigmoid(v)
    elif NAME == "silu":
        v = v * tl.sigmoid(v)
    elif NAME == "gelu":
        v = 0.5 * v * (1.0 + tl.erf(v * 0.7071067811865476))
    elif NAME == "gelu_tanh":
        v = v * tl.sigmoid(1.5957691216057308 * (v + 0.044715 * v * v * v))
    elif NAME == "tanh":
        v = 2.0 * tl.sigmoid(2.0 * v) - 1.0
    elif NAME == "sin":
        v = tl.sin(v)
    elif NAME == "cos":
        v = tl.cos(v)
    elif NAME == "exp":
        v = tl.exp(v)
    elif NAME == "neg":
        v = -v
    elif NAME == "abs":
        v = tl.abs(v)
    elif NAME == "softplus":
        v = tl.maximum(v, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(v)))
    return v


@triton.jit
def _add_steps(
    acc,
    x_rows,
    weights,
    columns,
    runs,
    starts,
    buffer: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
    FORM: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """acc plus the steps of one tile in one buffer. x_rows: pointers to the rows' first columns, (batch, COLUMNS)."""
    first = tl.load(runs + buffer)
    end = tl.load(runs + buffer + 1)
    begin = tl.load(starts + buffer) * (ROWS * COLUMNS)  # counted in tiles, so that the alignment is plain
    w_tile = weights + begin + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    column = tl.load(columns + first)
    for step in range(first, end):
        following = tl.load(columns + step + 1)  # one entry past the last is always there
        x = tl.load(x_rows + tl.multiple_of(column * UNIT, UNIT))
        w = tl.load(w_tile)
        if WIDEN:
            x = x.to(tl.float32)
            w = w.to(tl.float32)
        if FORM == "row":
            acc += w * x
        elif FORM == "swapped":
            acc = tl.dot(w, x.T, acc, input_precision=PRECISION)
        else:
            acc = tl.dot(x, w.T, acc, input_precision=PRECISION)
        w_tile += ROWS * COLUMNS
        column = following
    return acc


@triton.jit
def _step_kernel(
    workspace,
    weights0,
    weights1,
    weights2,
    weights3,
    biases,
    tiles,
    runs,
    starts,
    columns,
    batch,
    pitch,
    first_tile,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
    BUFFERS: tl.constexpr,
    FORM: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    """One program per tile and block of BLOCK batch rows. tiles: int32 (., 4) out column, length, bias, unused."""
    tile = first_tile + tl.program_id(0)
    rows = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < batch
    safe = tl.where(inside, rows, 0).to(tl.int64)
    x_rows = workspace + safe[:, None] * pitch + tl.arange(0, COLUMNS)[None, :]
    mine, begin = runs + tile * (BUFFERS + 1), starts + tile * BUFFERS
    if FORM == "row":
        acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    elif FORM == "swapped":
        acc = tl.zeros((ROWS, BLOCK), tl.float32)
    else:
        acc = tl.zeros((BLOCK, ROWS), tl.float32)
    acc = _add_steps(acc, x_rows, weights0, columns, mine, begin, 0, ROWS, COLUMNS, UNIT, FORM, WIDEN, PRECISION)
    if BUFFERS > 1:
        acc = _add_steps(acc, x_rows, weights1, columns, mine, begin, 1, ROWS, COLUMNS, UNIT, FORM, WIDEN, PRECISION)
    if BUFFERS > 2:
        acc = _add_steps(acc, x_rows, weights2, columns, mine, begin, 2, ROWS, COLUMNS, UNIT, FORM, WIDEN, PRECISION)
    if BUFFERS > 3:
        acc = _add_steps(acc, x_rows, weights3, columns, mine, begin, 3, ROWS, COLUMNS, UNIT, FORM, WIDEN, PRECISION)
    if FORM == "row":
        total = tl.sum(acc, 1)[None, :]
    elif FORM == "swapped":
        total = acc.T
    else:
        total = acc
    out, length, bias = tl.load(tiles + tile * 4), tl.load(tiles + tile * 4 + 1), tl.load(tiles + tile * 4 + 2)
    place = tl.arange(0, ROWS)
    kept = place < length
    added = tl.load(biases + bias + place, mask=kept & (place + bias >= place), other=0.0)  # a bias of -1 is none
    total += added.to(tl.float32)[None, :]
    total = _activate(total, EPILOGUE)
    target = workspace + rows.to(tl.int64)[:, None] * pitch + (out + place)[None, :]
    tl.store(target, total.to(workspace.dtype.element_ty), mask=inside[:, None] & kept[None, :])


@dataclass(frozen=True, eq=False)
class StepProgram:
    """Uniform tables with what the kernel looks up, on one device."""

    tables: StepTables

    def __post_init__(self) -> None:
        t = self.tables
        sides = (t.tile_rows, t.step_columns)
        if not t.is_uniform or any(s < 16 or s & (s - 1) for s in sides) or len(t.weights) > MOST_BUFFERS:
            raise ValueError(
                f"Found weight tiles of {sides} in {len(t.weights)} buffers. Expected a uniform table, sides that are "
                f"powers of two from 16 on, and at most {MOST_BUFFERS} buffers."
            )

    @cached_property
    def tiles(self) -> Tensor:
        """int32 (n_tiles, 4): out column, out length, bias offset or -1, 0."""
        t = self.tables.tiles
        picked = [t[:, OUT_COLUMN], t[:, OUT_LENGTH], t[:, BIAS_OFFSET], torch.zeros_like(t[:, 0])]
        return torch.stack(picked, 1).contiguous()

    @cached_property
    def starts(self) -> Tensor:
        """int64 (n_tiles, buffers): the weight tile of a tile's first step in a buffer; 0 where there is none."""
        runs, offsets = self.tables.runs.long(), self.tables.steps[:, WEIGHT_OFFSET].long()
        padded = torch.cat([offsets, offsets.new_zeros(1)])
        first = padded[runs[:, :-1]] // self.tables.tile_elements
        return torch.where(runs[:, 1:] > runs[:, :-1], first, 0).contiguous()

    def run(
        self,
        workspace: Tensor,
        first_tile: int,
        end_tile: int,
        epilogue: str | None = None,
        *,
        form: str | None = None,
        precision: str = "ieee",
        num_warps: int = 4,
        num_stages: int = 3,
    ) -> None:
        """Execute tiles [first_tile, end_tile), which share one `epilogue`, in place on `workspace` (batch, width).

        form: "row", "swapped" or "batch"; by default from the batch size. precision: of float32 products on tensor
        cores ("ieee", "tf32", "tf32x3"). Tiles of one call must not read what others of the same call write.
        """
        t, batch = self.tables, workspace.shape[0]
        if workspace.stride(1) != 1 or batch == 0 or end_tile <= first_tile:
            if batch and end_tile > first_tile:
                raise ValueError("The workspace's rows are not contiguous.")
            return
        form = form or ("row" if batch <= ROW_FORM else "swapped" if batch < 64 else "batch")
        block = 1 if form == "row" else 16 if batch <= 16 else 32 if batch <= 32 else 64 if batch <= 64 else 128
        kinds = {workspace.dtype, *(w.dtype for w in t.weights)}
        interpreted = not isinstance(_step_kernel, triton.JITFunction)
        # Mixed types meet in float32; so do all on the interpreter, whose bfloat16 products are wrong.
        widen = form == "row" or len(kinds) > 1 or (interpreted and torch.bfloat16 in kinds)
        weights = [*t.weights, *[t.weights[0]] * (MOST_BUFFERS - len(t.weights))] if t.weights else [workspace] * 4
        biases = t.biases if t.biases.numel() else workspace
        launch: Any = _step_kernel
        launch[(end_tile - first_tile, triton.cdiv(batch, block))](
            workspace,
            *weights,
            biases,
            self.tiles,
            t.runs,
            self.starts,
            t.column_table,
            batch,
            workspace.stride(0),
            first_tile,
            BLOCK=block,
            ROWS=t.tile_rows,
            COLUMNS=t.step_columns,
            UNIT=t.unit,
            BUFFERS=max(1, len(t.weights)),
            FORM=form,
            WIDEN=widen,
            PRECISION=precision,
            EPILOGUE=epilogue or "none",
            num_warps=num_warps,
            num_stages=num_stages,
        )


def epilogue_name(op: str, attrs: Mapping[str, Any]) -> str | None:
    """What the kernel calls an activation of the op table with these attributes; None where it has none."""
    if op == "gelu":
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(attrs["approximate"])
    if op == "softplus":
        return op if attrs["beta"] == 1 else None
    return op if op in EPILOGUES else None


def one_epilogue(tables: StepTables, first_tile: int, end_tile: int, names: list[str]) -> str | None:
    """The epilogue that all these tiles share. Raises ValueError where they differ."""
    found = set(tables.tiles[first_tile:end_tile, 5].tolist())
    if len(found) > 1:
        raise ValueError(f"Tiles {first_tile} to {end_tile} have the epilogues {sorted(found)}. Expected one.")
    (only,) = found or {-1}
    return None if only < 0 else names[only]
