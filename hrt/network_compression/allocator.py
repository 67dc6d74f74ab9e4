"""Spending one output tolerance over all layers: one Lagrange multiplier, checked end to end on held-out inputs.

Every layer's planner predicts the mean squared output error of each of its partitions (tr(G E C E^T), first order in
E), so that one multiplier trades bytes between layers. Prediction only proposes: a proposal counts once the whole
compressed network, with the numbers as stored, meets the tolerance on inputs that calibration never saw.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from hrt.calibration.moments import Moments, ridge
from hrt.calibration.output_error import OutputError
from hrt.hmatrix.hmatrix import HMatrix
from hrt.matrix_compression.block_choices import Choice, neighbours
from hrt.matrix_compression.planner import Plan, least_step
from hrt.network_compression.layer_plans import LayerTask, PlannedLayer, plan_layers
from hrt.network_compression.request import CompressionRequest
from hrt.network_compression.single_leaf import whole_where_faster
from hrt.network_compression.verify import Original
from hrt.program.program import Constant, Program, dense_constants, program_nbytes, stored
from hrt.support.progress import Advance, part

FINE_GRID = 64  # multipliers per factor of two
NOTHING = 1e-300  # in the place of zero where something is divided by it

# The search for the budget of predicted error whose candidate just meets the tolerance, all in squares.
TRIALS = 16  # far more than it takes where the prediction is any good: three or four
SPENT = 0.97  # of what is allowed; a smaller rest is left to the polish
AIMED = 0.98  # of what is allowed: measured errors jump from one plan to the next
LARGEST_STEP = 30.0  # of the budget at once, where the prediction is far off
WIDER, TIGHTER = 4.0, 0.1  # steps where the proportional one leads back beyond what was tried
SAME_BUDGET = 1.02  # budgets this near give the same plans
BUDGETS = 1e-20, 1e12  # over what is allowed; beyond them no plan changes any more

PREDICTED = 3.0  # measured over predicted squared error; below it another regularisation finds nothing better
POLISH_TRIALS = 48
POLISH_LEAVES = 16  # layers of more leaves are close to their budget already: many small steps
LEAST_LOSS = 1e-6  # of the allowed squared error: smaller predicted losses are alike
REPAIR_TRIALS, REPAIR_WIDTH = 10, 4
REPAIRABLE = 1.5  # times the tolerance; a candidate further off would take more bytes than the next plan does
BIAS_SHARE = 0.3  # of the tolerance; squared, it takes a tenth of the budget
RIDGES = ((1e-9, 1e-3), (1e-6, 1e-2), (1e-4, 1e-1), (1e-2, 1.0))  # (inputs, sensitivity), relative to the mean

Change = tuple[float, int, Choice, Choice]  # score, layer, old leaf, new leaf


@dataclass(frozen=True)
class Setting:
    """How moments are regularised: one of RIDGES, and whether the focused ones are taken."""

    ridges: tuple[float, float]
    focused: bool


@dataclass(frozen=True, eq=False)
class PlannedNetwork:
    """What candidates are built from: the layers with their planners, made under one setting, and the biases that are
    stored in float16.
    """

    setting: Setting
    layers: tuple[PlannedLayer, ...]
    narrow: frozenset[str]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A compressed program with its measured error on the search rows, and the plans that made it."""

    program: Program
    error: OutputError
    nbytes: int
    network: PlannedNetwork
    plans: tuple[Plan, ...]


@dataclass(frozen=True, eq=False)
class Searched:
    """Of one setting: the smallest candidate that holds, the one that misses by least, measured over predicted squared
    error at the last trial, and where on the grid of multipliers that was.
    """

    best: Candidate | None
    missed: Candidate | None
    gap: float
    step: int


