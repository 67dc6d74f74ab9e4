"""What a step stands on: the pack, the record, the time it has, and whether there is a card at all."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.model import artifact
from hrt.model.model import CompressedModel
from hrt.perf.gpu.layers import DTYPE, Layer, Limits, Reference
from hrt.perf.gpu.pack import Pack
from hrt.perf.gpu.plan import SILENT, STUB
from hrt.perf.gpu.record import Record
from hrt.support.atomic_files import replacing

REPLAYS = 2000


class WrongError(Exception):
    """A result was not what it must be."""


class NotHereError(Exception):
    """What a step needs is not on this machine."""


@dataclass(frozen=True)
class Ground:
    """end: of the step, on `time.monotonic`.  anyway: go on where the pack does not fit.  trial: only try the code out,
    in small numbers: without a card times say nothing.
    """

    pack: Pack
    record: Record
    step: str
    end: float
    anyway: bool = False
    trial: bool = False

    @property
    def stub(self) -> str:
        """How there is no card: "", "answers" or "silent"."""
        return os.environ.get(STUB, "")

    @property
    def judges(self) -> bool:
        """Whether answers count."""
        return self.stub != SILENT

    @property
    def replays(self) -> int:
        """How often the same is asked."""
        return 3 if self.stub else REPLAYS

    def is_over(self) -> bool:
        """Whether the step's time is over."""
        return time.monotonic() >= self.end

    @property
    def limits(self) -> Limits:
        """What measurements may do: without a card dense products would take their time on the CPU."""
        return Limits(self.is_over, 16 if self.stub else 1 << 16, self.judges, quick=bool(self.stub))

    def write(self, results: Mapping[str, Any]) -> None:
        """What the step has found so far."""
        self.record.write(self.step, results)

    def model(self, name: str) -> CompressedModel:
        """A packed network, for the card."""
        return CompressedModel(**vars(artifact.read(self.pack.model(name))), backend="cuda")

    def reference(self, name: str) -> Reference:
        """Inputs and float64 answers."""
        tensors = load_file(self.pack.reference(name))
        return tensors["x"], tensors["y"]

    def layer(self, name: str, precision: str) -> Layer:
        """A packed layer with its numbers in that precision's storage: they are kept in bfloat16."""
        program = artifact.read(self.pack.model(name)).program
        weight = stored_in(program.constants["w"], DTYPE[precision])
        return Layer(program.with_constants({"w": weight}), precision, self.reference(name))

    def save_wrong(self, tensors: Mapping[str, Tensor]) -> Path:
        """Keep what a wrong answer came from."""
        path = self.record.path.with_name(f"wrong-{self.step}.safetensors")
        with replacing(path) as file:
            file.write(save({k: t.detach().cpu().contiguous() for k, t in tensors.items()}))
        return path


def stored_in(h: Any, dtype: torch.dtype) -> HMatrix:
    """The H-matrix with the numbers of its leaves in another type."""

    def changed(leaf: Leaf) -> Leaf:
        parts = {k: getattr(leaf, k) for k in ("dense", "u", "vt")}
        return replace(leaf, **{k: None if t is None else t.to(dtype) for k, t in parts.items()})

    return replace(h, leaves=tuple(changed(leaf) for leaf in h.leaves))
