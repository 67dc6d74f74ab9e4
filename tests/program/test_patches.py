"""The row `patches`: against torch's own unfolding, on any leading axes, closed to attributes that are no window."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from hrt.program.check_program import check_program
from hrt.program.patches import Window, patches
from hrt.program.program import Node, Program, Value

PLAIN = {"kernel": [3, 2], "stride": [1, 2], "dilation": [1, 1], "padding": [1, 0, 1, 0]}


@given(st.data())
def test_is_torchs_unfolding(data: st.DataObject) -> None:
    k, s, d, p = (
        tuple(data.draw(st.integers(low, high)) for _ in range(2)) for low, high in ((1, 3), (1, 3), (1, 3), (0, 2))
    )
    window = Window(k, s, d, p * 2)
    sizes = tuple(data.draw(st.integers(3, 8)) for _ in range(2))
    assume(min(window.steps((1, *sizes))) > 0)
    x = torch.randn(2, 3, *sizes, dtype=torch.float64)
    y = patches(x, window.attrs)
    assert torch.equal(y.flatten(1, 2), F.unfold(x, k, d, p, s).mT)
    assert y.shape[1:] == window.result_shape(tuple(x.shape[1:]))
    assert torch.equal(patches(x[:, None], window.attrs)[:, 0], y)  # an axis more before the channels
    counts = patches(torch.arange(x[0].numel(), dtype=torch.float64).reshape(x[:1].shape) + 1, window.attrs)
    repeats = counts.flatten().long().bincount()[1:]
    assert int(repeats.max()) <= window.repeats


def program(
    attrs: dict[str, Any], shape: tuple[int, ...] = (3, 6, 7), result: tuple[int, ...] | None = None
) -> Program:
    claimed = Window.of(PLAIN).result_shape((3, 6, 7)) if result is None else result
    return Program((Value("x", shape),), (Node("y", "patches", ("x",), claimed, attrs),), ("y",), {})


def test_a_window_is_accepted() -> None:
    check_program(program(PLAIN))


@pytest.mark.parametrize(
    "changed",
    [
        {"kernel": [0, 2]},
        {"kernel": [3, 2, 1]},
        {"kernel": [3.0, 2]},
        {"kernel": [True, 2]},
        {"kernel": "32"},
        {"kernel": [2**40, 2]},
        {"stride": [0, 2]},
        {"stride": [1]},
        {"dilation": [-1, 1]},
        {"padding": [1, 0]},
        {"padding": [-1, 0, 3, 0]},
        {"padding": [2**40, 0, 1, 0]},
        {"groups": 1},
    ],
)
def test_attributes_that_are_no_window_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        check_program(program({**PLAIN, **changed}))


def test_a_window_over_the_batch_or_another_shape_is_refused() -> None:
    for shape, result in (((6,), (6, 1)), ((3, 6, 7), (6, 3, 17)), ((6, 7), (6, 3, 6))):
        with pytest.raises((ValueError, RuntimeError, IndexError)):
            check_program(program(PLAIN, shape, result))
