"""Linear layers as nodes of a domain of our own, each with its body in standard operators: what a graph of a hundred
small products is about stays visible in it, and a runtime that has something better for the node may put that there.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import onnx
from onnx import helper

from hrt.export.onnx.graph import Graph

DOMAIN, VERSION = "hrt", 1


class Functions:
    """Collects a function per layer of a graph. made: those so far."""

    def __init__(self, g: Graph):
        self.g = g
        self.made: list[onnx.FunctionProto] = []

    @contextmanager
    def layer(self, kind: str) -> Iterator[None]:
        """The nodes added in this block become one node of the type `kind` and a number, the last one's output its own.

        Constants are the function's inputs, since functions cannot hold any.
        """
        first = len(self.g.nodes)
        yield
        body = self.g.nodes[first:]
        if not body:
            return
        inner = {name for node in body for name in node.output}
        inputs = list(dict.fromkeys(name for node in body for name in node.input if name and name not in inner))
        (output,) = body[-1].output
        name = f"{kind}_{len(self.made)}"
        opsets = [helper.make_opsetid("", self.g.opset)]
        self.made.append(helper.make_function(DOMAIN, name, inputs, [output], body, opsets))
        self.g.nodes[first:] = [helper.make_node(name, inputs, [output], name=self.g.name(name), domain=DOMAIN)]
