"""The cost-optimal partition of a matrix: dynamic programming from the finest blocks up.

Every block takes the least of cost + lambda * error^2 among dense, low rank and split. Global low rank and plain dense
are the two choices at the root, so neither can beat the plan but by rounding.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.matrix_compression.block_choices import ITEM, LEAF_OVERHEAD, Best, Choice, LevelOptions, without_last
from hrt.matrix_compression.block_source import LARGE_BLOCK, BlockSource
from hrt.matrix_compression.block_spectra import LevelSpectra, level_spectra
from hrt.matrix_compression.build_leaves import build_all
from hrt.matrix_compression.cluster_tree import Level, block_levels, children_of, default_min_leaf, sum_children
from hrt.matrix_compression.request import MatrixRequest
from hrt.support.progress import Advance, part, silent

GRID = 8  # multipliers per factor of two
FIRST_POWER, LAST_POWER = -60, 120  # of two, where multiplier 1 trades all bytes for the whole norm
FLOOR = 0.01  # of the budget: a sketch that misses less than its share of this need not widen
LIMIT_SHARE = 1 / 16  # of the budget, for what the finer levels alone would have to keep
LIMIT_SLACK = 1.2  # of a rank limit, since it comes from an estimate
OCTAVES = 0, 2, 4, 6, 8, 10  # below the multiplier of a rank limit: between them a block must lose to be left out
PAYS = 1.1  # times what a block takes; where its parts take more, nothing is looked for in parts of these
WHOLE = (
    "whole"  # the key of a source's memo under which the spectra of the undivided matrix stay: no order changes them
)
NOTHING = 1e-300  # in the place of zero where something is divided by it


@dataclass(frozen=True)
class Plan:
    """Leaves, their cost in bytes and the squared weighted error that the spectra predict."""

    leaves: tuple[Choice, ...]
    cost: float
    error2: float


class Planner:
    """The cost-optimal partition of one matrix for any Lagrange multiplier.

    source: the matrix in tree order with its weights.  budget2: the squared error that will roughly be asked for; it
    only tells where factoring can stop.  storages: by default the request's.
    """

    source: BlockSource
    storages: tuple[str, ...]

    def __init__(
        self,
        source: BlockSource,
        request: MatrixRequest,
        budget2: float,
        storages: tuple[str, ...] = (),
        advance: Advance = silent,
        executor: Executor | None = None,
    ):
        self.source, self.storages = source, storages or request.storages
        self.overhead: float = LEAF_OVERHEAD[request.target]
        norm2 = source.norm2()
        self.unit: float = source.matrix.numel() * 4 / max(norm2, NOTHING)
        self.levels: list[Level] = []
        self.options: list[LevelOptions] = []  # of every level
        self._guess = round(GRID * math.log2(1 + norm2 / max(budget2, NOTHING)))  # where the multiplier was last
        self._built: dict[Choice, list[Leaf]] = {}  # used last
        self._factor(request, budget2, advance, executor)
        whole = {k: source.memo[k] for k in source.memo.keys() & {WHOLE}}
        source.memo.clear()  # few of all these blocks will be built
        source.memo.update(whole)

    def _factor(self, request: MatrixRequest, budget2: float, advance: Advance, executor: Executor | None) -> None:
        finer: LevelSpectra | None = None
        least: np.ndarray | None = None  # see `least_tails`
        m, n = self.source.matrix.shape
        levels = block_levels(m, n, request.min_leaf or default_min_leaf(m, n))
        coarse = levels
        if self.source.weighted:
            coarse = [level for level in levels[:-1] if math.prod(_largest_block(level)) > LARGE_BLOCK]
            fine = levels[len(coarse) :]
            self._descend(fine, budget2, part(advance, 0.0, len(fine) / len(levels)), executor)
        for k, level in enumerate(reversed(coarse), len(levels) - len(coarse)):
            advance("blocks of {} x {}".format(*_largest_block(level)), k / len(levels))
            least = None if least is None else sum_children(least, level.grid)
            limit = self._rank_limit(level, budget2, least)
            finer = level_spectra(self.source, level, self.storages, FLOOR * budget2, limit, finer, executor)
            self.levels.insert(0, level)
            self.options.insert(0, LevelOptions(finer, self.storages, self.overhead))
            if not self.source.weighted:
                least = least_tails(self.options[0], least)

    def _descend(self, levels: Sequence[Level], budget2: float, advance: Advance, executor: Executor | None) -> None:
        """Factor levels from coarse to fine, as long as splitting a block once more may pay: where its parts take
        clearly more than it does, parts of these never took less than it in any network that was looked at.
        """
        pays = np.ones((1, 1), bool)  # by block of the level before
        for k, level in enumerate(levels):
            advance("blocks of {} x {}".format(*_largest_block(level)), k / len(levels))
            a, b = children_of(level.grid, pays.shape)
            limit = np.where(np.repeat(np.repeat(pays, a, axis=0), b, axis=1), np.inf, 0.0)

            def spectra(level: Level = level, limit: np.ndarray = limit) -> LevelSpectra:
                return level_spectra(self.source, level, self.storages, FLOOR * budget2, limit, None, executor)

            known = self.source.once(WHOLE, spectra) if level.grid == (1, 1) else spectra()
            options = LevelOptions(known, self.storages, self.overhead)
            if self.options:
                values = [(self.options[-1].values(lam)[0], options.values(lam)[0]) for lam in self._lams(budget2)]
                pays = np.logical_or.reduce([sum_children(v, u.shape) < PAYS * u for u, v in values])
            if not pays.any():
                break
            self.levels.append(level)
            self.options.append(options)

    def _lams(self, budget2: float) -> list[float]:
        """The multiplier at which LIMIT_SHARE of the budget would be spent, and smaller ones."""
        step = least_step(lambda step: self.error2(self.multiplier(step)) <= LIMIT_SHARE * budget2, self._guess, GRID)
        self._guess = step
        return [self.multiplier(step - GRID * k) for k in OCTAVES]

    def __getstate__(self) -> dict[str, object]:
        """Without the matrix: whoever sent it has it."""
        return {**self.__dict__, "source": None, "_built": {}}

    def multiplier(self, step: int) -> float:
        """Lagrange multipliers on a geometric grid, so that values worked out once can be used again."""
        return self.unit * 2.0 ** (step / GRID)

    def _rank_limit(self, level: Level, budget2: float, least: np.ndarray | None) -> np.ndarray | None:
        """(R, C): the rank beyond which no block of `level` beats its children; None at the finest level. It is zero
        where no rank does, since the block errs by what its parts err at the same rank, at `least` (R, C, K).
        """
        if not self.options:
            return None
        lams = self._lams(budget2)[: None if least is not None else 1]
        heights, widths = np.diff(level.rows)[:, None], np.diff(level.cols)[None, :]
        direction = min(ITEM[s] for s in self.storages) * (heights + widths)
        sweeps = [self._sweep(lam) for lam in lams]
        parts = [(sum_children(total, level.grid), sum_children(error2, level.grid)) for total, error2, _ in sweeps]
        limit = LIMIT_SLACK * parts[0][0] / direction
        if least is None:
            return limit
        cost = self.overhead + direction[..., None] * np.arange(1, least.shape[2] + 1)
        error2 = np.pad(least[..., 1:], ((0, 0), (0, 0), (0, 1)))  # of one direction more than is known, at least 0
        whole = [(cost + lam * error2).min(axis=2) for lam in lams]
        return np.where(always_above(lams, whole, parts), 0.0, limit)

    def _sweep(self, lam: float) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Bottom-up: objective and squared error of the coarsest level known, and whether to split, per level."""
        values = [t.values(lam) for t in self.options]
        total, error2 = values[-1]
        split = [np.zeros(t.grid, bool) for t in self.options]
        for k in range(len(values) - 2, -1, -1):
            whole, whole2 = values[k]
            children = sum_children(total, whole.shape)
            split[k] = children < whole
            total = np.where(split[k], children, whole)
            error2 = np.where(split[k], sum_children(error2, whole.shape), whole2)
        return total, error2, split

    def error2(self, lam: float) -> float:
        """The predicted squared error of the plan that minimises bytes + lam * squared error."""
        return float(self._sweep(lam)[1].sum())

    def _leaves(self, lam: float) -> Iterator[np.ndarray]:
        """Of every level, the flat indices of the blocks that stay whole."""
        active = np.ones((1, 1), bool)
        for options, split in zip(self.options, self._sweep(lam)[2], strict=True):
            a, b = children_of(options.grid, active.shape)
            active = np.repeat(np.repeat(active, a, axis=0), b, axis=1)
            yield np.flatnonzero(active & ~split)
            active = active & split

    def solve(self, lam: float) -> Plan:
        """The plan that minimises bytes + lam * squared error."""
        leaves: list[Choice] = []
        cost = error2 = 0.0
        for k, here in enumerate(self._leaves(lam)):
            best = self.options[k].best(lam, here)
            leaves += self._choices(k, here, best)
            cost += float(best.cost.sum())
            error2 += float(best.error2.sum())
        return Plan(tuple(leaves), cost, error2)

    def solve_budget(self, error2: float) -> Plan:
        """The cheapest plan found with predicted squared error at most `error2` (bisection on the multiplier)."""
        step = least_step(lambda step: self.error2(self.multiplier(step)) <= error2, self._guess)
        self._guess = step
        plan = self.solve(self.multiplier(step))
        return self._trim(plan, error2) if plan.error2 <= error2 else plan

    def _choices(self, k: int, blocks: np.ndarray, best: Best) -> list[Choice]:
        """The best options of some blocks of level k, given by their flat indices."""
        level, choices = self.levels[k], []
        for index, dense, counts in zip(blocks.tolist(), best.dense.tolist(), best.counts.tolist(), strict=True):
            i, j = divmod(index, self.options[k].grid[1])
            rows, cols = (level.rows[i], level.rows[i + 1]), (level.cols[j], level.cols[j + 1])
            stored = self.storages[dense] if dense >= 0 else None
            choices.append(Choice((k, i, j), rows, cols, stored, tuple(counts) if dense < 0 else ()))
        return choices

    def whole(self, error2: float) -> Plan | None:
        """The cheapest plan of one low-rank leaf within `error2`; None where it cannot, or a dense leaf is cheaper."""
        options = self.options[0]
        step = least_step(lambda step: options.values(self.multiplier(step))[1].sum() <= error2, self._guess)
        best = options.best(self.multiplier(step))
        if options.grid != (1, 1) or best.error2[0] > error2 or best.dense[0] >= 0:
            return None
        choices = self._choices(0, np.arange(1), best)
        return self._trim(Plan(tuple(choices), float(best.cost[0]), float(best.error2[0])), error2)

    def _trim(self, plan: Plan, error2: float) -> Plan:
        """Spend what the multiplier left of the budget: drop trailing directions, least error per byte first."""
        leaves = list(plan.leaves)
        spare, saved = error2 - plan.error2, 0.0

        def offer(index: int) -> None:
            c = leaves[index]
            if c.rank > 0:
                nbytes, loss = self.options[c.place[0]].last_direction(c)
                heapq.heappush(queue, (loss / nbytes, index, loss, nbytes))

        queue: list[tuple[float, int, float, float]] = []
        for index in range(len(leaves)):
            offer(index)
        while queue:
            _, index, loss, nbytes = heapq.heappop(queue)
            if loss <= spare:
                spare, saved = spare - loss, saved + nbytes
                leaves[index] = replace(leaves[index], counts=without_last(leaves[index].counts))
                offer(index)
        return Plan(tuple(leaves), plan.cost - saved, error2 - spare)

    def build(self, plan: Plan, row_order: Tensor | None = None, col_order: Tensor | None = None) -> HMatrix:
        """Factor and round the chosen leaves, unless they were lately; a single block needs no orderings."""
        m, n = self.source.matrix.shape
        new = [choice for choice in plan.leaves if choice not in self._built]
        here = dict(zip(new, build_all(self.source, new, self.storages), strict=True))
        here = {choice: here.get(choice) or self._built.pop(choice) for choice in plan.leaves}
        spare = 4 * m * n - sum(leaf.nbytes for block in here.values() for leaf in block)
        for choice, block in reversed(self._built.items()):  # as many of the others as a dense matrix would take
            spare -= sum(leaf.nbytes for leaf in block)
            if spare < 0:
                break
            here = {choice: block, **here}
        self._built = here
        leaves = tuple(leaf for choice in plan.leaves for leaf in here[choice])
        if all(not leaf.is_dense and (leaf.rows, leaf.cols) == (m, n) for leaf in leaves):
            leaves = tuple(_reordered(leaf, row_order, col_order) for leaf in leaves)
            row_order = col_order = None
        return HMatrix((m, n), leaves, row_order, col_order)


