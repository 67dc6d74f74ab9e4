"""Generated C as one more execution: the same answers, narrow weights as they are stored."""

import numpy as np
import pytest
import torch
from torch import nn

from hrt.capture.torch_export import capture
from hrt.perf.methods.generated_c import BACKEND, int8_rows, ways_in_c
from hrt.perf.methods.matched_error import Offer, Refusal, fresh_error
from hrt.perf.networks.registry import Workload


@pytest.fixture(scope="module")
def workload() -> Workload:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 24), nn.Tanh(), nn.Linear(24, 2))
    rows = [(torch.rand(256, 3, generator=torch.Generator().manual_seed(k)),) for k in range(3)]
    return Workload("small", "", net, capture(net, rows[0]), *rows)


def test_nothing_is_offered_where_it_is_switched_off(workload, monkeypatch):
    monkeypatch.setenv("HRT_NATIVE", "off")
    assert ways_in_c(workload.program) == ()
    refused = int8_rows(workload, 1e-1)
    assert isinstance(refused, Refusal) and "HRT_NATIVE" in refused.note


@pytest.mark.usefixtures("native")
class TestCompiled:
    def test_dense_answers_as_the_network(self, workload):
        (way,) = ways_in_c(workload.program)
        assert way.backend == BACKEND and fresh_error(workload, way.bind, 16) < 1e-6

    def test_int8_is_smaller_and_keeps_the_error(self, workload):
        offer = int8_rows(workload, 2e-2)
        assert isinstance(offer, Offer) and offer.nbytes < workload.dense_nbytes / 2
        (way,) = offer.executions
        assert 1e-6 < fresh_error(workload, way.bind, 16) <= 2e-2
        x = np.random.default_rng(0).random((4, 3), np.float32)
        assert np.array_equal(way.bind((x,))(), way.bind((x.copy(),))())


def test_an_error_that_int8_cannot_keep_is_refused(workload, monkeypatch):
    monkeypatch.setenv("HRT_NATIVE", "on")
    refused = int8_rows(workload, 1e-12)
    assert isinstance(refused, Refusal) and "float32" in refused.note
