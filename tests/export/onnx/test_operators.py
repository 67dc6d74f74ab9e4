"""Every row of the op table in ONNX, by every opset: as torch says it in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hrt.export.onnx.check import open_runtime
from hrt.export.onnx.exporter import OPSETS, graph_of
from hrt.program.op_table import TABLE, Op

from op_cases import ACTIVATIONS, CASES, DOMAINS, POSITIVE, A, Case, program_of

BATCH = len(A)


def ranged(op: str, attrs: dict[str, Any]) -> Tensor:
    low, high = DOMAINS.get(op, (0.1 if op in POSITIVE or attrs.get("exponent", 2.0) % 1 else -3.0, 3.0))
    return low + (high - low) * torch.rand(BATCH, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


ALL: list[Case] = [(name, arguments, attrs) for name, arguments, attrs, _ in CASES]
for activation in ACTIVATIONS:
    row, settings = activation.values
    assert isinstance(row, Op) and isinstance(settings, dict)
    ALL.append((row.name, [ranged(row.name, settings)], settings))
SPECIAL: list[Case] = [
    ("atan2", (torch.tensor([[0.0, 1, 0, -1, 1e-3]]).double(), torch.tensor([[0.0, 0, -2, 0, -4]]).double()), {}),
    ("sinc", (torch.tensor([[0.0, 1e-4, -1e-20, 1, 2.5]]).double(),), {}),
    ("fmod", (torch.tensor([[-2.5, 2.5, 2.0, -1e-3]]).double(), torch.tensor(-1.0).double()), {}),
    ("round", (torch.tensor([[-2.5, 2.5, 0.5, 1.5]]).double(),), {}),
    ("softmax", (torch.tensor([[100.0, -1e30, 99.0]]).double(),), {"axis": -1}),
    ("logsumexp", (torch.tensor([[300.0, 299.0, -400.0]]).double(),), {"axes": [-1], "keep": True}),
    ("where", (torch.tensor([[0.0, 1.0]]).double(), torch.tensor([[9.0, 2.0]]).double(), torch.ones(2).double()), {}),
]


@pytest.mark.parametrize("case", ALL + SPECIAL, ids=[f"{name}-{k}" for k, (name, *_) in enumerate(ALL + SPECIAL)])
def test_is_what_torch_says(case: Case) -> None:
    program, inputs = program_of(case)
    (expected,) = program.run(inputs)
    for opset in OPSETS:
        proto = graph_of(program, opset)
        (y,) = open_runtime(proto).run(
            None, {v.name: x.float().numpy() for v, x in zip(program.inputs, inputs, strict=True)}
        )
        assert y.dtype == np.float32 and y.shape == tuple(expected.shape)
        torch.testing.assert_close(torch.from_numpy(y).double(), expected, rtol=3e-6, atol=3e-6)


def test_every_row_is_exported() -> None:
    assert {name for name, *_ in ALL} == set(TABLE)
