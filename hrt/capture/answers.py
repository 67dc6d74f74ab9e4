"""What a network answers as its author evaluates it, and what it would answer if nothing in it were rounded."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map, tree_unflatten

from hrt.capture.calls import PLAIN_CALL, Call, tensors_in, with_state
from hrt.capture.torch_export import fakes_of_inputs, in_its_type, inference

ROWS = 4096  # evaluated at a time


class Answers(ABC):
    """A network on rows, as its author evaluates it. at_once: rows that it evaluates in one call."""

    at_once: int = ROWS

    @abstractmethod
    def outputs(self, rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Every output on the CPU in float64, (batch, *shape)."""

    @abstractmethod
    def unrounded(self, rows: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        """`outputs` with weights, casts and arithmetic in float64; None where the network does not run so."""

    @property
    @abstractmethod
    def runtime(self) -> str:
        """What evaluates the network, with its version."""

    def flat(self, rows: Sequence[Tensor]) -> Tensor:
        """All outputs in float64, (rows, features)."""
        parts = []
        for start in range(0, rows[0].shape[0], self.at_once):
            outputs = self.outputs([x[start : start + self.at_once] for x in rows])
            parts.append(torch.cat([y.reshape(y.shape[0], -1) for y in outputs], dim=1))
        return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class TorchAnswers(Answers):
    """A network of torch, in evaluation mode: its own types, casts and autocast, on its own device."""

    net: nn.Module | ExportedProgram
    call: Call = PLAIN_CALL

    @property
    def runtime(self) -> str:
        return f"torch {torch.__version__}"

    def outputs(self, rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with self._evaluating():
            y = self._called(self._module, self._placed(rows))
        return tuple(v.detach().cpu().to(torch.float64) for v in tensors_in(y))

    def unrounded(self, rows: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        tensors = {**dict(self._module.named_parameters()), **dict(self._module.named_buffers())}
        wide = {k: t.detach().double() if t.is_floating_point() else t.detach().clone() for k, t in tensors.items()}
        try:
            with self._evaluating(), _InFloat64():
                inputs = tuple(x.double() if x.is_floating_point() else x for x in self._placed(rows))
                y = self._called(with_state(self._module, wide), inputs)
        except Exception:  # a kernel of its own, a type that it asks for: in whatever way the network fails
            return None
        return tuple(v.detach().cpu().to(torch.float64) for v in tensors_in(y))

    @cached_property
    def _module(self) -> nn.Module:
        return self.net if isinstance(self.net, nn.Module) else self.net.module(check_guards=False)

    def _called(self, net: Callable[..., Any], rows: Sequence[Tensor]) -> Any:
        """What the network, or what stands for it, gives."""
        if isinstance(self.net, nn.Module):
            try:
                return self.call.answers(net, rows)
            except Exception:  # in whatever way the network fails
                if not self.call.bare:
                    raise
                return self.call.answers_in_turn(net, rows)
        spec = self.net.call_spec.in_spec
        if spec is None or spec.num_leaves != len(rows):  # options that were given at export are among its leaves
            return net(*rows)
        arguments, keywords = tree_unflatten(rows, spec)
        return net(*arguments, **keywords)

    def _evaluating(self) -> AbstractContextManager[None]:
        """Exported programs have no modes."""
        return inference(self.net, self.call.slopes) if isinstance(self.net, nn.Module) else torch.no_grad()

    def _placed(self, rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if isinstance(self.net, nn.Module):
            return in_its_type(self.net, rows, self.call)
        return tuple(x.to(f.device, f.dtype) for x, f in zip(rows, fakes_of_inputs(self.net), strict=True))


@dataclass(frozen=True, eq=False)
class RuntimeAnswers(Answers):
    """A network of another runtime. run: inputs by name, in their own types, to its outputs."""

    run: Callable[[Mapping[str, np.ndarray]], Any]
    types: Mapping[str, np.dtype]  # of the inputs, in their order
    runtime: str = ""
    at_once: int = ROWS

    def outputs(self, rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
        given = {k: x.cpu().numpy().astype(t) for (k, t), x in zip(self.types.items(), rows, strict=True)}
        return tuple(torch.from_numpy(np.asarray(y).astype(np.float64)) for y in self.run(given))

    def unrounded(self, rows: Sequence[Tensor]) -> None:
        return None


class _InFloat64(TorchDispatchMode):
    """Every operation that names a floating type gets float64, so that casts round nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(_widened, (args, kwargs or {}))
        return func(*args, **kwargs)


def _widened(v: Any) -> Any:
    return torch.float64 if isinstance(v, torch.dtype) and v.is_floating_point else v
