"""Weights out of a checkpoint into a network: by name, below the prefix that makes the names fit."""

import copy
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hrt.capture.checkpoint_files import Checkpoint
from hrt.capture.describe_weights import Layers, chain, layers_in, listed, network_tensors
from hrt.errors import InputError, reason

Wanted = Mapping[str, tuple[str, Tensor]]  # the network's tensors and their names, by their plain names

# Segments that torch.compile, FSDP and activation checkpointing put into names, anywhere.
WRAPPERS = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
MAX_PARTS, MAX_STARTS = 8, 16  # parts of a network and prefixes in a file that are looked at one by one
# Keys that hold the network itself, before others that may hold one of the same shape (ema, teacher).
NETWORKS = ("", "state_dict", "model_state_dict", "model", "net", "network", "module")


@dataclass(frozen=True, eq=False)
class Fit:
    """How tensors of a checkpoint meet those of a network.

    start: what stands before their names in the file.  inside: what stands before all names of the network, and not in
    the file.  tensors: those of the file below `start`, by the network's names where it has them.
    missing, unexpected, wrong: names of the network, names below `start`, and names with their two shapes.
    outside: names in the same dictionary that are not below `start`.  matched: how many tensors fit.
    """

    start: str
    inside: str
    tensors: Mapping[str, Tensor]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong: Mapping[str, str]
    outside: tuple[str, ...]
    matched: int

    @property
    def complete(self) -> bool:
        """Every tensor has its place. A part of the file serves as a whole network, but not as a part of one."""
        return not (self.missing or self.unexpected or self.wrong or (self.inside and self.outside))

    @property
    def order(self) -> tuple[bool, int, int, int]:
        """The best first: all that fit, those with most tensors or names, those under a key that names a network."""
        return not self.complete, -self.matched, -len(self.wrong), _rank(self.start)


def fit_weights(net: nn.Module, checkpoint: Checkpoint) -> None:
    """Load the weights of a checkpoint into `net`. Raises InputError where they do not fit, or fit in several ways."""
    wanted = {_plain(k): (k, v) for k, v in net.state_dict().items() if isinstance(v, Tensor)}
    if not wanted:
        raise InputError(f"The weights {checkpoint.path} do not fit: the network has no tensors.")
    fits = sorted(_fits(wanted, checkpoint), key=lambda fit: fit.order) or [_fit("", "", wanted, checkpoint)]
    best = fits[0]
    rivals = [f for f in fits[1:] if f.complete and best.complete and not _equal(f.tensors, best.tensors)]
    if any(f.order == best.order for f in rivals):
        starts = [f.start.rstrip(".") for f in (best, *rivals)]
        raise InputError(
            f"The weights {checkpoint.path} hold several networks that fit: {', '.join(starts[:8])}. "
            f"Expected one of them: {checkpoint.path}:{starts[0]}."
        )
    if best.wrong or (best.inside and best.outside):
        raise InputError(_misfit(fits, wanted, checkpoint))
    try:
        if not best.complete:  # the network may know older names of its tensors; where not, it stays as it is
            copy.deepcopy(net).load_state_dict(dict(best.tensors))
        net.load_state_dict(dict(best.tensors))
    except Exception as error:  # modules may check what they load
        raise InputError(_misfit(fits, wanted, checkpoint, error)) from error
    for text in _remarks(best, rivals, net, checkpoint):
        warnings.warn(text, UserWarning, stacklevel=4)


def _plain(name: str) -> str:
    return WRAPPERS.sub("", name)


def _rank(start: str) -> int:
    key = start.partition(".")[0]
    return NETWORKS.index(key) if key in NETWORKS else len(NETWORKS)


def _fits(wanted: Wanted, checkpoint: Checkpoint) -> list[Fit]:
    """One for every prefix below which the file has a name of the network; `inside` is none, or common to all names."""
    common = set.intersection(*({name[:cut] for cut in _cuts(name)} for name in wanted))
    parts = {name.partition(".")[0] + "." for name in wanted}
    fits = [f for inside in sorted(common, key=len) for f in _fits_inside(inside, wanted, checkpoint)]
    if any(f.matched for f in fits) or len(parts) > MAX_PARTS:
        return fits
    # A part that fits whole: what else the network has is missing.
    return [f for part in parts for f in _fits_inside(part, wanted, checkpoint) if f.matched and not f.unexpected]


def _fits_inside(inside: str, wanted: Wanted, checkpoint: Checkpoint) -> list[Fit]:
    """Those below which most names and shapes agree."""
    shapes = {name.removeprefix(inside): t for name, (_, t) in wanted.items() if name.startswith(inside)}
    agreed = Counter[str]()
    for key, tensor in checkpoint.tensors.items():
        name = _plain(key)
        for cut in _cuts(name):
            if name[cut:] in shapes:
                agreed[name[:cut]] += 1 + (not _difference(tensor, shapes[name[cut:]]))
    likely = sorted(agreed, key=lambda start: (-agreed[start], _rank(start)))[:MAX_STARTS]
    return [_fit(start, inside, wanted, checkpoint) for start in likely]


def _cuts(name: str) -> Iterable[int]:
    return (0, *(m.end() for m in re.finditer(r"\.", name)))


