"""How long compressing takes, beside what anyone would try first: torchao's `quantize_`, and one SVD of every layer."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from hrt.perf.bench.tables import Table, figure
from hrt.perf.methods.ours import compressed
from hrt.perf.methods.quantizers import all_int8
from hrt.perf.methods.svd import weights_of
from hrt.perf.networks.registry import MissingError, Workload, build

Case = tuple[str, float]  # a workload's name and a relative error
CASES: tuple[Case, ...] = (
    ("burgers", 1e-3),
    ("neuralfoil-xxxlarge", 1e-2),
    ("neuralfoil-xxxlarge", 1e-3),
    ("emulator", 1e-2),
    ("log-1d:4096", 1e-3),
)
COLUMNS = ("network", "error", "hrt s", "CPU s", "bytes", "quantize_ s", "SVD s")


def compress_time(cases: Iterable[Case], advance: Callable[[str, float], None]) -> Table:
    """A line per case. CPU s: of all threads together, which other work on the machine disturbs less."""
    lines, cases = [], list(cases)
    for k, (name, tol) in enumerate(cases):
        advance(f"{name}, {tol:g}", k / len(cases))
        try:
            workload = build(name)
        except MissingError as error:
            lines.append([name, f"{tol:g}", *["-"] * 4, str(error)])
            continue
        model, seconds, cpu = timed(lambda w=workload, t=tol: compressed(w, t, "cpu"))
        beside = [_beside(make, workload) for make in (all_int8, _every_svd)]
        lines.append([name, f"{tol:g}", figure(seconds), figure(cpu), f"{model.nbytes:,}", *beside])
    return Table.of(COLUMNS, lines, words=("network",))


def timed(make: Callable[[], Any]) -> tuple[Any, float, float]:
    """What `make` gives, in how many seconds, and in how many of the processor's."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = make()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def _beside(make: Callable[[Workload], Any], workload: Workload) -> str:
    try:
        return figure(timed(lambda: make(workload))[1], ".2f")
    except MissingError:
        return "-"


def _every_svd(workload: Workload) -> None:
    for weight in weights_of(workload.program).values():
        torch.linalg.svd(weight.to(torch.float32), full_matrices=False)
