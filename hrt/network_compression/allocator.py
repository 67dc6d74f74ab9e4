"""Spending one output tolerance over all layers: one Lagrange multiplier, checked end to end on held-out inputs.

Every layer's planner predicts the mean squared output error of each of its partitions (tr(G E C E^T), first order in
E), so that one multiplier trades bytes between layers. Prediction only proposes: a proposal counts once the whole
compressed network, with the numbers as stored, meets the tolerance on inputs that calibration never saw.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hrt.calibration.moments import Moments, ridge
from hrt.calibration.objective import Aim
from hrt.calibration.output_error import OutputError
from hrt.hmatrix.hmatrix import HMatrix
from hrt.matrix_compression.block_choices import Choice, neighbours
from hrt.matrix_compression.planner import Plan, least_step
from hrt.network_compression.layer_plans import LayerTask, PlannedLayer, plan_layers
from hrt.network_compression.single_leaf import whole_where_faster
from hrt.program.dense_view import DenseView, stored
from hrt.program.program import Constant, Program, program_nbytes
from hrt.support.progress import Advance, part

FINE_GRID = 64  # multipliers per factor of two
POLISH_TRIALS = 48
BIAS_SHARE = 0.3  # of the tolerance; squared, it takes a tenth of the budget
REPAIR_TRIALS, REPAIR_WIDTH = 10, 4
POLISH_LEAVES = 16  # layers of more leaves are close to their budget already: many small steps
Setting = tuple[tuple[float, float], bool]  # one of RIDGES, and whether the moments are the focused ones
RIDGES = ((1e-9, 1e-3), (1e-6, 1e-2), (1e-4, 1e-1), (1e-2, 1.0))  # (inputs, sensitivity), relative to the mean


@dataclass(frozen=True)
class Candidate:
    """A compressed program with its measured error on the search rows, and the plans that made it."""

    program: Program
    error: OutputError
    nbytes: int
    layers: tuple[PlannedLayer, ...] = ()
    plans: tuple[Plan, ...] = ()


class Allocator:
    """Searches the cheapest compressed form of `program` whose output error on `rows` is at most `tol`.

    program: float64 constants.  moments: of every weight, on the calibration inputs.  reference: the network's
    outputs on `rows`, (rows, features) float64.  aim: what is held to `tol` besides the value, which `moments` and
    `reference` then speak of too; the limit that counts is the largest.
    """

    def __init__(
        self,
        program: Program,
        moments: Mapping[str, Moments],
        rows: Sequence[Tensor],
        reference: Tensor,
        *,
        tol: float,
        storages: tuple[str, ...],
        target: str,
        seed: int,
        advance: Advance,
        executor: Executor | None = None,
        partitions: Mapping[str, HMatrix] | None = None,
        setting: Setting | None = None,
        aim: Aim | None = None,
    ):
        self.setting = setting  # the one to try before all others; after a search the one that won
        self.partitions = partitions or {}  # of weights whose blocks stay as they are
        self.program, self.moments, self.search_rows, self.reference = program, moments, rows, reference
        self.tol, self.storages, self.target, self.seed = tol, storages, target, seed
        self.advance, self.executor = advance, executor
        self._guess = 0  # where the multiplier was last found
        self.aim = aim or Aim.of(program)
        self.allowed2 = tol**2 * float((reference**2).sum()) / max(1, reference.shape[0])
        if self.aim.names:
            self.allowed2 = tol**2  # these moments are of relative errors

    def search(self) -> Candidate | None:
        """The smallest candidate that holds, over increasing regularisation of the moments; None if none does.

        Too few calibration rows leave directions unseen; the network then fails on held-out rows what it met on
        calibration rows, and a stronger ridge treats the unseen directions with more respect.
        """
        self.narrow = self._narrow_biases()
        best = self._smallest([[self.setting]]) if self.setting else None
        focusable = not self.aim.names and any(self.moments[n].is_focusable for n in self.program.weights)
        first = (False, True) if focusable else (False,)  # moments with derivatives are focused as they are
        every = [[(r, focus) for focus in (first if r == RIDGES[0] else (False,))] for r in RIDGES]
        best = best or self._smallest(every)
        return best and self._fewer_leaves(self._polish(best))

    def _smallest(self, rounds: Sequence[Sequence[Setting]]) -> Candidate | None:
        """The smallest candidate over rounds of settings, until one has held and predicted its error well, or a round
        has found none smaller.
        """
        best: Candidate | None = None
        done = 0
        for settings in rounds:
            gaps, before = [], best
            for ridges, focus in settings:
                low, done = min(0.35 * done, 0.7), done + 1  # two settings are the rule
                found, missed, gap = self._search(*ridges, focus, part(self.advance, low, min(low + 0.35, 0.75)))
                gaps.append(gap)
                repaired = self._repair(missed) if missed is not None else None
                for candidate in (found, repaired):
                    if candidate is not None and (best is None or candidate.nbytes < best.nbytes):
                        best, self.setting = candidate, (ridges, focus)
            if best is not None and (min(gaps) < 3.0 or best is before):
                break
        return best

    def _narrow_biases(self) -> set[str]:
        """The biases to keep in float16: all of them, where that alone costs little of the tolerance."""
        biases = {n.inputs[2] for n in self.program.linear_nodes if len(n.inputs) == 3}
        if "float16" not in self.storages or not biases:
            return set()
        trial = self.measure(self._with_narrow(self.program, biases))
        return biases if trial.error.limit <= BIAS_SHARE * self.tol else set()

    @staticmethod
    def _with_narrow(program: Program, names: set[str]) -> Program:
        tensors = {k: c for k, c in program.constants.items() if k in names and isinstance(c, Tensor)}
        return program.with_constants({k: c.to(torch.float16) for k, c in tensors.items()})

    def _search(
        self, right_ridge: float, left_ridge: float, focus: bool, advance: Advance
    ) -> tuple[Candidate | None, Candidate | None, float]:
        """For one regularisation: the smallest candidate that holds, the one that misses by least, and measured over
        predicted error at the last trial.
        """
        names = [n for n in self.program.weights if self.moments[n].left.numel() and self.moments[n].second.numel()]
        tasks = [self._task(name, right_ridge, left_ridge, focus) for name in names]
        entries, behind, layers = sum(t.matrix.numel() for t in tasks), 0, []
        advance(f"factor {names[0]}" if names else "factor", 0.0)
        for layer in plan_layers(tasks, self.executor):
            behind += layer.matrix.numel()
            advance(f"factored {layer.name}", 0.6 * behind / entries)
            layers.append(layer)
        budget, low, high, best, gap = self.allowed2, 0.0, float("inf"), None, float("inf")
        missed: Candidate | None = None
        for trial in range(16):
            advance(f"search, trial {trial + 1}", 0.6 + 0.4 * trial / 16)
            plans = self._plans(layers, budget)
            candidate = self._build(layers, plans)
            upper2 = (candidate.error.limit / self.tol) ** 2 * self.allowed2
            gap = upper2 / max(sum(p.error2 for p in plans), 1e-300)
            if upper2 <= self.allowed2:
                low = max(low, budget)
                if best is None or candidate.nbytes < best.nbytes:
                    best = candidate
                if upper2 >= 0.97 * self.allowed2:
                    break
            else:
                high = min(high, budget)
                if missed is None or candidate.error.limit < missed.error.limit:
                    missed = candidate
            step = budget * min(30.0, max(1 / 30, 0.98 * self.allowed2 / max(upper2, 1e-300)))
            if not low < step < high:
                step = (
                    (low * high) ** 0.5 if low > 0 and high < float("inf") else budget * (4 if high > budget else 0.1)
                )
            budget = step
            if high < float("inf") and low > 0 and high / low < 1.02:
                break
            if budget < 1e-20 * self.allowed2 or budget > 1e12 * self.allowed2:
                break
        return best, missed, gap

    def _task(self, name: str, right_ridge: float, left_ridge: float, focus: bool) -> LayerTask:
        matrix, moments = self.program.constants[name], self.moments[name]
        if not isinstance(matrix, Tensor):
            raise TypeError(name)
        moments = moments.focused if focus and moments.focused is not None else moments
        bias = self._own_bias(name)
        return LayerTask(
            name,
            matrix,
            ridge(moments.covariance if bias else moments.second, right_ridge),
            ridge(moments.left, left_ridge),
            moments.mean if bias else None,
            bias,
            self.allowed2,
            self.storages,
            self.target,
            self.seed,
            self.partitions.get(name),
        )

    def _own_bias(self, weight: str) -> str | None:
        """The bias that only this weight's one node uses: it can absorb the mean of the error."""
        nodes = self.program.weights[weight]
        if len(nodes) != 1 or len(nodes[0].inputs) < 3:
            return None
        bias = nodes[0].inputs[2]
        users = [n for n in self.program.nodes if bias in n.inputs]
        constant = self.program.constants[bias]
        return bias if len(users) == 1 and isinstance(constant, Tensor) and constant.ndim == 1 else None

    def _plans(self, layers: Sequence[PlannedLayer], budget: float) -> list[Plan]:
        """Plans of one common multiplier whose predicted errors add up to at most `budget`."""
        unit = sum(4.0 * x.matrix.numel() for x in layers) / max(self.allowed2, 1e-300)

        def lam(step: int) -> float:
            return unit * 2.0 ** (step / FINE_GRID)

        step = least_step(
            lambda step: sum(x.planner.error2(lam(step)) for x in layers) <= budget, self._guess, grid=FINE_GRID
        )
        self._guess = step
        return [x.planner.solve(lam(step)) for x in layers]

    def _build(self, layers: Sequence[PlannedLayer], plans: Sequence[Plan]) -> Candidate:
        changed: dict[str, Constant] = {}
        for layer, plan in zip(layers, plans, strict=True):
            h = layer.planner.build(plan, layer.rows, layer.cols)
            dense = HMatrix.from_dense(layer.matrix)
            if h.nbytes >= dense.nbytes:
                h = dense
            changed[layer.name] = h
            if layer.bias and layer.mean is not None and not h.is_dense:
                bias = self.program.constants[layer.bias]
                if isinstance(bias, Tensor):
                    changed[layer.bias] = bias + (layer.matrix - h.to_dense()) @ layer.mean
        measured = self.measure(self._with_narrow(self.program.with_constants(changed), self.narrow))
        return replace(measured, layers=tuple(layers), plans=tuple(plans))

    def _polish(self, best: Candidate) -> Candidate:
        """Spend what is left of the tolerance: single changes, largest saving first, each measured end to end.

        A change drops 1/8 of a leaf's rank, or one direction, or stores a leaf in a narrower type. Predictions rank
        changes of one layer well; between layers and storage types the measured error is the better judge.
        """
        refused: set[tuple[int, Choice, Choice]] = set()
        for trial in range(POLISH_TRIALS):
            changes = [c for c in self._changes(best) if c[1:] not in refused]
            if not changes:
                break
            self.advance(f"polish, trial {trial + 1}", 0.75 + 0.25 * trial / POLISH_TRIALS)
            candidate = self._build(best.layers, self._changed(best, changes[0]))
            if candidate.error.limit <= self.tol and candidate.nbytes < best.nbytes:
                best = candidate
            else:
                refused.add(changes[0][1:])
        return best

    def _fewer_leaves(self, best: Candidate) -> Candidate:
        """For a CPU: single leaves where they pay (`hrt.network_compression.single_leaf`), if the tolerance can be kept."""
        built = [best.program.constants[layer.name] for layer in best.layers]
        plans = whole_where_faster(best.layers, best.plans, built) if self.target == "cpu" else best.plans
        if tuple(plans) == best.plans:
            return best
        kept = self._repair(self._build(best.layers, plans))
        return best if kept is None else self._polish(kept)

    def _repair(self, candidate: Candidate) -> Candidate | None:
        """Bring a candidate that narrowly misses under the tolerance: the most error removed per byte, repeatedly.

        One multiplier only reaches the convex hull of what is possible; between two of its points a large step in
        bytes may lie, and much of it can be saved from below.
        """
        for trial in range(REPAIR_TRIALS):
            if candidate.error.limit <= self.tol:
                return candidate
            changes = self._changes(candidate, up=True)
            if candidate.error.limit > 1.5 * self.tol or not changes:
                return None
            self.advance(f"repair, trial {trial + 1}", 0.0)
            tried = [self._build(candidate.layers, self._changed(candidate, c)) for c in changes[:REPAIR_WIDTH]]
            base = candidate

            def gain(new: Candidate, base: Candidate = base) -> float:
                removed = base.error.limit**2 - max(new.error.limit, self.tol) ** 2
                return removed / max(1, new.nbytes - base.nbytes)

            candidate = max(tried, key=gain)
        return None

    def _changed(self, base: Candidate, change: tuple[float, int, Choice, Choice]) -> list[Plan]:
        _, k, old, new = change
        leaves = tuple(new if leaf == old else leaf for leaf in base.plans[k].leaves)
        return [replace(p, leaves=leaves) if i == k else p for i, p in enumerate(base.plans)]

    def _changes(self, base: Candidate, up: bool = False) -> list[tuple[float, int, Choice, Choice]]:
        """Single changes (score, layer, old leaf, new leaf), best first: most bytes saved per predicted squared error
        or, for `up`, most squared error removed per byte.
        """
        out = []
        for k, (layer, plan) in enumerate(zip(base.layers, base.plans, strict=True)):
            if len(plan.leaves) > POLISH_LEAVES:
                continue
            for old in plan.leaves:
                nbytes, error2 = layer.planner.price(old)
                for new in neighbours(old, self.storages, up):
                    if new.rank > layer.planner.top_rank(new):
                        continue
                    more, less = (a - b for a, b in zip(layer.planner.price(new), (nbytes, error2), strict=True))
                    if up and more > 0 and less < 0:
                        out.append((-less / more, k, old, new))
                    elif not up and more < 0:
                        out.append((-more / max(less, 1e-6 * self.allowed2), k, old, new))
        return sorted(out, key=lambda change: -change[0])

    def measure(self, program: Program) -> Candidate:
        """The candidate `program`, its stored numbers evaluated in float64 on the held-out inputs."""
        program = stored(program)
        outputs = self.aim.outputs(self.search_rows, DenseView(program).constants)
        return Candidate(program, self.aim.error(self.reference, outputs), program_nbytes(program))
