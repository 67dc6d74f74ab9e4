"""Work in a process of its own, whose limits and signals end with it."""

import gc
import json
import os
import resource
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch


def forked(work: Callable[[], str]) -> tuple[str, int]:
    """What `work` answers in a process of its own, and the signal that ended it: limits are the process's own."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)  # the threads of OpenMP do not survive a fork
            os.write(writing, work().encode())
        except BaseException:  # the test shall say what went wrong there
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as file:
        text = file.read()
    return text, os.waitpid(child, 0)[1]


def limit_memory(more: int) -> None:
    """This process may take `more` bytes than it has, and nothing that it has comes free later."""
    gc.collect()  # what earlier tests left in cycles, tensors above all, would be room that nobody counted
    room = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (room, room))


def assert_cheap(work: Callable[[], object], path: Path, seconds: float = 15) -> None:
    """In a process of its own, `work` on a file takes at most a gigabyte and four times its size, and so much time."""

    def measured() -> str:
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        work()
        more = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        return json.dumps([more, time.process_time() - start])

    text, _ = forked(measured)
    more, taken = json.loads(text)
    print(f"{path.name}: {more / 1e6:.0f} MB, {taken:.1f} s")
    assert more <= 1e9 + 4 * path.stat().st_size and taken < seconds
