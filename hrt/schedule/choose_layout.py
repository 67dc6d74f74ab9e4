"""What a GPU runs: which layers in compressed form and which written out as dense, and in which weight tiles.

Both are decided by the time floor of `hrt.schedule.roofline` over a few batch sizes. A layer that is predicted to be no
faster in compressed form is written out: on a GPU small layers are bound by launches, of which a compressed one needs
two.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from hrt.errors import BackendError
from hrt.kernels.precisions import WORKSPACE
from hrt.program.dense_view import compressed_weights, written_out
from hrt.program.program import Node, Program, Value, carried_nbytes
from hrt.schedule.build_schedule import build_schedule
from hrt.schedule.roofline import CHIPS, CLEAR, Chip, Work, dense_work, schedule_floor, work_of
from hrt.schedule.schedule import Schedule

BATCHES = (1, 256, 4096)  # that a layer should be fast at, alike
NARROW_TILES = ((64, 64), (64, 32), (128, 64), (32, 64))  # rows and columns of weight tiles under 16-bit precisions
WIDE_TILES = ((64, 32), (128, 32), (32, 32))


@dataclass(frozen=True)
class Choice:
    """The schedule of a network on a chip. dense: names of the compressed weights that are written out."""

    schedule: Schedule
    dense: tuple[str, ...]


def chip_of(device: torch.device) -> Chip:
    """The chip whose rates the model reckons with: an H200, else an H100 for every other card."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return CHIPS["h200" if "H200" in name else "h100"]


def choose_schedule(program: Program, precision: str, chip: Chip, *, densify: bool = True) -> Choice:
    """The schedule that is predicted to be fastest. densify: whether layers may be written out. Raises BackendError
    for what no GPU runs.
    """
    if parts := carried_nbytes(program):
        raise BackendError(f"ONNX Runtime on the CPU alone runs {', '.join(parts)}. Use backend='onnxruntime'.")
    program = replace(program, generated={})  # on a GPU these are matrices like all others
    dense = [k for k in compressed_weights(program) if densify and _pays_dense(program, k, precision, chip)]
    wide = [k for k in program.weights if getattr(program.constants[k], "dtype", None) == torch.float64]
    chosen = written_out(written_out(program, wide), dense, WORKSPACE[precision])  # nothing wider reaches a GPU
    schedules = [build_schedule(chosen, **layout) for layout in layouts(precision)]
    return Choice(min(schedules, key=lambda s: score(work_of(s), precision, chip)), tuple(dense))


def layouts(precision: str) -> list[dict[str, int]]:
    """The weight tiles that are tried, as `build_schedule` takes them."""
    narrow = WORKSPACE[precision] != torch.float32
    sizes, unit = (NARROW_TILES, 8) if narrow else (WIDE_TILES, 4)
    return [{"tile_rows": rows, "step_columns": columns, "unit": unit} for rows, columns in sizes]


def score(work: Work, precision: str, chip: Chip, batches: Sequence[int] = BATCHES) -> float:
    """The mean logarithm of the predicted seconds."""
    return sum(math.log(max(1e-9, schedule_floor(work, b, precision, chip).seconds)) for b in batches) / len(batches)


def _pays_dense(program: Program, name: str, precision: str, chip: Chip) -> bool:
    """Whether a compressed weight is predicted to be no faster than the same weight as a dense layer."""
    weight = program.constants[name]
    if not all(weight.shape):
        return False
    m, n = weight.shape
    alone = Program((Value("x", (n,)),), (Node("y", "linear", ("x", "w"), (m,), {}),), ("y",), {"w": weight})
    works = [work_of(build_schedule(alone, **layout)) for layout in layouts(precision)[:2]]
    ours = min(score(work, precision, chip) for work in works)
    return score(dense_work(m, n, precision), precision, chip) <= ours - math.log(1 - CLEAR)
