"""What every backend hands out: a network made ready to run."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from hrt.support.types import Array


class Session(Protocol):
    """A network made ready on one backend. Thread-safe: a call keeps no state that another could see.

    Sessions derive from this class. backend: its name. device: where the arithmetic is done. resident_bytes: the
    numbers of the network held between calls; memory for values in between comes on top.
    """

    backend: str
    device: torch.device
    resident_bytes: int

    def run(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """float32 inputs (batch, *shape) that fit the network, arrays in C order or tensors, to float32 outputs.

        Outputs are new memory, contiguous, and arrays where the first input is one. The same numbers give the same
        bits wherever inputs lie in memory.
        """
        ...

    def run_as_given(self, x: Any) -> Any:
        """What `CompressedModel.predict` answers to `x`, unchecked, where that is cheaper; None: check, then `run`.

        A session answers only what it knows to fit, so that most have nothing to add here.
        """
        return None

    def backend_at(self, rows: int) -> str:
        """The backend that answers so many rows."""
        return self.backend


def as_tensors(inputs: Sequence[Array]) -> list[Tensor]:
    """Inputs as tensors, without a copy where the memory may be written to (torch warns of any other)."""
    return [x if isinstance(x, Tensor) else torch.from_numpy(x if x.flags.writeable else x.copy()) for x in inputs]


def of_kind(outputs: Sequence[Tensor], like: Array) -> tuple[Any, ...]:
    """Outputs as tensors or arrays, as `like` is one or the other."""
    return tuple(outputs) if isinstance(like, Tensor) else tuple(y.numpy(force=True) for y in outputs)
