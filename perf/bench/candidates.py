"""Executions of methods, judged on fresh rows and then timed side by side."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from onnx import parser

from hrt.errors import BackendError
from hrt.export.onnx.exporter import graph_of
from hrt.perf.measuring.bursts import COLD_ROUNDS, Call, Latency, bursts, cold, noise_of, rotating, sweeping
from hrt.perf.methods.matched_error import Execution, fresh_error, rotated
from hrt.perf.methods.runtimes import BOUND, first_line, in_onnxruntime, quiet, ways_in_onnxruntime
from hrt.perf.networks.registry import Workload

ROTATIONS = 4  # inputs that every candidate is asked in turn
HOPELESS = 0.5  # a call that differs from itself by half: nothing can be judged
SCOUT_ROUNDS, BEHIND = 5, 1.5  # after so many rounds, executions so far behind their method's best are timed no more
CACHES = 2  # how often over the last cache is filled before a cold call
SLOW_S, SLOW_ROUNDS = 0.2, 5  # a call that takes so long is timed after the others, in so many rounds of one call
CONTROL, EMPTY = "control", "empty"
USUAL_CACHE = 32 << 20  # bytes of a last cache, where the system does not tell
NOTHING = '<ir_version: 9, opset_import: ["": 20]> nothing (float[1] x) => (float[1] y) { y = Identity (x) }'  # as ONNX


@dataclass(frozen=True, eq=False)
class Candidate:
    """An execution bound to a batch, or the problem with it. call: rotates inputs.  error: on fresh rows.  seconds: of
    one call, about.
    """

    execution: Execution
    call: Call | None
    error: float | None = None
    seconds: float = 0.0
    problem: str = ""


@dataclass(frozen=True)
class Timing:
    """How candidates are timed. rounds, burst_s, seed: see `bursts`. cold: rounds of cold calls."""

    rounds: int = 12
    burst_s: float = 0.02
    seed: int = 0
    cold: int = COLD_ROUNDS


def bound(workload: Workload, execution: Execution, batch: int) -> Candidate:
    """Correctness first: the error on fresh rows through this very execution; then what is to be timed."""
    try:
        with quiet():
            error = fresh_error(workload, execution.bind, batch)
            calls = _in_turn(workload, execution, batch)
            calls[0]()
            start = time.perf_counter()
            calls[0]()
            return Candidate(execution, rotating(calls), error, time.perf_counter() - start)
    except Exception as error:  # of a foreign library
        return Candidate(execution, None, problem=f"{type(error).__name__}: {first_line(error)}")


def dense_again(workload: Workload, batch: int) -> Call | None:
    """The dense network in a session of its own, bound as the candidate BOUND is; None without ONNX Runtime."""
    ways = ways_in_onnxruntime(graph_of(workload.program, narrow=False))
    return next((rotating(_in_turn(workload, way, batch)) for way in ways if way.backend == BOUND), None)


def _in_turn(workload: Workload, execution: Execution, batch: int) -> list[Call]:
    return [execution.bind(rotated(workload.fresh, batch, k * batch)) for k in range(ROTATIONS)]


def timed(
    candidates: Mapping[str, Candidate],
    timing: Timing,
    told: Callable[[float], None] = lambda share: None,
    again: tuple[str, Call] | None = None,
) -> tuple[dict[str, Latency], float]:
    """Latencies by name, that of a graph that does nothing as EMPTY, and the noise: what a call differs from itself by.

    again: the name of a candidate, and the same thing opened a second time, whose memory lies elsewhere. Without it the
    fastest candidate's own call is timed twice.

    candidates: named METHOD/EXECUTION; executions that SCOUT_ROUNDS show far behind another of their method stop there,
    the others are also timed cold (`bursts.cold`). All are timed together; where noise is hopeless, once more in twice
    the rounds.  told: share that is done.
    """
    running = {k: c.call for k, c in candidates.items() if c.call is not None}
    slow = {k: call for k, call in running.items() if candidates[k].seconds > SLOW_S}
    quick = {k: call for k, call in running.items() if k not in slow}
    times: dict[str, Latency] = {}
    noise = 0.0
    for rounds in (timing.rounds, 2 * timing.rounds) if quick else ():
        first = min(quick, key=lambda name: candidates[name].seconds)  # whom most of the others are close to
        first, twin = again if again is not None and again[0] in quick else (first, quick[first])
        times = bursts(
            {**quick, CONTROL: twin, **_empty()},
            rounds=rounds,
            burst_s=timing.burst_s,
            seed=timing.seed,
            on_round=lambda k, rounds=rounds: told(k / rounds),
            drop=partial(behind, (first, CONTROL, EMPTY)),
        )
        noise = noise_of(times[CONTROL], times[first])
        if noise <= HOPELESS:
            break
    going = {name: call for name, call in quick.items() if len(times[name].medians) > SCOUT_ROUNDS}
    if rounds := min(timing.rounds, timing.cold):
        for name, us in cold(going, sweeping(CACHES * cache_bytes()), rounds=rounds, seed=timing.seed).items():
            times[name] = replace(times[name], cold_us=us)
    if slow:
        rounds = min(timing.rounds, SLOW_ROUNDS)
        times |= bursts(slow, rounds=rounds, calls_each=1, warmup=0, seed=timing.seed)
    return times, noise


def behind(needed: Collection[str], rounds: int, medians: Mapping[str, Sequence[float]]) -> list[str]:
    """Executions that a faster one of the same method makes uninteresting, but for those in `needed`."""
    if rounds != SCOUT_ROUNDS:
        return []
    middle = {name: float(np.median(values)) for name, values in medians.items()}
    rivals: dict[str, list[float]] = {}
    for name, us in middle.items():
        rivals.setdefault(_method_of(name), []).append(us)
    return [name for name, us in middle.items() if us > BEHIND * min(rivals[_method_of(name)]) and name not in needed]


def _method_of(name: str) -> str:
    return name.rpartition("/")[0] or name


def cache_bytes() -> int:
    """Of the largest cache that Linux tells of; USUAL_CACHE where it does not."""
    sizes = [p.read_text().strip() for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(s[:-1]) << {"K": 10, "M": 20}[s[-1]] for s in sizes if s[-1:] in ("K", "M")), default=USUAL_CACHE)


def _empty() -> dict[str, Call]:
    """A call of ONNX Runtime that computes nothing, where that is installed."""
    try:
        return {EMPTY: in_onnxruntime(parser.parse_model(NOTHING)).bind((np.zeros(1, np.float32),))}
    except BackendError:
        return {}
