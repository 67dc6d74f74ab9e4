"""Every address that a kernel touches on Triton's interpreter, and what the tables of a launch say that it touches.

Under `watched` each tensor of a launch gets a range of addresses of its own, 16 TiB wide, so that an address names the
tensor it was made from whatever was added to it. A lane outside its tensor is noted and left out. Tensors on the meta
device have addresses but no numbers (loads give 0): kernels run at sizes that no memory holds. `footprint` is written
from the tables' definition (`hrt.kernels.step_tables`), not from the lists that a launch looks up.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
from torch import Tensor
from triton.runtime import interpreter

from hrt.kernels import launch, network_kernel, step_kernel
from hrt.kernels.launch import MOST_BUFFERS, NetworkList, TileList
from hrt.kernels.step_tables import (
    BIAS_OFFSET,
    BUFFER,
    COLUMN,
    END_GROUP,
    END_STEP,
    FIRST_GROUP,
    FIRST_STEP,
    NONE,
    OUT_COLUMN,
    OUT_LENGTH,
    SCALE_OFFSET,
    WEIGHT_OFFSET,
    Rescaling,
    StepTables,
)

SPACING = 1 << 44  # bytes between the first addresses of two tensors
Program = tuple[int, int, int]
WIDE = ("workspace", "target", "partial")  # their accesses are by row and column
LISTS = ("tiles", "runs", "starts", "groups", "columns", "wave_ends")  # what kernels look up: bounds are all there is


@dataclass(frozen=True)
class Argument:
    """A tensor of a launch and where its addresses begin."""

    name: str
    tensor: Tensor
    first: int

    @property
    def extent(self) -> int:
        """Elements from the first to the last."""
        t = self.tensor
        return 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0


@dataclass
class Launch:
    """One launch: its tensors, and the elements that each program loaded ("load") and stored ("store")."""

    kernel: str
    arguments: tuple[Argument, ...] = ()
    touched: dict[tuple[str, str, Program], list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    faults: list[str] = field(default_factory=list)

    def elements(self, name: str, kind: str, programs: range | None = None) -> np.ndarray:
        """int64, sorted: the elements of an argument that were touched; what is stored twice is there twice. programs:
        by these, along the first axis of the grid; None: by all.
        """
        here = [a for (n, k, p), a in self.touched.items() if (n, k) == (name, kind) and p[0] in (programs or (p[0],))]
        parts = [np.concatenate(a) for a in here]
        merged = np.concatenate([np.zeros(0, np.int64), *parts])
        return np.sort(merged) if kind == "store" else np.unique(merged)

    def races(self) -> list[str]:
        """Elements that one program stores and another one touches, whatever names they go by."""
        places = {a.name: (a.tensor.data_ptr(), a.tensor.element_size()) for a in self.arguments}
        programs = sorted({program for _, _, program in self.touched})

        def by_address(kind: str) -> tuple[np.ndarray, np.ndarray]:
            pairs = [np.zeros((2, 0), np.int64)]
            for (name, k, program), arrays in self.touched.items():
                if k == kind and name in WIDE:
                    base, size = places[name]
                    at = base + np.unique(np.concatenate(arrays)) * size
                    pairs.append(np.stack([at, np.full(len(at), programs.index(program))]))
            address, program = np.concatenate(pairs, axis=1)
            order = np.argsort(address, kind="stable")
            return address[order], program[order]

        stored, writer = by_address("store")
        twice = (stored[1:] == stored[:-1]) & (writer[1:] != writer[:-1])
        loaded, reader = by_address("load")
        place = np.searchsorted(stored, loaded).clip(max=max(0, len(stored) - 1))
        read = (stored[place] == loaded) & (writer[place] != reader) if len(stored) else np.zeros(0, bool)
        clashes = [f"{self.kernel}: {int(twice.sum())} elements are stored by two programs"] if twice.any() else []
        if read.any():
            k = int(np.flatnonzero(read)[0])
            pair = programs[writer[place[k]]], programs[reader[k]]
            clashes.append(f"{self.kernel}: {int(read.sum())} loads of what another program stores: {pair}")
        return clashes


@dataclass
class Watch:
    """All launches so far."""

    launches: list[Launch] = field(default_factory=list)
    block: int | None = None
    current: Launch | None = None
    program: Program = (0, 0, 0)
    axis: int = 1  # of the grid, that blocks of rows are numbered along

    @property
    def faults(self) -> list[str]:
        """Accesses outside their tensors."""
        return [fault for each in self.launches for fault in each.faults]

    def begin(self, kernel: str) -> None:
        """A launch begins."""
        self.current = Launch(kernel)
        self.launches.append(self.current)

    def name(self, tensor: Tensor, name: str) -> int:
        """The first address of a tensor of the launch."""
        assert self.current is not None
        first = (len(self.current.arguments) + 1) * SPACING + SPACING // 2
        self.current.arguments += (Argument(name, tensor, first),)
        return first

    def place(self, addresses: np.ndarray, mask: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray, bool]:
        """Real addresses, the lanes that may touch them, and whether there are numbers; notes what is touched."""
        assert self.current is not None
        signed, lanes = addresses.astype(np.int64), np.broadcast_to(mask, addresses.shape)
        if not lanes.any():
            return addresses, lanes, True
        number = int(signed[lanes][0]) // SPACING - 1
        if not 0 <= number < len(self.current.arguments):
            self.current.faults.append(f"{self.current.kernel}, program {self.program}: a {kind} of no tensor")
            return addresses, np.zeros_like(lanes), False
        a = self.current.arguments[number]
        size = a.tensor.element_size()
        offsets = signed - a.first
        inside = (offsets >= 0) & (offsets < a.extent * size) & (offsets % size == 0)
        for at in np.unique(offsets[lanes & ~inside])[:1].tolist():
            where = f"element {at / size:g} of {a.name}, which has {a.extent}"
            self.current.faults.append(f"{self.current.kernel}, program {self.program}: a {kind} of {where}")
        lanes = lanes & inside
        self.current.touched[a.name, kind, self.program].append(offsets[lanes] // size)
        is_real = a.tensor.device.type != "meta"
        return (a.tensor.data_ptr() + offsets).astype(np.uint64), lanes, is_real


@contextmanager
def watched(block: int | None = None) -> Iterator[Watch]:
    """Watch every kernel of the interpreter. block: of each launch only the programs of this block of rows are run."""
    watch = Watch(block=block)
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, call = builder.create_masked_load, builder.create_masked_store, executor.__call__
    names: list[str] = []

    def checked_load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
        real, lanes, is_real = watch.place(pointers.data, mask.data, "load")
        if not is_real:
            lanes = np.zeros_like(lanes)
        handle = interpreter.TensorHandle
        return load(self, handle(real, pointers.dtype), handle(lanes.copy(), mask.dtype), other, *rest)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        real, lanes, is_real = watch.place(pointers.data, mask.data, "store")
        handle = interpreter.TensorHandle
        if is_real:
            store(self, handle(real, pointers.dtype), value, handle(lanes.copy(), mask.dtype), *rest)

    def begun(self: Any, *arguments: Any, **options: Any) -> Any:
        names[:] = [n for n in self.arg_names if n not in self.constexprs]
        watch.begin(self.fn.__name__)
        watch.axis = len(self.grid) - 1
        if watch.block is not None:
            self.grid = (*self.grid[:-1], 1)
        return call(self, *arguments, **options)

    convert = interpreter._implicit_cvt

    def converted(argument: Any) -> Any:
        name, tensor = names.pop(0), convert(argument)
        if isinstance(argument, Tensor):
            tensor.handle.data[:] = watch.name(argument, name)
        return tensor

    def moved(self: Any, *index: int) -> None:
        place = list(index)
        place[watch.axis] += watch.block or 0
        self.grid_idx = watch.program = (place[0], place[1], place[2])

    changes: dict[tuple[Any, str], Callable] = {
        (builder, "create_masked_load"): checked_load,
        (builder, "create_masked_store"): checked_store,
        (builder, "set_grid_idx"): moved,
        (executor, "__call__"): begun,
        (executor, "_init_args_hst"): lambda self, *arguments: arguments,
        (executor, "_restore_args_dev"): lambda self, *_: None,
        (interpreter, "_implicit_cvt"): converted,
    }
    with ExitStack() as stack:
        for (owner, name), change in changes.items():
            stack.enter_context(patch.object(owner, name, change))
        yield watch


def put_fault(text: str, wrong: str, folder: Path, monkeypatch: Any) -> None:
    """Launch kernels in whose source every `text` is `wrong`. folder: where to write it."""
    for module in (step_kernel, network_kernel):
        source = Path(str(module.__file__)).read_text("utf-8")
        if text in source:
            path = folder / "mutant.py"
            path.write_text(source.replace(text, wrong), "utf-8")
            mutant = ModuleType("mutant")
            SourceFileLoader("mutant", str(path)).exec_module(mutant)
            for name in ("step_kernel", "finish_kernel", "network_kernel"):
                if hasattr(mutant, name):
                    monkeypatch.setattr(launch, name, getattr(mutant, name))
            return
    raise AssertionError(f"no kernel has {text!r} any more")


@dataclass(frozen=True)
class Footprint:
    """Elements, sorted int64, that programs load and store of each argument; all others none. programs: as in
    `Launch.elements`.
    """

    loads: Mapping[str, np.ndarray]
    stores: Mapping[str, np.ndarray]
    programs: range | None = None

    def differences(self, launch: Launch) -> list[str]:
        """How a launch differs from it, for every argument but the lists."""
        out = []
        for kind, expected in (("load", self.loads), ("store", self.stores)):
            for a in launch.arguments:
                if a.name in LISTS and kind == "load":
                    continue
                right, real = expected.get(a.name, np.zeros(0, np.int64)), launch.elements(a.name, kind, self.programs)
                if not np.array_equal(right, real):
                    more, less = np.setdiff1d(real, right), np.setdiff1d(right, real)
                    twice = len(real) - len(np.unique(real))
                    counts = f"{len(more)} too many {more[:3]}, {len(less)} missing {less[:3]}, {twice} twice"
                    out.append(f"{launch.kernel}, programs {self.programs}, {kind}s of {a.name}: {counts}")
        return out


@dataclass(frozen=True)
class Rows:
    """Some rows of a workspace, or of partial sums."""

    numbers: np.ndarray
    pitch: int

    def elements(self, columns: Sequence[int] | np.ndarray) -> np.ndarray:
        """Of these columns, int64."""
        return (self.numbers[:, None].astype(np.int64) * self.pitch + np.unique(columns)[None, :]).reshape(-1)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """All numbers of these ranges, sorted, each once."""
    each = [np.arange(s, s + n) for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *each]))


def sums_of(tables: StepTables, tiles: Sequence[int], rows: Rows) -> dict[str, np.ndarray]:
    """What the sums of these tiles load: columns, weights and scales of their steps."""
    all_tiles, steps = tables.numbers
    numbers = [np.arange(all_tiles[t, FIRST_STEP], all_tiles[t, END_STEP]) for t in tiles]
    steps = steps[np.concatenate([np.zeros(0, np.int64), *numbers])]
    whole = np.full(len(steps), tables.tile_elements)
    columns = ranges(steps[:, COLUMN], np.full(len(steps), tables.step_columns))
    loads = {"workspace": rows.elements(columns)}
    for b in range(MOST_BUFFERS):
        here = steps[:, BUFFER] == b
        loads[f"weights{b}"] = ranges(steps[here, WEIGHT_OFFSET], whole[here])
    scales = steps[steps[:, SCALE_OFFSET] != NONE, SCALE_OFFSET]
    loads["scales"] = ranges(scales, np.full(len(scales), tables.tile_rows))
    return loads


def results_of(
    tables: StepTables, tiles: Sequence[int], rescaling: Mapping[int, Rescaling], rows: Rows
) -> tuple[np.ndarray, np.ndarray]:
    """The biases, gains and shifts that finished tiles load, and the elements of the workspace that they store."""
    offsets, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for t in tiles:
        tile, change = tables.numbers[0][t], rescaling.get(t)
        starts = [tile[BIAS_OFFSET], *((change.gains, change.shifts) if change else ())]
        offsets += [np.arange(s, s + tile[OUT_LENGTH]) for s in starts if s != NONE]
        columns.append((change.column if change else tile[OUT_COLUMN]) + np.arange(tile[OUT_LENGTH]))
    return np.unique(np.concatenate(offsets)), rows.elements(np.concatenate(columns))


Group = tuple[Sequence[int], range | None]  # tiles, and the programs that compute them


def whole(
    tables: StepTables,
    groups: Sequence[Group],
    rescaling: Mapping[int, Rescaling],
    rows: Rows,
    target: str = "workspace",
) -> Iterator[Footprint]:
    """Of tiles in one pass."""
    for tiles, programs in groups:
        biases, stored = results_of(tables, tiles, rescaling, rows)
        yield Footprint(sums_of(tables, tiles, rows) | {"biases": biases}, {target: stored}, programs)


def in_parts(
    listed: TileList, numbers: Sequence[int], rescaling: Mapping[int, Rescaling], rows: Rows
) -> Iterator[tuple[Footprint, Footprint]]:
    """Of tiles that are cut: of the parts, and of the second pass."""
    assert listed.finish is not None
    slots, side = len(listed.lists[0]), listed.tables.tile_rows
    partial = Rows(rows.numbers, slots * side)
    for k, t in enumerate(numbers):
        first, end = listed.finish[k, [FIRST_GROUP, END_GROUP]].tolist()
        sums = partial.elements(np.arange(first * side, min(end, slots) * side))
        biases, stored = results_of(listed.tables, [t], rescaling, rows)
        yield (
            Footprint(sums_of(listed.tables, [t], rows), {"target": sums}, range(first, end)),
            Footprint({"partial": sums, "biases": biases}, {"workspace": stored}, range(k, k + 1)),
        )


@contextmanager
def judged(block: int | None = None, height: int = 16) -> Iterator[Watch]:
    """Watch, and compare every launch of tile and network lists with its footprint. Faults are in `Watch.faults`.

    block: as `watched` takes it, of so many rows, `height`.
    """
    origin: dict[int, tuple[list[int], Mapping[int, Rescaling], Any]] = {}
    build, run, run_network = TileList.build, TileList.run, NetworkList.run

    def built(tables, tiles, epilogue, parts, rescaling=None, *streams, **named):
        out = build(tables, tiles, epilogue, parts, rescaling, *streams, **named)
        origin[id(out)] = [int(t) for t in tiles], rescaling or {}, out  # kept, so that its id stays its own
        return out

    def judge(tiles: TileList, workspace: Tensor, is_network: bool, launches: list[Launch]) -> None:
        numbers, rescaling, _ = origin[id(tiles)]
        batch = np.arange(workspace.shape[0])
        rows = Rows(batch if block is None else batch[block * height : (block + 1) * height], workspace.stride(0))
        if is_network:
            prints = [list(whole(tiles.tables, [(numbers, None)], rescaling, rows))]
        elif tiles.finish is None:
            single = [([t], range(k, k + 1)) for k, t in enumerate(numbers)]
            prints = [list(whole(tiles.tables, single, rescaling, rows, "target"))]
        else:
            prints = list(zip(*in_parts(tiles, numbers, rescaling, rows), strict=True))
        for each, expected in zip(launches, prints, strict=bool(launches)):
            each.faults += [d for e in expected for d in e.differences(each)] + each.races()

    def ran(self, workspace, *rest):
        first = len(watch.launches)
        run(self, workspace, *rest)
        judge(self, workspace, False, watch.launches[first:])

    def ran_network(self, workspace, *rest):
        first = len(watch.launches)
        run_network(self, workspace, *rest)
        judge(self.tiles, workspace, True, watch.launches[first:])

    with ExitStack() as stack:
        watch = stack.enter_context(watched(block))
        for owner, name, change in (
            (launch.TileList, "build", staticmethod(built)),
            (launch.TileList, "run", ran),
            (launch.NetworkList, "run", ran_network),
        ):
            stack.enter_context(patch.object(owner, name, change))
        yield watch
