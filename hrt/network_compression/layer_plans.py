"""Planning one layer of a network: a task that can travel to another process, and what comes back."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from torch import Tensor

from hrt.matrix_compression.block_source import BlockSource
from hrt.matrix_compression.cluster_tree import default_min_leaf, gram_order
from hrt.matrix_compression.orderings import ORDERING_SIDE, permute
from hrt.matrix_compression.planner import KeptPlanner, Planner
from hrt.matrix_compression.request import MatrixRequest
from hrt.support.parallel import executor_map, one_blas_thread


@dataclass(frozen=True, eq=False)
class PlannedLayer:
    """A layer with the planner of its better ordering, and the bias that can absorb the mean of its error."""

    name: str
    matrix: Tensor
    planner: Planner
    rows: Tensor | None
    cols: Tensor | None
    mean: Tensor | None
    bias: str | None


@dataclass(frozen=True, eq=False)
class LayerTask:
    """What it takes to plan one layer, in this process or in another."""

    name: str
    matrix: Tensor
    right: Tensor
    left: Tensor
    mean: Tensor | None
    bias: str | None
    budget2: float
    request: MatrixRequest

    def source(self, rows: Tensor | None, cols: Tensor | None) -> BlockSource:
        """The matrix and its weights in tree order. Copies: BLAS may round differently where memory is aligned
        differently, as that of a tensor from another process is.
        """
        pairs = (self.matrix, rows, cols), (self.right, cols, cols), (self.left, rows, rows)
        matrix, right, left = (permute(*p).clone() for p in pairs)
        return BlockSource(matrix, right, left, self.request.seed)


def plan_layer(task: LayerTask) -> PlannedLayer:
    """The planner of one layer in the better of its orderings."""
    matrix, choices = task.matrix, []
    m, n = matrix.shape
    partition = task.request.partition
    orders: list[tuple[Tensor | None, Tensor | None]] = [(None, None)]
    if partition is not None:
        orders = [(partition.row_order, partition.col_order)]
    with one_blas_thread():  # in a forked worker the threads that BLAS had are gone, and it would wait for them
        if partition is None and min(m, n) >= ORDERING_SIDE:
            orders.append((gram_order(matrix), gram_order(matrix.T)))
        for rows, cols in orders:
            source, leaf = task.source(rows, cols), default_min_leaf(m, n)
            common = {"storages": task.request.storages, "target": task.request.target, "budget2": task.budget2}
            if partition is None:
                planner = Planner(source, min_leaf=leaf, **common)
            else:
                planner = KeptPlanner(source, partition, **common)
            cost = planner.solve_budget(task.budget2).cost + (0 if rows is None else 4 * (m + n))
            choices.append((cost, PlannedLayer(task.name, matrix, planner, rows, cols, task.mean, task.bias)))
    return min(choices, key=lambda pair: pair[0])[1]


def plan_layers(tasks: Sequence[LayerTask], executor: Executor | None) -> Iterator[PlannedLayer]:
    """`plan_layer` of every task, in order, each as soon as it and those before it are done."""
    for task, layer in zip(tasks, executor_map(plan_layer, tasks, executor), strict=True):
        if executor is not None:
            layer.planner.source = task.source(layer.rows, layer.cols)
            layer = replace(layer, matrix=task.matrix, mean=task.mean)
        yield layer
