"""How long a schedule must take at least on a named chip: a roofline from its tables alone, without any GPU.

A launch moves B bytes and does F floating-point operations; on a chip that copies c bytes/s and multiplies f flop/s it
takes at least max(B / c, F / f) (Williams, Waterman, Patterson, Roofline, CACM 52(4), 2009), and the launch itself
adds a constant. Bytes count what a launch must bring in and out once: its distinct packed weights (padding too),
scales, integer tables, biases, and the distinct columns it reads and writes. Flops are those executed, padding too.

What is NOT counted, so that real kernels are slower: columns and weights that several tiles read again (see
`tile_intensity`), launches of fewer tiles than the chip has multiprocessors, uneven tiles, activations' arithmetic.
What may make a repeated small layer faster: weights that stay in the L2 cache do not count as free here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hrt.errors import InputError
from hrt.hmatrix.hmatrix import HMatrix
from hrt.kernels.precisions import WORKSPACE
from hrt.kernels.step_tables import (
    BIAS_OFFSET,
    BUFFER,
    COLUMN,
    END_STEP,
    FIRST_STEP,
    LENGTH,
    NONE,
    OUT_LENGTH,
    SCALE_OFFSET,
    WEIGHT_OFFSET,
)
from hrt.program.dense_view import written_out
from hrt.program.program import Program
from hrt.schedule.build_schedule import build_schedule
from hrt.schedule.ports import boundary
from hrt.schedule.schedule import Apply, Gather, Schedule, Span, Wave

BATCHES = tuple(2**k for k in range(17))  # 1 to 65536
CLEAR = 0.03  # an advantage below this share of the dense time is none: the model is not that good
BLOCK = 128  # batch rows that one program of the step kernel multiplies a weight tile with, at large batches


@dataclass(frozen=True)
class Chip:
    """What a GPU sustains. Rates in bytes/s (read and written together) and flop/s by precision.

    launch_s: seconds that a kernel costs inside a replayed CUDA graph. source: which rates were measured or assumed.
    """

    name: str
    arch: str
    copy_bytes_per_s: float
    matmul_flops: Mapping[str, float]
    sm_count: int
    source: str
    launch_s: float = 1.3e-6


def _hopper(name: str, copy: float, bf16: float) -> Chip:
    """A Hopper chip of 132 multiprocessors from its two measured rates; NVIDIA's data sheet gives the proportions."""
    tf32 = bf16 / 2
    flops = {"bf16": bf16, "fp16": bf16, "tf32": tf32, "tf32x3": tf32 / 3, "ieee": 67e12 * bf16 / 989e12}
    source = (
        f"measured: copy {copy / 1e12:g} TB/s (device to device, read + written), bf16 {bf16 / 1e12:g} Tflop/s "
        "(8192^3 matmul); assumed: fp16 as bf16, tf32 half of it (data sheet), tf32x3 a third of tf32, ieee 67 / 989 "
        "of bf16 (data sheet), 1.3 us a launch (reported for an H100 by others)"
    )
    return Chip(name, "sm_90", copy, flops, 132, source)


CHIPS = {c.name: c for c in (_hopper("h100", 3.0e12, 798e12), _hopper("h200", 4.3e12, 790e12))}


@dataclass(frozen=True)
class Load:
    """What one launch must do, for any batch: bytes = fixed_bytes + batch * columns * item, and multiply-adds.

    fixed_bytes: weights, scales, tables, biases, constants. columns: workspace columns read plus written, each once.
    products: multiply-adds per batch row.
    """

    name: str
    fixed_bytes: int
    columns: int
    products: int


Work = Sequence[Load]


@dataclass(frozen=True)
class Launch:
    """One launch at one batch size. ideal_s: seconds without the cost of launching it."""

    name: str
    bytes: int
    flops: int
    ideal_s: float


@dataclass(frozen=True)
class Floor:
    """The least time of a schedule at one batch size. ideal_s: without, seconds: with `chip.launch_s` per launch."""

    launches: tuple[Launch, ...]
    bytes: int
    flops: int
    ideal_s: float
    seconds: float


def chip_named(name: str) -> Chip:
    """The chip. Raises InputError."""
    if name not in CHIPS:
        raise InputError(f"Found chip {name!r}. Expected one of {', '.join(CHIPS)}.")
    return CHIPS[name]


