"""Matched error: a method's knob is turned on search rows until the error that may be had is kept; what is reported is
the error on fresh rows, through the very calls that are timed.

A setting is accepted by the rule that hrt holds itself to: the one-sided 99 % upper confidence limit of its error on
rows that were not used to make it is at most the target. Who meets it there and misses it on fresh rows has not met it.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrt.calibration.output_error import OutputError, output_error
from hrt.perf.measuring.results import Status
from hrt.perf.networks.registry import Tensors, Workload
from hrt.program.program import Program

Arrays = tuple[np.ndarray, ...]
Run = Callable[[Tensors], Any]  # float32 tensors to a tensor, an array, or a tuple of them
Bind = Callable[[Arrays], Callable[[], Any]]  # float32 arrays to a call without arguments that answers on them
JUDGE_S, JUDGE_CALLS = 1.0, 64  # the longest that fresh rows are asked for, and how many calls at least


@dataclass(frozen=True, eq=False)
class Execution:
    """One way to run a method."""

    backend: str
    bind: Bind


@dataclass(frozen=True, eq=False)
class Offer:
    """A method with its knob set. nbytes: as stored.  work: multiply-adds of one row.  facts: for whoever asks why.

    arithmetic: what products are computed in.  on_rows: note, work and facts where they depend on the batch size.
    """

    nbytes: int
    executions: tuple[Execution, ...]
    note: str = ""
    work: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    arithmetic: str = "float32"
    on_rows: Callable[[int], tuple[str, int, Mapping[str, Any]]] | None = None

    def at(self, batch: int) -> "Offer":
        """As it is for one batch size."""
        if self.on_rows is None:
            return self
        note, work, facts = self.on_rows(batch)
        return replace(self, note=note, work=work, facts=facts, on_rows=None)


@dataclass(frozen=True)
class Refusal:
    """Why a method has no offer."""

    status: Status
    note: str


Method = Callable[[Workload, float], Offer | Refusal]  # at a relative error


def work_of(program: Program) -> int:
    """Multiply-adds of one row in all dense products."""
    return sum(math.prod(program.constants[n.inputs[1]].shape) for n in program.linear_nodes)


def joined(outputs: Any) -> Tensor:
    """One output or several as (rows, features) float64, side by side."""
    several = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    tensors = [torch.from_numpy(y) if isinstance(y, np.ndarray) else y for y in several]
    return torch.cat([y.detach().double().reshape(len(y), -1) for y in tensors], dim=1)


def search_error(workload: Workload, run: Run, batch: int = 256) -> OutputError:
    """Error and its upper limit on the search rows, in parts of `batch` rows as they come later."""
    parts = zip(*(x.split(batch) for x in workload.search), strict=True)
    with torch.no_grad():
        answers = torch.cat([joined(run(p)) for p in parts])
    return output_error(workload.reference("search"), answers)


def accepted(workload: Workload, run: Run, tol: float) -> bool:
    """Whether the 99 % upper limit on the search rows is within `tol`."""
    return search_error(workload, run).upper_99 <= tol


def fresh_error(workload: Workload, bind: Bind, batch: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Relative L2 error on fresh rows, asked in batches as timed: all rows, or as many as a second allows (at least
    64 calls). Infinite where an answer is not finite.
    """
    reference, start = workload.reference("fresh"), clock()
    error2 = size2 = 0.0
    rows = len(reference)
    for call, first in enumerate(range(0, max(1, rows - batch + 1), batch)):
        if call >= JUDGE_CALLS and clock() - start > JUDGE_S:
            break
        x, expected = rotated(workload.fresh, batch, first), reference[torch.arange(first, first + batch) % rows]
        error2 += float((joined(bind(x)()) - expected).square().sum())
        size2 += float(expected.square().sum())
    if not math.isfinite(error2):
        return math.inf
    return math.sqrt(error2 / size2) if size2 else (0.0 if error2 == 0 else math.inf)


def rotated(rows: Tensors, batch: int, first: int) -> Arrays:
    """`batch` rows from `first` on, beginning anew where they end, as arrays of their own."""
    pick = (np.arange(batch) + first) % len(rows[0])
    return tuple(np.ascontiguousarray(x.numpy()[pick]) for x in rows)


def loosest(
    make: Callable[[float], Any], holds: Callable[[Any], bool], low: float, high: float, steps: int = 10
) -> Any:
    """What `make` gives for the loosest knob in [low, high] (log10) that holds, found by bisection; None where not even
    the tightest, `low`, does. A knob that is not quite monotone still ends at a value that was seen to hold.
    """
    if not holds(best := make(10.0**low)):
        return None
    if holds(loose := make(10.0**high)):
        return loose
    for _ in range(steps):
        middle = (low + high) / 2
        if holds(candidate := make(10.0**middle)):
            low, best = middle, candidate
        else:
            high = middle
    return best


def fewest_kept(
    names: Sequence[str], error: Callable[[frozenset[str]], OutputError], tol: float
) -> frozenset[str] | None:
    """Which layers to leave alone so that the rest can be quantized within `tol`: those that do most harm alone, until
    it holds; then any that turns out to be unneeded is quantized after all. None where every layer would have to stay.

    error(exact): the error with all but `exact` quantized.
    """
    everything, exact = frozenset(names), frozenset[str]()
    if error(exact).upper_99 <= tol:
        return exact
    harm = {name: error(everything - {name}).value for name in names}
    worst_first = sorted(names, key=lambda n: -harm[n])
    firsts = (frozenset(worst_first[:k]) for k in range(1, len(names)))
    exact = next((first for first in firsts if error(first).upper_99 <= tol), None)
    for name in reversed(worst_first):
        if exact and name in exact and error(exact - {name}).upper_99 <= tol:
            exact -= {name}
    return exact
