"""A network's graph as torch's dispatcher sees it, for networks that torch.export does not follow.

`make_fx` notes every operator that is carried out, those of derivatives too: forces from an energy, Hamiltonian
networks. What it notes is exported again, with the batch free and every weight under its own name.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import decomposition_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.fx.graph import CodeGen

from hrt.capture.calls import Call, tensors_in

aten = torch.ops.aten
FILLED = {aten.ones_like.default: 1.0, aten.zeros_like.default: 0.0}  # read nothing of their argument but its shape


def dispatched(net: nn.Module, rows: Sequence[Tensor], call: Call) -> ExportedProgram:
    """The graph of a network in evaluation mode. rows: of a few samples. Raises, in any way, where there is none."""
    state: dict[str, Any] = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    fakes = FakeTensorMode(shape_env=ShapeEnv())

    def fake(x: Tensor, first: DimDynamic) -> Tensor:
        sizes = [first, *[DimDynamic.STATIC] * x.ndim][: x.ndim]
        return fakes.from_tensor(x.detach(), symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))

    def outputs(weights: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        named = dict(zip(state, weights, strict=True))
        return tuple(tensors_in(torch.func.functional_call(net, named, *call.arguments(inputs))))

    weights = [fake(t, DimDynamic.STATIC) for t in state.values()]
    inputs = [fake(x, DimDynamic.DYNAMIC) for x in rows]
    simpler = {op: f for op, f in decomposition_table.items() if "backward" in str(op)}  # derivatives as plain ops
    trace = make_fx(outputs, simpler, tracing_mode="symbolic", _allow_non_fake_inputs=True)
    module = _with_weights(trace(weights, inputs), state)
    shapes = tuple({0: torch.export.Dim("batch", min=1)} for _ in rows)
    return torch.export.export(module, tuple(rows), dynamic_shapes=shapes, strict=False)


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
