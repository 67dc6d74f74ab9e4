"""Open-loop requests to a server: they do not wait for one another, and answers are compared with `predict`."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from hrt.errors import BackendError
from hrt.perf.realtime.inference_client import Question, Server
from hrt.perf.realtime.latencies import summarise
from hrt.perf.realtime.open_loop import NS, UNSERVED
from hrt.perf.realtime.server import agree, serve


@pytest.mark.parametrize("error, agrees", [(1e-7, True), (1e-4, False)])
def test_one_row_near_zero_is_judged_by_the_outputs_at_large(error, agrees):
    expected = [np.full((1, 1), value, np.float32) for value in (1.0, -0.5, 1e-4)]
    asked = [Question({}, {"y": y}) for y in expected]

    async def ask(k):
        return SimpleNamespace(as_numpy=lambda name: expected[k] + np.float32(error))

    server = Server("127.0.0.1:1", "http", "m")
    if agrees:
        asyncio.run(agree(ask, server, asked))
        return
    with pytest.raises(BackendError, match="otherwise than predict"):
        asyncio.run(agree(ask, server, asked))


def test_requests_do_not_wait_for_one_another():
    done = []

    async def ask(k):
        if k == 3:
            while 19 not in done:  # a request that comes long after it
                await asyncio.sleep(0.001)
        done.append(k)
        if k == 5:
            raise ConnectionError("gone")

    errors: list[str] = []
    s = asyncio.run(serve(ask, 200, 20, errors=errors))
    assert done[-1] == 3 and s.begun[19] < s.done[3] and s.answered.sum() == 19
    assert s.failed.nonzero()[0].tolist() == [5] and errors == ["ConnectionError: gone"]
    assert s.queue >= 2


def test_requests_without_an_answer_count_what_they_waited():
    async def ask(k):
        await asyncio.sleep(60 if k == 0 else 0)

    s = asyncio.run(serve(ask, 200, 10, grace=0.1))
    assert s.done[0] == UNSERVED and s.latency[0] > 0.1 * NS and s.answered.sum() == 9
    assert summarise("x", [s]).missed >= 1
