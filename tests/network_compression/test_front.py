"""The front of all candidates: what belongs to it, and how far down the held-out rows allow to go."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_networks import drawn, outcome

from hrt.calibration.output_error import RISK
from hrt.calibration.samples import Split
from hrt.capture.network import captured_network
from hrt.network_compression.candidates import Front, build
from hrt.network_compression.request import CompressionRequest
from hrt.network_compression.verified import Searches, down_the_front
from hrt.network_compression.verify import Original
from hrt.program.program import program_nbytes

from zoo import mlp

TOL = 3e-2
SIZES = {9: 2950, 36: 900}  # bytes of random networks; without the front 3,002, without crossings 1,007


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9) | st.just(float("inf")))))
def test_the_front_holds_what_nothing_beats_largest_first(pairs):
    front = Front()
    for nbytes, limit in pairs:
        candidate: Any = SimpleNamespace(nbytes=nbytes, error=SimpleNamespace(limit=limit), network=None, plans=())
        front.noted(candidate)
    finite = {p for p in pairs if p[1] < float("inf")}
    best = {p for p in finite if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in finite)}
    assert [(m.nbytes, m.limit) for m in front.members] == sorted(best, reverse=True)


@pytest.fixture
def searches():
    """A network whose held-out rows are those of the search, and the front of its search."""
    torch.manual_seed(0)
    x = 2 * torch.rand(600, 2, dtype=torch.float64) - 1
    network, request = captured_network(mlp(2, 24, 16, 1), (x,)), CompressionRequest(TOL, target="bytes")
    original = Original.of(network, (x,), request)
    original = replace(original, split=Split((x[:400],), (x[400:],), (x[400:],)))
    searches = Searches(original, original.aim.moments(original.split.calibration), request)
    searches.search(TOL)
    return searches


@pytest.mark.parametrize("risk", [RISK, RISK / 100])
def test_the_last_before_the_first_miss_is_taken(searches, risk):
    original, start = searches.original, searches.front.members[0]
    held = down_the_front(searches, start, risk)
    assert held is not None
    program, errors = held
    assert errors["torch"].limit <= TOL and errors["torch"].risk == risk
    members = [m for m in searches.front.members if m.nbytes <= start.nbytes]  # with those that filled gaps
    programs = (build(original, m.network, m.plans).program for m in members)
    limits = [original.served_errors(p, risk)["torch"].limit for p in programs]
    below = [m.nbytes for m in members].index(program_nbytes(program)) + 1
    assert max(limits[:below]) <= TOL < limits[below]


def test_nothing_is_taken_where_the_first_misses(searches):
    missing = next(m for m in searches.front.members if m.limit > TOL)
    assert down_the_front(searches, missing, RISK) is None


@pytest.mark.parametrize("seed", SIZES)
def test_what_the_goals_leave_is_spent(seed):
    case = drawn(seed)
    o = outcome(case)
    dense = sum(4 * p.numel() for p in case.net.parameters())
    assert o.error <= 1 and o.limit <= 1 and dense / o.ratio <= SIZES[seed]