@dataclass(frozen=True, eq=False)
class Allocator:
    """Searches the cheapest compressed form of `original` whose error on the search rows is at most the tolerance.

    moments: of every weight, on the calibration rows, of all that the original's aim holds to the tolerance; the limit
    that counts is the largest.
    """

    original: Original
    moments: Mapping[str, Moments]
    request: CompressionRequest

    @cached_property
    def allowed2(self) -> float:
        """The mean squared error that the moments may predict; those with derivatives are of relative errors."""
        tol2, reference = self.request.tol**2, self.original.search_reference
        if self.original.aim.names:
            return tol2
        return tol2 * float((reference**2).sum()) / max(1, reference.shape[0])

    def search(self, first: Setting | None = None) -> Candidate | None:
        """The smallest candidate that holds, over increasing regularisation of the moments; None if none does.

        Too few calibration rows leave directions unseen; the network then fails on held-out rows what it met on
        calibration rows, and a stronger ridge treats the unseen directions with more respect. first: tried before all
        others, which are left out where it holds.
        """
        narrow = self._narrow_biases()
        best = self._smallest([[first]], narrow) if first else None
        focusable = not self.original.aim.names and any(
            self.moments[n].is_focusable for n in self.original.program.weights
        )
        every = [[Setting(ridges, False)] for ridges in RIDGES]
        if focusable:  # moments with derivatives are focused as they are
            every[0].append(Setting(RIDGES[0], True))
        best = best or self._smallest(every, narrow)
        return best and self._fewer_leaves(self._polish(best))

    def _smallest(self, rounds: Sequence[Sequence[Setting]], narrow: frozenset[str]) -> Candidate | None:
        """The smallest candidate over rounds of settings, until one has held and predicted its error well, or a round
        has found none smaller.
        """
        best: Candidate | None = None
        done = step = 0
        for settings in rounds:
            gaps, before = [], best
            for setting in settings:
                low, done = min(0.35 * done, 0.7), done + 1  # two settings are the rule
                advance = part(self.request.advance, low, min(low + 0.35, 0.75))
                result = self._search(self._planned(setting, narrow, advance), step, advance)
                gaps.append(result.gap)
                step = result.step
                repaired = self._repair(result.missed) if result.missed is not None else None
                for candidate in (result.best, repaired):
                    if candidate is not None and (best is None or candidate.nbytes < best.nbytes):
                        best = candidate
            if best is not None and (min(gaps) < PREDICTED or best is before):
                break
        return best

    def _narrow_biases(self) -> frozenset[str]:
        """The biases to keep in float16: all of them, where that alone costs little of the tolerance."""
        program = self.original.program
        biases = frozenset(n.inputs[2] for n in program.linear_nodes if len(n.inputs) == 3)
        if "float16" not in self.request.storages or not biases:
            return frozenset()
        error = self._error(stored(program.with_constants(_halves(program.constants, biases))))
        return biases if error.limit <= BIAS_SHARE * self.request.tol else frozenset()

    def _planned(self, setting: Setting, narrow: frozenset[str], advance: Advance) -> PlannedNetwork:
        """Every layer with its planner; the first 60 % of a setting's work."""
        weights, moments = self.original.program.weights, self.moments
        names = [n for n in weights if moments[n].left.numel() and moments[n].second.numel()]
        tasks = [self._task(name, setting) for name in names]
        entries, behind, layers = sum(t.matrix.numel() for t in tasks), 0, []
        advance(f"factor {names[0]}" if names else "factor", 0.0)
        for layer in plan_layers(tasks, self.request.executor):
            behind += layer.matrix.numel()
            advance(f"factored {layer.name}", 0.6 * behind / entries)
            layers.append(layer)
        return PlannedNetwork(setting, tuple(layers), narrow)

    def _search(self, network: PlannedNetwork, step: int, advance: Advance) -> Searched:
        """The budget that just holds, by proportional steps and bisection. step: of the grid of multipliers, where to
        look first.
        """
        allowed2 = self.allowed2
        budget, low, high, gap = allowed2, 0.0, float("inf"), float("inf")
        best: Candidate | None = None
        missed: Candidate | None = None
        for trial in range(TRIALS):
            advance(f"search, trial {trial + 1}", 0.6 + 0.4 * trial / TRIALS)
            plans, step = self._plans(network.layers, budget, step)
            candidate = self._build(network, plans)
            upper2 = (candidate.error.limit / self.request.tol) ** 2 * allowed2
            gap = upper2 / max(sum(p.error2 for p in plans), NOTHING)
            if upper2 <= allowed2:
                low = max(low, budget)
                if best is None or candidate.nbytes < best.nbytes:
                    best = candidate
                if upper2 >= SPENT * allowed2:
                    break
            else:
                high = min(high, budget)
                if missed is None or candidate.error.limit < missed.error.limit:
                    missed = candidate
            budget = next_budget(budget, AIMED * allowed2 / max(upper2, NOTHING), low, high)
            closed = high < float("inf") and low > 0 and high / low < SAME_BUDGET
            if closed or not BUDGETS[0] * allowed2 <= budget <= BUDGETS[1] * allowed2:
                break
        return Searched(best, missed, gap, step)

    def _task(self, name: str, setting: Setting) -> LayerTask:
        matrix, moments = self.original.program.constants[name], self.moments[name]
        if not isinstance(matrix, Tensor):
            raise TypeError(name)
        moments = moments.focused if setting.focused and moments.focused is not None else moments
        bias = self._absorbing_bias(name)
        inputs, sensitivity = setting.ridges
        return LayerTask(
            name,
            matrix,
            ridge(moments.covariance if bias else moments.second, inputs),
            ridge(moments.left, sensitivity),
            moments.mean if bias else None,
            bias,
            self.allowed2,
            self.request.of_weight(name),
        )

    def _absorbing_bias(self, weight: str) -> str | None:
        """The bias that only this weight's one node uses: it can absorb the mean of the error."""
        program = self.original.program
        nodes = program.weights[weight]
        if len(nodes) != 1 or len(nodes[0].inputs) < 3:
            return None
        bias = nodes[0].inputs[2]
        users = [n for n in program.nodes if bias in n.inputs]
        constant = program.constants[bias]
        return bias if len(users) == 1 and isinstance(constant, Tensor) and constant.ndim == 1 else None

    def _plans(self, layers: Sequence[PlannedLayer], budget: float, guess: int) -> tuple[list[Plan], int]:
        """Plans of one common multiplier whose predicted errors add up to at most `budget`, and its step."""
        unit = sum(4.0 * x.matrix.numel() for x in layers) / max(self.allowed2, NOTHING)

        def lam(step: int) -> float:
            return unit * 2.0 ** (step / FINE_GRID)

        def enough(step: int) -> bool:
            return sum(x.planner.error2(lam(step)) for x in layers) <= budget

        step = least_step(enough, guess, grid=FINE_GRID)
        return [x.planner.solve(lam(step)) for x in layers], step

    def _build(self, network: PlannedNetwork, plans: Sequence[Plan]) -> Candidate:
        program = self.original.program
        changed: dict[str, Constant] = {}
        for layer, plan in zip(network.layers, plans, strict=True):
            h = layer.planner.build(plan, layer.rows, layer.cols)
            if h.nbytes >= 4 * layer.matrix.numel():
                h = HMatrix.from_dense(layer.matrix)
            changed[layer.name] = h
            if layer.bias and layer.mean is not None and not h.is_dense:
                bias = program.constants[layer.bias]
                if isinstance(bias, Tensor):
                    changed[layer.bias] = bias + (layer.matrix - h.to_dense()) @ layer.mean
        changed |= _halves({**program.constants, **changed}, network.narrow)
        compressed = stored(program.with_constants(changed))
        return Candidate(compressed, self._error(compressed), program_nbytes(compressed), network, tuple(plans))

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
            self.request.advance(f"polish, trial {trial + 1}", 0.75 + 0.25 * trial / POLISH_TRIALS)
            candidate = self._build(best.network, _changed(best, changes[0]))
            if candidate.error.limit <= self.request.tol and candidate.nbytes < best.nbytes:
                best = candidate
            else:
                refused.add(changes[0][1:])
        return best

    def _fewer_leaves(self, best: Candidate) -> Candidate:
        """For a CPU: single leaves where they pay (see `single_leaf`), if the tolerance can be kept."""
        layers = best.network.layers
        built = [best.program.constants[layer.name] for layer in layers]
        plans = whole_where_faster(layers, best.plans, built) if self.request.target == "cpu" else best.plans
        if tuple(plans) == best.plans:
            return best
        repaired = self._repair(self._build(best.network, plans))
        return best if repaired is None else self._polish(repaired)

    def _repair(self, candidate: Candidate) -> Candidate | None:
        """Bring a candidate that narrowly misses under the tolerance: the most error removed per byte, repeatedly.

        One multiplier only reaches the convex hull of what is possible; between two of its points a large step in
        bytes may lie, and much of it can be saved from below.
        """
        tol = self.request.tol
        for trial in range(REPAIR_TRIALS):
            if candidate.error.limit <= tol:
                return candidate
            changes = self._changes(candidate, up=True)
            if candidate.error.limit > REPAIRABLE * tol or not changes:
                return None
            self.request.advance(f"repair, trial {trial + 1}", 0.0)
            options = [self._build(candidate.network, _changed(candidate, c)) for c in changes[:REPAIR_WIDTH]]
            base = candidate

            def gain(new: Candidate, base: Candidate = base) -> float:
                removed = base.error.limit**2 - max(new.error.limit, tol) ** 2
                return removed / max(1, new.nbytes - base.nbytes)

            candidate = max(options, key=gain)
        return None

    def _changes(self, base: Candidate, up: bool = False) -> list[Change]:
        """Single changes, best first: most bytes saved per predicted squared error or, for `up`, most squared error
        removed per byte.
        """
        out = []
        for k, (layer, plan) in enumerate(zip(base.network.layers, base.plans, strict=True)):
            if len(plan.leaves) > POLISH_LEAVES:
                continue
            for old in plan.leaves:
                nbytes, error2 = layer.planner.price(old)
                for new in neighbours(old, self.request.storages, up):
                    if new.rank > layer.planner.top_rank(new):
                        continue
                    more, less = (a - b for a, b in zip(layer.planner.price(new), (nbytes, error2), strict=True))
                    if up and more > 0 and less < 0:
                        out.append((-less / more, k, old, new))
                    elif not up and more < 0:
                        out.append((-more / max(less, LEAST_LOSS * self.allowed2), k, old, new))
        return sorted(out, key=lambda change: -change[0])

    def _error(self, program: Program) -> OutputError:
        """Of a stored program on the search rows, in float64 arithmetic."""
        aim = self.original.aim
        outputs = aim.outputs(self.original.split.search, dense_constants(program))
        return aim.error(self.original.search_reference, outputs)


def next_budget(budget: float, factor: float, low: float, high: float) -> float:
    """The budget to try next: `factor` times this one, but between the largest that held and the least that did not."""
    step = budget * min(LARGEST_STEP, max(1 / LARGEST_STEP, factor))
    if low < step < high:
        return step
    if low > 0 and high < float("inf"):
        return (low * high) ** 0.5
    return budget * (WIDER if high > budget else TIGHTER)


def _changed(base: Candidate, change: Change) -> list[Plan]:
    _, k, old, new = change
    leaves = tuple(new if leaf == old else leaf for leaf in base.plans[k].leaves)
    return [replace(p, leaves=leaves) if i == k else p for i, p in enumerate(base.plans)]


def _halves(constants: Mapping[str, Constant], names: frozenset[str]) -> dict[str, Constant]:
    """The tensors among `constants` with these names, in float16."""
    return {k: c.half() for k, c in constants.items() if k in names and isinstance(c, Tensor)}