def _fit(start: str, inside: str, wanted: Wanted, checkpoint: Checkpoint) -> Fit:
    plain = {k: _plain(k) for k in checkpoint.tensors}
    below = {k: inside + name[len(start) :] for k, name in plain.items() if name.startswith(start)}
    # What stands in dictionaries of the file without one name of the network is no part of it: an optimizer's state.
    holders = {checkpoint.holders[k] for k, name in below.items() if name in wanted}
    below = {k: name for k, name in below.items() if checkpoint.holders[k] in holders}
    names, tensors, wrong = set(below.values()), dict[str, Tensor](), dict[str, str]()
    for key, name in below.items():
        tensor = checkpoint.tensors[key]
        actual, expected = wanted.get(name, (name, tensor))
        tensors[actual] = tensor
        if difference := _difference(tensor, expected):
            wrong[name] = difference
    outside = tuple(k for k in checkpoint.tensors if checkpoint.holders[k] in holders and k not in below)
    return Fit(
        start,
        inside,
        tensors,
        missing=tuple(name for name in wanted if name not in names),
        unexpected=(*(name for name in below.values() if name not in wanted), *(outside if inside else ())),
        wrong=wrong,
        outside=outside,
        matched=sum(name in wanted and name not in wrong for name in below.values()),
    )


def _difference(tensor: Tensor, expected: Tensor) -> str:
    """In words, what keeps a tensor from its place: another shape, another kind of number, or none."""
    if tensor.is_meta:
        return "without numbers"
    if not is_lazy(expected) and tensor.shape != expected.shape and tensor.numel() + expected.numel() != 2:
        return f"{tuple(tensor.shape)}, expected {tuple(expected.shape)}"
    kinds = [(t.is_complex(), t.is_floating_point()) for t in (tensor, expected)]
    return "" if kinds[0] == kinds[1] else f"{_type(tensor.dtype)}, expected {_type(expected.dtype)}"


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(v is other[k] or torch.equal(v, other[k]) for k, v in one.items())


def _remarks(best: Fit, rivals: list[Fit], net: nn.Module, checkpoint: Checkpoint) -> Iterable[str]:
    path, start = checkpoint.path, best.start.rstrip(".")
    if rivals:
        others = ", ".join(f"{path}:{f.start.rstrip('.')}" for f in rivals[:3])
        yield f"{path} holds several networks that fit. Took {start or 'the outer one'}; for another pass {others}."
    if best.outside:
        yield f"{path}: took what is below {start}, and left out {listed(best.outside)} beside it."
    types = {k: v.dtype for k, v in net.state_dict().items() if isinstance(v, Tensor)}
    rounded = [(v.dtype, types[k]) for k, v in best.tensors.items() if k in types and _is_wider(v.dtype, types[k])]
    for stored, used in dict.fromkeys(rounded):
        yield (
            f"{path} holds {_type(stored)} weights and the network {_type(used)}: they are rounded. If it is used in "
            f"{_type(stored)}, build() should return net.to(torch.{_type(stored)})."
        )


def _is_wider(stored: torch.dtype, used: torch.dtype) -> bool:
    return stored.is_floating_point and used.is_floating_point and torch.finfo(stored).eps < torch.finfo(used).eps


def _misfit(fits: Sequence[Fit], wanted: Wanted, checkpoint: Checkpoint, error: Exception | None = None) -> str:
    """What is missing, unexpected and of the wrong shape, and what is likely to help."""
    best, path = fits[0], checkpoint.path
    theirs = layers_in(best.tensors if best.matched else network_tensors(checkpoint))
    ours = layers_in({k: v for k, (_, v) in wanted.items() if not is_lazy(v)})
    faults = {
        "missing": best.missing,
        "unexpected": best.unexpected,
        "of another shape or type": tuple(f"{name} {difference}" for name, difference in best.wrong.items()),
    }
    text = "; ".join(f"{fault} {listed(names)}" for fault, names in faults.items() if names)
    if not best.matched and (best.missing or not best.wrong):
        text = f"the network has {listed(list(wanted))}, the file {listed(list(checkpoint.tensors))}"
    elif not text:
        return f"The weights {path} do not fit: {reason(error) if error else ''}."
    parts = [f.start.rstrip(".") for f in fits if f.outside and not f.missing and not f.wrong]
    if not best.unexpected and not best.wrong and best.matched:
        remedy = "Expected the network of the training; what build() adds may be buffers with persistent=False"
    elif parts:
        remedy = f"If the rest is no part of the network, name the part that is: {path}:{parts[0]}"
    elif best.missing and not best.wrong and [s for _, s in theirs] == [s for _, s in ours]:
        remedy = "The shapes agree in order: give the parts of the network the names that they had in training"
    else:
        remedy = f"Expected the network of the training: the file has {_sizes(theirs)}, build() makes {_sizes(ours)}"
    below = f" below {best.start.rstrip('.')}" if best.start else ""
    return f"The weights {path} do not fit: {best.matched} of {len(wanted)} tensors do{below}; {text}. {remedy}."


def _sizes(layers: Layers) -> str:
    return chain(layers) or listed([f"{' x '.join(map(str, shape))}" for _, shape in layers]) or "no matrices"
