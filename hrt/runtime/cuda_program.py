"""A network's launches on one GPU: tables, constants and kernels, and nothing of any request. On Triton's interpreter
the same code runs on the CPU.
"""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hrt.errors import BackendError
from hrt.hmatrix.torch_products import prepare
from hrt.kernels.launch import Config, NetworkList, TileList, is_interpreted
from hrt.kernels.precisions import PRECISIONS, WORKSPACE
from hrt.kernels.tuning import PROCESSORS, Key, find, storage_name
from hrt.program.program import Program
from hrt.runtime.kernel_derivatives import Carried, overwritten
from hrt.schedule.choose_layout import chip_of, choose_schedule
from hrt.schedule.launch_plan import Plan, Tiles, make_plan
from hrt.schedule.schedule import Gather
from hrt.support.devices import architecture, cuda_device

ALIGNED = 16  # elements that a workspace row is a multiple of
WAVE_SECONDS, TILE_SECONDS, STEP_SECONDS = 3.0e-6, 1.5e-6, 0.15e-6  # assumed, see `predicted`
HOPELESS = 4.0  # times: assumed seconds are not further off than that


class CudaProgram:
    """What one GPU executes for a network. Its workspaces belong to the caller.

    densify: write out layers that are predicted to be no faster compressed (`dense_layers` names them). derivatives:
    more outputs, as `differentiate` gives them. resident_bytes: tables, weights and constants. Raises BackendError
    where the device is absent, too old or too small, NotCarriedError where the kernels cannot carry the derivatives.
    """

    device: torch.device
    precision: str
    dtype: torch.dtype
    dense_layers: tuple[str, ...]

    def __init__(
        self,
        program: Program,
        device: Any = None,
        precision: str = "tf32x3",
        *,
        densify: bool = True,
        derivatives: Sequence[str] = (),
    ):
        if precision not in PRECISIONS:
            raise BackendError(f"Found precision {precision!r}. Expected one of {', '.join(PRECISIONS)}.")
        self.device = torch.device("cpu") if is_interpreted() else cuda_device(device)
        self.precision, self.dtype = precision, WORKSPACE[precision]
        self.arch: str = architecture(self.device)
        self.graphs: bool = self.device.type == "cuda"
        self.carried: Carried = Carried.of(program, derivatives) if derivatives else Carried()
        try:
            choice = choose_schedule(program, precision, chip_of(self.device), densify=densify)
            self.schedule, self.dense_layers = choice.schedule, choice.dense
            plan = make_plan(self.schedule, precision)
            self.carried.check(plan)
            self.plan: Plan = _placed(plan, self.dtype, self.device)
            seeds = self.carried.seeds(program.inputs, plan.entries)
            self.seeds: list[tuple[int, Tensor]] = [
                (column, numbers.to(self.device, self.dtype)) for column, numbers in seeds
            ]
            self.reseeds: bool = bool(seeds) and overwritten(self.schedule, plan.entries)
            self.constants: dict[str, Any] = {k: prepare(c, self.device) for k, c in self.schedule.constants.items()}
            self.indices: dict[int, Tensor] = {
                id(g): g.index.to(self.device, torch.int64) for g in self.plan.launches if isinstance(g, Gather)
            }
        except torch.cuda.OutOfMemoryError as error:
            raise BackendError(out_of_memory(self.device, error)) from error
        self.pitch: int = -(-max(1, self.schedule.width) // ALIGNED) * ALIGNED
        tensors = [c for c in (*self.constants.values(), *self.indices.values()) if isinstance(c, Tensor)]
        self.resident_bytes: int = self.plan.tables.nbytes + sum(t.nbytes for t in tensors)
        self.left_out: dict[int, str] = {}  # buckets that turned out not to run in one launch, and how that showed
        self._lists: dict[Any, Any] = {}  # what kernels look up, made when a launch first needs it

    def copy(self) -> "CudaProgram":
        """The same network with tables of its own, for benchmarks that must not find its weights in a cache."""
        other = copy.copy(self)
        other.plan, other._lists = replace(self.plan, tables=self.plan.tables.map(Tensor.clone)), {}
        return other

    def config(self, bucket: int, kernel: str = "step", *, exact: bool = False) -> Config:
        """The configuration of a bucket's launches."""
        return find(self.key(bucket, kernel, exact=exact))

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
        """Of a network in one launch: three tf32 products for all layers where some stay in float32."""
        return "tf32x3" if self.precision == "tf32" and self.plan.has_exact else self.precision

    @property
    def kernels(self) -> tuple[str, ...]:
        """The kernels that can run this network: launch by launch, and in one launch where all its waves can."""
        return ("step", "network") if self.plan.waves and len(self.plan.waves) > 1 else ("step",)

    def execute(self, workspace: Tensor, bucket: int, kernel: str, config: Config | None = None) -> None:
        """All launches on a workspace (rows, pitch) as `bucket` runs them, or with a configuration to try."""
        with self.guard():
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

    def guard(self) -> AbstractContextManager[Any]:
        """Makes the program's device the current one: Triton launches there."""
        return torch.cuda.device(self.device) if self.graphs else nullcontext()

    def _products(self, exact: bool) -> str:
        return "ieee" if exact else self.precision

    def _tiles(self, place: int, launch: Tiles, parts: int) -> TileList:
        key = place, parts if parts > len(launch.numbers) else 0
        plan, numbers, streams = self.plan, launch.numbers, self.carried.streams
        return self._looked_up(
            key, lambda: TileList.build(plan.tables, numbers, launch.epilogue, parts, plan.rescaling, streams)
        )

    def _network(self) -> NetworkList:
        plan, waves, streams = self.plan, self.plan.waves or [], self.carried.streams
        return self._looked_up(
            "network", lambda: NetworkList.build(plan.tables, waves, plan.epilogue, plan.rescaling, streams)
        )

    def _looked_up(self, key: Any, build: Callable[[], Any]) -> Any:
        """What a kernel looks up for a launch; made once."""
        if key not in self._lists:
            self._lists[key] = build()
        return self._lists[key]

    def predicted(self, bucket: int) -> tuple[float, float]:
        """Seconds of a bucket in one launch, and launch by launch, by assumed times: WAVE_SECONDS a launch in a graph,
        TILE_SECONDS and STEP_SECONDS in a program.
        """
        t, waves = self.plan.tables, self.plan.waves or ()
        blocks = -(-bucket * self.point_rows // self.config(bucket, "network").block)
        rounds = blocks / PROCESSORS.get(self.arch, PROCESSORS["sm_90"])
        walk = len(t.tiles) * TILE_SECONDS + len(t.steps) * STEP_SECONDS
        return math.ceil(rounds) * walk, len(waves) * WAVE_SECONDS + rounds * walk

    def one_launch(self, bucket: int) -> bool:
        """Whether a bucket is expected to be faster as one launch. On a card what is worth it is timed instead."""
        one, several = self.predicted(bucket)
        return "network" in self.worth_timing(bucket) and one < several

    def worth_timing(self, bucket: int) -> tuple[str, ...]:
        """The kernels that a bucket's graph is chosen from: one launch where it runs, and is not expected to lose by
        far.
        """
        one, several = self.predicted(bucket)
        whole = one <= HOPELESS * several and bucket not in self.left_out
        return self.kernels if whole else ("step",)

    def do_without(self, bucket: int, error: Exception) -> None:
        """Note that a bucket does not run in one launch here, and warn once. Raises `error` where it says that memory
        ran out.
        """
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise error
        if not self.left_out:
            warnings.warn(
                f"Batches of {bucket} do not run in one launch on {self.device}: {type(error).__name__}: "
                f"{str(error).partition(chr(10))[0]} They run launch by launch, to the same accuracy.",
                stacklevel=2,
            )
        self.left_out.setdefault(bucket, f"{type(error).__name__}: {error}")

    def warm_up(self, largest: int) -> None:
        """Compile what any bucket up to `largest` will launch, on one row each, so that no request waits for it."""
        workspace, bucket = self.new_workspace(1), 1
        while bucket <= largest:
            for kernel in self.worth_timing(bucket):
                try:
                    self.execute(workspace, bucket, kernel)
                except Exception as error:
                    if kernel != "network":
                        raise
                    self.do_without(bucket, error)
            bucket *= 2

    def new_workspace(self, points: int) -> Tensor:
        """(points * point_rows, pitch), zeros but for the derivatives of the inputs: padding must be zero."""
        workspace = torch.zeros(points * self.point_rows, self.pitch, dtype=self.dtype, device=self.device)
        self.seed(workspace)
        return workspace

    def seed(self, workspace: Tensor) -> None:
        """Write the derivatives of the inputs, in place."""
        points = workspace.unflatten(0, (-1, self.point_rows))
        for column, numbers in self.seeds:
            points[:, 1:, column : column + numbers.shape[1]] = numbers


def _placed(plan: Plan, dtype: torch.dtype, device: torch.device) -> Plan:
    """The plan's tables on the device, 16-bit under a 16-bit precision, and nothing wider than float32."""
    kept_types = (torch.int8,) if dtype != torch.float32 else (torch.int8, torch.float16, torch.bfloat16)
    weights = tuple(w if w.dtype in kept_types else w.to(dtype) for w in plan.tables.weights)
    tables = replace(plan.tables, weights=weights, biases=plan.tables.biases.to(torch.float32))
    entries, exits = (
        tuple(replace(p, index=None if p.index is None else p.index.to(device)) for p in ports)
        for ports in (plan.entries, plan.exits)
    )
    return replace(plan, tables=tables.map(lambda t: t.to(device)), entries=entries, exits=exits)


def out_of_memory(device: torch.device, error: Exception) -> str:
    """What to say, and what to do."""
    first = str(error).partition("\n")[0]
    return f"{device} has not enough free memory: {first} Load with a smaller max_batch, or use backend='torch'."
