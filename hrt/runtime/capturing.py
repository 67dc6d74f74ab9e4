"""CUDA graphs of calls, and what a call takes on the device: with what must be so that a capture is not spoilt."""

import ctypes
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

CAPTURING = threading.RLock()  # one graph at a time in a process
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: others may use the default stream while this one captures
REPLAYS = 20  # between two events
SHORT = 0.5e-3  # seconds of a call beside which an event's own error counts
SLEEP_CYCLES = 2_000_000  # of the device, about 1 ms: more than the host needs to queue REPLAYS graphs
ROUNDS = 5


def capture(call: Callable[[], Any], warm: int = 1) -> Any:
    """A graph of `call`, which runs `warm` times before: lists are made, and compilers and libraries have their say."""
    with CAPTURING:
        side = private_stream(torch.cuda.current_device())
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(warm):
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        back = torch.cuda.stream(torch.cuda.current_stream())  # torch stays on `side` where a capture fails at its end
        with back, uncollected(), torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            call()
    return graph


def is_capturing() -> bool:
    """Whether the current stream's work goes into a graph."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected inside: a graph among it, whoever made it, would spoil the capture by its end."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@cache
def private_stream(device: int) -> Any:
    """A stream of our own. Those of torch's pool are handed to everybody in turn: what another thread puts on one would
    become part of the graph that is captured there. Where the driver makes none, it is one of the pool.
    """
    handle = ctypes.c_void_p()
    torch.cuda.synchronize(device)  # the driver's calls need the device's context
    try:
        status = ctypes.CDLL("libcuda.so.1").cuStreamCreate(ctypes.byref(handle), NON_BLOCKING)
    except (OSError, AttributeError):
        status = -1
    if status or not handle.value:
        return torch.cuda.Stream(device)
    return torch.cuda.ExternalStream(handle.value, device)


def device_seconds(call: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Seconds that a call which only queues work takes on the device, its launch apart: the median of some rounds."""
    calls = calls_between(one_round(call, 1))
    return sorted(one_round(call, calls) for _ in range(rounds))[rounds // 2]


def calls_between(seconds: float) -> int:
    """How many calls of so many seconds stand between two events: of long ones, one does."""
    return REPLAYS if seconds < SHORT else 1


def one_round(call: Callable[[], Any], calls: int) -> float:
    """Seconds of one of so many calls, between two events. The device sleeps until all of them are queued: else the
    time would be the host's, who launches them.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(SLEEP_CYCLES)
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3 / calls