class KeptPlanner(Planner):
    """`Planner` over the blocks of the request's partition, in whose orderings the matrix is: each is a level."""

    def _factor(self, request: MatrixRequest, budget2: float, advance: Advance, executor: Executor | None) -> None:
        blocks = () if request.partition is None else request.partition.blocks()
        self.levels = [Level((row, row + m), (col, col + n)) for row, m, col, n in blocks if m and n]
        floor2 = FLOOR * budget2 / max(1, len(self.levels))
        spectra = (level_spectra(self.source, level, self.storages, floor2) for level in self.levels)
        self.options = [LevelOptions(block, self.storages, self.overhead) for block in spectra]

    def error2(self, lam: float) -> float:
        """The predicted squared error of the choices that minimise bytes + lam * squared error."""
        return sum(float(options.values(lam)[1].sum()) for options in self.options)

    def _leaves(self, lam: float) -> Iterator[np.ndarray]:
        return (np.arange(1) for _ in self.options)

    def whole(self, error2: float) -> Plan | None:
        """None: blocks that are there stay."""
        return None


def _largest_block(level: Level) -> tuple[int, int]:
    return int(max(np.diff(level.rows))), int(max(np.diff(level.cols)))


def planner_for(source: BlockSource, request: MatrixRequest, budget2: float, *rest: Any) -> Planner:
    """The planner that the request asks for; rest: further arguments of `Planner`."""
    return (Planner if request.partition is None else KeptPlanner)(source, request, budget2, *rest)


