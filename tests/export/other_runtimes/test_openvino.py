"""OpenVINO computes in float32 or is refused."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

import hrt
from hrt.capture.torch_export import capture
from hrt.certificate.certificate import Certificate
from hrt.export.onnx import to_onnx
from hrt.export.other_runtimes import check_openvino, open_openvino, openvino
from hrt.model.model import CompressedModel

from models import linear_model


def test_another_arithmetic_is_refused(monkeypatch):
    """As on a chip, or a version, that does not do what it is told."""
    proto = to_onnx(linear_model(torch.eye(3)))
    open_openvino(proto)
    monkeypatch.setattr(openvino, "EXPECTED", "another")
    with pytest.raises(hrt.BackendError, match=r"OpenVINO computes in \w+ though .*Expected \w+: the certificate"):
        open_openvino(proto)


def test_int8_weights_do_not_make_it_quantize_activations():
    """On chips with VNNI it does so by default, in f32 too, and is then 5e-3 off."""
    dense = torch.randint(-127, 128, (512, 1024), dtype=torch.int8)
    leaf = hrt.Leaf(0, 512, 0, 1024, dense=dense, scale=torch.rand(512).bfloat16())
    model = linear_model(hrt.HMatrix((512, 1024), (leaf,)))
    x = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    assert max(check_openvino(to_onnx(model), model, x).values()) <= 1e-6
    session = open_openvino(to_onnx(model))
    assert session.compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0


@pytest.mark.parametrize("seed", [1, 2])
def test_small_layers_whose_entries_it_works_out(seed):
    """Their int8 factors reach a Gemm through constants alone: it refused what was written as an answer to EyeLike."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    model = hrt.compress(net, inputs=torch.rand(500, 2), tol=1e-2, progress=False)
    assert max(check_openvino(to_onnx(model), model).values()) <= 1e-5


class PerChannel(nn.Module):
    """A number for every channel, beside a product with a constant matrix."""

    def __init__(self, *bias: int):
        super().__init__()
        self.matrix, self.bias = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(bias))

    def forward(self, x):
        return (x @ self.matrix + self.bias) - 2 * self.bias


@pytest.mark.parametrize(
    ("shape", "bias"), [((8, 5, 6), (8, 1, 1)), ((8, 5, 6), (1, 8, 1, 1)), ((7, 2, 3, 6), (7, 1, 1, 1))]
)
def test_channels_are_not_taken_for_the_bias_of_a_product(shape, bias):
    """It added 8 of them along a last axis of 8, as in FNOs on as many points as channels, and refused 7."""
    torch.manual_seed(0)
    model = CompressedModel(capture(PerChannel(*bias), [torch.rand(2, *shape)]), Certificate(1e-2, "layers", ()))
    assert max(check_openvino(to_onnx(model), model).values()) <= 1e-5


def test_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    model = linear_model(torch.eye(3))
    with pytest.raises(hrt.BackendError, match=r"OpenVINO is not installed\. Install it: pip install"):
        check_openvino(to_onnx(model), model)
