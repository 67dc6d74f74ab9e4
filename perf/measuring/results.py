"""A row of the harness: one method on one workload at one batch size and one error, as JSON has it."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from hrt.errors import InputError
from hrt.support.atomic_files import check_writable, replacing, usable

FAMILIES = ("dense", "svd", "pruned", "quantized", "hrt")  # every method's name begins with one of them

Whole = Annotated[int, Meta(ge=0)]
Number = Annotated[float, Meta(ge=0)]
Status = Literal["ok", "cannot reach", "not installed", "failed", "too noisy"]
STATUSES: tuple[Status, ...] = get_args(Status)
OK, UNREACHABLE, MISSING, FAILED, NOISY = STATUSES
MEASURED = (OK, NOISY)  # rows that have times


@dataclass(frozen=True)
class Row:
    """What was measured, or why it was not. Everything that was not measured is None, never a guess.

    target: the relative L2 error that may be had.  error: what is had, on rows that nothing was tuned on.  nbytes: what
    must be resident to predict.  p50_us to p999_us: microseconds of one call.  cold_us: of a call after other work has
    used the caches.  ratio_vs_best_dense: the fastest dense method over this one at the same batch (`Latency.ratio`),
    above 1 it is faster; ratio_low, ratio_high: its 95 % bootstrap interval.  noise: by how much, relative, one network
    differed from itself in this group.  made_s: seconds in which the method was set up for this error on search rows;
    what methods share counts where it was made first.  note: why, or what the reader should know. Raises ValueError
    for a ratio without its interval.
    """

    workload: str
    method: str
    batch: Annotated[int, Meta(ge=1)]
    backend: str
    target: Number
    status: Status = OK
    error: Number | None = None
    nbytes: Whole | None = None
    p50_us: Number | None = None
    p95_us: Number | None = None
    p99_us: Number | None = None
    p999_us: Number | None = None
    cold_us: Number | None = None
    calls: Whole | None = None
    ratio_vs_best_dense: Number | None = None
    ratio_low: Number | None = None
    ratio_high: Number | None = None
    noise: Number | None = None
    made_s: Number | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.ratio_vs_best_dense is not None and (self.ratio_low is None or self.ratio_high is None):
            raise ValueError("found a ratio without both ends of its interval. Expected ratio_low and ratio_high")

    @property
    def family(self) -> str:
        """Which of FAMILIES the method belongs to."""
        return next((f for f in FAMILIES if self.method.startswith(f)), "other")

    @property
    def key(self) -> tuple[str, str, int, str, float]:
        """What makes two rows comparable."""
        return self.workload, self.method, self.batch, self.backend, self.target

    @property
    def group(self) -> tuple[str, float, int]:
        """What makes two rows rivals."""
        return self.workload, self.target, self.batch


def slowness(rows: Iterable[Row]) -> Callable[[Row], float]:
    """What orders rows of one workload, target and batch size by time. Where all that were timed were compared with the
    best dense form, round by round, that counts: medians of calls also tell who had the quieter moments. Else medians.
    """
    timed = [r for r in rows if r.p50_us is not None]
    if timed and all(r.ratio_vs_best_dense for r in timed):
        return lambda r: 1 / r.ratio_vs_best_dense if r.ratio_vs_best_dense else math.inf
    return lambda r: math.inf if r.p50_us is None else r.p50_us


@dataclass(frozen=True)
class Reason:
    """Why hrt is not first in a group, or what else a reader should know of it."""

    workload: str
    batch: Whole
    target: Number
    line: str


@dataclass(frozen=True)
class KnownFacts:
    """What readers of a file look up in its facts, in the form they take for granted; the rest may be anything."""

    about: dict[str, str] = field(default_factory=dict)
    why: list[Reason] = field(default_factory=list)
    realtime: list[dict[str, Any]] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)
    noise: dict[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """Rows and where they come from. facts: command, commit, versions, machine, threads, date. samples: per-round
    medians in microseconds by row number, for intervals of comparisons between files; may be empty.
    """

    rows: tuple[Row, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[int, Sequence[Number]] = field(default_factory=dict)

    @property
    def known(self) -> KnownFacts:
        """The facts that readers look up. Raises msgspec.ValidationError where they have another form."""
        return msgspec.convert(dict(self.facts), KnownFacts)

    def groups(self) -> list[list[Row]]:
        """Rows that are rivals, by workload as they come, falling target and rising batch size."""
        order = {name: k for k, name in enumerate(dict.fromkeys(r.workload for r in self.rows))}
        groups: dict[tuple[str, float, int], list[Row]] = {}
        for row in sorted(self.rows, key=lambda r: (order[r.workload], -r.target, r.batch)):
            groups.setdefault(row.group, []).append(row)
        return list(groups.values())

    def write(self, path: str | PathLike[str]) -> None:
        """As JSON, one line a row, whole or not at all. Raises InputError."""
        check_results(path)
        body = {
            "format": "hrt-bench",
            "version": 1,
            "facts": dict(self.facts),
            "rows": [{f.name: v for f in fields(r) if (v := getattr(r, f.name)) != f.default} for r in self.rows],
            "samples": {str(k): [round(float(v), 3) for v in s] for k, s in self.samples.items()},
        }
        with replacing(path) as file:
            file.write(f"{_lined(body, depth=3)}\n".encode())


def _lined(value: Any, depth: int, indent: str = "") -> str:
    """JSON with an entry a line down to `depth`; what lies deeper, and what holds no more entries, is one line."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not depth or not any(isinstance(v, dict | list) for v in inner):
        return msgspec.json.encode(value).decode()
    keys = [f"{json.dumps(k)}: " for k in value] if isinstance(value, dict) else [""] * len(value)
    lines = (f"{indent} {k}{_lined(v, depth - 1, indent + ' ')}" for k, v in zip(keys, inner, strict=True))
    start, end = "{}" if isinstance(value, dict) else "[]"
    return f"{start}\n" + ",\n".join(lines) + f"\n{indent}{end}"


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


@dataclass(frozen=True)
class _File:
    """What is in a file of results."""

    format: Literal["hrt-bench"]
    version: Literal[1]
    facts: dict[str, Any]
    rows: tuple[Row, ...]
    samples: dict[Whole, tuple[Number, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        msgspec.convert(self.facts, KnownFacts)
        if strange := [k for k in self.samples if k >= len(self.rows)]:
            raise ValueError(f"found samples of row {strange[0]}. Expected the number of one of {len(self.rows)} rows")


def read(path: str | PathLike[str]) -> Results:
    """What `Results.write` wrote. Raises InputError, saying what was found, for anything else."""
    try:
        body = msgspec.json.decode(Path(path).read_bytes(), type=_File)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no result of the harness: {error}. Expected a file that --json wrote.") from error
    return Results(body.rows, body.facts, body.samples)


def disagreement(parts: Iterable[Results]) -> str:
    """What times depend on and `parts` differ in: threads, processor, as "threads: 1, 2"; empty where they agree, as
    far as their facts say.
    """
    known: dict[str, dict[str, None]] = {"threads": {}, "processor": {}}
    for part in parts:
        for name, value in (("threads", part.facts.get("threads")), ("processor", part.known.machine.get("processor"))):
            if value not in (None, "unknown"):
                known[name][str(value)] = None
    return "; ".join(f"{name}: {', '.join(values)}" for name, values in known.items() if len(values) > 1)
