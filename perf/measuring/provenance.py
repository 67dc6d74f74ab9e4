"""Where a figure comes from: commit, versions, process, machine."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

import hrt

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "numpy", "onnxruntime")
CPUS = Path("/proc/cpuinfo")
GPU_FIELDS = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"


def commit() -> str:
    """The commit that this code is at, with "+changes" where files differ from it; "unknown" outside a repository."""
    try:
        changed = "+changes" if _printed("git", "-C", str(ROOT), "status", "--porcelain", "-uno") else ""
        return _printed("git", "-C", str(ROOT), "rev-parse", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _printed(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def versions() -> dict[str, str]:
    """hrt, Python and what numbers depend on."""

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    return {"hrt": hrt.__version__, "python": platform.python_version(), **{p: installed(p) for p in PACKAGES}}


def scheduling() -> str:
    """How the operating system schedules this process, where it says so: policy, niceness, cores."""
    if not hasattr(os, "sched_getscheduler"):
        return "unknown"
    names = {os.SCHED_OTHER: "SCHED_OTHER", os.SCHED_FIFO: "SCHED_FIFO", os.SCHED_RR: "SCHED_RR"}
    policy, niceness = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
    return f"{names.get(policy, f'policy {policy}')}, niceness {niceness}, {os.cpu_count()} cores"


def gpu() -> dict[str, str | int]:
    """The CUDA device in use, its driver and clocks, as nvidia-smi tells them."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    facts: dict[str, str | int] = {
        "name": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": str(torch.version.cuda),
    }
    try:
        line = _printed("nvidia-smi", f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader").splitlines()[0]
        return facts | dict(zip(GPU_FIELDS.split(","), (v.strip() for v in line.split(",")), strict=True))
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        return facts | {"clocks": "nvidia-smi did not answer"}


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
    lines = CPUS.read_text().splitlines() if CPUS.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
