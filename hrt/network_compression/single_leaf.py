"""One leaf where several would be slower: bytes are not all that a CPU's time depends on.

A layer of many leaves gathers, multiplies and adds in some ten operations; one low-rank leaf takes two. Where the data
are smooth, one leaf of twice the bytes may run five times faster. `hrt.runtime.onnx_costs` predicts both times, and the
layer for a CPU is the one with the smaller product of time and bytes.
"""

import math
from collections.abc import Sequence

from hrt.hmatrix.hmatrix import HMatrix
from hrt.matrix_compression.planner import Plan
from hrt.network_compression.layer_plans import PlannedLayer
from hrt.program.program import Constant
from hrt.runtime.onnx_costs import ANY_BATCH, compressed_form, layer_us


def whole_where_faster(layers: Sequence[PlannedLayer], plans: Sequence[Plan], built: Sequence[Constant]) -> list[Plan]:
    """The plans, with one low-rank leaf of no more predicted error in place of several where time times bytes falls.

    built: what the plans gave, in the same order.
    """
    return [_choice(*each) for each in zip(layers, plans, built, strict=True)]


def _choice(layer: PlannedLayer, plan: Plan, h: Constant) -> Plan:
    if not isinstance(h, HMatrix) or h.is_dense or compressed_form(h) != "batched":
        return plan
    whole = layer.planner.whole(plan.error2)
    if whole is None or _product(layer.planner.build(whole, layer.rows, layer.cols)) >= _product(h):
        return plan
    return whole


def _product(h: HMatrix) -> float:
    """Bytes times predicted microseconds, the geometric mean over batches."""
    form = compressed_form(h)
    logs = [math.log(min(layer_us(h, form, b), layer_us(h, "multiplied", b))) for b in ANY_BATCH]
    return h.nbytes * math.exp(sum(logs) / len(logs))
