"""What is asked of a whole network, checked once where it is made."""

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from os import PathLike

from torch import nn
from torch.export import ExportedProgram

from hrt.errors import InputError, shown
from hrt.hmatrix.hmatrix import HMatrix
from hrt.matrix_compression.request import LARGEST_TOL, MatrixRequest, check_target, check_tol, check_whole, storages_of
from hrt.support.progress import Advance, part, silent

Network = nn.Module | ExportedProgram | str | PathLike[str]  # what is captured, or the path of an .onnx file


@dataclass(frozen=True, eq=False)
class CompressionRequest:
    """A relative error and what may be done to keep it; see `hrt.compress`. partitions: that stay, by weight."""

    tol: float = 1e-3
    storage: str = "auto"
    target: str = "cpu"
    seed: int = 0
    executor: Executor | None = None
    per_output: bool = False
    partitions: Mapping[str, HMatrix] = field(default_factory=dict)
    advance: Advance = silent
    storages: tuple[str, ...] = field(init=False)  # that `storage` stands for, most exact first

    def __post_init__(self) -> None:
        object.__setattr__(self, "tol", check_tol(self.tol, LARGEST_TOL))
        object.__setattr__(self, "storages", storages_of(self.storage))
        object.__setattr__(self, "seed", check_whole(self.seed, "seed", 0))
        check_target(self.target)
        executor = self.executor
        if executor is not None and (isinstance(executor, type) or not callable(getattr(executor, "submit", None))):
            raise InputError(f"Found executor {shown(executor)}. Expected a concurrent.futures.Executor or None.")

    def between(self, low: float, high: float) -> "CompressionRequest":
        """The same for a piece of the work that takes it from share `low` to share `high`."""
        return replace(self, advance=part(self.advance, low, high))

    def of_weight(self, name: str | None = None) -> MatrixRequest:
        """What is asked of one weight, or of any whose blocks are free: nothing in it ties it to this process."""
        partition = None if name is None else self.partitions.get(name)
        return MatrixRequest(self.tol, storage=self.storage, target=self.target, seed=self.seed, partition=partition)
