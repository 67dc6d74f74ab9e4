"""A network's graph as torch's dispatcher sees it: with the derivatives and the maps over samples inside it."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx.graph import CodeGen
from torch.fx.node import map_aggregate

from hrt.capture.calls import Call, tensors_in, with_state

aten = torch.ops.aten
FILLED = {aten.ones_like.default: 1.0, aten.zeros_like.default: 0.0}  # read nothing of their argument but its shape
BATCH = 10007  # a prime: sizes of which it is a factor are of the batch


def dispatched(net: nn.Module, rows: Sequence[Tensor], call: Call, *, any_batch: bool = True) -> ExportedProgram:
    """The graph of a network in evaluation mode. rows: of a few samples. any_batch: traced so; else with a batch of
    one size, where a rule of torch's maps asks for a number, and made one of any afterwards. Raises, in any way, where
    there is none.
    """
    # Here, because torch's compiler takes two seconds to import, which whoever loads a network would pay.
    from torch._decomp import decomposition_table
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    state: dict[str, Any] = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    fakes = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def fake(x: Tensor, first: DimDynamic) -> Tensor:
        sizes = [first, *[DimDynamic.STATIC] * x.ndim][: x.ndim]
        return fakes.from_tensor(x.detach(), symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))

    def of_one_size(x: Tensor) -> Tensor:
        with fakes:
            return torch.empty((BATCH, *x.shape[1:]), dtype=x.dtype, device=x.device)

    def outputs(weights: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        named = dict(zip(state, weights, strict=True))
        return tuple(tensors_in(call.answers(with_state(net, named), inputs)))

    weights = [fake(t, DimDynamic.STATIC) for t in state.values()]
    inputs = [fake(x, DimDynamic.DYNAMIC) if any_batch else of_one_size(x) for x in rows]
    simpler = {op: f for op, f in decomposition_table.items() if "backward" in str(op)}  # derivatives as plain ops
    trace = make_fx(outputs, simpler, tracing_mode="symbolic", _allow_non_fake_inputs=True)
    module = _with_weights(trace(weights, inputs), state)
    if not any_batch:
        _free_batch(module)
    shapes = tuple({0: torch.export.Dim("batch", min=1)} for _ in rows)
    return torch.export.export(module, tuple(rows), dynamic_shapes=shapes, strict=False)


def _free_batch(module: torch.fx.GraphModule) -> None:
    """Write the first input's size for every size that BATCH is a factor of."""
    graph = module.graph
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    with graph.inserting_after(inputs[-1]):
        size = graph.call_function(aten.sym_size.int, (inputs[0], 0))

    for node in list(graph.nodes):

        def sized(value: Any, node: torch.fx.Node = node) -> Any:
            if type(value) is not int or not value or value % BATCH:
                return value
            with graph.inserting_before(node):
                return graph.call_function(operator.mul, (size, value // BATCH)) if value != BATCH else size

        if node.op == "call_function" and node is not size:
            node.args, node.kwargs = map_aggregate(node.args, sized), map_aggregate(node.kwargs, sized)
    module.recompile()


def _with_weights(traced: torch.fx.GraphModule, state: dict[str, Any]) -> torch.fx.GraphModule:
    """A module of the graph, whose first arguments become its attributes under the names of `state`."""
    graph = traced.graph
    attributes = {n.target: getattr(traced, n.target) for n in graph.nodes if n.op == "get_attr"}
    for node, (name, tensor) in zip(list(graph.nodes), state.items(), strict=False):
        if node.users:
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.create_node("get_attr", name))
            attributes[name] = tensor
        graph.erase_node(node)
    for node in list(graph.nodes):
        if node.target in FILLED and all(isinstance(n, int) for n in node.meta["val"].shape):
            shape, options = list(node.meta["val"].shape), {"dtype": node.meta["val"].dtype}
            with graph.inserting_before(node):
                node.replace_all_uses_with(
                    graph.call_function(aten.full.default, (shape, FILLED[node.target]), options)
                )
    graph.set_codegen(CodeGen())
    module = torch.fx.GraphModule(attributes, graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module
