"""Where a figure comes from: commit, versions, machine."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import hrt

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "numpy", "onnxruntime")


def commit() -> str:
    """The commit that this code is at, with "+changes" where files differ from it; "unknown" outside a repository."""
    try:
        here = ["git", "-C", str(ROOT)]
        found = subprocess.run([*here, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*here, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
        return found + ("+changes" if changed.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    """hrt, Python and what numbers depend on."""
    found = {"hrt": hrt.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def scheduling() -> str:
    """How the operating system schedules this process, where it says so: policy, niceness, cores."""
    if not hasattr(os, "sched_getscheduler"):
        return "unknown"
    names = {os.SCHED_OTHER: "SCHED_OTHER", os.SCHED_FIFO: "SCHED_FIFO", os.SCHED_RR: "SCHED_RR"}
    policy = os.sched_getscheduler(0)
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    return f"{names.get(policy, f'policy {policy}')}, niceness {niceness}, {os.cpu_count()} cores"


def gpu() -> dict[str, str | int]:
    """The CUDA device in use, its driver and clocks, as nvidia-smi tells them."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    found: dict[str, str | int] = {
        "name": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": str(torch.version.cuda),
    }
    fields = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
    try:
        asked = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0]
        found |= dict(zip(fields.split(","), (v.strip() for v in said.split(",")), strict=True))
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        found["clocks"] = "nvidia-smi did not answer"
    return found
