"""The batch is an axis: wherever an author holds it, the program gives what the network gives."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hrt.capture.torch_export import capture

from random_layouts import BATCH, Draw


@settings(deadline=None, max_examples=25)
@given(st.data(), st.lists(st.integers(1, 4), max_size=3), st.integers(1, 8))
def test_steps_in_any_layout(data: st.DataObject, shape: list[int], count: int) -> None:
    draw = Draw(data, tuple(shape))
    for _ in range(count):
        draw.step()
    net = draw.finish()
    x = draw.numbers(BATCH, *shape)
    (y,) = capture(net, [x[:2]]).run([x])
    expected = net(x)
    assert y.shape == expected.shape, draw.words
    assert float((y - expected).abs().max()) <= 1e-12 * max(1.0, float(expected.abs().max())), draw.words
