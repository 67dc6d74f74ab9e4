"""A Program as an ordinary torch module of `nn.Linear` layers, which torch.compile and torchao can read."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from hrt.hmatrix.hmatrix import HMatrix
from hrt.program import Node, Program, to_float64

Layer = Callable[[Tensor, Tensor | None], nn.Module]  # weight (m, n) and bias (m,), float32, to a layer


def dense_layer(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """An nn.Linear that owns copies of weight (m, n) and bias (m,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return layer


def module_of(program: Program, layers: Mapping[str, Layer] | None = None) -> fx.GraphModule:
    """The float32 network in evaluation mode: inputs as separate arguments, one tensor or a tuple back.

    layers: by name of a weight, what to make of it instead of an nn.Linear. `weight_name` of each submodule says whose
    it is. A tied weight used with one bias is one layer.
    """
    graph, root = fx.Graph(), nn.Module()
    values: dict[str, Any] = {}
    values |= {v.name: graph.placeholder(f"x{k}") for k, v in enumerate(program.inputs)}
    names: dict[tuple[str, ...], str] = {}
    for name, constant in program.constants.items():
        if any(_reads(node, name) for node in program.nodes) or name in program.outputs:
            key = f"constant{len(values)}"
            root.register_buffer(key, _float(constant))
            values[name] = graph.get_attr(key)
    for node in program.nodes:
        if node.op == "linear":
            x, weight, *rest = node.inputs
            key = names.get((weight, *rest))
            if key is None:
                key = names[weight, *rest] = f"layer{len(names)}"
                bias = _float(program.constants[rest[0]]) if rest else None
                layer = (layers or {}).get(weight, dense_layer)(_float(program.constants[weight]), bias)
                layer.weight_name = weight  # type: ignore[assignment]
                root.add_module(key, layer)
            values[node.name] = graph.call_module(key, (values[x],))
        else:
            values[node.name] = graph.call_function(_function(node), tuple(values[name] for name in node.inputs))
    outputs = tuple(values[name] for name in program.outputs)
    graph.output(outputs[0] if len(outputs) == 1 else outputs)
    return fx.GraphModule(root, graph).eval()


def factored(program: Program, factors: Mapping[str, tuple[Tensor, Tensor]]) -> Program:
    """The program with these weights as u (m, r) times vt (r, n): two linear nodes in place of one."""
    nodes: list[Node] = []
    constants = {k: c for k, c in program.constants.items() if k not in factors}
    for node in program.nodes:
        if node.op != "linear" or node.inputs[1] not in factors:
            nodes.append(node)
            continue
        x, weight, *bias = node.inputs
        u, vt = factors[weight]
        thin = f"{node.name}/thin"
        constants |= {f"{weight}/u": u, f"{weight}/vt": vt}
        nodes.append(replace(node, name=thin, inputs=(x, f"{weight}/vt"), shape=(*node.shape[:-1], len(vt))))
        nodes.append(replace(node, inputs=(thin, f"{weight}/u", *bias)))
    return replace(program, nodes=tuple(nodes), constants=constants)


def written_out(program: Program) -> Program:
    """The same program with every compressed weight as the dense matrix that it stands for."""
    return program.with_constants({k: to_float64(c) for k, c in program.constants.items() if isinstance(c, HMatrix)})


def _function(node: Node) -> Callable[..., Tensor]:
    def call(*arguments: Any) -> Tensor:
        return node.row.torch(arguments, node.attrs)

    call.__name__ = call.__qualname__ = node.op  # what the generated code calls it
    return call


def _reads(node: Node, name: str) -> bool:
    """Whether a node needs a constant as a value: anything but a linear node's weight and bias."""
    return name in (node.inputs[:1] if node.op == "linear" else node.inputs)


def _float(constant: Tensor | HMatrix) -> Tensor:
    return constant.to_dense(torch.float32) if isinstance(constant, HMatrix) else constant.detach().float()
