"""Derivatives that the GPU's kernels carry through a network themselves, as streams beside the value.

For layers whose activations the kernels know, with affine ops between: products treat a derivative as one more row, and
a tile's epilogue makes all derivatives of a point in registers (`hrt.kernels.jet_epilogues`). Other networks run as the
Program that `hrt.derivatives.differentiate` writes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor

from hrt.derivatives.differentiate import closure, parse
from hrt.errors import BackendError
from hrt.kernels.derivative_streams import HIGHEST, MOST_ROWS, VALUE, Streams
from hrt.program.program import Program, Value
from hrt.schedule.launch_plan import Plan, Tiles, run_stage
from hrt.schedule.ports import Port
from hrt.schedule.schedule import Apply, Gather, Schedule, Span

MOVES = ("neg", "concat", "slice", "reshape", "transpose", "expand")  # ops that are linear in all they take


class NotCarriedError(BackendError):
    """The kernels cannot carry the derivatives of this network; its differentiated Program has to run in its place."""


@dataclass(frozen=True)
class Carried:
    """streams: what the rows of a workspace are.  answers: the stream of every group of outputs, in order."""

    streams: Streams = VALUE
    answers: tuple[int, ...] = (0,)

    @staticmethod
    def of(program: Program, derivatives: Sequence[str]) -> "Carried":
        """The value of `program` and these derivatives (see `differentiate`). Raises InputError for names that are
        none, NotCarriedError for orders and numbers of derivatives beyond what kernels carry.
        """
        asked = parse(program, derivatives)
        order = max(map(len, asked), default=0)
        indices = ((), *closure(asked)) if order <= HIGHEST else ()
        if not 0 < len(indices) <= MOST_ROWS:
            raise NotCarriedError(
                f"Found derivatives of order {order} that take {len(indices) or 'many'} streams. Expected order "
                f"{HIGHEST} and {MOST_ROWS} streams at most."
            )
        return Carried(Streams(indices), tuple(indices.index(i) for i in ((), *asked)))

    def check(self, plan: Plan) -> None:
        """Raise NotCarriedError where something between the layers of `plan` is not affine."""
        between = [e for e in plan.launches if not isinstance(e, Tiles) and not _is_affine(e)]
        if between and self.streams != VALUE:
            raise NotCarriedError(
                f"Found the op {getattr(between[0], 'op', '')} between layers. Expected activations that kernels apply "
                "behind a layer, and affine ops."
            )

    def run_stage(
        self, stage: Apply | Gather, workspace: Tensor, constants: Mapping[str, Any], index: Tensor | None
    ) -> None:
        """What torch does between launches, in place, to every stream: constants are added to values alone."""
        run_stage(stage, workspace, constants, index)
        if self.streams != VALUE and isinstance(stage, Apply) and stage.op in ("add", "sub"):
            added = {s: torch.zeros_like(constants[s]) for s in stage.operands if isinstance(s, str)}
            for stream in range(1, self.streams.rows) if added else ():
                run_stage(stage, workspace[stream :: self.streams.rows], added, index)

    def rows(self, workspace: Tensor, batch: int, stream: int = 0) -> Tensor:
        """One stream of the first `batch` points, a view (batch, width)."""
        pitch = self.streams.rows
        return workspace[stream : batch * pitch : pitch]

    def seeds(self, inputs: Sequence[Value], entries: Sequence[Port]) -> tuple[tuple[int, Tensor], ...]:
        """Per entry its first column and the rows below its value, (rows - 1, columns): unit vectors for derivatives by
        that input, else zero.
        """
        if self.streams == VALUE:
            return ()
        starts, seeds = list(accumulate((prod(v.shape) for v in inputs), initial=0)), []
        for port in entries:
            index = torch.arange(port.span.size) if port.index is None else port.index.cpu()
            numbers = torch.zeros(self.streams.rows - 1, port.span.size)
            for k, by in enumerate(self.streams.indices[1:]):
                if len(by) == 1:
                    numbers[k] = (index + starts[port.number] == by[0]).float()
            seeds.append((port.span.start, numbers))
        return tuple(seeds)


def _is_affine(stage: Apply | Gather) -> bool:
    """Whether a stage does the same to a derivative as to a value, but for constants that it adds."""
    if isinstance(stage, Gather):
        return True
    spans = [isinstance(s, Span) for s in stage.operands]
    if stage.op in ("mul", "div"):
        return spans == [True, False] or (stage.op == "mul" and spans == [False, True])
    return stage.op in ("add", "sub") or (stage.op in MOVES and all(spans))


def overwritten(schedule: Schedule, entries: Sequence[Port]) -> bool:
    """Whether columns where inputs enter hold something else later on."""
    entered = {int(c) for p in entries for c in p.span.columns}
    return any(entered.intersection(stage.output.columns.tolist()) for stage in schedule.stages)
