"""The GPU backend: a schedule in Triton launches, replayed as one CUDA graph per batch bucket.

Batches are rounded up to a power of two, the bucket. A bucket has a static workspace and a captured graph; a request
copies its rows in, replays the graph on the caller's stream and copies the answer out: no allocation but the answer's,
no look-up, no compilation and, for tensors that are on the device already, no wait. Kernels are compiled when the
session is opened, graphs are captured when a bucket is first used (milliseconds).

Small networks run in one launch (`hrt.kernels.network_kernel`), with derivatives too (`hrt.runtime.kernel_derivatives`): a point then takes
several rows of the workspace. On Triton's interpreter the same code runs on the CPU without
graphs, which is how it is tested.
"""

import copy
import math
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hrt.errors import BackendError
from hrt.hmatrix.torch_products import prepare
from hrt.kernels.launch import Config, NetworkList, TileList, is_interpreted
from hrt.kernels.precisions import PRECISIONS, WORKSPACE
from hrt.kernels.step_tables import StepTables
from hrt.kernels.tuning import LARGEST_BUCKET, PROCESSORS, Key, bucket_of, find, storage_name
from hrt.program.program import Program
from hrt.runtime.cuda_graphs import Bucket
from hrt.runtime.kernel_derivatives import Carried, overwritten
from hrt.schedule.choose_layout import chip_of, choose_schedule
from hrt.schedule.launch_plan import Plan, Tiles, make_plan
from hrt.schedule.schedule import Gather
from hrt.support.devices import architecture, cuda_device

ALIGNED = 16  # elements that a workspace row is a multiple of
MEMORY_SHARE = 4  # a workspace may take this fraction of the free memory
WAVE_SECONDS, TILE_SECONDS, STEP_SECONDS = 3.0e-6, 1.5e-6, 0.15e-6  # assumed, see `one_launch`


