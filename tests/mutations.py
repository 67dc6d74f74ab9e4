"""Files with random damage, and a process that judges what becomes of each, its memory and time limited."""

import json
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from forked import forked

SECONDS = 60  # for one file, on a machine that does other things
STRANGE = (None, True, -1, 0, 1, 3, 2**31, 2**63, 10**30, 1.5, 1e300, float("nan"), "", "x", "\x1b[2J", [], {}, [[]])


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of JSON with a key of it."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def change_json(value: Any, chance: random.Random) -> None:
    """One to three places of `value` with something else in them, or gone, or twice."""
    for _ in range(chance.randint(1, 3)):
        spots = list(places(value))
        if not spots:
            return
        parent, key = chance.choice(spots)
        other, another = chance.choice(spots)
        kind = chance.randrange(6)
        if kind == 0:
            del parent[key]
        elif kind == 1:
            parent[key] = json.loads(json.dumps(other[another]))
        elif kind == 2 and isinstance(parent, list):
            parent.insert(key, parent[key])
        elif kind == 3 and isinstance(parent[key], (int, float)):
            parent[key] = parent[key] + chance.choice([-1, 1, 7]) if chance.random() < 0.8 else -parent[key]
        elif kind == 4 and isinstance(parent, dict):
            parent[chance.choice([str(another), "more", key])] = parent.pop(key)
        else:
            parent[key] = chance.choice(STRANGE)


def change_bytes(data: bytes, chance: random.Random) -> bytes:
    """`data` with bits turned, a part cut out, or a part twice."""
    out = bytearray(data)
    kind = chance.randrange(5)
    if kind == 0:
        return bytes(out[: chance.randrange(len(out))])
    if kind == 1:
        start = chance.randrange(len(out))
        end = min(len(out), start + chance.randint(1, 64))
        out[start:end] = out[start:end] * 2 if chance.random() < 0.5 else b""
        return bytes(out)
    for _ in range(chance.choice([1, 1, 2, 8])):
        out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)
    return bytes(out)


def worst(
    count: int, make: Callable[[random.Random], bytes], judge: Callable[[Path], str], path: Path, seed: int = 0
) -> str:
    """Judge `count` files in one process of its own; each may take 1 GB and four times its size more than before.

    Returns how many of each answer there were, with the worst time and memory. Raises AssertionError with the seed of a
    file that was judged by an exception, or took too much.
    """

    def run() -> str:
        answers: dict[str, int] = {}
        seconds, peak = 0.0, 0
        signal.signal(signal.SIGALRM, _too_long)
        for k in range(seed, seed + count):
            path.write_bytes(make(random.Random(k)))
            before, start = _resident("VmRSS"), time.process_time()
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
            signal.alarm(SECONDS)
            try:
                answer = judge(path)
            except BaseException as error:
                raise AssertionError(f"file of seed {k}: {type(error).__name__}: {error}") from error
            finally:
                signal.alarm(0)
            taken = _resident("VmHWM") - before
            assert taken < 2**30 + 4 * path.stat().st_size, f"file of seed {k} took {taken} bytes"
            answers[answer] = answers.get(answer, 0) + 1
            seconds, peak = max(seconds, time.process_time() - start), max(peak, taken)
        return f"{answers}, worst {seconds:.2f} s and {peak / 1e6:.0f} MB"

    text, status = forked(_limited(run))
    assert status == 0 and "worst" in text and "Traceback" not in text, text[-4000:]
    return text


def _limited(run: Callable[[], str]) -> Callable[[], str]:
    def limited() -> str:
        resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))  # a bomb shall not take the machine with it
        return run()

    return limited


def _too_long(*_: object) -> None:
    raise TimeoutError(f"over {SECONDS} s")


def _resident(what: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{what}:"))
    return 1024 * int(line.split()[1])
