"""torch.cuda of the card that is not there: streams, events, graphs, and a clock that knows what a launch costs the
host and what it then takes on the device. `stub_card` puts it in place.
"""

import ctypes
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any

import torch

DEVICE = torch.device("cuda", 0)
POOL = 32  # streams that torch hands out in turn, to everybody
ENQUEUE, GRAPH_LAUNCH = 5e-6, 8e-6  # seconds of the host
CLOCK_HZ = 1.98e9


@dataclass
class Card:
    """What was asked of the card, and how it behaves. seconds: of a kernel or op by name, on the device; else 1 us.
    refused: kernels that cannot be launched, and what is raised.  captures: the streams that were captured on.  lost:
    what spoilt captures.
    """

    arch: int = 90
    answers: bool = True
    memory: int = 80 * 10**9
    seconds: dict[str, float] = field(default_factory=dict)
    refused: dict[str, Exception] = field(default_factory=dict)
    launches: Counter = field(default_factory=Counter)
    ops: Counter = field(default_factory=Counter)
    captures: list[int] = field(default_factory=list)
    grids: list[tuple[int, int, int]] = field(default_factory=list)
    compiled: list[tuple[str, bool]] = field(default_factory=list)
    host: float = 0.0
    device: float = 0.0
    allocated: int = 0
    capturing: dict[int, "Graph"] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    lock: Any = field(default_factory=threading.RLock)

    def enqueue(self, name: str, run: Callable[[], Any], *, replay: Callable[[], Any] | None = None) -> Any:
        """Do one thing on the current stream: at once, or in the graph that is being captured there."""
        self.ops[name] += 1
        graph = self.capturing.get(current_stream().cuda_stream)
        if graph is not None:
            graph.record.append((name, replay or run))
            return None if replay is None else run()
        self.spend(ENQUEUE, self.seconds.get(name, 1e-6))
        return run()

    def spend(self, host: float, device: float) -> None:
        """Time that passes on the host, and then on the device."""
        with self.lock:
            self.host += host
            self.device = max(self.device, self.host) + device

    def wait(self, what: str) -> None:
        """The host waits for the device."""
        if current_stream().cuda_stream in self.capturing:
            self.capturing[current_stream().cuda_stream].lost = what
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")
        self.host = max(self.host, self.device)


CARD = Card()
LOCAL = threading.local()


class Stream:
    """One of POOL streams in turn, as torch's are; or another, by its handle."""

    turns = count()

    def __init__(self, device: Any = None, priority: int = 0, *, handle: int | None = None):
        self.cuda_stream = next(Stream.turns) % POOL + 1 if handle is None else handle
        self.stream_id, self.device, self.priority = self.cuda_stream, DEVICE, priority

    def wait_event(self, event: "Event") -> None:
        graph = CARD.capturing.get(self.cuda_stream)
        if event.recorded is not None and graph is not None and event.graph is not graph:
            graph.lost = "an event from outside"
            raise RuntimeError("CUDA error: dependency created on uncaptured work in another stream")

    def wait_stream(self, other: "Stream") -> None:
        self.wait_event(other.record_event())

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        CARD.wait("cudaStreamSynchronize")

    def query(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.cuda_stream == self.cuda_stream

    def __hash__(self) -> int:
        return hash(self.cuda_stream)


class ExternalStream(Stream):
    """A stream that somebody else made."""

    def __init__(self, stream_ptr: int, device: Any = None):
        super().__init__(handle=stream_ptr)


class Event:
    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False):
        self.timed, self.recorded, self.graph = enable_timing, None, None

    def record(self, stream: Stream | None = None) -> None:
        CARD.host += 1e-7
        self.recorded = max(CARD.host, CARD.device)
        self.graph = CARD.capturing.get((stream or current_stream()).cuda_stream)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or current_stream()).wait_event(self)

    def synchronize(self) -> None:
        CARD.wait("cudaEventSynchronize")

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "Event") -> float:
        if not (self.timed and end.timed) or self.recorded is None or end.recorded is None:
            raise ValueError("Both events must be created with argument 'enable_timing=True' and recorded.")
        return 1e3 * (end.recorded - self.recorded)


