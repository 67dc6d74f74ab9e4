"""Convolutions as one step: every node still reads what is there."""

import torch
from torch import nn

from hrt.capture.torch_export import capture
from hrt.program.convolutions import CONVOLUTION, convolve, fused


class ThenAlongPoints(nn.Module):
    """A kernel of 1, a matrix along points, channels behind: the transpose in the middle could be part of both."""

    def __init__(self):
        super().__init__()
        self.kernel, self.points = nn.Conv1d(4, 5, 1), nn.Parameter(torch.randn(6, 7))

    def forward(self, x):
        return (self.kernel(x) @ self.points).transpose(1, 2)


def test_a_node_is_part_of_one_convolution_alone():
    net = ThenAlongPoints()
    program, x = capture(net, [torch.zeros(2, 4, 6)]), torch.rand(3, 4, 6, dtype=torch.float64)
    values = {program.inputs[0].name: x, **program.constants}
    for node in fused(program):
        arguments = [values[name] for name in node.inputs]  # KeyError where a node went that is read
        function = convolve if node.op == CONVOLUTION else node.row.torch
        values[node.name] = function(arguments, node.attrs)
    torch.testing.assert_close(values[program.outputs[0]], net.double()(x))
