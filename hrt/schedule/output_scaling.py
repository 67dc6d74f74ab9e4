"""Scalings after a layer (of normalised outputs, mostly) as part of the layer's last wave: gains and shifts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hrt.hmatrix.hmatrix import HMatrix
from hrt.kernels.step_tables import EPILOGUE, NONE, OUT_COLUMN, Rescaling, StepTables
from hrt.schedule.ports import Port
from hrt.schedule.schedule import Apply, Schedule, Span, Wave, columns_read


@dataclass(frozen=True, eq=False)
class Scaling:
    """y = gain * wave + shift, both float64 (columns,), written to the columns of `output` in place of `applies`."""

    wave: Wave
    gain: Tensor
    shift: Tensor
    output: Span
    applies: tuple[Apply, ...]


def scalings(schedule: Schedule, exits: Sequence[Port], plain: Sequence[bool]) -> list[Scaling]:
    """What can be said so: a wave of one row that only a chain of +, -, *, / with constants reads.

    plain: of every epilogue, whether the kernels apply it (others are applied after the wave, before any scaling).
    """
    scaled = []
    for k, wave in enumerate(schedule.stages):
        if not isinstance(wave, Wave) or wave.output.shape[0] != 1:
            continue
        used = schedule.tables.tiles[wave.first_tile : wave.end_tile, EPILOGUE].unique().tolist()
        if not all(e == NONE or plain[e] for e in used):
            continue
        before = schedule.stages[k - 1] if k else None
        together = [wave, *([before] if isinstance(before, Wave) and before.layer == wave.layer else [])]
        span, size = wave.output, wave.output.size
        gain, shift = torch.ones(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        chain: list[Apply] = []
        for stage in schedule.stages[k + 1 :]:
            if not isinstance(stage, Apply):
                break
            step = _affine(stage, span, schedule.constants)
            alone = _only_reader(span, k + len(chain), stage, schedule, exits)
            # the last wave writes it now, whose layer has read and written other columns until then
            touched = [columns_read(w, schedule) for w in together] + [w.output.columns for w in together[1:]]
            if step is None or not alone or any(np.isin(c, stage.output.columns).any() for c in touched):
                break
            gain, shift = gain * step[0], shift * step[0] + step[1]
            chain.append(stage)
            span = stage.output
        if chain and bool(torch.isfinite(gain).all() and torch.isfinite(shift).all()):
            scaled.append(Scaling(wave, gain, shift, span, tuple(chain)))
    return scaled


def with_scalings(tables: StepTables, scaled: Sequence[Scaling]) -> tuple[StepTables, dict[int, Rescaling]]:
    """The tables with gains and shifts behind the biases, and what becomes of every tile concerned."""
    extra, places, end = [tables.biases.to(torch.float32)], {}, tables.biases.numel()
    rows = tables.numbers[0]
    for s in scaled:
        extra += [s.gain.float(), s.shift.float()]
        for tile in range(s.wave.first_tile, s.wave.end_tile):
            within = int(rows[tile, OUT_COLUMN]) - s.wave.output.start
            places[tile] = Rescaling(s.output.start + within, end + within, end + len(s.gain) + within)
        end += 2 * len(s.gain)
    return (replace(tables, biases=torch.cat(extra)) if scaled else tables), places


def _affine(stage: Apply, span: Span, constants: Mapping[str, Tensor | HMatrix]) -> tuple[Tensor, Tensor] | None:
    """(gain, shift) with stage = gain * span + shift, or None."""
    if stage.op not in ("add", "sub", "mul", "div") or len(stage.operands) != 2 or stage.output.size != span.size:
        return None
    spans = [isinstance(s, Span) and np.array_equal(s.columns, span.columns) for s in stage.operands]
    if sum(spans) != 1:
        return None
    other = stage.operands[spans.index(False)]
    c = constants.get(other) if isinstance(other, str) else None
    if not isinstance(c, Tensor) or c.numel() not in (1, span.size) or not c.is_floating_point():
        return None
    c = c.detach().cpu().double().reshape(-1).expand(span.size)
    one, zero = torch.ones_like(c), torch.zeros_like(c)
    forms = {"add": (one, c), "mul": (c, zero), "sub": (one, -c) if spans[0] else (-one, c)}
    return forms.get(stage.op, (1 / c, zero) if spans[0] else None)


def _only_reader(span: Span, writer: int, reader: Apply, schedule: Schedule, exits: Sequence[Port]) -> bool:
    """Whether nothing but `reader` reads what stage number `writer` puts into `span`, until something else is there."""
    for stage in schedule.stages[writer + 1 :]:
        if stage is not reader and np.isin(columns_read(stage, schedule), span.columns).any():
            return False
        if np.isin(span.columns, stage.output.columns).all():
            return True
    return not any(np.isin(p.columns, span.columns).any() for p in exits)