class Graph:
    """torch.cuda.CUDAGraph: what was enqueued on its stream during its capture. One that dies spoils every capture."""

    def __init__(self, keep_graph: bool = False):
        self.record: list[tuple[str, Callable[[], Any]]] = []
        self.lost, self.stream = "", 0

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global", **options: Any) -> None:
        self.stream = current_stream().cuda_stream
        if not self.stream or CARD.capturing:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream, one at a time.")
        CARD.capturing[self.stream] = self
        CARD.captures.append(self.stream)

    def capture_end(self) -> None:
        del CARD.capturing[self.stream]
        if self.lost:
            CARD.lost.append(self.lost)
            raise RuntimeError(f"CUDA error: operation failed due to a previous error during capture ({self.lost})")

    def replay(self) -> None:
        if CARD.capturing.get(current_stream().cuda_stream) is not None:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing (cudaGraphLaunch)")
        CARD.spend(GRAPH_LAUNCH, sum(CARD.seconds.get(name, 1e-6) for name, _ in self.record))
        for _, run in self.record:
            run()

    def pool(self) -> tuple[int, int]:
        return 0, id(self)

    def reset(self) -> None:
        self.record.clear()

    def __del__(self) -> None:
        for graph in CARD.capturing.values():
            graph.lost = "a graph was destroyed"


def current_stream(device: Any = None) -> Stream:
    return getattr(LOCAL, "stream", None) or Stream(handle=0)


def install_cuda() -> None:
    """torch.cuda as our code uses it."""
    name = f"Stub sm_{CARD.arch}"
    properties = SimpleNamespace(
        name=name, major=CARD.arch // 10, minor=CARD.arch % 10, total_memory=CARD.memory, multi_processor_count=132,
        L2_cache_size=50 << 20, clock_rate=CLOCK_HZ / 1e3,
    )  # fmt: skip

    class Selected:
        """torch.cuda.device and torch.cuda.stream."""

        def __init__(self, stream: Any = None):
            self.stream = stream if isinstance(stream, Stream) else None

        def __enter__(self) -> None:
            self.before = current_stream()
            LOCAL.stream = self.stream or self.before

        def __exit__(self, *_: object) -> None:
            LOCAL.stream = self.before

    def set_stream(stream: Stream) -> None:
        LOCAL.stream = stream

    replaced: dict[str, Any] = {
        "is_available": lambda: True, "is_initialized": lambda: True, "_lazy_init": lambda: None, "init": lambda: None,
        "device_count": lambda: 1, "current_device": lambda: 0, "get_device_name": lambda d=None: name,
        "get_device_capability": lambda d=None: (CARD.arch // 10, CARD.arch % 10),
        "get_device_properties": lambda d=None: properties,
        "mem_get_info": lambda d=None: (CARD.memory - CARD.allocated, CARD.memory),
        "memory_allocated": lambda d=None: CARD.allocated, "max_memory_allocated": lambda d=None: CARD.allocated,
        "reset_peak_memory_stats": lambda d=None: None, "empty_cache": lambda: None,
        "synchronize": lambda d=None: CARD.wait("cudaDeviceSynchronize"),
        "current_stream": current_stream, "default_stream": lambda d=None: Stream(handle=0), "set_stream": set_stream,
        "is_current_stream_capturing": lambda: current_stream().cuda_stream in CARD.capturing,
        "_sleep": lambda cycles: CARD.spend(ENQUEUE, cycles / CLOCK_HZ),
        "Stream": Stream, "ExternalStream": ExternalStream, "Event": Event, "CUDAGraph": Graph, "device": Selected,
        "stream": Selected,
    }  # fmt: skip
    for key, value in replaced.items():
        setattr(torch.cuda, key, value)
    torch._C._host_emptyCache = lambda: None  # type: ignore[attr-defined]
    driver = SimpleNamespace(cuStreamCreate=_create_stream, cuStreamDestroy=lambda handle: 0)
    library = ctypes.CDLL
    handles = ("libcuda.so.1", "libcuda.so")
    ctypes.CDLL = lambda name=None, *a, **k: driver if name in handles else library(name, *a, **k)  # type: ignore


STREAMS = count(1000)


def _create_stream(pointer: Any, flags: Any) -> int:
    pointer._obj.value = next(STREAMS)
    return 0
