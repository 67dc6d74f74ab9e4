"""Executions of methods, judged on fresh rows and then timed side by side."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from onnx import TensorProto, helper

from hrt.errors import BackendError
from hrt.export.onnx.exporter import graph_of
from hrt.perf.bench.cpu_peaks import cache_bytes
from hrt.perf.measuring.bursts import COLD_ROUNDS, Latency, bursts, cold, noise_of, peak_memory, rotating, sweeping
from hrt.perf.methods.matched_error import Execution, fresh_error, rotated
from hrt.perf.methods.runtimes import BOUND, in_onnxruntime, quiet, ways_in_onnxruntime
from hrt.perf.networks.registry import Workload

ROTATIONS = 4  # inputs that every candidate is asked in turn
HOPELESS = 0.5  # a call that differs from itself by half: nothing can be judged
SCOUT_ROUNDS, BEHIND = 5, 1.5  # after so many rounds, executions so far behind their method's best are timed no more
CACHES = 2  # how often over the last cache is filled before a cold call
SLOW_S, SLOW_ROUNDS = 0.2, 5  # a call that takes so long is timed after the others, in so many rounds of one call
CONTROL, EMPTY = "control", "empty"


@dataclass(frozen=True, eq=False)
class Candidate:
    """An execution bound to a batch, or the problem with it. call: rotates inputs.  seconds: of one call, about.

    error: on fresh rows.  peak: see `peak_memory`.
    """

    execution: Execution
    call: Callable[[], object] | None
    error: float | None = None
    peak: int | None = None
    seconds: float = 0.0
    problem: str = ""


def bound(workload: Workload, execution: Execution, batch: int) -> Candidate:
    """Correctness first: the error on fresh rows through this very execution; then what is to be timed."""
    try:
        with quiet():
            error = fresh_error(workload, execution.bind, batch)
            calls = [execution.bind(rotated(workload.fresh, batch, k * batch)) for k in range(ROTATIONS)]
            peak = peak_memory(calls[0])
            start = time.perf_counter()
            calls[0]()
            return Candidate(execution, rotating(calls), error, peak, time.perf_counter() - start)
    except Exception as error:  # of a foreign library
        return Candidate(execution, None, problem=f"{type(error).__name__}: {one_line(error)}")


def dense_again(workload: Workload, batch: int) -> list[Callable[[], object]]:
    """The dense network in a session of its own, bound as the candidate BOUND is; none without ONNX Runtime."""
    ways = [w for w in ways_in_onnxruntime(graph_of(workload.program, narrow=False)) if w.backend == BOUND]
    return [rotating([w.bind(rotated(workload.fresh, batch, k * batch)) for k in range(ROTATIONS)]) for w in ways]


def timed(
    candidates: Mapping[str, Candidate],
    rounds: int,
    burst_s: float,
    seed: int,
    told: Callable[[float], None] = lambda share: None,
    again: tuple[str, Callable[[], object]] | None = None,
) -> tuple[dict[str, Latency], float]:
    """Latencies by name, that of a graph that does nothing as EMPTY, and the noise: what a call differs from itself by.

    again: the name of a candidate, and the same thing opened a second time, whose memory lies elsewhere. Without it the
    fastest candidate's own call is timed twice.

    candidates: named METHOD/EXECUTION; executions that SCOUT_ROUNDS show far behind another of their method stop there,
    the others are also timed cold (`measure.cold`). All are timed together; where noise is hopeless, once more in twice
    the rounds.  told: share that is done.
    """
    quick = {k: c.call for k, c in candidates.items() if c.call is not None and c.seconds <= SLOW_S}
    slow = {k: c.call for k, c in candidates.items() if c.call is not None and c.seconds > SLOW_S}
    times: dict[str, Latency] = {}
    noise = 0.0
    for count in (rounds, 2 * rounds):
        if not quick:
            break

        def advance(k: int, count: int = count) -> None:
            told(k / count)

        first = min(quick, key=lambda name: candidates[name].seconds)  # whom most of the others are close to
        twin = quick[first]
        if again is not None and again[0] in quick:
            first, twin = again
        calls = {**quick, CONTROL: twin, **_empty()}
        kept = (first, CONTROL, EMPTY)
        times = bursts(calls, rounds=count, burst_s=burst_s, seed=seed, on_round=advance, drop=partial(_behind, kept))
        noise = noise_of(times[CONTROL], times[first])
        if noise <= HOPELESS:
            break
    going = {name: call for name, call in quick.items() if len(times[name].medians) > SCOUT_ROUNDS}
    for name, us in cold(going, sweeping(CACHES * cache_bytes()), rounds=min(rounds, COLD_ROUNDS), seed=seed).items():
        times[name] = replace(times[name], cold_us=us)
    if slow:
        times |= bursts(slow, rounds=min(rounds, SLOW_ROUNDS), calls_each=1, warmup=0, seed=seed)
    return times, noise


def _behind(kept: Collection[str], rounds: int, medians: Mapping[str, Sequence[float]]) -> list[str]:
    """Executions that a faster one of the same method makes uninteresting, but for those in `kept`."""
    if rounds != SCOUT_ROUNDS:
        return []
    best: dict[str, float] = {}
    for name, found in medians.items():
        method = name.rpartition("/")[0] or name
        best[method] = min(best.get(method, math.inf), float(np.median(found)))
    late = [n for n, found in medians.items() if np.median(found) > BEHIND * best[n.rpartition("/")[0] or n]]
    return [name for name in late if name not in kept]


def one_line(error: BaseException) -> str:
    """A foreign error's first line."""
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


def _empty() -> dict[str, Callable[[], object]]:
    """A call of ONNX Runtime that computes nothing, where that is installed."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "empty", [x], [y])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    try:
        return {EMPTY: in_onnxruntime(proto).bind((np.zeros(1, np.float32),))}
    except BackendError:
        return {}
