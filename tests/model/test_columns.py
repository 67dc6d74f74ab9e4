"""JSON in columns: the same again, in fewer bytes, and no more of a forged text than it may become."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrt.model.columns import FORMS, GAP, columns, rows

MOST = 1 << 20
WORDS = st.text("ab#0195_.|-", max_size=9) | st.sampled_from(FORMS)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS | st.text(max_size=3)
RECORDS = st.lists(st.fixed_dictionaries({"a": PLAIN, "b.1": st.lists(PLAIN, min_size=2, max_size=2)}), max_size=9)
NAMES = st.lists(st.from_regex(r"(layer|w)\.[0-9]{1,3}(_[0-9]{1,16})?", fullmatch=True), max_size=12)


def deep(inner: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(inner, max_size=6) | st.dictionaries(WORDS, inner, max_size=10)


VALUES = st.recursive(PLAIN | RECORDS | NAMES, deep, max_leaves=40)


@settings(max_examples=80, deadline=None)
@given(VALUES)
def test_rows_are_the_inverse(value):
    written = json.dumps(columns(value))
    again = rows(json.loads(written), max(MOST, len(json.dumps(value))))
    assert json.dumps(again) == json.dumps(value)  # types, order and the sign of zero included


@settings(max_examples=80, deadline=None)
@given(VALUES)
def test_no_more_entries_are_made_than_twice_the_characters_of_the_text(value):
    """What the writer counts: a header that may be written may be read."""
    rows(columns(value), 2 * len(json.dumps(value, separators=(",", ":"))))


def forged(inner: st.SearchStrategy) -> st.SearchStrategy:
    one = st.sampled_from(FORMS)
    return deep(inner) | st.builds(lambda form, parts: {form: parts}, one, st.lists(inner, max_size=3))


@settings(max_examples=100, deadline=None)
@given(st.recursive(PLAIN | st.sampled_from([{f: [[0], [0]]} for f in FORMS]), forged, max_leaves=25))
def test_whatever_is_forged_is_refused_or_made(value):
    try:
        rows(value, 1000)
    except ValueError:
        return


def nested(value, times: int, form: str = "|rows"):
    for _ in range(times):
        value = {form: [value]}
    return value


@pytest.mark.parametrize(
    "value",
    [
        nested([0] * 100, 50),
        {"|objects": [[["a"]], [0] * 100, [nested([0] * 100, 20)]]},
        {"|lists": [[1] * 100, nested([0] * 100, 20)]},
        {"|lists": [[-(10**9), 10**9 + 2], [1, 2]]},
        {"|lists": [[10**12], []]},
        {"|lists": [[True], [1]]},
        {"|texts": [["a#"] * 3, [10**14, 10**15, 0]]},
        {"|texts": [["a#"], [-1]]},
        {"|texts": [["a#"], [1, 1]]},
        {"|texts": [["a#"], []]},
        {"|texts": [["a#"], [0.5]]},
        {"|object": [["a", "b"], [1]]},
        {"|object": [[1], [1]]},
        {"|objects": [[["a"]], [0, 0], [[[1]]]]},
        {"|objects": [[["a"]], [0], [[[1], [2]]]]},
        {"|objects": [[["a"]], [1], [[[1]]]]},
        {"|rows": []},
        {"|rows": [[1], [1, 2]]},
        {"|rows": 3},
    ],
    ids=lambda value: json.dumps(value)[:30],
)
def test_a_forged_text_is_refused(value):
    with pytest.raises(ValueError):
        rows(value, 1000)


def test_what_is_alike_stands_together():
    texts = [f"step_{k}_{3 * k + 7}" for k in range(50)]
    form, (patterns, steps) = next(iter(columns(texts).items()))
    assert form == "|texts" and set(patterns) == {f"step_{GAP}_{GAP}"} and steps == [0, 7, *[1, 3] * 49]
    records = [{"name": t, "bound": 0.5} for t in texts]
    assert columns(records) == {"|objects": [[["name", "bound"]], [0] * 50, [{"|rows": [columns(texts), [0.5] * 50]}]]}
