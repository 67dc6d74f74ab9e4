"""The bar's estimate of the time: within a factor of two of what it takes, from a fifth of the way on."""

import gc
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import pytest
import torch
from torch import nn

import hrt
from hrt.perf.networks.burgers import burgers_points, load_burgers
from hrt.support.progress import Advance

compress = import_module("hrt.network_compression.compress")


def small() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 96), nn.Tanh(), nn.Linear(96, 96), nn.Tanh(), nn.Linear(96, 96), nn.Tanh(), nn.Linear(96, 2)]
    return nn.Sequential(*layers)


CASES = {
    "small": (small, lambda: torch.rand(2000, 3, generator=torch.Generator().manual_seed(0)), 1e-2),
    "burgers": (load_burgers, lambda: burgers_points(8192, 1), 1e-3),
}


@pytest.fixture(autouse=True)
def _undisturbed():
    """Capture as fast as for a user: torch's traces cost nothing where nobody collects them, and there are no thousands
    of tests in memory for the garbage collector to go through.
    """
    logging.disable(logging.CRITICAL)
    gc.disable()
    yield
    gc.enable()
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_of_the_time_is_right_within_a_factor_of_two(name, monkeypatch):
    seen: list[tuple[float, float]] = []  # seconds of the processor, which others on the machine do not use up

    @contextmanager
    def track(title: str, enabled: bool) -> Iterator[Advance]:
        start = time.process_time()

        def advance(text: str, done: float) -> None:
            seen.append((time.process_time() - start, max(done, seen[-1][1] if seen else 0.0)))

        yield advance
        advance("", 1.0)

    make, rows, tol = CASES[name]
    net, inputs = make(), rows()
    hrt.compress(net, inputs=inputs[:64], tol=0.1, progress=False)  # imports, which the first network alone pays for
    monkeypatch.setattr(compress, "track", track)
    hrt.compress(net, inputs=inputs, tol=tol, progress=False)
    total = seen[-1][0]
    late = [(t / total, done) for t, done in seen if t >= total / 5]
    assert len(late) > 10
    assert all(1 / 2 <= done / share <= 2 for share, done in late), late
