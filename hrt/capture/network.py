"""What a caller hands in as a network, made a Program and checked to give its answers."""

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from hrt.capture.torch_export import capture, guess_example, inference
from hrt.capture.weights import check_weights, computing_tensor
from hrt.errors import CaptureError, InputError, first_line
from hrt.hmatrix.hmatrix import relative_difference
from hrt.program.program import Program
from hrt.support.atomic_files import usable

Network = nn.Module | ExportedProgram | str | os.PathLike[str]  # a path is that of a .onnx file


def unwrapped(net: Any) -> Any:
    """The network inside what torch.compile, DataParallel and DistributedDataParallel made of it."""
    while isinstance(net, nn.Module):
        several = isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        inner = net.module if several else getattr(net, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            break
        net = inner
    return net


def program_of_network(net: Network, samples: tuple[Tensor, ...] | None) -> Program:
    """The network as a Program, checked to give the network's own answers. samples: rows, None where there are none."""
    net = unwrapped(net)
    if isinstance(net, (str, os.PathLike)):
        if not os.fspath(usable(net, CaptureError)).endswith(".onnx"):
            raise CaptureError(f"Found the path {os.fspath(net)!r}. Expected a .onnx file, or a network.")
        from hrt.capture.onnx_file import read_onnx  # onnx is not imported by those who do not use it

        return read_onnx(net)
    if isinstance(net, nn.Module):
        check_weights(net)
    example = guess_example(net) if samples is None else samples
    if samples is not None and isinstance(net, nn.Module):
        _check_runs(net, example)
    program = capture(net, [x[:2] for x in example])
    if isinstance(net, nn.Module):
        _check_capture(net, program, example)
    return program


def _check_runs(net: nn.Module, example: tuple[Tensor, ...]) -> None:
    """Raise InputError where the network does not take inputs of these shapes (a clearer word than export's)."""
    try:
        _answers(net, [x[:2] for x in example])
    except CaptureError:
        raise
    except Exception as error:
        widths = [m.in_features for m in net.modules() if isinstance(m, nn.Linear)]
        expected = f" Its first linear layer expects {widths[0]} features." if widths else ""
        raise InputError(
            f"The network does not run on inputs of shapes {[('batch', *x.shape[1:]) for x in example]}: "
            f"{first_line(error)}.{expected}"
        ) from error


def _answers(net: nn.Module, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """The network itself in evaluation mode, in its own dtype and on its own device; outputs as float64 CPU tensors."""
    reference = computing_tensor(net)
    with inference(net):
        y = net(*(x.to(reference.device, reference.dtype) for x in inputs))
    return tuple(v.detach().cpu().to(torch.float64) for v in tree_leaves(y) if isinstance(v, Tensor))


def _check_capture(net: nn.Module, program: Program, example: tuple[Tensor, ...]) -> None:
    """Raise CaptureError unless the program gives the network's own answers, to the rounding of its dtype."""
    rows = [x[:16] for x in example]
    expected = _answers(net, rows)
    with torch.no_grad():
        captured = program.run(rows)
    reference = computing_tensor(net)
    allowed = 1e4 * torch.finfo(reference.dtype).eps if reference.dtype != torch.float64 else 1e-9
    for k, (a, b) in enumerate(zip(expected, captured, strict=True)):
        error = relative_difference(b, a)
        if tuple(a.shape) != tuple(b.shape) or (error > allowed and float((a - b).abs().max()) > allowed):
            raise CaptureError(
                f"The captured program disagrees with the network on output {k}: relative difference {error:.3g}, "
                f"expected at most {allowed:.3g}. Does the network draw random numbers or branch on its data?"
            )
