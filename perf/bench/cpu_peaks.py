"""What this CPU can do at best, measured: the floor under every time."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from onnx import TensorProto, helper

from hrt.perf.methods.runtimes import graph_of_one_node, ways_in_onnxruntime

SIZE, STREAM = 1536, 1 << 26  # of the product; floats that no cache holds
TRIES = 10
USUAL_CACHE = 32 << 20  # bytes of a last cache, where the system does not tell


@dataclass(frozen=True)
class Peaks:
    """Floating-point operations per second of a large float32 product, bytes per second read from memory, bytes of the
    last cache, all with the threads that are set.
    """

    flops: float
    bandwidth: float
    cache_bytes: int

    def floor_us(self, work: int, batch: int, nbytes: int) -> float:
        """The least time for so many multiply-adds per row, and for weights that no cache holds."""
        reading = nbytes / self.bandwidth if nbytes > self.cache_bytes else 0.0
        return 1e6 * max(2.0 * work * batch / self.flops, reading)

    def fraction(self, work: int, batch: int, nbytes: int, measured_us: float) -> float | None:
        """Floor over measured time of float32 work; None where nothing is known about that."""
        return self.floor_us(work, batch, nbytes) / measured_us if work and measured_us > 0 else None

    def as_facts(self) -> dict[str, float]:
        """For the file of results."""
        return {k: round(v) for k, v in asdict(self).items()}


def measure_peaks() -> Peaks:
    """The best of a few tries of each; of products by torch and by ONNX Runtime, twice as fast on AVX-512."""
    a = torch.rand(SIZE, SIZE)
    proto = graph_of_one_node(helper.make_node("MatMul", ["x", "x"], ["y"]), TensorProto.FLOAT, a.shape)
    in_runtime = [way.bind((a.numpy(),)) for way in ways_in_onnxruntime(proto)]
    product = min(_best(call) for call in (lambda: a @ a, *in_runtime))
    stream = torch.ones(STREAM)
    return Peaks(2.0 * SIZE**3 / product, 4.0 * STREAM / _best(stream.sum), cache_bytes())


def cache_bytes() -> int:
    """Of the largest cache that Linux tells of; USUAL_CACHE where it does not."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text[:-1].isdigit() and text[-1] in "KM":
            sizes.append(int(text[:-1]) << (10 if text[-1] == "K" else 20))
    return max(sizes, default=USUAL_CACHE)


def _best(call: Callable[[], object]) -> float:
    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
