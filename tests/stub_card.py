"""An NVIDIA card that is not there, so that what runs only on one runs in a test, in a process of its own.

`install()` makes torch.cuda answer as on a machine with one card. Tensors on "cuda" live in the CPU's memory
(`CardTensor`) and refuse what CUDA refuses: operands on two devices, copies and waits during a capture. Triton compiles
for the card as it would there; launches are counted, and `stub_answers` executes them where answers are wanted. Graphs
record and replay. Times come from a clock that knows what a launch costs the host and what it takes on the device.

    python tests/stub_card.py MODULE [ARGUMENTS]      runs a module on the card
    pytest -p stub_card tests/card.py                 runs tests on it (HRT_ON_CARD=stub)

STUB_ANSWERS=0 leaves answers out: kernels compile and launch, and workspaces keep what they held. STUB_ARCH=80 is
another card.
"""

import ctypes
import os
import runpy
import sys
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils import _pytree as pytree
from torch.utils._device import _device_constructors

from stub_answers import execute
from stub_cuda import CARD, DEVICE, Card, current_stream, install_cuda

CAPTURE_COPY = "Cannot copy between CPU and CUDA tensors during CUDA graph capture unless the CPU tensor is pinned."


class CardTensor(torch.Tensor):
    """A tensor on the card; `inner` holds its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "CardTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.inner = inner
        return made

    def __init__(self, inner: torch.Tensor) -> None: ...

    def __repr__(self) -> str:
        return f"CardTensor({self.inner!r})"

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        return self.detach().cpu().numpy()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __deepcopy__(self, memo: dict) -> "CardTensor":
        with torch.no_grad():
            copied = self.detach().clone()
        memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if hasattr(self, "_is_param") else copied
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return dispatched(func, args, kwargs or {})


def dispatched(func: Any, args: tuple, kwargs: dict) -> Any:
    """One op of torch: on the numbers of its operands, with CUDA's rules."""
    cards: dict[int, CardTensor] = {}
    plain: list[torch.Tensor] = []

    def inside(x: Any) -> Any:
        if isinstance(x, CardTensor):
            cards[id(x.inner)] = x
            return x.inner
        if isinstance(x, torch.Tensor):
            plain.append(x)
        return torch.device("cpu") if isinstance(x, torch.device) else x

    name = func._schema.name.removeprefix("aten::")
    target = kwargs.get("device")
    inner_args, inner_kwargs = pytree.tree_map(inside, (args, kwargs))
    crosses = name in ("copy_", "_to_copy") and (bool(plain) or (target is not None and target.type != "cuda"))
    if name not in ("copy_", "_to_copy", "index", "index_put_") and cards and any(x.ndim for x in plain):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
        )
    writes = any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
    views = not writes and any(r.alias_info is not None for r in func._schema.returns)
    if (crosses or name == "_local_scalar_dense") and current_stream().cuda_stream in CARD.capturing:
        CARD.capturing[current_stream().cuda_stream].lost = name
        raise RuntimeError(CAPTURE_COPY if crosses else "CUDA error: operation not permitted when stream is capturing")
    if name.startswith("empty") and cards == {}:
        allocate(args, kwargs)
    results: list[Any] = []

    def run() -> Any:
        results.append(func(*inner_args, **inner_kwargs))
        return results[0]

    def again() -> None:
        fresh = func(*inner_args, **inner_kwargs)
        if not writes:
            pairs = zip(pytree.tree_leaves(results[0]), pytree.tree_leaves(fresh), strict=True)
            [a.copy_(b) for a, b in pairs if isinstance(a, torch.Tensor)]

    answer = run() if views or name.startswith("empty") else CARD.enqueue(name, run, replay=again)
    waits = name in ("_local_scalar_dense", "equal") or (crosses and not kwargs.get("non_blocking", False))
    if waits:
        CARD.wait(name)
    on_card = torch.device(target).type == "cuda" if target is not None else bool(cards)
    given = {id(x): x for x in plain}

    def outside(y: Any) -> Any:
        if not isinstance(y, torch.Tensor):
            return y
        known = cards.get(id(y)) if id(y) in cards else given.get(id(y))
        return known if known is not None else CardTensor(y) if on_card else y

    return pytree.tree_map(outside, answer)


def allocate(args: tuple, kwargs: dict) -> None:
    """Raise as CUDA does where the card's memory would not do."""
    size = int(torch.tensor([], dtype=kwargs.get("dtype") or torch.float32).element_size())
    for n in args[0]:
        size *= n
    if size > CARD.memory - CARD.allocated:
        raise torch.cuda.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")


class Utils:
    """The driver's calls that Triton makes beside launches."""

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple:
        return object(), 1, 32, 0, 1024

    def unload_module(self, module: Any) -> None: ...

    def get_device_properties(self, device: int) -> dict[str, int]:
        shared = {80: 163, 86: 99, 89: 99}.get(CARD.arch, 227) * 1024
        return {
            "max_shared_mem": shared, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536,
            "sm_clock_rate": 1980000, "mem_clock_rate": 2619000, "mem_bus_width": 5120,
        }  # fmt: skip


