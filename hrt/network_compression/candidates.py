"""Candidates for a compressed network: the plans of its layers, what they build, its error on the search rows."""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from hrt.calibration.output_error import OutputError
from hrt.hmatrix.hmatrix import HMatrix
from hrt.matrix_compression.block_choices import Choice
from hrt.matrix_compression.block_source import BlockSource
from hrt.matrix_compression.cluster_tree import gram_order
from hrt.matrix_compression.orderings import ORDERING_SIDE, Order, permute
from hrt.matrix_compression.planner import Plan, Planner, planner_for
from hrt.matrix_compression.request import MatrixRequest, largest_entry, usable_storages
from hrt.network_compression.verify import Original
from hrt.program.dense_view import stored
from hrt.program.program import Constant, Program, program_nbytes
from hrt.runtime.onnx_costs import ANY_BATCH, compressed_form, layer_us
from hrt.support.parallel import executor_map, one_blas_thread
from hrt.support.recent import Recent

HOPELESS = 2.0  # times the tolerance; a candidate that is off by more holds by no means
KEPT_PLANS = 16  # of a layer; the search goes back to few


@dataclass(frozen=True, eq=False)
class LayerTask:
    """What it takes to plan one layer, in this process or in another. bias: that can absorb the mean of its error.
    order: of rows and columns, where another setting has chosen it.
    """

    name: str
    matrix: Tensor
    right: Tensor
    left: Tensor | None
    mean: Tensor | None
    bias: str | None
    budget2: float
    request: MatrixRequest
    order: Order | None = None

    @property
    def orders(self) -> list[Order]:
        """Those to choose from."""
        partition = self.request.partition
        if partition is not None:
            return [(partition.row_order, partition.col_order)]
        if self.order is not None:
            return [self.order]
        other = min(self.matrix.shape) >= ORDERING_SIDE
        return [(None, None), *([(gram_order(self.matrix), gram_order(self.matrix.T))] if other else [])]

    def source(self, rows: Tensor | None, cols: Tensor | None) -> BlockSource:
        """In tree order. Copies: BLAS may round differently where memory is aligned as another process sends it."""
        left = None if self.left is None else permute(self.left, rows, rows).clone()
        matrix, right = (permute(*p).clone() for p in ((self.matrix, rows, cols), (self.right, cols, cols)))
        return BlockSource(matrix, right, left, self.request.seed)


@dataclass(frozen=True, eq=False)
class PlannedLayer:
    """A layer with the planner of its better ordering."""

    name: str
    matrix: Tensor
    planner: Planner
    rows: Tensor | None
    cols: Tensor | None
    mean: Tensor | None
    bias: str | None
    memo: Recent[tuple[Choice, ...], tuple[HMatrix, Tensor | None]] = field(default_factory=lambda: Recent(KEPT_PLANS))

    def built(self, plan: Plan) -> tuple[HMatrix, Tensor | None]:
        """The stored weight, dense where that is smaller, and the mean of the error that a bias can absorb."""
        return self.memo.get(plan.leaves, lambda: self._built(plan))

    def _built(self, plan: Plan) -> tuple[HMatrix, Tensor | None]:
        h = self.planner.build(plan, self.rows, self.cols)
        if h.nbytes >= 4 * self.matrix.numel():
            h = HMatrix.from_dense(self.matrix)
        moves = self.bias and self.mean is not None and not h.is_dense
        return h, self.matrix @ self.mean - h.apply(self.mean[None])[0] if moves and self.mean is not None else None


def plan_layer(task: LayerTask) -> PlannedLayer:
    """The planner of one layer in the better of its orderings."""
    matrix, choices, whole = task.matrix, [], {}
    with one_blas_thread():  # in a forked worker the threads that BLAS had are gone, and it would wait for them
        orders, storages = task.orders, usable_storages(task.request.storages, largest_entry(matrix))
        for rows, cols in orders:
            source = task.source(rows, cols)
            source.memo.update(whole)
            planner = planner_for(source, task.request, task.budget2, storages)
            whole = dict(source.memo)
            source.memo.clear()
            cost = 0.0
            if len(orders) > 1:
                cost = planner.solve_budget(task.budget2).cost + (0 if rows is None else 4 * sum(matrix.shape))
            choices.append((cost, PlannedLayer(task.name, matrix, planner, rows, cols, task.mean, task.bias)))
    return min(choices, key=lambda pair: pair[0])[1]


def plan_layers(tasks: Sequence[LayerTask], executor: Executor | None) -> Iterator[PlannedLayer]:
    """`plan_layer` of every task, in order, each as soon as it and those before it are done."""
    for task, layer in zip(tasks, executor_map(plan_layer, tasks, executor), strict=True):
        if executor is not None:
            layer.planner.source = task.source(layer.rows, layer.cols)
            layer = replace(layer, matrix=task.matrix, mean=task.mean)
        yield layer


