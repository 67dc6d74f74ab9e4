"""Calls that a trace cannot follow, written as others that say the same, and what is noted of them."""

import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import _VF, Tensor
from torch._C._functorch import is_batchedtensor
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hrt.support.structures import is_traced, labelled

SPARSE = ("to_sparse", "to_sparse_csr", "to_sparse_csc", "to_sparse_coo", "coalesce")  # same numbers
PACKS = ("_pack_padded_sequence", "pack_padded_sequence")  # a loop over all samples, which never ends in a trace
FINITE = {"isfinite": True, "isnan": False, "isinf": False}
DETECTS = "_detect_is_causal_mask"  # of torch.nn.modules.transformer
WHOLE = (torch.int64, torch.int32)
GRADIENTS = {  # by the names of torch's functions
    "grad": "torch.autograd.grad or torch.func",
    "backward": "backward()",
    "_make_dual": "torch.func, forward",
}


class Gradients(TorchFunctionMode):
    """Notes what is called of GRADIENTS, in words."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = GRADIENTS.get(getattr(func, "__name__", ""))
        self.names += [name] if name else []
        return func(*args, **(kwargs or {}))


class Steps(TorchDispatchMode):
    """Counts the steps that a trace would see, and raises RuntimeError(EXCEEDED) beyond `most`."""

    EXCEEDED = "more rows take more steps"

    def __init__(self, most: float = math.inf) -> None:
        super().__init__()
        self.count, self.most = 0, most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.count > self.most:
            raise RuntimeError(self.EXCEEDED)
        return func(*args, **(kwargs or {}))


class AnyBatch(TorchFunctionMode):
    """Calls whose implementation fixes the batch, written as others: distances go by a way that is chosen by the number
    of rows, products of sparse matrices by what allocates them, equations in an order that opt_einsum chooses by sizes.
    What is made sparse stays dense.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func is torch.functional.cdist:
            options["compute_mode"] = "donot_use_mm_for_euclid_dist"
        if func is torch.functional.einsum and isinstance(args[0], str):
            operands = args[1] if isinstance(args[1], (list, tuple)) else args[1:]
            return _VF.einsum(args[0], operands)  # pyright: ignore[reportAttributeAccessIssue]
        if getattr(func, "__name__", "") in PACKS:
            raise NotImplementedError("pack_padded_sequence")
        if getattr(func, "__name__", "") in SPARSE:
            return args[0]
        return (torch.mm if func is torch.sparse.mm else func)(*args, **options)


class Finite(TorchFunctionMode):
    """Branches on whether all numbers are finite, taken as where they are: no promise is of others."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[int, tuple[Tensor, bool]] = {}  # by id, which the tensor kept beside it holds

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        of = self.answers.get(id(args[0])) if args else None
        if of and name == "__bool__":
            return of[1]
        if of and name in ("all", "any") and len(args) == 1 and not kwargs:
            return self._known(torch.ones((), dtype=torch.bool), of[1])
        result = func(*args, **(kwargs or {}))
        if of and name in ("logical_not", "bitwise_not", "__invert__"):
            return self._known(result, not of[1])
        return self._known(result, FINITE[name]) if name in FINITE else result

    def _known(self, result: Tensor, answer: bool) -> Tensor:
        self.answers[id(result)] = (result, answer)
        return result


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps what torch's tracers and exporters log, warn and print off the terminal: their exceptions say it again."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def masks_as_given() -> Iterator[None]:
    """Inside, torch's transformers do not branch on the numbers of a mask, to see whether a faster kernel would do."""
    detect = getattr(transformer, DETECTS, None)
    if detect is None:
        yield
        return
    try:
        setattr(transformer, DETECTS, lambda mask, is_causal=None, size=None: is_causal is True)
        yield
    finally:
        setattr(transformer, DETECTS, detect)


@contextmanager
def labels_followed() -> Iterator[None]:
    """Inside, tensors of the author's classes can be made of those that stand for others in a trace, and back."""
    from torch._subclasses.fake_tensor import FakeTensor  # here, because it takes long to import

    kinds = [kind for kind in _below(Tensor) if not kind.__module__.startswith("torch")]
    before = {kind: vars(kind).get("__new__") for kind in kinds}
    for kind in kinds:
        kind.__new__ = _made_by(kind.__new__)
    setattr(FakeTensor, "as_subclass", _as_subclass)  # noqa: B010 (a class of torch's)
    try:
        yield
    finally:
        delattr(FakeTensor, "as_subclass")
        for kind, new in before.items():
            if new is None:
                del kind.__new__
            else:
                kind.__new__ = new


def _as_subclass(x: Tensor, kind: type[Tensor]) -> Tensor:
    """By a step that a trace sees."""
    return x.view_as(x) if kind is Tensor else labelled(x.view_as(x), kind)


def _below(kind: type) -> Iterator[type]:
    for inner in kind.__subclasses__():
        yield inner
        yield from _below(inner)


def _made_by(new: Callable[..., Any]) -> Callable[..., Any]:
    def make(kind: type[Tensor], *args: Any, **keywords: Any) -> Any:
        return labelled(args[0], kind) if args and is_traced(args[0]) else new(kind, *args, **keywords)

    return make


class InVmap(TorchFunctionMode):
    """Entries by lists of places, of which every sample has its own, as products with masks: torch takes them from
    samples one after the other.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, keywords = getattr(func, "__name__", ""), kwargs or {}
        if name == "__getitem__" and _is_of_samples(args[1]):
            x, places = args
            return (_masks_of(places, x) @ x.reshape(len(x), -1)).reshape(*places.shape, *x.shape[1:])
        if name in ("index_add", "index_add_") and args[1:2] == (0,) and len(args) == 4 and _is_of_samples(args[2]):
            x, _, places, parts = args
            total = (_masks_of(places, x).T @ parts.reshape(len(parts), -1)).reshape(x.shape)
            return x.add_(total) if name.endswith("_") else x + total
        return func(*args, **keywords)


def _is_of_samples(places: Any) -> bool:
    """Whether these are whole numbers of which every sample has its own."""
    return isinstance(places, Tensor) and places.dtype in WHOLE and is_batchedtensor(places)


def _masks_of(places: Tensor, x: Tensor) -> Tensor:
    """(*places, rows of x): 1 in each place, NaN where there is none."""
    places = places + len(x) * (places < 0)
    masks = (places[..., None] == torch.arange(len(x), device=x.device)).to(x.dtype)
    return masks / masks.sum(-1, keepdim=True)
