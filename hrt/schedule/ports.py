"""Where inputs enter a workspace and outputs leave it: orderings there are part of the copies, and cost no launch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hrt.schedule.schedule import Gather, Schedule, Span, columns_read, is_run


@dataclass(frozen=True, eq=False)
class Port:
    """Where one input enters or one output leaves: workspace columns `span`, and which numbers of the input (or of the
    workspace, for an output) they are, int64 (size,); None: all, in order.
    """

    number: int
    span: Span
    index: Tensor | None = None

    @property
    def columns(self) -> np.ndarray:
        """int64: of an output, the workspace columns that it is read from."""
        return self.span.columns if self.index is None else self.index.cpu().numpy()


def boundary(schedule: Schedule) -> tuple[tuple[Port, ...], tuple[Port, ...], set[int]]:
    """Entries, exits, and the gathers (by id) that they make needless: those that read nothing but one input, and those
    that write nothing but one output. An input that nobody reads in its own order does not enter in it.
    """
    taken: set[int] = set()
    entries = [Port(k, span) for k, span in enumerate(schedule.inputs)]
    written = np.full(schedule.width, -1)  # the input whose numbers a column still holds, else -1
    for k, span in enumerate(schedule.inputs):
        written[span.columns] = k
    first = {k: int(span.start) for k, span in enumerate(schedule.inputs)}
    safe = np.ones(schedule.width, dtype=bool)  # columns that nothing has read or written before the gather at hand
    for stage in schedule.stages:
        if isinstance(stage, Gather) and stage.output.size and is_run(stage.output.columns):
            index = stage.index.cpu().numpy().astype(np.int64)
            sources = np.unique(written[index])
            if len(sources) == 1 and sources[0] >= 0 and safe[stage.output.columns].all():
                k = int(sources[0])
                entries.append(Port(k, stage.output, torch.from_numpy(index - first[k])))
                taken.add(id(stage))
        written[stage.output.columns] = -1
        safe[stage.output.columns] = False
        safe[columns_read(stage, schedule)] = False
    exits: list[Port] = []
    for k, span in enumerate(schedule.outputs):
        twin = next((e for e in exits if np.array_equal(e.span.columns, span.columns)), None)
        if twin is not None:  # one value returned twice
            exits.append(Port(k, span, twin.index))
            continue
        writers = [j for j, s in enumerate(schedule.stages) if np.isin(s.output.columns, span.columns).any()]
        last = schedule.stages[writers[-1]] if writers else None
        if isinstance(last, Gather) and id(last) not in taken and _is_last_word(last, span, writers[-1], schedule):
            taken.add(id(last))
            exits.append(Port(k, span, last.index.long()))
        else:
            exits.append(Port(k, span))
    return (
        tuple(e for e in entries if e.index is not None or _is_read(e.span, taken, exits, schedule)),
        tuple(exits),
        taken,
    )


def _is_read(span: Span, taken: set[int], exits: Sequence[Port], schedule: Schedule) -> bool:
    """Whether anything that is left reads columns of `span`."""
    read = [columns_read(s, schedule) for s in schedule.stages if id(s) not in taken]
    read += [e.columns for e in exits]
    return any(np.isin(span.columns, columns).any() for columns in read)


def _is_last_word(gather: Gather, span: Span, place: int, schedule: Schedule) -> bool:
    """Whether `gather` alone writes `span`, and nothing after it reads that or changes what it read."""
    if not np.array_equal(gather.output.columns, span.columns):
        return False
    index = gather.index.cpu().numpy().astype(np.int64)
    for stage in schedule.stages[place + 1 :]:
        changes = np.isin(stage.output.columns, index).any()
        if changes or np.isin(columns_read(stage, schedule), span.columns).any():
            return False
    return True