def work_of(schedule: Schedule) -> tuple[Load, ...]:
    """What each stage of `schedule` moves and multiplies; every stage is one launch.

    Orderings of the network's own inputs and outputs are left out, as are the copies of these into and out of a static
    workspace, of which they are part (see `hrt.schedule.ports`): a dense layer in a CUDA graph needs the same copies.
    """
    tables = schedule.tables
    tiles, steps = (t.cpu().numpy().astype(np.int64) for t in (tables.tiles, tables.steps))
    loads = []
    _, _, folded = boundary(schedule)
    for stage in schedule.stages:
        if id(stage) in folded:
            continue
        if isinstance(stage, Wave):
            loads.append(_wave(stage, schedule, tiles, steps))
        elif isinstance(stage, Gather):
            loads.append(Load(f"gather {stage.name}", _nbytes(stage.index), 2 * stage.output.size, 0))
        else:
            loads.append(_apply(stage, schedule))
    return tuple(load for load in loads if load.fixed_bytes or load.columns)


def dense_work(m: int, n: int, precision: str, bias: bool = False) -> tuple[Load, ...]:
    """One launch of a dense layer (m, n), its weight and bias in the precision's own type."""
    item = _item(precision)
    return (Load("dense", item * (m * n + m * bias), m + n, m * n),)


def schedule_floor(schedule: Schedule | Work, batch: int, precision: str, chip: Chip) -> Floor:
    """The least time of `schedule` for `batch` rows (bytes, flops, seconds; see the module's formula).

    schedule: or its `work_of`, which saves counting again. precision: a key of WORKSPACE, which gives the type of the
    workspace and the rate of products; weights count in the types in which they are packed. Raises InputError.
    """
    item = _item(precision)
    if batch < 1:
        raise InputError(f"Found batch = {batch}. Expected at least one row.")
    launches = []
    for load in _work(schedule):
        moved, flops = load.fixed_bytes + batch * load.columns * item, 2 * batch * load.products
        ideal = max(moved / chip.copy_bytes_per_s, flops / chip.matmul_flops[precision])
        launches.append(Launch(load.name, moved, flops, ideal))
    ideal = sum(s.ideal_s for s in launches)
    moved, flops = sum(s.bytes for s in launches), sum(s.flops for s in launches)
    return Floor(tuple(launches), moved, flops, ideal, ideal + len(launches) * chip.launch_s)


def dense_floor(m: int, n: int, batch: int, precision: str, chip: Chip) -> Floor:
    """The least time of one dense layer (m, n) without bias: one launch."""
    return schedule_floor(dense_work(m, n, precision), batch, precision, chip)


