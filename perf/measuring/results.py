"""A row of the harness: one method on one workload at one batch size and one error, as JSON has it."""

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, get_args, get_type_hints

from hrt.errors import InputError
from hrt.support.atomic_files import check_writable, replacing, usable

FORMAT_VERSION = 1
OK, UNREACHABLE, MISSING, FAILED, NOISY = "ok", "cannot reach", "not installed", "failed", "too noisy"
STATUSES = (OK, UNREACHABLE, MISSING, FAILED, NOISY)
FAMILIES = ("dense", "svd", "pruned", "quantized", "hrt")  # every method's name begins with one of them
KINDS = {
    str: "text",
    int: "a whole number, 0 or more",
    float: "a finite number, 0 or more",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


@dataclass(frozen=True)
class Row:
    """What was measured, or why it was not. Everything that was not measured is None, never a guess.

    target: the relative L2 error that may be had.  error: what is had, on rows that nothing was tuned on.  nbytes: what
    must be resident to predict.  p50_us to p999_us: microseconds of one call.  cold_us: of a call after other work has
    used the caches.  ratio_vs_best_dense: the fastest dense method over this one at the same batch (`Latency.ratio`),
    above 1 it is faster; ratio_low, ratio_high: its 95 % bootstrap interval.  roofline_fraction: least possible time
    over measured median, where a roofline is known.  noise: by how much, relative, one network differed from itself
    in this group: a difference that does not exceed it is none.  status: one of STATUSES.  note: why, or what the
    reader should know.
    """

    workload: str
    method: str
    batch: int
    backend: str
    target: float
    status: str = OK
    error: float | None = None
    nbytes: int | None = None
    p50_us: float | None = None
    p95_us: float | None = None
    p99_us: float | None = None
    p999_us: float | None = None
    cold_us: float | None = None
    peak_bytes: int | None = None
    calls: int | None = None
    ratio_vs_best_dense: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    roofline_fraction: float | None = None
    noise: float | None = None
    note: str = ""

    @property
    def family(self) -> str:
        """Which of FAMILIES the method belongs to."""
        return next((f for f in FAMILIES if self.method.startswith(f)), "other")

    @property
    def key(self) -> tuple[str, str, int, str, float]:
        """What makes two rows comparable."""
        return self.workload, self.method, self.batch, self.backend, self.target


def slowness(rows: Iterable[Row]) -> Callable[[Row], float]:
    """What orders rows of one workload, target and batch size by time. Where all that were timed were compared with the
    best dense form, round by round, that counts: medians of calls also tell who had the quieter moments. Else medians.
    """
    timed = [r for r in rows if r.p50_us is not None]
    if timed and all(r.ratio_vs_best_dense for r in timed):
        return lambda r: 1 / r.ratio_vs_best_dense if r.ratio_vs_best_dense else math.inf
    return lambda r: math.inf if r.p50_us is None else r.p50_us


@dataclass(frozen=True)
class Results:
    """Rows and where they come from. facts: command, commit, versions, machine, threads, date. samples: per-round
    medians in microseconds by row number, for intervals of comparisons between files; may be empty.
    """

    rows: tuple[Row, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[int, Sequence[float]] = field(default_factory=dict)

    def write(self, path: str | PathLike[str]) -> None:
        """As JSON, whole or not at all. Raises InputError."""
        check_results(path)
        body = {
            "format": "hrt-bench",
            "version": FORMAT_VERSION,
            "facts": dict(self.facts),
            "rows": [_plain(asdict(r)) for r in self.rows],
            "samples": {str(k): [round(float(v), 3) for v in s] for k, s in self.samples.items()},
        }
        with replacing(path) as file:
            file.write((json.dumps(body, indent=1, allow_nan=False) + "\n").encode())


def check_results(path: str | PathLike[str]) -> None:
    """Make the folder of `path` where it is missing. Raises InputError, before anything is measured, where results
    cannot be written there.
    """
    folder = usable(path).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(path, force=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}. Pass another path.") from error


def read(path: str | PathLike[str]) -> Results:
    """What `Results.write` wrote. Raises InputError, saying what was found, for anything else."""
    try:
        body = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}. Expected a file that the harness wrote.") from error
    if not isinstance(body, dict) or body.get("format") != "hrt-bench":
        raise InputError(
            f"{path} is not a result of the harness. Expected a file that `python -m hrt.perf --json` wrote."
        )
    if body.get("version") != FORMAT_VERSION:
        raise InputError(f"{path}: found version {body.get('version')!r}. Expected {FORMAT_VERSION}; measure again.")
    try:
        rows = tuple(_row(r, f"row {number}") for number, r in enumerate(_is(body.get("rows"), list, "rows")))
        samples = _samples(_is(body.get("samples", {}), dict, "samples"), len(rows))
        return Results(rows, _facts(body.get("facts", {})), samples)
    except InputError as error:
        raise InputError(f"{path} is damaged: {error} Measure again.") from error


def _row(found: Any, where: str) -> Row:
    """One row of a file, every value of the type that `Row` says; numbers are finite and none is negative."""
    kinds = get_type_hints(Row)
    given = {k: v for k, v in _is(found, dict, where).items() if k in kinds}
    for f in fields(Row)[:5]:  # those without a default
        if f.name not in given:
            raise InputError(f"{where}: found no {f.name}. Expected one.")
    for name, value in given.items():
        _is(value, kinds[name], f"{where}: {name}")
    row = Row(**given)
    if row.status not in STATUSES or row.batch < 1:
        raise InputError(
            f"{where}: found status {row.status!r}, batch {row.batch}. Expected one of {', '.join(STATUSES)}, and 1 or "
            "more."
        )
    if row.ratio_vs_best_dense is not None and (row.ratio_low is None or row.ratio_high is None):
        raise InputError(f"{where}: found a ratio without both ends of its interval. Expected ratio_low, ratio_high.")
    return row


def _facts(found: Any) -> Mapping[str, Any]:
    """What readers of a file look up in its facts, in the form they take for granted; the rest may be anything."""
    facts = _is(found, dict, "facts")
    _is(facts.get("about", {}), dict, "facts: about")
    _is(facts.get("realtime", []), list, "facts: realtime")
    for number, line in enumerate(_is(facts.get("why", []), list, "facts: why")):
        where = f"facts: why: entry {number}"
        for name, kind in (("workload", str), ("batch", int), ("target", float), ("line", str)):
            _is(_is(line, dict, where).get(name), kind, f"{where}: {name}")
    return facts


def _samples(found: Mapping[str, Any], count: int) -> dict[int, Sequence[float]]:
    numbers = {str(k): k for k in range(count)}
    samples = {}
    for key, values in found.items():
        if key not in numbers:
            raise InputError(f"samples: found {key[:60]!r}. Expected the number of one of {count} rows.")
        where = f"samples of row {key}"
        samples[numbers[key]] = tuple(float(_is(v, float, where)) for v in _is(values, list, where))
    return samples


def _is(value: Any, kind: Any, where: str) -> Any:
    """`value` where it is of `kind`, a type or a union; where floats are expected a whole number is one."""
    kinds = get_args(kind) or (kind,)
    fits = isinstance(value, (*kinds, int) if float in kinds else kinds) and not isinstance(value, bool)
    if fits and (not isinstance(value, int | float) or 0 <= value <= sys.float_info.max):
        return value
    said = {dict: "an object", list: "a list", type(None): "nothing"}.get(type(value), repr(value)[:60])
    raise InputError(f"{where}: found {said}. Expected {' or '.join(KINDS[k] for k in kinds)}.")


def merged(parts: Iterable[Results]) -> Results:
    """Several results as one; the facts of the first."""
    parts = list(parts)
    samples: dict[int, Sequence[float]] = {}
    start = 0
    for part in parts:
        samples |= {start + k: v for k, v in part.samples.items()}
        start += len(part.rows)
    return Results(tuple(r for p in parts for r in p.rows), parts[0].facts if parts else {}, samples)


def disagreement(parts: Iterable[Results]) -> str:
    """What times depend on and `parts` differ in: threads, processor, as "threads: 1, 2"; empty where they agree, as
    far as their facts say.
    """
    machines = [(p.facts, p.facts.get("machine")) for p in parts]
    known = {
        "threads": [facts.get("threads") for facts, _ in machines],
        "processor": [m.get("processor") for _, m in machines if isinstance(m, Mapping)],
    }
    found = {
        name: dict.fromkeys(str(v) for v in values if v not in (None, "unknown")) for name, values in known.items()
    }
    return "; ".join(f"{name}: {', '.join(values)}" for name, values in found.items() if len(values) > 1)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Numbers that JSON has: infinity and NaN become None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
