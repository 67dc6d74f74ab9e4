"""Timing on a GPU: candidates captured in CUDA graphs, interleaved in random order, timed by events on the device,
behind a sleep that hides what launching them costs.

In Triton's interpreter the same calls run as they are under a wall clock: to try a benchmark out; such times say
nothing.
"""

import gc
import random
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch._dynamo.utils import counters

from hrt.errors import HrtError
from hrt.kernels.launch import is_interpreted
from hrt.runtime.capturing import calls_between, capture, one_round

CPU_CACHE = 1 << 15  # stands for the L2 cache where there is no GPU: two copies of small things are tried
QUANTILES = (0.5, 0.05, 0.95)
Call = Callable[[], Any]


class Bench:
    """One device and how things are timed there. cache_bytes: of its L2 cache."""

    def __init__(self) -> None:
        self.device = torch.device("cpu" if is_interpreted() else "cuda")
        self.on_gpu: bool = self.device.type == "cuda"
        properties = torch.cuda.get_device_properties(self.device) if self.on_gpu else None
        self.cache_bytes = properties.L2_cache_size if properties else CPU_CACHE

    def captured(self, call: Call) -> Call:
        """A call that replays a CUDA graph of `call`; on the CPU `call` itself."""
        if not self.on_gpu:
            return call
        return capture(call, warm=3).replay  # compilers and autotuners have their say before

    def seconds(
        self, calls: Mapping[str, Call], repeats: int, seed: int = 0, on_host: Collection[str] = ()
    ) -> dict[str, tuple[float, float, float]]:
        """Median, 5 % and 95 % quantile of the seconds of each call, in a new random order each round. Calls only queue
        work, and all are timed alike, short ones many at a time; those `on_host` are timed from call to answer.
        """
        order, shuffle = list(calls), random.Random(seed).shuffle
        times: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            call()
        queued = [call for name, call in calls.items() if self.on_gpu and name not in on_host]
        count = min((calls_between(one_round(call, 1)) for call in queued), default=1)
        for _ in range(repeats):
            shuffle(order)
            for name in order:
                timed = self.on_gpu and name not in on_host
                times[name].append(one_round(calls[name], count) if timed else self._to_the_answer(calls[name]))
        return {name: tuple(np.quantile(v, QUANTILES, method="nearest").tolist()) for name, v in times.items()}

    def _to_the_answer(self, call: Call) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def release(self) -> None:
        """Give memory back before the next measurement."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`function` by torch.compile, for operands of the shapes that its first call has. That call raises HrtError where
    nothing was compiled: after eight shapes in a process torch would run eager, and say nothing.
    """
    made: list[Any] = []

    def call(*operands: torch.Tensor) -> Any:
        if not made:
            torch._dynamo.reset()
            before = counters["stats"]["unique_graphs"]
            made.append(torch.compile(function, dynamic=False, fullgraph=True, **options))
            made[0](*operands)
            if counters["stats"]["unique_graphs"] == before:
                shapes = ", ".join(str(tuple(x.shape)) for x in operands)
                raise HrtError(f"Found nothing compiled for operands of {shapes}. Expected a graph, not eager torch.")
        return made[0](*operands)

    return call
