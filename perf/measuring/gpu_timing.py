"""Timing on a GPU: candidates captured in CUDA graphs, interleaved in random order, timed by events on the device.

In Triton's interpreter the same calls run as they are under a wall clock: to try a benchmark out; such times say
nothing.
"""

import gc
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from hrt.kernels.launch import is_interpreted

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
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # compilers and autotuners have their say before
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def seconds(self, calls: Mapping[str, Call], repeats: int, seed: int = 0) -> dict[str, tuple[float, float, float]]:
        """Median, 5 % and 95 % quantile of the seconds of each call, in a new random order each round."""
        order, shuffle = list(calls), random.Random(seed).shuffle
        times: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            call()
        for _ in range(repeats):
            shuffle(order)
            for name in order:
                times[name].append(self._once(calls[name]))
        return {name: tuple(np.quantile(v, QUANTILES, method="nearest").tolist()) for name, v in times.items()}

    def _once(self, call: Call) -> float:
        if not self.on_gpu:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3

    def release(self) -> None:
        """Give memory back before the next measurement."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
