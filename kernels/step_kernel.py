"""The step kernel in Triton: one launch executes a list of tiles of a schedule, whatever the structure of its layers.

out[:, tile] = epilogue(sum over steps of workspace[:, column(step)] @ weight(step)^T + bias), summed in registers in
the order of the steps and stored once: no atomics, the same bits every time. Three forms: `batch` and `swapped` by
`tl.dot` (swapped: the tensor core's long side is the weight's, for small batches), `row` by plain sums for one row.

The column of the next step is carried in a register: a look-up inside the loop halves the pipeline's depth (measured
ahead of time). int8 weights enter products as whole numbers; a sum is multiplied by its rows' scales when a run of
steps that share them ends. Rows may be values, or streams of points (`hrt.kernels.jet_epilogues`).
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# (inside a kernel numbers and slices stand for compile-time constants)
import triton
import triton.language as tl

from hrt.kernels import step_tables
from hrt.kernels.epilogues import activate
from hrt.kernels.jet_epilogues import activate_jet, by_row

# Columns of a launch's rows, as kernels may read them: compile-time constants.
OUT_COLUMN, OUT_LENGTH = tl.constexpr(step_tables.OUT_COLUMN), tl.constexpr(step_tables.OUT_LENGTH)
BIAS, HAS_EPILOGUE = tl.constexpr(step_tables.LAUNCH_BIAS), tl.constexpr(step_tables.HAS_EPILOGUE)
FIRST_GROUP, END_GROUP = tl.constexpr(step_tables.FIRST_GROUP), tl.constexpr(step_tables.END_GROUP)
GAINS, SHIFTS = tl.constexpr(step_tables.GAINS), tl.constexpr(step_tables.SHIFTS)
FIELDS = tl.constexpr(step_tables.LAUNCH_FIELDS)


@triton.jit
def _add_steps(
    acc,
    x_rows,
    w_tile,
    columns,
    first,
    end,
    UNIT: tl.constexpr,
    FORM: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """acc plus steps [first, end), whose weight tiles lie one after the other from w_tile on (ROWS, COLUMNS)."""
    column = tl.load(columns + first)
    for step in tl.range(first, end):
        following = tl.load(columns + step + 1)  # one entry past the last is always there
        x = tl.load(x_rows + tl.multiple_of(column * UNIT, UNIT))
        w = tl.load(w_tile)
        if WIDEN:
            x = x.to(tl.float32)
        w = w.to(x.dtype)
        if FORM == "row":
            acc += w * x
        elif FORM == "swapped":
            acc = tl.dot(w, x.T, acc, input_precision=PRECISION)
        else:
            acc = tl.dot(x, w.T, acc, input_precision=PRECISION)
        w_tile += w_tile.shape[0] * w_tile.shape[1]
        column = following
    return acc


@triton.jit
def sum_of_tile(
    x_rows,
    weights0,
    weights1,
    weights2,
    weights3,
    scales,
    columns,
    runs,
    starts,
    groups,
    tile,
    ROWS: tl.constexpr,
    UNIT: tl.constexpr,
    BUFFERS: tl.constexpr,
    SCALED: tl.constexpr,
    FORM: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The sum of all steps of one tile, (BLOCK, ROWS) float32. x_rows: pointers (BLOCK, COLUMNS) to the rows' starts.

    runs, starts, tile: of this tile. groups: runs of steps of the int8 buffer, SCALED (-1: none), that share a scale.
    """
    BLOCK: tl.constexpr = x_rows.shape[0]
    COLUMNS: tl.constexpr = x_rows.shape[1]
    if FORM == "row":
        acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    elif FORM == "swapped":
        acc = tl.zeros((ROWS, BLOCK), tl.float32)
    else:
        acc = tl.zeros((BLOCK, ROWS), tl.float32)
    place = tl.arange(0, ROWS)
    for buffer in tl.static_range(BUFFERS):
        if buffer == 0:
            weights = weights0
        elif buffer == 1:
            weights = weights1
        elif buffer == 2:
            weights = weights2
        else:
            weights = weights3
        first, end = tl.load(runs + buffer), tl.load(runs + buffer + 1)
        begin = tl.load(starts + buffer) * (ROWS * COLUMNS)  # counted in tiles, so that the alignment is plain
        w_tile = weights + begin + place[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        if buffer != SCALED:
            acc = _add_steps(acc, x_rows, w_tile, columns, first, end, UNIT, FORM, WIDEN, PRECISION)
        else:
            for group in tl.range(tl.load(tile + FIRST_GROUP), tl.load(tile + END_GROUP), num_stages=1):
                low, high = tl.load(groups + group * 3), tl.load(groups + group * 3 + 1)
                offset = tl.load(groups + group * 3 + 2)
                group_tile = w_tile + (low - first).to(tl.int64) * (ROWS * COLUMNS)
                part = tl.zeros_like(acc)
                part = _add_steps(part, x_rows, group_tile, columns, low, high, UNIT, FORM, WIDEN, PRECISION)
                scale = tl.load(scales + offset + place, mask=place + offset >= place, other=1.0).to(tl.float32)
                if FORM == "batch":
                    acc += part * scale[None, :]
                else:
                    acc += part * scale[:, None]
    if FORM == "row":
        total = tl.sum(acc, 1)[None, :]
    elif FORM == "swapped":
        total = acc.T
    else:
        total = acc
    return total


@triton.jit
def finish_tile(
    total,
    out_rows,
    inside,
    biases,
    tile,
    EPILOGUE: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    RESCALE: tl.constexpr,
    JET: tl.constexpr,
):
    """Add the bias, apply the epilogue where the tile has one, rescale, and store. out_rows: pointers (BLOCK, 1).

    tile: its row, int32 (LAUNCH_FIELDS,); bias, gains and shifts are offsets among the biases, or -1. JET: as in
    `Streams`.
    """
    BLOCK: tl.constexpr = total.shape[0]
    ROWS: tl.constexpr = total.shape[1]
    out, length, bias = tl.load(tile + OUT_COLUMN), tl.load(tile + OUT_LENGTH), tl.load(tile + BIAS)
    place = tl.arange(0, ROWS)
    written = place < length
    added = tl.load(biases + bias + place, mask=written & (place + bias >= place), other=0.0)  # a bias of -1 is none
    total += by_row(added.to(tl.float32), JET, BLOCK)
    if EPILOGUE != "none":
        wanted = tl.load(tile + HAS_EPILOGUE) != 0
        if JET == "":
            active = activate(total, EPILOGUE, FIRST, SECOND)
        else:
            active = activate_jet(total, JET, EPILOGUE, FIRST, SECOND)
        total = tl.where(wanted, active, total)
    if RESCALE:
        gain, shift = tl.load(tile + GAINS), tl.load(tile + SHIFTS)
        gains = tl.load(biases + gain + place, mask=written & (place + gain >= place), other=1.0)
        shifts = tl.load(biases + shift + place, mask=written & (place + shift >= place), other=0.0)
        total = total * gains.to(tl.float32)[None, :] + by_row(shifts.to(tl.float32), JET, BLOCK)
    target = out_rows + (out + place)[None, :]
    tl.store(target, total.to(out_rows.dtype.element_ty), mask=inside[:, None] & written[None, :])


@triton.jit(do_not_specialize=["batch"])
def step_kernel(
    workspace,
    target,
    weights0,
    weights1,
    weights2,
    weights3,
    scales,
    biases,
    tiles,
    runs,
    starts,
    groups,
    columns,
    batch,
    pitch,
    target_pitch,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
    BUFFERS: tl.constexpr,
    SCALED: tl.constexpr,
    FORM: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    EPILOGUE: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    RESCALE: tl.constexpr,
    JET: tl.constexpr,
):
    """One program per tile and block of BLOCK batch rows; reads `workspace`, writes `target` (it, or partials)."""
    tile = tl.program_id(0)
    rows = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < batch
    safe = tl.where(inside, rows, 0).to(tl.int64)
    x_rows = workspace + safe[:, None] * pitch + tl.arange(0, COLUMNS)[None, :]
    row = tiles + tile * FIELDS
    total = sum_of_tile(
        x_rows, weights0, weights1, weights2, weights3, scales, columns,
        runs + tile * (BUFFERS + 1), starts + tile * BUFFERS, groups, row,
        ROWS, UNIT, BUFFERS, SCALED, FORM, WIDEN, PRECISION,
    )  # fmt: skip
    out_rows = target + rows.to(tl.int64)[:, None] * target_pitch
    finish_tile(total, out_rows, inside, biases, row, EPILOGUE, FIRST, SECOND, RESCALE, JET)


@triton.jit(do_not_specialize=["batch"])
def finish_kernel(
    partial,
    workspace,
    biases,
    tiles,
    batch,
    partial_pitch,
    pitch,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    EPILOGUE: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    RESCALE: tl.constexpr,
    JET: tl.constexpr,
):
    """The second pass of tiles that were split along their steps: partial sums added in order, then as in one pass.

    partial: float32 (batch, slots * ROWS); the slots of a tile are tiles[tile, FIRST_GROUP] up to END_GROUP.
    """
    row = tiles + tl.program_id(0) * FIELDS
    rows = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < batch
    safe = tl.where(inside, rows, 0).to(tl.int64)
    source = partial + safe[:, None] * partial_pitch + tl.arange(0, ROWS)[None, :]
    total = tl.zeros((BLOCK, ROWS), tl.float32)
    for slot in range(tl.load(row + FIRST_GROUP), tl.load(row + END_GROUP)):
        total += tl.load(source + slot * ROWS)
    out_rows = workspace + safe[:, None] * pitch
    finish_tile(total, out_rows, inside, biases, row, EPILOGUE, FIRST, SECOND, RESCALE, JET)
