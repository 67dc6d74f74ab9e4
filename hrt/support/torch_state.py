"""torch's state as hrt needs it, whatever the caller has set, and the caller's again when a public function ends.

Public functions enter it once: those that differentiate or make a model by `guarded`, those that only compute, and
gradients of which are the caller's business, by `guarded_values`. Under the usual state both cost under a microsecond.
The default dtype belongs to the whole process: the first call that changes it and the last that ends give it back.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

from hrt.support.devices import on_the_cpu

P = ParamSpec("P")
Result = TypeVar("Result")
AUTOCAST = ("cpu", "cuda")
# The modes around a call, a default device among them, and any kind of autocast: what torch says publicly of these
# takes 5 us to find out, this 50 ns each.
_modes: Callable[[], int] = torch._C._len_torch_function_stack  # pyright: ignore[reportAttributeAccessIssue]
is_autocasting: Callable[[], bool] = torch._C._is_any_autocast_enabled  # pyright: ignore[reportAttributeAccessIssue]
# Hooks around what a backward pass needs (saved_tensors_hooks, save_on_cpu), which torch.func refuses.
_autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
saved_hooks: Callable[[bool], Any] = _autograd._top_saved_tensors_default_hooks
_push_hooks: Callable[..., None] = _autograd._push_saved_tensors_default_hooks
_pop_hooks: Callable[[], None] = _autograd._pop_saved_tensors_default_hooks
_dtype = torch.get_default_dtype
_lock = threading.Lock()
_calls = 0  # that are inside and rely on the default dtype
_callers_dtype = torch.float32  # while there are any


class _Here(threading.local):
    """This thread's: whether a call is inside `guarded`, and the default device around it."""

    inside = False
    callers_device: torch.device | None = None


_here = _Here()


def has_usual_modes() -> bool:
    """Whether this thread has no default device and no autocast."""
    return not _modes() and not is_autocasting()


def has_usual_values() -> bool:
    """Whether new tensors and products are what they are after torch's import, and stay so during a call."""
    usual = not _calls and _dtype() is torch.float32 and has_usual_modes()
    return usual or _here.inside  # looked at last: the rest is cheaper


@contextmanager
def usual_modes() -> Iterator[None]:
    """Inside: the CPU by default, no autocast. Both are this thread's own: no other notices."""
    with ExitStack() as stack:
        stack.enter_context(_cpu_by_default())
        for kind in AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def usual_values() -> Iterator[None]:
    """Inside: `usual_modes`, and float32 by default."""
    with _float32_by_default(), usual_modes():
        yield


@contextmanager
def usual_state() -> Iterator[None]:
    """Inside: `usual_values`, gradients without hooks, no inference mode; afterwards, also an error, as before."""
    with ExitStack() as stack:
        if not has_usual_values():
            stack.enter_context(usual_values())
        stack.enter_context(np.errstate(all="ignore"))  # numbers that vanish or overflow are looked for, not raised
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        while (hooks := saved_hooks(True)) is not None:
            _pop_hooks()
            stack.callback(_push_hooks, *hooks)
        stack.callback(setattr, _here, "inside", _here.inside)
        _here.inside = True
        yield


def guarded(function: Callable[P, Result]) -> Callable[P, Result]:
    """`function` under `usual_state`."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Result:
        if _here.inside:
            return function(*args, **kwargs)
        with usual_state():
            return function(*args, **kwargs)

    return call


def guarded_values(function: Callable[P, Result]) -> Callable[P, Result]:
    """`function` under `usual_values`."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Result:
        if has_usual_values():
            return function(*args, **kwargs)
        with usual_values():
            return function(*args, **kwargs)

    return call


@contextmanager
def as_called() -> Iterator[None]:
    """Inside `usual_state`, around what the caller wrote: the caller's default dtype and device, but for meta."""
    device, inside = _here.callers_device, _here.inside
    with ExitStack() as stack:
        if device is not None and device.type != "meta":
            stack.enter_context(torch.device(device))
        if inside and _calls:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(_callers_dtype)
        stack.callback(setattr, _here, "inside", inside)
        _here.inside = False
        yield


@contextmanager
def _float32_by_default() -> Iterator[None]:
    global _calls, _callers_dtype
    with _lock:
        if not _calls:
            _callers_dtype = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _calls += 1
    try:
        yield
    finally:
        with _lock:
            _calls -= 1
            if not _calls:
                torch.set_default_dtype(_callers_dtype)


@contextmanager
def _cpu_by_default() -> Iterator[None]:
    before, _here.callers_device = _here.callers_device, None
    if _modes():
        with suppress(RuntimeError, AssertionError):  # a default device that is not there
            _here.callers_device = torch.get_default_device()
    try:
        with on_the_cpu():
            yield
    finally:
        _here.callers_device = before
