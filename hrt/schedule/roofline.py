"""How long a schedule must take at least on a named chip: a roofline from its tables alone, without any GPU.

A launch that moves B bytes and does F operations takes at least max(B / c, F / f) on a chip that copies c bytes/s and
does f flop/s (Williams, Waterman, Patterson, Roofline, CACM 52(4), 2009), and a constant for the launch itself. Bytes
count what a launch must bring in and out once, padding too. Not counted: repeated reads, idle multiprocessors, uneven
tiles, activations, and weights that stay in the L2 cache.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hrt.kernels import step_tables as at
from hrt.kernels.precisions import WORKSPACE
from hrt.kernels.step_tables import NONE
from hrt.schedule.ports import boundary
from hrt.schedule.schedule import Apply, Gather, Schedule, Span, Wave, columns_read

CLEAR = 0.03  # an advantage below this share of the dense time is none: the model is not that good


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
    """What one launch must do: bytes = fixed_bytes + batch * columns * item. columns: of the workspace, read plus
    written, each once. products: multiply-adds per batch row.
    """

    name: str
    fixed_bytes: int
    columns: int
    products: int


Work = Sequence[Load]


@dataclass(frozen=True)
class Floor:
    """The least time of some work at one batch size. ideal_s: without, seconds: with `chip.launch_s` per launch."""

    bytes: int
    flops: int
    ideal_s: float
    seconds: float


def work_of(schedule: Schedule) -> tuple[Load, ...]:
    """What each stage of `schedule` moves and multiplies; every stage is one launch. Orderings of the network's own
    inputs and outputs are part of the copies in and out (see `hrt.schedule.ports`), which are left out.
    """
    loads = []
    _, _, folded = boundary(schedule)
    for stage in schedule.stages:
        if id(stage) in folded:
            continue
        if isinstance(stage, Wave):
            loads.append(_wave(stage, schedule))
        elif isinstance(stage, Gather):
            loads.append(Load(f"gather {stage.name}", stage.index.nbytes, 2 * stage.output.size, 0))
        else:
            loads.append(_apply(stage, schedule))
    return tuple(load for load in loads if load.fixed_bytes or load.columns)


def dense_work(m: int, n: int, precision: str, bias: bool = False) -> tuple[Load, ...]:
    """One launch of a dense layer (m, n), its weight and bias in the precision's own type."""
    item = WORKSPACE[precision].itemsize
    return (Load("dense", item * (m * n + m * bias), m + n, m * n),)


def schedule_floor(work: Work, batch: int, precision: str, chip: Chip) -> Floor:
    """The least time of a schedule's work (see `work_of`) for `batch` rows, by the module's formula."""
    item = WORKSPACE[precision].itemsize
    moved = [load.fixed_bytes + batch * load.columns * item for load in work]
    flops = [2 * batch * load.products for load in work]
    rate = chip.matmul_flops[precision]
    ideal = sum(max(b / chip.copy_bytes_per_s, f / rate) for b, f in zip(moved, flops, strict=True))
    return Floor(sum(moved), sum(flops), ideal, ideal + len(work) * chip.launch_s)


def _wave(wave: Wave, schedule: Schedule) -> Load:
    tables = schedule.tables
    wave_tiles = tables.numbers[0][wave.first_tile : wave.end_tile]
    wave_steps = tables.steps_of(wave.first_tile, wave.end_tile)
    rows = np.repeat(wave_tiles[:, at.OUT_LENGTH], wave_tiles[:, at.END_STEP] - wave_tiles[:, at.FIRST_STEP])
    rows = np.full(len(wave_steps), tables.tile_rows) if tables.is_uniform else rows
    sizes = wave_steps[:, at.LENGTH] * rows
    # Rows of one value share their weights: every weight tile, scale and bias counts once in a launch.
    items = np.array([t.element_size() for t in tables.weights], dtype=np.int64)
    distinct = _firsts(wave_steps[:, [at.BUFFER, at.WEIGHT_OFFSET]])
    weights = sizes[distinct] * items[wave_steps[distinct, at.BUFFER]]
    scaled, biased = wave_steps[:, at.SCALE_OFFSET] != NONE, wave_tiles[:, at.BIAS_OFFSET] != NONE
    scales = rows[scaled][_firsts(wave_steps[scaled][:, [at.SCALE_OFFSET]])]
    biases = wave_tiles[biased, at.OUT_LENGTH][_firsts(wave_tiles[biased][:, [at.BIAS_OFFSET]])]
    fixed = wave_tiles.size * tables.tiles.element_size() + wave_steps.size * tables.steps.element_size()
    fixed += int(weights.sum()) + int(scales.sum()) * tables.scales.element_size()
    fixed += int(biases.sum()) * tables.biases.element_size()
    columns = len(columns_read(wave, schedule)) + wave.output.size
    return Load(f"{wave.layer} wave {wave.phase}", fixed, columns, int(sizes.sum()))


def _apply(stage: Apply, schedule: Schedule) -> Load:
    operands = dict.fromkeys(stage.operands)
    columns = stage.output.size + sum(s.size for s in operands if isinstance(s, Span))
    constants = sum(schedule.constants[s].nbytes for s in operands if isinstance(s, str))
    return Load(f"{stage.op} {stage.name}", constants, columns, 0)


def _firsts(rows: np.ndarray) -> np.ndarray:
    """Indices of the first of equal rows of a matrix."""
    return np.unique(rows, axis=0, return_index=True)[1]
