"""The load on inference servers sees what is wrong, late or missing: asked of a small server that misbehaves."""

import time

import numpy as np
import pytest
from inference_stand_in import served

from hrt.perf.realtime.inference_client import TOLERANCE, Server
from hrt.perf.realtime.server_load import BATCHES, ask, questions, row

from models import mixed_model

MODEL = mixed_model()


@pytest.fixture(scope="module")
def asked():
    return questions(MODEL)


@pytest.mark.parametrize("binary", [True, False])
def test_right_answers(asked, binary):
    with served(MODEL, lambda _, y: y) as address:
        found = ask(Server(address, "http", "m", binary), asked, 100, 8)
    assert (found.requests, found.wrong, found.failed, found.repeated) == (100, 0, 0, 0)
    assert len(found.seconds) == 100 and found.worst <= TOLERANCE
    assert 0 < found.quantile(0.5) <= found.quantile(0.99) <= 1e3 * max(found.seconds)
    assert "100" in row("stand-in", Server(address, "http", "m"), found)


@pytest.mark.parametrize(
    "change",
    [
        lambda y: [y[0], y[1] * (1 + 1e-4)],
        lambda y: [y[0][::-1] + 1, y[1]],
        lambda y: [np.zeros_like(y[0]), y[1]],
        lambda y: [y[0] * np.nan, y[1]],
        lambda y: [y[0][:, :-1], y[1]],
        lambda y: [y[0][:-1], y[1]],
    ],
    ids=["scaled", "moved", "zero", "nan", "narrow", "short"],
)
def test_every_tenth_answer_is_wrong(asked, change):
    with served(MODEL, lambda number, y: change(y) if number % 10 == 3 else y) as address:
        found = ask(Server(address, "http", "m"), asked, 100, 8)
    assert (found.wrong, found.failed) == (10, 0)


def test_requests_that_fail_are_counted_and_sent_again_if_wanted(asked):
    with served(MODEL, lambda number, y: None if number % 10 == 3 else y) as address:
        found = ask(Server(address, "http", "m"), asked, 100, 8)
    assert (found.failed, found.repeated, len(found.seconds)) == (10, 0, 90) and "busy" in found.errors[-1]
    with served(MODEL, lambda number, y: None if number < 100 else y) as address:
        found = ask(Server(address, "http", "m"), asked, 100, 100, attempts=8)
    # On a busy machine some repeat before others have asked at all.
    assert (found.failed, found.wrong) == (0, 0) and 20 <= found.repeated <= 100


def test_a_server_that_hangs_ends_the_load_at_the_deadline(asked):
    def hang(number, y):
        if number == 20:
            time.sleep(6)
        return y

    start = time.monotonic()
    with served(MODEL, hang) as address:
        found = ask(Server(address, "http", "m"), asked, 100, 8, deadline=2)
        assert time.monotonic() - start < 5
    assert found.failed >= 70 and "no answer after 2 s" in found.errors[-1] and found.wrong == 0


def test_no_server_at_all(asked):
    found = ask(Server("127.0.0.1:9", "http", "m"), asked, 10)
    assert (found.failed, found.wrong) == (10, 0) and found.quantile(0.5) != found.quantile(0.5)


def test_questions_are_of_mixed_sizes_and_no_two_alike(asked):
    assert sorted({len(q.inputs["x"]) for q in asked}) == sorted(BATCHES)
    assert len({q.inputs["x"].tobytes() for q in asked}) == len(asked)