def whole_where_faster(layers: Sequence[PlannedLayer], plans: Sequence[Plan], built: Sequence[Constant]) -> list[Plan]:
    """The plans, but one low-rank leaf of no more predicted error where time times bytes falls by it.

    Many leaves gather, multiply and add in some ten operations, one low-rank leaf in two: where the data are smooth it
    may run five times faster at twice the bytes. built: what the plans gave.
    """
    out = []
    for layer, plan, h in zip(layers, plans, built, strict=True):
        if isinstance(h, HMatrix) and not h.is_dense and compressed_form(h) == "batched":
            whole = layer.planner.whole(plan.error2)
            if whole and _product(layer.planner.build(whole, layer.rows, layer.cols)) < _product(h):
                plan = whole
        out.append(plan)
    return out


def _product(h: HMatrix) -> float:
    """Bytes times predicted microseconds, the geometric mean over batches."""
    form = compressed_form(h)
    logs = [math.log(min(layer_us(h, form, b), layer_us(h, "multiplied", b))) for b in ANY_BATCH]
    return h.nbytes * math.exp(sum(logs) / len(logs))


@dataclass(frozen=True)
class Setting:
    """How moments are regularised: one of RIDGES, and whether the focused ones are taken."""

    ridges: tuple[float, float]
    focused: bool


@dataclass(frozen=True, eq=False)
class PlannedNetwork:
    """What candidates are built from: layers planned under one setting, and the biases kept in float16."""

    setting: Setting
    layers: tuple[PlannedLayer, ...]
    narrow: frozenset[str]
    memo: Recent[Any, "Candidate"] = field(default_factory=lambda: Recent(KEPT_PLANS))  # by narrow biases and plans


@dataclass(frozen=True, eq=False)
class Candidate:
    """A compressed program with its measured error on the search rows, and the plans that made it."""

    program: Program
    error: OutputError
    nbytes: int
    network: PlannedNetwork
    plans: tuple[Plan, ...]


def build(original: Original, network: PlannedNetwork, plans: Sequence[Plan]) -> Candidate:
    """The network that `plans` of its layers give: dense where that is smaller, errors' means absorbed by biases."""
    key = (network.narrow, *(p.leaves for p in plans))
    return network.memo.get(key, lambda: _built(original, network, plans))


def _built(original: Original, network: PlannedNetwork, plans: Sequence[Plan]) -> Candidate:
    constants: dict[str, Constant] = dict(original.program.constants)
    for layer, plan in zip(network.layers, plans, strict=True):
        constants[layer.name], moved = layer.built(plan)
        bias = original.program.constants[layer.bias] if layer.bias else None
        if layer.bias and moved is not None and isinstance(bias, Tensor):
            constants[layer.bias] = bias + moved
    program = stored(original.program.with_constants(constants | halves(constants, network.narrow)))
    return Candidate(program, search_error(original, program), program_nbytes(program), network, tuple(plans))


@dataclass(frozen=True, eq=False)
class Member:
    """A candidate without what it built: its bytes, its limit on the search rows, and the plans that give it again."""

    nbytes: int
    limit: float
    network: PlannedNetwork
    plans: tuple[Plan, ...]

    @staticmethod
    def of(candidate: Candidate) -> "Member":
        """What stays of a candidate."""
        return Member(candidate.nbytes, candidate.error.limit, candidate.network, candidate.plans)


@dataclass(frozen=True, eq=False)
class Front:
    """Of all candidates so far those than which none is both smaller and more accurate, largest first."""

    members: list[Member] = field(default_factory=list)

    def noted(self, candidate: Candidate) -> Candidate:
        """The candidate itself, kept in mind where it belongs to the front."""
        new = Member.of(candidate)
        if math.isfinite(new.limit) and not any(m.nbytes <= new.nbytes and m.limit <= new.limit for m in self.members):
            others = (m for m in self.members if m.nbytes < new.nbytes or m.limit < new.limit)
            self.members[:] = sorted([*others, new], key=lambda m: -m.nbytes)
        return candidate

    def below(self, nbytes: int) -> Member | None:
        """The largest that is smaller than so many bytes."""
        return next((m for m in self.members if m.nbytes < nbytes), None)


def search_error(original: Original, program: Program) -> OutputError:
    """Of a stored program on the search rows; see `Original.replay` for the arithmetic. Jumps count where the rest of
    it is near what is allowed.
    """
    aim, outputs = original.aim, original.replay.outputs(program.constants)
    error = aim.error(original.search_reference, outputs)
    if original.search_jumps is None or error.limit > HOPELESS * original.tol:
        return error
    return aim.error(original.search_reference, outputs, unseen=original.search_jumps.unseen(program.constants))


def halvable(program: Program, storages: tuple[str, ...]) -> frozenset[str]:
    """The biases that float16, if it is one of `storages`, can hold."""
    biases = {n.inputs[2]: program.constants[n.inputs[2]] for n in program.linear_nodes if len(n.inputs) == 3}
    return frozenset(k for k, c in biases.items() if "float16" in storages and isinstance(c, Tensor) and _fits_half(c))


def halves(constants: Mapping[str, Constant], names: frozenset[str]) -> dict[str, Constant]:
    """The tensors among `constants` with these names, in float16 where it can hold them: an error's mean may have made
    a bias larger than it was.
    """
    return {k: c.half() for k, c in constants.items() if k in names and isinstance(c, Tensor) and _fits_half(c)}


def _fits_half(c: Tensor) -> bool:
    return usable_storages(("float16",), largest_entry(c)) != ("float32",)