def program_floor(
    program: Program, batch: int, precision: str, chip: Chip, *, tile_rows: int = 64, step_columns: int = 64
) -> Floor:
    """The least time of a whole program, scheduled in weight tiles of tile_rows x step_columns.

    The dense alternative is the floor of `dense_program(program, precision)`.
    """
    schedule = build_schedule(program, tile_rows=tile_rows, step_columns=step_columns, unit=16 // _item(precision))
    return schedule_floor(schedule, batch, precision, chip)


def dense_program(program: Program, precision: str) -> Program:
    """The same program with every weight of a linear layer written out, in the type of `precision`."""
    return written_out(program, program.weights, _dtype(precision))


def advantage(compressed: Schedule | Work, dense: Schedule | Work, batch: int, precision: str, chip: Chip) -> float:
    """Predicted seconds of `dense` over those of `compressed`, launches included: above 1 hrt is faster."""
    ours, theirs = (schedule_floor(_work(s), batch, precision, chip).seconds for s in (compressed, dense))
    return theirs / ours if ours else float("inf")


def break_even(
    compressed: Schedule | Work,
    dense: Schedule | Work,
    precision: str,
    chip: Chip,
    batches: Sequence[int] = BATCHES,
) -> tuple[int, ...]:
    """The batch sizes at which `compressed` is predicted to be no slower than `dense`; they need not be neighbours."""
    ours, theirs = _work(compressed), _work(dense)
    return tuple(b for b in batches if advantage(ours, theirs, b, precision, chip) >= 1)


def prefers(
    compressed: Schedule | Work, dense: Schedule | Work, precision: str, chip: Chip, batches: Sequence[int]
) -> tuple[str, ...]:
    """Who is faster at each batch size by predicted time: "hrt", or "dense" unless hrt saves more than CLEAR of it."""
    ours, theirs = _work(compressed), _work(dense)
    ratios = (advantage(ours, theirs, b, precision, chip) for b in batches)
    return tuple("hrt" if ratio * (1 - CLEAR) >= 1 else "dense" for ratio in ratios)


def tile_intensity(tile_rows: int, precision: str, batch: int) -> float:
    """Flops per byte that a program loads, from L2 or beyond, for one weight tile and up to BLOCK rows of a batch.

    2 R K b / (item (R K + b K)) = 2 R b / (item (R + b)) with b = min(batch, BLOCK): at f flop/s all programs together
    load f / intensity bytes/s. The floor knows no such limit.
    """
    rows = min(batch, BLOCK)
    return 2 * tile_rows * rows / (_item(precision) * (tile_rows + rows))


def _wave(wave: Wave, schedule: Schedule, tiles: np.ndarray, steps: np.ndarray) -> Load:
    """tiles, steps: int64 copies of the whole tables."""
    tables, own = schedule.tables, tiles[wave.first_tile : wave.end_tile]
    first, end = (int(own[0, FIRST_STEP]), int(own[-1, END_STEP])) if len(own) else (0, 0)
    mine = steps[first:end]
    rows = np.repeat(own[:, OUT_LENGTH], own[:, END_STEP] - own[:, FIRST_STEP])
    rows = np.full(len(mine), tables.tile_rows) if tables.is_uniform else rows
    sizes = mine[:, LENGTH] * rows
    # Rows of one value share their weights: every weight tile, scale and bias counts once in a launch.
    items = np.array([t.element_size() for t in tables.weights], dtype=np.int64)
    weights = (sizes * items[mine[:, BUFFER]])[_firsts(mine[:, [BUFFER, WEIGHT_OFFSET]])] if len(mine) else sizes
    scaled, biased = mine[:, SCALE_OFFSET] != NONE, own[:, BIAS_OFFSET] != NONE
    scales = rows[scaled][_firsts(mine[scaled][:, [SCALE_OFFSET]])]
    biases = own[biased, OUT_LENGTH][_firsts(own[biased][:, [BIAS_OFFSET]])]
    fixed = own.size * tables.tiles.element_size() + mine.size * tables.steps.element_size() + int(weights.sum())
    fixed += int(scales.sum()) * tables.scales.element_size() + int(biases.sum()) * tables.biases.element_size()
    read = _covered(mine[:, COLUMN], mine[:, COLUMN] + mine[:, LENGTH], schedule.width)
    return Load(f"{wave.layer} wave {wave.phase}", fixed, read + wave.output.size, int(sizes.sum()))


def _apply(stage: Apply, schedule: Schedule) -> Load:
    columns, constants = stage.output.size, 0
    for operand in dict.fromkeys(stage.operands):
        if isinstance(operand, Span):
            columns += operand.size
        else:
            constants += _nbytes(schedule.constants[operand])
    return Load(f"{stage.op} {stage.name}", constants, columns, 0)


def _firsts(rows: np.ndarray) -> np.ndarray:
    """Indices of the first of equal rows of a matrix."""
    return np.unique(rows, axis=0, return_index=True)[1]


def _covered(starts: np.ndarray, ends: np.ndarray, width: int) -> int:
    """How many of `width` columns lie in one of the ranges at least."""
    change = np.bincount(starts, minlength=width + 1) - np.bincount(ends, minlength=width + 1)
    return int(np.count_nonzero(np.cumsum(change)[:width]))


def _nbytes(constant: Tensor | HMatrix) -> int:
    return constant.nbytes if isinstance(constant, HMatrix) else constant.numel() * constant.element_size()


def _work(schedule: Schedule | Work) -> Work:
    return work_of(schedule) if isinstance(schedule, Schedule) else schedule


def _item(precision: str) -> int:
    return _dtype(precision).itemsize


def _dtype(precision: str) -> torch.dtype:
    """What a value takes in the workspace, and a weight in a dense layer."""
    if precision not in WORKSPACE:
        raise InputError(f"Found precision {precision!r}. Expected one of {', '.join(WORKSPACE)}.")
    return WORKSPACE[precision]
