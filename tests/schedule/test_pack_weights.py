"""hrt.schedule.pack_weights: rows are cut into panels, columns are covered by windows, nothing twice."""

from hypothesis import given
from hypothesis import strategies as st

from hrt.schedule.pack_weights import Layout, panels, windows


@given(st.lists(st.integers(0, 90), max_size=8), st.integers(1, 90), st.integers(1, 30))
def test_panels_tile_the_rows(cuts, rows, limit):
    cuts = sorted({0, rows, *(c for c in cuts if c < rows)})
    ranges = panels(cuts, limit)
    assert [a for a, _ in ranges] == [0, *(b for _, b in ranges[:-1])] and ranges[-1][1] == rows
    assert all(0 < b - a <= limit for a, b in ranges)


def test_panels_end_at_cuts_where_they_can():
    assert panels([0, 16, 32, 48, 64, 200], 64) == [(0, 64), (64, 128), (128, 192), (192, 200)]
    assert panels([0, 40, 80, 100], 64) == [(0, 40), (40, 100)]
    assert panels([0, 3, 5], None) == [(0, 3), (3, 5)]


@given(
    st.lists(st.tuples(st.integers(0, 80), st.integers(1, 30)), min_size=1, max_size=6),
    st.sampled_from([(1, 3), (4, 8), (8, 8), (8, 32)]),
)
def test_windows_cover_every_column_once_and_stay_inside(spans, sizes):
    unit, size = sizes
    layout = Layout(4, size, unit)
    spans = sorted((a, a + k) for a, k in spans)
    width = layout.padded(max(b for _, b in spans))
    starts, fresh = windows(spans, layout, width)
    assert (starts % unit == 0).all() and starts.min() >= 0 and starts.max() + size <= width
    owned = [c for s, f in zip(starts, fresh, strict=True) for c in range(f, s + size)]
    assert len(owned) == len(set(owned))
    assert {c for a, b in spans for c in range(a, b)} <= set(owned)


def test_padding_reaches_past_the_last_column():
    assert [Layout(4, 16, 8).padded(k) for k in (0, 1, 16, 17, 25)] == [0, 16, 16, 24, 32]
    assert [Layout().padded(k) for k in (0, 1, 17)] == [0, 1, 17]
