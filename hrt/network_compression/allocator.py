"""Spending one output tolerance over all layers: one Lagrange multiplier, checked end to end.

Every planner predicts its share of the mean squared output error, tr(G E C E^T) to first order. Predictions propose; a
proposal counts once the stored network meets the tolerance on inputs that calibration never saw.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from hrt.calibration.moments import Moments, ridge
from hrt.matrix_compression.block_choices import Choice, neighbours
from hrt.matrix_compression.orderings import Order
from hrt.matrix_compression.planner import Plan, least_step
from hrt.network_compression.candidates import (
    Candidate,
    Front,
    LayerTask,
    PlannedLayer,
    PlannedNetwork,
    Setting,
    build,
    halvable,
    halves,
    plan_layers,
    search_error,
    whole_where_faster,
)
from hrt.network_compression.request import CompressionRequest
from hrt.network_compression.verify import Original
from hrt.program.dense_view import stored
from hrt.support.progress import Advance, part, silent

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
RIVAL, RIVAL_TRIALS = 1.15, 12  # times the smallest: other ends of the search, polished a little
POLISH_LEAVES = 16  # layers of more leaves are close to their budget already: many small steps
LEAST_LOSS = 1e-6  # of the allowed squared error: smaller predicted losses are alike
REPAIR_TRIALS, REPAIR_WIDTH = 10, 4
REPAIRABLE = 1.5  # times the tolerance; a candidate further off would take more bytes than the next plan does
BIAS_SHARE = 0.3  # of the tolerance; squared, it takes a tenth of the budget
RIDGES = ((1e-9, 1e-3), (1e-6, 1e-2), (1e-4, 1e-1), (1e-2, 1.0))  # (inputs, sensitivity), relative to the mean

# How a search's time divides, measured on PINNs and surrogates: it says how far the bar has come, nothing else.
SETTINGS_SHARE = 0.88  # of all settings; the rest is the polish's
PLANNED_SHARE = 0.5  # of a setting's own time: factoring blocks, before the search
USUAL_TRIALS, USUAL_POLISH = 6, 16
LEAST_LAYER = 2048  # entries that take as long to factor as a small layer's calls

Change = tuple[float, int, Choice, Choice]  # score, layer, old leaf, new leaf


@dataclass(frozen=True, eq=False)
class Searched:
    """The smallest candidate that holds, the least miss, the last measured over predicted squared error and step."""

    best: Candidate | None
    missed: Candidate | None
    gap: float
    step: int


@dataclass(frozen=True, eq=False)
class Allocator:
    """Searches the cheapest compressed form of `original` within the tolerance on the search rows."""

    original: Original
    moments: Mapping[str, Moments]
    request: CompressionRequest
    front: Front = field(default_factory=Front)

    @cached_property
    def allowed2(self) -> float:
        """The mean squared error that the moments may predict."""
        return self.original.aim.allowed2(self.request.tol, self.original.search_reference)

    def search(self, planned: PlannedNetwork | None = None) -> Candidate | None:
        """The smallest candidate that holds, over rising ridges; of `planned` alone where one of it holds."""
        narrow = self._narrow_biases()
        result = None if planned is None else self._search(replace(planned, narrow=narrow), 0, silent)
        ends = [] if result is None else self._ends(result)
        every = [[Setting(ridges, False)] for ridges in RIDGES]
        weights = () if self.original.aim.names else self.original.program.weights
        if any(self.moments[n].is_focusable for n in weights):  # those with derivatives are focused as they are
            every[0].append(Setting(RIDGES[0], True))
        ends = ends or self._smallest(every, narrow)
        if not ends:
            return None
        few = (c for c in ends[1:] if c.nbytes <= RIVAL * ends[0].nbytes)
        polished = [self._polish(ends[0]), *(self._polish(c, RIVAL_TRIALS) for c in few)]
        return self._fewer_leaves(min(polished, key=lambda c: c.nbytes))

    def _smallest(self, rounds: Sequence[Sequence[Setting]], narrow: frozenset[str]) -> list[Candidate]:
        """The smallest candidates, best first, over rounds of settings, until the error was predicted well."""
        ends: list[Candidate] = []
        done = step = 0
        for settings in rounds:
            gaps, before, orders = [], ends[:1], dict[str, Order]()  # focused moments change them little, ridges do
            for setting in settings:
                width = SETTINGS_SHARE / len(rounds[0])  # further rounds are the exception
                low, done = min(width * done, SETTINGS_SHARE - width), done + 1
                advance = part(self.request.advance, low, low + width)
                planned = self._planned(setting, narrow, advance, orders)
                orders = {layer.name: (layer.rows, layer.cols) for layer in planned.layers}
                result = self._search(planned, step, advance)
                gaps.append(result.gap)
                step = result.step
                ends = sorted([*ends, *self._ends(result)], key=lambda c: c.nbytes)
            if ends and (min(gaps) < PREDICTED or ends[:1] == before):
                break
        return ends

    def _ends(self, result: Searched) -> list[Candidate]:
        """What a search gave and its miss, repaired, smallest first."""
        repaired = None if result.missed is None else self._repair(result.missed)
        return sorted((c for c in (result.best, repaired) if c is not None), key=lambda c: c.nbytes)

    def _narrow_biases(self) -> frozenset[str]:
        """The biases to keep in float16: all that it holds, where that alone costs little of the tolerance."""
        program = self.original.program
        biases = halvable(program, self.request.storages)
        if not biases:
            return frozenset()
        error = search_error(self.original, stored(program.with_constants(halves(program.constants, biases))))
        return biases if error.limit <= BIAS_SHARE * self.request.tol else frozenset()

    def _planned(
        self, setting: Setting, narrow: frozenset[str], advance: Advance, orders: Mapping[str, Order]
    ) -> PlannedNetwork:
        """Every layer with its planner, in `orders` where given; the first half of a setting's work."""
        weights, moments = self.original.program.weights, self.moments
        names = [n for n in weights if moments[n].left.numel() and moments[n].second.numel()]
        tasks = [replace(self._task(name, setting), order=orders.get(name)) for name in names]
        work, behind, layers = sum(t.matrix.numel() + LEAST_LAYER for t in tasks), 0, []
        advance(f"factor {names[0]}" if names else "factor", 0.0)
        for layer in plan_layers(tasks, self.request.executor):
            behind += layer.matrix.numel() + LEAST_LAYER
            advance(f"factored {layer.name}", PLANNED_SHARE * behind / work)
            layers.append(layer)
        return PlannedNetwork(setting, tuple(layers), narrow)

    def _search(self, network: PlannedNetwork, step: int, advance: Advance) -> Searched:
        """The budget that just holds, by proportional steps and bisection from `step` of the grid of multipliers."""
        allowed2 = self.allowed2
        budget, low, high, gap = allowed2, 0.0, float("inf"), float("inf")
        best: Candidate | None = None
        missed: Candidate | None = None
        for trial in range(TRIALS):
            advance(f"search, trial {trial + 1}", PLANNED_SHARE + (1 - PLANNED_SHARE) * likely(trial, USUAL_TRIALS))
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

    def _build(self, network: PlannedNetwork, plans: Sequence[Plan]) -> Candidate:
        """`build`, noted in the front."""
        return self.front.noted(build(self.original, network, plans))

    def _task(self, name: str, setting: Setting) -> LayerTask:
        matrix, moments = self.original.program.constants[name], self.moments[name]
        if not isinstance(matrix, Tensor):
            raise TypeError(name)
        moments = moments.focused if setting.focused and moments.focused is not None else moments
        bias = self._absorbing_bias(name)
        right = ridge(moments.covariance if bias else moments.second, setting.ridges[0])
        mean, left, felt = moments.mean if bias else None, None, moments.left.diagonal()
        if bool((felt == felt[0]).all()) and moments.left.count_nonzero() == len(felt):  # all outputs count alike
            right = right * felt[0]
        else:
            left = ridge(moments.left, setting.ridges[1])
        return LayerTask(name, matrix, right, left, mean, bias, self.allowed2, self.request.of_weight(name))

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

        step = least_step(
            lambda step: sum(x.planner.error2(lam(step)) for x in layers) <= budget, guess, grid=FINE_GRID
        )
        return [x.planner.solve(lam(step)) for x in layers], step

    def _polish(self, best: Candidate, trials: int = POLISH_TRIALS) -> Candidate:
        """Spend what is left of the tolerance by single changes, largest saving first, each measured end to end."""
        refused: set[tuple[int, Choice, Choice]] = set()
        for trial in range(trials):
            changes = [c for c in self._changes(best) if c[1:] not in refused]
            if not changes:
                break
            behind = likely(trial, USUAL_POLISH)
            self.request.advance(f"polish, trial {trial + 1}", SETTINGS_SHARE + (1 - SETTINGS_SHARE) * behind)
            candidate = self._build(best.network, _changed(best, changes[0]))
            if candidate.error.limit <= self.request.tol and candidate.nbytes < best.nbytes:
                best = candidate
            else:
                refused.add(changes[0][1:])
        return best

    def _fewer_leaves(self, best: Candidate) -> Candidate:
        """For a CPU: single leaves where they pay (see `whole_where_faster`), if the tolerance can be kept."""
        layers = best.network.layers
        built = [best.program.constants[layer.name] for layer in layers]
        plans = whole_where_faster(layers, best.plans, built) if self.request.target == "cpu" else best.plans
        if tuple(plans) == best.plans:
            return best
        smaller = self.front.members[:]
        self.front.members.clear()  # of more leaves, which are slower
        repaired = self._repair(self._build(best.network, plans))
        if repaired is None:
            self.front.members[:] = smaller
        return best if repaired is None else self._polish(repaired)

    def _repair(self, candidate: Candidate) -> Candidate | None:
        """Bring a narrow miss under the tolerance, most error removed per byte first.

        The plans of two multipliers lie on the convex hull of what is possible; between them there may be many bytes.
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
            limit, nbytes = candidate.error.limit, candidate.nbytes
            gains = [(limit**2 - max(c.error.limit, tol) ** 2) / max(1, c.nbytes - nbytes) for c in options]
            candidate = options[gains.index(max(gains))]
        return None

    def _changes(self, base: Candidate, up: bool = False) -> list[Change]:
        """Single changes, best first: most bytes saved per predicted squared error or, for `up`, the reverse."""
        out = []
        for k, (layer, plan) in enumerate(zip(base.network.layers, base.plans, strict=True)):
            if len(plan.leaves) > POLISH_LEAVES:
                continue
            for old in plan.leaves:
                options = layer.planner.options[old.place[0]]
                nbytes, error2 = options.price(old)
                near = neighbours(old, layer.planner.storages, up)
                for new in (*near, *options.crossings(old, up)):
                    if new.rank > options.known(new):
                        continue
                    more, less = (a - b for a, b in zip(options.price(new), (nbytes, error2), strict=True))
                    if up and more > 0 and less < 0:
                        out.append((-less / more, k, old, new))
                    elif not up and more < 0:
                        out.append((-more / max(less, LEAST_LOSS * self.allowed2), k, old, new))
        return sorted(out, key=lambda change: -change[0])


def likely(trial: int, usual: int) -> float:
    """The share that is probably behind after so many trials of a search that ends after about `usual`."""
    return 1 - 2 ** (-2 * trial / usual)


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
