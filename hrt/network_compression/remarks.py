"""What a certificate remarks on: what its numbers rest on, and where they say less than they seem to."""

import math
from collections.abc import Sequence

from torch import Tensor

from hrt.calibration.jumps import Unseen
from hrt.calibration.objective import Aim
from hrt.calibration.output_error import OutputError
from hrt.program.program import Node

WIDE = 1.5  # times the measured error; a limit beyond it wastes a third of the tolerance
SHOWN = 5  # output columns, or jumps, that one remark names


def jumps(nodes: Sequence[Node], unseen: Unseen | None, power: float) -> list[str]:
    """A remark on where values may jump, how often new rows cross that, and by how much; or nothing. power: the mean
    square of a row of outputs.
    """
    if not nodes:
        return []
    modules = {n.name: f"{n.op} ({n.module or n.name})" for n in nodes}
    places = ", ".join(list(dict.fromkeys(modules.values()))[:SHOWN])
    rates, sizes = (unseen.rates, unseen.sizes) if unseen else ({}, {})
    frequent = sorted(rates, key=lambda name: -rates[name] * sizes[name])[:SHOWN] if power else []
    cross = [
        f"about 1 in {1 / rates[n]:,.0f} at {modules[n]}, by {(sizes[n] / power) ** 0.5:.2g}" for n in frequent if power
    ]
    counted = f": of new rows, {'; '.join(cross)} times an output's size" if cross else ""
    return [
        f"it may jump, in {places}, and rows that come to the other side change by the whole jump{counted}. The limit "
        "counts such rows; the more rows are given, the better it is known how rare they are"
    ]


def too_few_rows(error: OutputError, rows: int) -> list[str]:
    """A remark where the limit is so much larger than the error that more rows would pay; or nothing."""
    wide = error.upper_99 / error.value if 0 < error.value < math.inf else 1.0
    if not WIDE < wide < math.inf:
        return []
    return [
        f"{rows} held-out rows are too few: the 99 % limit is {wide:.1f} times the measured error; more rows would "
        "allow a smaller network"
    ]


def heavy_tails(error: OutputError, rows: int) -> list[str]:
    """A remark where the rows do not settle what new ones of the same distribution are like; or nothing."""
    unsettled = next((e for e in (error, *error.derivatives) if e.unsettled), None)
    if unsettled is None:
        return []
    return [
        f"the errors of {rows} held-out rows have too heavy a tail to speak for new rows at 99 %: the largest holds "
        f"{100 * unsettled.leverage:.0f} % of the squared error (tail index {unsettled.tail:.1f}; from 1 on a mean may "
        "not exist). Give more rows, or bound the inputs (hrt.Box)"
    ]


def columns_over(aim: Aim, error: OutputError, reference: Tensor, tol: float) -> list[str]:
    """A remark on the output columns whose own error exceeds `tol`, which those of larger numbers hide; or nothing."""
    over, count = [], 0
    parts = zip(("", *aim.names), (error, *error.derivatives), aim.parts(reference), strict=True)
    for name, part, y in parts:
        sizes = y.abs().amax(0).tolist()
        count += len(sizes)
        where = f" of {name}" if name else ""
        over += [
            (e, f"{k}{where}") for k, (e, s) in enumerate(zip(part.per_output, sizes, strict=True)) if s and e > tol
        ]
    if aim.each or not over:
        return []
    over.sort(reverse=True)
    named = ", ".join(f"{where} by {e:.2g}" for e, where in over[:SHOWN]) + (", ..." if len(over) > SHOWN else "")
    return [
        f"{len(over)} of {count} output columns are off by more than tol = {tol:.3g} of their own size, hidden by "
        f"larger ones: {named}. per_output=True holds every column to tol"
    ]
