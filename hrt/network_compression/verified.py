"""The last word: which of the networks that the search proposes holds on rows that no choice has seen.

Tests on the held-out rows are made in chains. A chain is a sequence of networks, from accurate to small, that the other
rows alone decide; it ends at its first miss, so that all its tests together have the error probability of one (fixed
sequence testing, Maurer, Hothorn, Lehmacher, 1995). A chain whose first network misses is followed by another, tighter
one; the probability that any of them lets a network through that does not hold is the sum of theirs, and they share 1 %
by a geometric series. What a chain consists of depends on how many went before, and on nothing else that the held-out
rows said.

A chain starts clear of the tolerance by what limits vary by from one set of rows to the next, and goes down the front
of all candidates that the searches met. Where the next is far off, a search at a looser goal fills the gap.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from hrt.calibration.moments import Moments
from hrt.calibration.output_error import RISK, OutputError
from hrt.hmatrix.hmatrix import STORAGE, HMatrix
from hrt.matrix_compression.request import LARGEST_TOL, largest_entry, usable_storages
from hrt.network_compression.allocator import Allocator
from hrt.network_compression.candidates import Candidate, Front, Member, PlannedNetwork, build, halvable, halves
from hrt.network_compression.request import CompressionRequest
from hrt.network_compression.verify import Original
from hrt.program.dense_view import stored, to_float64
from hrt.program.program import Program, program_nbytes

GOALS = (1.0, 0.85, 0.6, 0.35, 0.15, 0.05, 0.015, 0.004, 0.001)  # of chains, over the tolerance's clear part
SPENT = 0.8  # of the error probability that is left, by each chain: most end with the first
CLEAR = 3.0  # of the excess of a limit over its error: a chain starts so far from the tolerance
LOOSENED = (1.1, 1.15, 1.2, 1.3, 1.5, 2.0)  # over the last limit that held: goals of the searches that fill gaps
GAP = 1.1  # of limits on the search rows; a next candidate beyond it is worth a search for a nearer one
NEARER = 0.99  # of the next candidate's limit, so that the search finds another
REUSED = 0.5  # of the goal that layers were planned for; below it their spectra are not known far enough
SIXTEEN_BITS = ("float16", "bfloat16")

Held = tuple[Program, dict[str, OutputError]]  # a network and its errors by backend, for those that keep the tolerance


@dataclass(eq=False)
class Searches:
    """Candidates for one goal after the other, from layers that are factored once where they can be."""

    original: Original
    moments: Mapping[str, Moments]
    request: CompressionRequest
    front: Front = field(default_factory=Front)
    results: list[tuple[float, Candidate]] = field(default_factory=list)
    count: int = 0
    planned: PlannedNetwork | None = None
    planned_for: float = 0.0

    def search(self, goal: float) -> Candidate | None:
        """The smallest candidate within `goal` on the search rows; all that were met are on the front then."""
        for earlier, candidate in self.results:  # a looser goal may have given what this one would
            if candidate.error.limit <= goal <= earlier:
                return candidate
        start, end = (behind(k) for k in (self.count, self.count + 1))
        request = replace(self.request.between(start, end), tol=min(goal, LARGEST_TOL))
        near = self.planned is not None and goal >= REUSED * self.planned_for
        candidate = Allocator(self.original, self.moments, request, self.front).search(self.planned if near else None)
        self.request.advance("verify", end)
        self.count += 1
        if candidate is not None:
            self.results.append((goal, candidate))
            self.planned, self.planned_for = candidate.network, self.planned_for if near else goal
        return candidate


def verified(
    original: Original, moments: Mapping[str, Moments], request: CompressionRequest, nbytes: int
) -> Held | None:
    """The smallest network within the tolerance on the held-out rows too; None where none is smaller than `nbytes`."""
    searches, chains = Searches(original, moments, request), risks()
    first = searches.search(request.tol)
    if first is not None and first.nbytes < nbytes:
        clear = request.tol / (1 + CLEAR * wideness(first.error))
        missed = 0
        for goal in GOALS:
            candidate = searches.search(goal * clear)
            if candidate is None or candidate.nbytes >= nbytes:
                break
            if candidate.nbytes <= missed:
                continue
            missed = candidate.nbytes
            held = down_the_front(searches, Member.of(candidate), next(chains))
            if held is not None and original.jumping:  # exact weights may take fewer bytes than few crossings of jumps
                return in_sixteen_bits(original, request, program_nbytes(held[0]), chains) or held
            if held is not None:
                return held
    return in_sixteen_bits(original, request, nbytes, chains)


def risks() -> Iterator[float]:
    """Of one chain after the other; they sum up to RISK."""
    left = RISK
    while True:
        yield SPENT * left
        left *= 1 - SPENT


def wideness(error: OutputError) -> float:
    """By how much the limit exceeds the error, over the error: of whichever has the larger limit."""
    part = max((error, *error.derivatives), key=lambda e: e.upper_99)
    return part.upper_99 / part.expected - 1 if 0 < part.expected <= part.upper_99 < math.inf else 0.0


def down_the_front(searches: Searches, start: Member, risk: float) -> Held | None:
    """The last network of a chain from `start` to ever smaller ones before the first that does not hold, or None."""
    original, request, goals = searches.original, searches.request, iter(LOOSENED)
    held: Program | None = None
    member: Member | None = start
    while member is not None:
        program = build(original, member.network, member.plans).program
        if original.served_errors(program, risk, ("torch",))["torch"].limit > request.tol:
            break
        held, last = program, member
        member = searches.front.below(last.nbytes)
        if (member is None or member.limit > GAP * last.limit) and (factor := next(goals, None)):
            searches.search(factor * last.limit if member is None else min(factor * last.limit, NEARER * member.limit))
            member = searches.front.below(last.nbytes)
    return None if held is None else (held, within(original.served_errors(held, risk), request.tol))


def within(errors: dict[str, OutputError], tol: float) -> dict[str, OutputError]:
    """Of the backends whose limit is within the tolerance."""
    return {name: e for name, e in errors.items() if e.limit <= tol}


def behind(tried: int) -> float:
    """The share of the work that is probably behind after so many goals: the first one factors all layers."""
    return 0.95 - 0.33 / 2 ** (tried - 1) if tried else 0.1


def in_sixteen_bits(
    original: Original, request: CompressionRequest, nbytes: int, chains: Iterator[float]
) -> Held | None:
    """The network with every weight, and if possible every bias, in a 16-bit type that keeps the tolerance, or None."""
    program, types = original.program, tuple(s for s in request.storages if s in SIXTEEN_BITS)
    if not types:
        return None
    weights = {k: to_float64(program.constants[k]) for k in program.weights}
    chosen = {k: usable_storages(types, largest_entry(w))[0] for k, w in weights.items()}
    changed = {k: HMatrix.from_dense(w, STORAGE[chosen[k]]) for k, w in weights.items()}
    for biases in (halvable(program, types), frozenset()):
        result = stored(program.with_constants({**changed, **halves(program.constants, biases)}))
        risk = next(chains)
        limit = original.served_errors(result, risk, ("torch",))["torch"].limit
        if limit <= request.tol and program_nbytes(result) < nbytes:
            return result, within(original.served_errors(result, risk), request.tol)
    return None
