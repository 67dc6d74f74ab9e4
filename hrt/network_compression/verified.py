"""The last word: which of the networks that the search proposes holds on rows that no choice has seen.

The search's goal orders what it proposes: a tighter goal gives a more accurate network. Whoever looks along such a
family for the loosest member that holds keeps the confidence of a single test, if the error falls with the goal and
all tighter members hold as well (Bates, Angelopoulos, Lei, Malik, Jordan, Distribution-free, risk-controlling
prediction sets, J. ACM 68, 2021, theorem 1). So the goal may move both ways. It moves rarely, and never back beyond a
goal that failed, because real families are monotone only nearly. At last come the candidates that the searches met on
their way and that are smaller than what holds.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from hrt.calibration.moments import Moments
from hrt.calibration.output_error import OutputError
from hrt.hmatrix.hmatrix import STORAGE, HMatrix
from hrt.matrix_compression.request import largest_entry, usable_storages
from hrt.network_compression.allocator import NOTHING, Allocator
from hrt.network_compression.candidates import Front, PlannedNetwork, build, halvable, halves
from hrt.network_compression.request import CompressionRequest
from hrt.network_compression.verify import Original
from hrt.program.dense_view import stored, to_float64
from hrt.program.program import Program, program_nbytes

TRIALS = 12  # goals below the first, until one holds; from a miss by 2 on they end below a thousandth
MORE_TRIALS = 3  # from the first that holds on, where it leaves much to spare
SLACK = 0.93  # of the tolerance; what holds with more to spare is worth another search
TIGHTEN, TIGHTEN_MOST, LOOSEN_MOST = 0.95, 0.5, 1.5  # of a goal at once, where none is known beyond the next
CLEARANCE = 0.98  # of the tolerance: aimed at from a measured limit
CLOSE = 1.05  # goals this near give the same network
REUSED = 0.5  # of the goal that layers were planned for; below it their spectra are not known far enough
SIXTEEN_BITS = ("float16", "bfloat16")

Held = tuple[Program, dict[str, OutputError]]  # a network and its errors by backend, for those that keep the tolerance


def verified(
    original: Original, moments: Mapping[str, Moments], request: CompressionRequest, nbytes: int
) -> Held | None:
    """The smallest network within the tolerance on the held-out rows too; None where none is smaller than `nbytes`."""
    tol = goal = planned_for = request.tol
    planned: PlannedNetwork | None = None
    best: Held | None = None
    front = Front()
    tried, low, high, trials = 0, 0.0, math.inf, TRIALS  # the loosest goal that held, the tightest that did not
    while trials:
        start, end = (behind(k) for k in (tried, tried + 1))
        allocator = Allocator(original, moments, replace(request.between(start, end), tol=goal), front)
        near = planned is not None and goal >= REUSED * planned_for
        candidate = allocator.search(planned if near else None)
        if candidate is None or candidate.nbytes >= nbytes:
            break
        planned, planned_for = candidate.network, planned_for if near else goal
        request.advance("verify", end)
        tried += 1
        errors = original.served_errors(candidate.program)
        limit = errors["torch"].limit
        if limit <= tol:
            best, nbytes = (candidate.program, within(errors, tol)), candidate.nbytes
            low, trials = goal, min(trials, MORE_TRIALS + 1)
            if limit > SLACK * tol:
                break
            goal *= min(LOOSEN_MOST if high == math.inf else math.inf, CLEARANCE * tol / max(limit, NOTHING))
        else:
            high = min(goal, candidate.error.limit)
            goal = high * max(TIGHTEN_MOST, min(TIGHTEN, CLEARANCE * tol / limit))
        trials -= 1
        if not low < goal < high:
            goal = math.sqrt(low * high)
        if high < CLOSE * low:
            break
    return down_the_front(original, front, request, nbytes) or best or in_sixteen_bits(original, request, nbytes)


def down_the_front(original: Original, front: Front, request: CompressionRequest, nbytes: int) -> Held | None:
    """The last of the candidates below `nbytes`, from large to small, before the first that does not hold, or None.

    Search rows alone order them, and the first miss ends it, so that all these tests together keep the confidence of
    one (fixed sequence testing, Maurer, Hothorn, Lehmacher, 1995). They come on top of those of the goals.
    """
    last: Held | None = None
    for member in (m for m in front.members if m.nbytes < nbytes):
        program = build(original, member.network, member.plans).program
        errors = within(original.served_errors(program), request.tol)
        if "torch" not in errors:
            break
        last = program, errors
    return last


def within(errors: dict[str, OutputError], tol: float) -> dict[str, OutputError]:
    """Of the backends whose limit is within the tolerance."""
    return {name: e for name, e in errors.items() if e.limit <= tol}


def behind(tried: int) -> float:
    """The share of the work that is probably behind after so many goals: the first one factors all layers."""
    return 0.95 - 0.15 / 2 ** (tried - 1) if tried else 0.05


def in_sixteen_bits(original: Original, request: CompressionRequest, nbytes: int) -> Held | None:
    """The network with every weight, and if possible every bias, in a 16-bit type that keeps the tolerance, or None."""
    program, types = original.program, tuple(s for s in request.storages if s in SIXTEEN_BITS)
    if not types:
        return None
    weights = {k: to_float64(program.constants[k]) for k in program.weights}
    chosen = {k: usable_storages(types, largest_entry(w))[0] for k, w in weights.items()}
    changed = {k: HMatrix.from_dense(w, STORAGE[chosen[k]]) for k, w in weights.items()}
    for biases in (halvable(program, types), frozenset()):
        result = stored(program.with_constants({**changed, **halves(program.constants, biases)}))
        errors = original.served_errors(result)
        if errors["torch"].limit <= request.tol and program_nbytes(result) < nbytes:
            return result, within(errors, request.tol)
    return None
