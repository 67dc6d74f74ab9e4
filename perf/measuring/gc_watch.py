"""Python's garbage collector while something is timed: counted, or kept off."""

import gc
import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Collections:
    """What Python's garbage collector did meanwhile."""

    count: int = 0
    longest_us: float = 0.0


class CollectorWatch:
    """Counts and times garbage collections between enter and exit; `off` keeps the collector from running at all."""

    def __init__(self, off: bool = False) -> None:
        self.off, self.seen, self._began = off, Collections(), 0

    def __enter__(self) -> "CollectorWatch":
        self._enabled = gc.isenabled()
        if self.off:
            gc.disable()
        gc.callbacks.append(self._watch)
        return self

    def __exit__(self, *_: object) -> None:
        gc.callbacks.remove(self._watch)
        if self._enabled:
            gc.enable()

    def _watch(self, phase: str, _: Any) -> None:
        if phase == "start":
            self._began = time.perf_counter_ns()
        else:
            took = (time.perf_counter_ns() - self._began) / 1e3
            self.seen: Collections = Collections(self.seen.count + 1, max(self.seen.longest_us, took))