class Launcher:
    """One compiled kernel, as Triton launches it."""

    def __init__(self, src: Any, metadata: Any):
        self.name, self.names = src.fn.__name__, src.fn.arg_names
        if metadata.global_scratch_size:
            raise RuntimeError("A kernel wants scratch memory, which its callers do not give.")

    def __call__(self, *arguments: Any) -> None:
        grid, values = arguments[:3], dict(zip(self.names, arguments[-len(self.names) :], strict=True))
        if self.name in CARD.refused:
            raise CARD.refused[self.name]
        if min(grid) < 1 or grid[0] >= 2**31 or max(grid[1:]) > 65535:
            raise RuntimeError(f"Triton Error [CUDA]: invalid argument (grid {grid})")
        if any(isinstance(v, torch.Tensor) and not isinstance(v, CardTensor) for v in values.values()):
            raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        inner = {k: v.inner if isinstance(v, CardTensor) else v for k, v in values.items()}
        CARD.launches[self.name] += 1
        CARD.grids.append(grid)
        CARD.enqueue(self.name, lambda: CARD.answers and execute(self.name, grid, inner))


class Driver:
    """What Triton sees of the card."""

    launcher_cls = Launcher

    def __init__(self) -> None:
        self.utils = Utils()

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return current_stream().cuda_stream

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", CARD.arch, 32)

    def get_active_torch_device(self) -> torch.device:
        return DEVICE

    def get_device_interface(self) -> Any:
        return torch.cuda

    def get_empty_cache_for_benchmark(self) -> torch.Tensor:
        return torch.empty(1, dtype=torch.int32, device=DEVICE)

    def clear_cache(self, cache: torch.Tensor) -> None:
        cache.zero_()

    def get_benchmarker(self) -> Any:
        from triton.testing import do_bench

        return do_bench

    @staticmethod
    def is_active() -> bool:
        return True


def install(*, arch: int | None = None, answers: bool | None = None) -> Card:
    """Put the card into this process, for good. Returns it."""
    arch = int(os.environ.get("STUB_ARCH", "90")) if arch is None else arch
    answers = os.environ.get("STUB_ANSWERS", "1") != "0" if answers is None else answers
    CARD.arch, CARD.answers = arch, answers
    _install_torch()
    install_cuda()
    from triton import knobs
    from triton.runtime import driver

    driver.set_active(Driver())
    knobs.compilation.listener = lambda src, cache_hit=False, **_: CARD.compiled.append((src.name, bool(cache_hit)))
    return CARD


def _install_torch() -> None:
    """Tensors on "cuda" without CUDA: how they are made, moved and compiled."""
    c10: Any = ctypes.CDLL(os.fspath(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 20).in_dll(c10, "_ZN3c104impl26device_guard_impl_registryE")
    guards[1] = guards[0]  # changing the device does nothing, as for the CPU
    library = torch.library.Library("aten", "IMPL")
    for name in ("empty.memory_format", "empty_strided"):
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        library.impl(name, lambda *args, op=op, **kwargs: dispatched(op, args, kwargs), "CUDA")
    CARD.__dict__["library"] = library
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    _device_constructors()  # remembers torch.empty as it is, for default devices
    move, empty, compiled = torch.Tensor.to, torch.empty, torch.compile

    def numbered(x: Any) -> Any:
        return DEVICE if isinstance(x, (str, torch.device)) and torch.device(x).type == "cuda" else x

    @wraps(move)
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return move(self, *map(numbered, args), **{k: numbered(v) for k, v in kwargs.items()})

    @wraps(empty)
    def pinned_empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return empty(*args, **kwargs)

    @wraps(compiled)
    def compile_on_card(model: Any, **options: Any) -> Any:
        options = {k: v for k, v in options.items() if k not in ("mode", "backend")}
        function: Any = compiled(_on_cpu(model), backend="eager", **options)

        def run(inner: list[Any]) -> Any:
            with patch.object(torch.cuda, "is_available", lambda: False):  # Dynamo saves the card's random state
                return function(*inner)

        def call(*args: Any) -> Any:
            inner = [x.inner if isinstance(x, CardTensor) else x for x in args]
            answer: Any = CARD.enqueue("compiled", lambda: run(inner), replay=lambda: answer.copy_(run(inner)))
            return CardTensor(answer)

        return call

    torch.Tensor.to, torch.empty, torch.compile = to, pinned_empty, compile_on_card  # type: ignore[method-assign]


def _on_cpu(model: Any) -> Any:
    """A copy of a module with its numbers in plain tensors; a function as it is."""
    if not isinstance(model, torch.nn.Module):
        return model
    import copy

    copied = copy.deepcopy(model)
    for module in copied.modules():
        for name, p in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(p.detach().cpu(), requires_grad=False))
    return copied


def pytest_configure(config: Any) -> None:
    """As a plugin of pytest."""
    install()


if __name__ == "__main__":
    sys.modules["stub_card"] = sys.modules["__main__"]
    install()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
