"""Convolutions are patches times a weight: whatever kernel, stride, dilation, padding and groups, as torch says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hrt
from hrt.capture.torch_export import capture
from hrt.derivatives.differentiate import differentiate
from hrt.errors import CaptureError
from hrt.export.onnx.check import open_runtime
from hrt.export.onnx.exporter import graph_of
from hrt.program.check_program import check_program
from hrt.runtime.torch_session import TorchSession

from helpers import hierarchical

PLAIN = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
TRANSPOSED = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
RUNS = 30


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor]:
    """A convolution of any kind that torch itself runs on the rows."""
    axes, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2, 3]))

    def sides(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    kernel, stride, dilation, padding = sides(1, 4), sides(1, 3), sides(1, 2), sides(0, 2)
    channels, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))
    options: dict[str, Any] = {"groups": groups, "bias": draw(st.booleans()), "dilation": dilation}
    if draw(st.booleans()):
        extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
        kind = TRANSPOSED[axes - 1]
        options |= {"stride": stride, "padding": padding, "output_padding": tuple(extra)}
    else:
        kind, mode = PLAIN[axes - 1], draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        if draw(st.booleans()):
            options |= {"padding": "same", "padding_mode": mode}
        else:
            options |= {"padding": padding, "stride": stride, "padding_mode": mode}
    net = kind(channels, outputs, kernel, **options).double().eval()
    x = torch.randn(3, channels, *sides(5, 8), dtype=torch.float64)
    try:
        net(x)
    except (RuntimeError, NotImplementedError):  # a window that does not fit
        return nn.Conv1d(1, 1, 1).double(), torch.randn(3, 1, 4, dtype=torch.float64)
    return net, x


@settings(max_examples=RUNS)
@given(convolutions())
def test_is_torchs(case: tuple[nn.Module, torch.Tensor]) -> None:
    net, x = case
    program = capture(net, [x])
    check_program(program)
    (y,) = program.run([x])
    torch.testing.assert_close(y, net(x).detach(), rtol=1e-12, atol=1e-12)
    assert sum(program.constants[name].numel() for name in program.weights) <= net.weight.numel()  # nothing is doubled
    (served,) = TorchSession(program).run([x.float()])
    torch.testing.assert_close(served, y.float(), rtol=2e-5, atol=2e-5)


@settings(max_examples=RUNS // 3)
@given(convolutions(), st.booleans(), st.booleans())
def test_runs_in_onnxruntime(case: tuple[nn.Module, torch.Tensor], compressed: bool, narrow: bool) -> None:
    net, x = case
    program = capture(net, [x])
    program = hierarchical(program, seed=1) if compressed else program
    (expected,) = program.run([x])
    proto = graph_of(program, narrow=narrow)
    session = open_runtime(proto)
    for rows in (3, 1, 0):
        (y,) = session.run(None, {proto.graph.input[0].name: x[:rows].float().numpy()})
        torch.testing.assert_close(torch.from_numpy(y), expected[:rows].float(), rtol=1e-4, atol=1e-4)


def ops_of(net: nn.Module, *shape: int) -> list[str]:
    return [node.op for node in capture(net.eval(), [torch.zeros(2, *shape)]).nodes]


class TestHowItIsSaid:
    def test_a_kernel_of_one_needs_no_patches(self) -> None:
        assert ops_of(nn.Conv2d(3, 4, 1), 3, 5, 5) == ["transpose", "linear", "transpose"]

    def test_a_patch_embedding_moves_numbers_only(self) -> None:
        ops = ops_of(nn.Conv2d(3, 8, 4, stride=4), 3, 8, 8)
        assert ops == ["reshape", "transpose", "reshape", "linear", "transpose"]

    def test_zeros_around_belong_to_the_window(self) -> None:
        net = nn.Sequential(nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(2, 3, 3, dilation=2))
        assert ops_of(net, 2, 9) == ["patches", "linear", "transpose"]

    def test_a_transposed_one_by_blocks_holds_each_number_once(self) -> None:
        net = nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1, bias=False)
        program = capture(net, [torch.zeros(2, 3, 5, 5)])
        assert [program.constants[name].shape for name in program.weights] == [(2 * 4, 3 * 4)]

    def test_channels_by_themselves_stay_few_nodes(self) -> None:
        assert len(ops_of(nn.Conv2d(64, 128, 3, groups=64, padding=1), 64, 6, 6)) <= 8

    def test_a_kernel_that_depends_on_the_input_is_refused_by_name(self) -> None:
        class Hyper(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return nn.functional.conv1d(torch.ones(1, 1, 4), x[:, None, :2])

        with pytest.raises(CaptureError, match=r"Op conv1d .* its kernel depends on the input"):
            capture(Hyper(), [torch.zeros(2, 4)])


def test_exports_one_convolution_or_two_thin_ones() -> None:
    net = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.Tanh(), nn.Conv2d(16, 16, 3, padding=1))
    with torch.no_grad():  # of rank 2
        net[2].weight.copy_((torch.randn(16, 2) @ torch.randn(2, 144)).reshape(16, 16, 3, 3))
    model = hrt.compress(net, inputs=torch.randn(32, 4, 6, 6), tol=1e-3, progress=False)
    convolutions = [n for n in graph_of(model.program).graph.node if n.op_type == "Conv"]
    assert [len(n.input) for n in convolutions] == [3, 2, 3]  # dense; thin, without a bias, and points
    assert all(n.op_type != "Transpose" for n in graph_of(model.program, narrow=False).graph.node)


def test_derivatives_by_a_pixel() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 1)).double()
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    program = capture(net, [x])
    derived = differentiate(program, ["d5"]).program
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net(leaf).sum(), leaf)
    torch.testing.assert_close(derived.run([x])[1][:, 0], slope.flatten(1)[:, 5], rtol=1e-10, atol=1e-12)
