"""Structures around arrays: every container comes back as it was, and every array knows where it stands."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrt.support.structures import flattened


@dataclass(frozen=True)
class Frozen:
    first: Any
    rest: Any

    def __post_init__(self):
        assert self.first is not None


class Pair(NamedTuple):
    a: Any
    b: Any


ARRAY = st.builds(lambda n: np.full((2, 2), float(n)), st.integers(0, 1000))
TREES = st.recursive(
    ARRAY,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3),
        st.lists(inner, min_size=1, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from(["x", "t", "a b"]), inner, min_size=1),
        st.builds(Frozen, inner, inner),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=8,
)


def at(tree: Any, path: tuple) -> Any:
    for key in path:
        tree = getattr(tree, key) if isinstance(tree, Frozen) else tree[key]
    return tree


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return a is b
    if isinstance(a, Frozen):
        return isinstance(b, Frozen) and same(a.first, b.first) and same(a.rest, b.rest)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))


@given(TREES)
def test_every_array_stands_where_its_path_says_and_the_structure_comes_back(tree):
    arrays, structure = flattened(tree)
    assert all(at(tree, path) is x for path, x in zip(structure.paths, arrays, strict=True))
    assert same(tree, structure.filled(arrays))


def test_numbers_in_lists_and_rows_in_a_list_are_one_array():
    assert len(flattened([[1.0, 2.0], [3.0, 4.0]])[0]) == 1
    rows = [np.zeros(2), np.ones(2), np.ones(2)]
    (stacked,), _ = flattened(rows)
    assert stacked.shape == (3, 2)
    assert len(flattened({"x": [1.0, 2.0], "t": [[1.0], [2.0]]})[0]) == 2


def test_options_under_a_name_stay_in_the_structure():
    arrays, structure = flattened(OrderedDict(x=np.zeros((2, 1)), training=False, mask=None, mode="fast"))
    assert len(arrays) == 1
    assert structure.filled(["y"]) == {"x": "y", "training": False, "mask": None, "mode": "fast"}


@pytest.mark.parametrize("atom", [Frozen(1, 2), Pair(1, 2)])
def test_atoms_count_as_arrays(atom):
    assert flattened((atom, atom), (type(atom),))[0] == (atom, atom)
