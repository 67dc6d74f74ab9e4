"""The process and the machine it runs on: memory at its peak, threads, cores."""

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

STATUS = Path("/proc/self/status")


def own_peak_bytes() -> int:
    """Peak resident bytes of this process. On Linux from VmHWM: ru_maxrss there starts at what the parent held."""
    peak = _high_water()
    if peak is not None:
        return peak
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def peak_memory(call: Callable[[], object]) -> int | None:
    """Bytes by which the process's resident memory rose above what it was, at its highest, while `call` ran. Pages
    that an allocator already holds do not count, so that it is a lower bound. None where the system does not tell.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    except OSError:
        return None
    before = psutil.Process().memory_info().rss
    call()
    peak = _high_water()
    return None if peak is None else max(0, peak - before)


def _high_water() -> int | None:
    if not STATUS.is_file():
        return None
    lines = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return next((1024 * int(line.split()[1]) for line in lines), None)


def thread_facts() -> dict[str, object]:
    """Threads, cores and how busy the machine is with others."""
    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    return {
        "torch_threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": [round(v, 2) for v in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "mhz": round(frequency.current) if frequency else None,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", ""),
        "processor": _processor(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