def _reordered(leaf: Leaf, row_order: Tensor | None, col_order: Tensor | None) -> Leaf:
    """A low-rank leaf over the whole of a matrix in tree order, as one of the matrix in its own order."""
    u, vt = leaf.u, leaf.vt
    if row_order is not None and u is not None:
        u = torch.empty_like(u).index_copy_(0, row_order.long(), u)
    if col_order is not None and vt is not None:
        vt = torch.empty_like(vt).index_copy_(1, col_order.long(), vt)
    return replace(leaf, u=u, vt=vt)


def always_above(
    lams: Sequence[float], whole: Sequence[np.ndarray], parts: Sequence[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """(R, C): where one objective is above another for every multiplier between those of `lams`, which fall.

    whole: the values of the one.  parts: of the other with its slopes. Both are minima of lines, and so concave: the
    one is above its chords, the other below its tangents, which meet where their difference is largest.
    """
    above = np.logical_and.reduce([v > u for v, (u, _) in zip(whole, parts, strict=True)])
    for k in range(len(lams) - 1):
        (high, slope), (low, steeper), step = parts[k], parts[k + 1], lams[k] - lams[k + 1]
        with np.errstate(invalid="ignore", divide="ignore"):
            meeting = (high - low - slope * step) / (steeper - slope)  # from the lower multiplier
        meeting = np.clip(np.where(steeper > slope, meeting, 0.0), 0.0, step)
        above &= whole[k + 1] + (whole[k] - whole[k + 1]) * meeting / step > low + steeper * meeting
    return above


def least_tails(options: LevelOptions, finer: np.ndarray | None) -> np.ndarray:
    """(R, C, K): the least squared error of every block at rank k, of an unweighted matrix, as far as known.

    finer (R, C, K): the sum over the parts of a block, whose restrictions are of rank k too.
    """
    known = np.arange(options.tail.shape[1]) < np.maximum(options.ranks, 1)[:, None]
    least = np.where(known, options.tail, 0.0).reshape(*options.grid, -1)
    if finer is None:
        return least
    width = max(least.shape[2], finer.shape[2])
    return np.maximum(*(np.pad(v, ((0, 0), (0, 0), (0, width - v.shape[2]))) for v in (least, finer)))


def least_step(enough: Callable[[int], bool], guess: int, finest: int = 1, grid: int = GRID) -> int:
    """The least step of a geometric grid of multipliers, `grid` per factor of two, that is `enough`, the last if none.

    Gallops from `guess` and bisects to a multiple of `finest`, whole powers of two first: their values are cached.
    """
    low, high, stride = FIRST_POWER * grid, LAST_POWER * grid, grid
    place = min(max(guess // grid * grid, low), high)
    while low < place < high:
        low, high = (low, place) if enough(place) else (place, high)
        place = place - stride if high == place else place + stride
        stride *= 2
    for width in (grid, finest):
        while high - low > width:
            mid = low + (high - low) // width // 2 * width
            low, high = (low, mid) if enough(mid) else (mid, high)
    return high
