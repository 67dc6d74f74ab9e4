"""The numbers that a torch network holds: whether they are there, finite, and of which type."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hrt.errors import CaptureError, InputError

QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized", "torch.nn.intrinsic.q")


def check_numbers(name: str, t: Tensor, *, masks: bool = False) -> None:
    """Raise InputError unless `t` holds numbers that are finite, also in float32. masks: infinite ones are masks."""
    if is_lazy(t):
        raise InputError(f"{name!r} has no shape yet. Run the network once on an input before.")
    if t.device.type == "meta":
        raise InputError(f"{name!r} is on the meta device and holds no numbers. Load the weights first.")
    if not t.is_floating_point() or not t.numel():
        return
    t = t.to_dense()  # of a sparse one; others are as they were
    finite = torch.isfinite(t) | torch.isinf(t) if masks else torch.isfinite(t)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise InputError(f"{name!r} holds {bad} NaN or infinite numbers. Expected finite weights.")
    largest = float(torch.where(torch.isinf(t), 0, t).detach().abs().max())
    if largest > torch.finfo(torch.float32).max:
        raise InputError(f"{name!r} holds {largest:.3g}, beyond what float32 can hold. Scale the network.")


def check_weights(net: nn.Module) -> None:
    """Raise InputError for parameters or buffers that hold no finite numbers."""
    for name, t in net.named_parameters():
        check_numbers(name, t)
    for name, t in net.named_buffers():
        check_numbers(name, t, masks=True)


def check_modules(net: nn.Module) -> None:
    """Raise CaptureError for a module whose arithmetic torch.export cannot see, by its path, with what to give."""
    for path, module in net.named_modules():
        where = f"{path or 'the network'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(
                f"Found TorchScript in {where}, which torch.export does not read. Expected the nn.Module that it was "
                "scripted or traced from; load its state_dict into that."
            )
        if type(module).__module__.startswith(QUANTIZED):
            raise CaptureError(
                f"Found a quantized module in {where}, whose packed integers torch.export does not read. Expected the "
                "network before quantization: hrt chooses narrow types itself, within tol."
            )


def computing_tensor(net: nn.Module) -> Tensor:
    """A tensor of the type and on the device that the network computes with."""
    return next((p for p in (*net.parameters(), *net.buffers()) if p.is_floating_point()), torch.zeros(()))


def floating_types(net: nn.Module) -> list[torch.dtype]:
    """The floating types of a network's numbers, widest first, that of `computing_tensor` last among its equals."""
    first = computing_tensor(net).dtype
    types = {t.dtype for t in (*net.parameters(), *net.buffers()) if t.is_floating_point()} | {first}
    return sorted(types, key=lambda t: (-t.itemsize, t == first, str(t)))


def without_inference(net: nn.Module) -> nn.Module:
    """The network, or a copy where its numbers were made in inference mode: these can be neither traced nor trained."""
    held = {id(t): t for t in (*net.parameters(), *net.buffers()) if not is_lazy(t) and t.is_inference()}
    if not held:
        return net
    plain = {k: t.detach().clone() for k, t in held.items()}
    memo = {k: nn.Parameter(c) if isinstance(held[k], nn.Parameter) else c for k, c in plain.items()}
    return copy.deepcopy(net, dict(memo))