class CudaSession:
    """A network on one GPU. Thread-safe: requests of one bucket follow each other, in the order of the calls.

    device: a CUDA device; a CPU device on Triton's interpreter. precision: of `hrt.schedule.precision.PRECISIONS`.
    largest: the largest bucket; bigger batches are computed in parts. warm: compile everything now. densify: write out
    layers that are predicted to be no faster compressed (`dense_layers` names them). resident_bytes: tables, weights
    and constants (workspaces are counted by `workspace_bytes`). derivatives: more outputs, as `differentiate` gives
    them. Raises BackendError where the device is absent, too old or too small, its child NotCarriedError where the
    kernels cannot carry the derivatives of this network, and InputError for names that are none.
    """

    def __init__(
        self,
        program: Program,
        device: Any = None,
        precision: str = "tf32x3",
        *,
        largest: int | None = None,
        warm: bool = True,
        densify: bool = True,
        derivatives: Sequence[str] = (),
    ):
        if precision not in PRECISIONS:
            raise BackendError(f"Found precision {precision!r}. Expected one of {', '.join(PRECISIONS)}.")
        interpreted = is_interpreted()
        self.device = torch.device("cpu") if interpreted else cuda_device(device)
        self.program, self.precision, self.dtype = program, precision, WORKSPACE[precision]
        self.arch = architecture(self.device)
        self.graphs = self.device.type == "cuda"
        self.carried = Carried.of(program, derivatives) if derivatives else Carried()
        try:
            choice = choose_schedule(program, precision, chip_of(self.device), densify=densify)
            schedule, self.dense_layers = choice.schedule, choice.dense
            plan = make_plan(schedule, precision)
            self.carried.check(plan)
            self.schedule, self.plan = schedule, _placed(plan, self.dtype, self.device)
            seeds = self.carried.seeds(program.inputs, plan.entries)
            self.seeds = [(column, numbers.to(self.device, self.dtype)) for column, numbers in seeds]
            self.reseeds = bool(seeds) and overwritten(schedule, plan.entries)
            self.constants = {k: prepare(c, self.device) for k, c in schedule.constants.items()}
            self.indices = {
                id(g): g.index.to(self.device, torch.int64) for g in self.plan.launches if isinstance(g, Gather)
            }
            self.pitch = -(-max(1, schedule.width) // ALIGNED) * ALIGNED
            point_bytes = self.point_rows * self.pitch * self.dtype.itemsize
            self.largest = min(_bucket_limit(largest), _room(self.device, point_bytes))
            held = [c for c in (*self.constants.values(), *self.indices.values()) if isinstance(c, Tensor)]
            self.resident_bytes = self.plan.tables.nbytes + sum(c.numel() * c.element_size() for c in held)
            self._lists: dict[tuple[int, int], TileList] = {}
            self._whole: NetworkList | None = None
            self._buckets: dict[int, Bucket] = {}
            self._lock = threading.Lock()
            if self.graphs and warm:
                with plain_mode(self.device):
                    self.warm_up()
        except torch.cuda.OutOfMemoryError as error:
            raise BackendError(out_of_memory(self.device, error)) from error

    def copy(self) -> "CudaSession":
        """The same network with tables of its own, for benchmarks that must not find its weights in a cache."""
        other, tables = copy.copy(self), self.plan.tables
        kept = {"tiles": tables.tiles.clone(), "steps": tables.steps.clone(), "biases": tables.biases.clone()}
        weights = tuple(w.clone() for w in tables.weights)
        other.plan = replace(self.plan, tables=replace(tables, weights=weights, scales=tables.scales.clone(), **kept))
        other._lists, other._whole, other._buckets, other._lock = {}, None, {}, threading.Lock()
        return other

    @property
    def workspace_bytes(self) -> int:
        """Bytes of the workspaces of all buckets used so far."""
        return sum(b.workspace.numel() * b.workspace.element_size() for b in self._buckets.values())

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Inputs (batch, *shape) of any floating type, on the CPU or the device, to float32 outputs where they are.

        Raises BackendError where the device has no memory left.
        """
        batch = inputs[0].shape[0]
        try:
            with plain_mode(self.device):
                if batch <= self.largest:
                    return self._part(inputs, batch)
                parts = [x.split(self.largest) for x in inputs]
                answers = [self._part(rows, rows[0].shape[0]) for rows in zip(*parts, strict=True)]
                return tuple(torch.cat(ys) for ys in zip(*answers, strict=True))
        except torch.cuda.OutOfMemoryError as error:
            raise BackendError(out_of_memory(self.device, error)) from error

    def _part(self, inputs: Sequence[Tensor], batch: int) -> tuple[Tensor, ...]:
        if not batch:
            where, spans = inputs[0].device, self.schedule.outputs * len(self.carried.answers)
            return tuple(torch.empty(0, *s.shape, dtype=torch.float32, device=where) for s in spans)
        if self.graphs and torch.cuda.is_current_stream_capturing():  # the caller's own graph takes the launches
            return Bucket(self, bucket_of(batch), capture=False).run(inputs, batch)
        return self._bucket(bucket_of(batch)).run(inputs, batch)

    def _bucket(self, size: int) -> "Bucket":
        with self._lock:
            if size not in self._buckets:
                self._buckets[size] = Bucket(self, size)
            return self._buckets[size]

    def config(self, bucket: int, kernel: str = "step", *, exact: bool = False) -> Config:
        """The configuration of a bucket's launches."""
        return find(self.key(bucket, kernel, exact=exact))[0]

    def key(self, bucket: int, kernel: str = "step", *, exact: bool = False) -> Key:
        """What configurations of this network are kept under."""
        t = self.plan.tables
        storage = storage_name(w.dtype for w in t.weights)
        precision = self.network_precision if kernel == "network" else self._products(exact)
        return Key(self.arch, kernel, precision, storage, t.tile_rows, t.step_columns, bucket, self.point_rows)

    @property
    def point_rows(self) -> int:
        """Rows of the workspace that a point takes."""
        return self.carried.streams.rows

    @property
    def network_precision(self) -> str:
        """Of a network in one launch: where some layers stay in float32, three tf32 products for all."""
        return "tf32x3" if self.precision == "tf32" and self.plan.has_exact else self.precision

    @property
    def kernels(self) -> tuple[str, ...]:
        """The kernels that can run this network: launch by launch, and in one launch where all its waves can."""
        return ("step", "network") if self.plan.waves and len(self.plan.waves) > 1 else ("step",)

    def execute(self, workspace: Tensor, bucket: int, kernel: str, config: Config | None = None) -> None:
        """All launches on a workspace (rows, pitch) as `bucket` runs them, or with a configuration to try. A point has
        `point_rows` rows.
        """
        with self.guard():
            self._execute(workspace, bucket, kernel, config)

    def guard(self) -> AbstractContextManager[Any]:
        """Makes the session's device the current one: Triton launches there."""
        return torch.cuda.device(self.device) if self.graphs else nullcontext()

    def _execute(self, workspace: Tensor, bucket: int, kernel: str, config: Config | None) -> None:
        if kernel == "network":
            chosen = config or self.config(bucket, "network")
            self._network().run(workspace, chosen, self.network_precision)
            return
        for k, launch in enumerate(self.plan.launches):
            if isinstance(launch, Tiles):
                chosen = config if config and not launch.exact else self.config(bucket, exact=launch.exact)
                parts = chosen.parts(bucket * self.point_rows)
                self._tiles(k, launch, parts).run(workspace, chosen, self._products(launch.exact))
            else:
                self.carried.run_stage(launch, workspace, self.constants, self.indices.get(id(launch)))

    def _products(self, exact: bool) -> str:
        return "ieee" if exact else self.precision

    def _tiles(self, place: int, launch: Tiles, parts: int) -> TileList:
        """What the kernel looks up for one launch; made once."""
        key = place, parts if parts > len(launch.numbers) else 0
        if key not in self._lists:
            self._lists[key] = TileList.build(
                self.plan.tables, launch.numbers, launch.epilogue, parts, self.plan.rescaling, self.carried.streams
            )
        return self._lists[key]

    def _network(self) -> NetworkList:
        """What the kernel looks up for the whole network; made once."""
        if self._whole is None:
            waves, streams = self.plan.waves or [], self.carried.streams
            self._whole = NetworkList.build(self.plan.tables, waves, self.plan.epilogue, self.plan.rescaling, streams)
        return self._whole

    def one_launch(self, bucket: int) -> bool:
        """Whether a bucket is expected to be faster as one launch: where walking through all waves in one program costs
        less than a launch for each.

        The times are assumed, not measured: WAVE_SECONDS a launch in a graph, TILE_SECONDS and STEP_SECONDS in a
        program. On a card both forms are captured and timed instead.
        """
        waves = self.plan.waves
        if waves is None or "network" not in self.kernels:
            return False
        t = self.plan.tables
        blocks = -(-bucket * self.point_rows // self.config(bucket, "network").block)
        rounds = blocks / PROCESSORS.get(self.arch, PROCESSORS["sm_90"])
        walk = len(t.tiles) * TILE_SECONDS + len(t.steps) * STEP_SECONDS
        return math.ceil(rounds) * walk < len(waves) * WAVE_SECONDS + rounds * walk

    def warm_up(self) -> None:
        """Compile what any bucket will launch, on one row each, so that no request has to wait for a compiler."""
        workspace, bucket = self.new_workspace(1), 1
        while bucket <= self.largest:
            for kernel in self.kernels:
                self.execute(workspace, bucket, kernel)
            bucket *= 2

    def new_workspace(self, points: int) -> Tensor:
        """(points * point_rows, pitch), zeros but for the derivatives of the inputs: padding must be zero, and is never
        written.
        """
        workspace = torch.zeros(points * self.point_rows, self.pitch, dtype=self.dtype, device=self.device)
        self.seed(workspace)
        return workspace

    def seed(self, workspace: Tensor) -> None:
        """Write the derivatives of the inputs, in place."""
        points = workspace.unflatten(0, (-1, self.point_rows))
        for column, numbers in self.seeds:
            points[:, 1:, column : column + numbers.shape[1]] = numbers


def plain_mode(device: torch.device) -> ExitStack:
    """Whatever the caller's modes: no gradients, no inference mode (its tensors cannot be refilled), no autocast."""
    stack = ExitStack()
    stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.no_grad())
    if torch.is_autocast_enabled(device.type):
        stack.enter_context(torch.autocast(device.type, enabled=False))
    return stack


def _placed(plan: Plan, dtype: torch.dtype, device: torch.device) -> Plan:
    """The plan's tables on the device; under a 16-bit precision floating-point weights are of that type, and none is
    wider than float32.
    """
    t = plan.tables
    kept_types = (torch.int8,) if dtype != torch.float32 else (torch.int8, torch.float16, torch.bfloat16)
    weights = tuple(w if w.dtype in kept_types else w.to(dtype) for w in t.weights)
    ports = (tuple(replace(p, index=_moved(p.index, device)) for p in e) for e in (plan.entries, plan.exits))
    kept = (t.tiles, t.steps, weights, t.biases.to(torch.float32), t.tile_rows, t.step_columns, t.unit, t.scales)
    entries, exits = ports
    return Plan(plan.launches, StepTables(*kept).to(device), entries, exits, plan.rescaling)


def _moved(index: Tensor | None, device: torch.device) -> Tensor | None:
    return None if index is None else index.to(device)


def _bucket_limit(largest: int | None) -> int:
    """The power of two that a limit allows. Raises BackendError for one below 1."""
    if largest is not None and largest < 1:
        raise BackendError(f"Found largest = {largest}. Expected at least one row.")
    return LARGEST_BUCKET if largest is None else 1 << (largest.bit_length() - 1)


def _room(device: torch.device, row_bytes: int) -> int:
    """The largest bucket whose workspace takes a fair share of the free memory."""
    if device.type != "cuda":
        return LARGEST_BUCKET
    free, _ = torch.cuda.mem_get_info(device)
    rows = max(1, free // MEMORY_SHARE // row_bytes)
    return 1 << (rows.bit_length() - 1)


def out_of_memory(device: torch.device, error: Exception) -> str:
    """What to say, and what to do."""
    first = str(error).partition("\n")[0]
    return f"{device} has not enough free memory: {first} Load with a smaller max_batch, or use backend='torch'."
