"""What a caller hands in as a network, made a Program and checked to give its answers."""

import inspect
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from hrt.capture.answers import Answers, TorchAnswers
from hrt.capture.calls import PLAIN_CALL, Call, Given
from hrt.capture.torch_export import culprit, exported, guess_example, one_at_a_time, one_by_one
from hrt.capture.torch_graph import carriable, program_of, roundings
from hrt.capture.weights import check_modules, check_weights, floating_types, without_inference
from hrt.errors import CaptureError, InputError, first_line, shown
from hrt.program.program import Program
from hrt.support.atomic_files import usable

Network = nn.Module | ExportedProgram | str | os.PathLike[str]  # a path is that of a .onnx file

CHECKED_ROWS = 16
# Largest differences, relative to a column's root mean square or, if larger, a small share of that of all columns.
UNROUNDED = 1e-5  # without rounding: constants that were made in float32, and the jump of softplus
ROUNDED = 1e4 * torch.finfo(torch.float32).eps
NARROW = 0.1  # of networks that compute in less than float32; what is below is measured where inputs are given
CANCELLED = 1e-4  # a column may be a difference of large numbers
NO_INDEX = ("used as indices must be", "scalar type", "Expected dtype int")  # what torch says of floats as indices
BEYOND = ("out of bounds", "out of range")  # what torch says of an index
NO_SLOPE = "does not require grad"  # what torch says of a derivative where gradients are off
NAMED = ("refine_names", "align_to", "align_as", "rename")  # methods of tensors that torch 2.13 has no more
SHOWN = 3  # modules that a message names


@dataclass(frozen=True, eq=False)
class Captured:
    """A program in float64, and the network that it stands for as its author evaluates it; None for a file that
    no runtime here can run.

    roundings: the types narrower than float32 that the network computes in, by the paths of its modules or nodes.
    """

    program: Program
    answers: Answers | None = None
    roundings: Mapping[str, str] = field(default_factory=dict)


def unwrapped(net: Any) -> Any:
    """The network inside what torch.compile, DataParallel and DistributedDataParallel made of it."""
    while isinstance(net, nn.Module):
        several = isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        inner = net.module if several else getattr(net, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            break
        net = inner
    return net


def captured_network(net: Network, samples: tuple[Tensor, ...] | None, call: Call = PLAIN_CALL) -> Captured:
    """The network as a Program, checked to give the network's own answers. samples: rows, None where there are none."""
    with one_at_a_time:
        return _captured(unwrapped(net), samples, call)


def call_for(net: Network, given: Given) -> tuple[tuple[Tensor, ...], Call]:
    """The rows that were given as the network takes them, and how it is called: the first way in which it runs."""
    net = unwrapped(net)
    ways = list(given.calls())
    if not isinstance(net, nn.Module):
        return given.in_order(_input_names(net)) if given.is_named else given.rows, PLAIN_CALL
    usual = next(way for way in ways if way[0] is given.rows)
    for rows, call in ways if len(ways) > 1 else ():
        if _runs(net, rows, call):
            return rows, call
    error = _error(net, *usual)
    if NO_SLOPE in error:  # it differentiates inside, and leaves it to the caller that gradients are on
        usual = usual[0], replace(usual[1], slopes=True)
        error = _error(net, *usual)
    one_by_one = (way for way in given.one_by_one() if error and _runs(net, *way))
    if any(sign in error for sign in (*NO_INDEX, *BEYOND)):
        usual = usual[0], replace(usual[1], kinds=given.kinds)
    return next(one_by_one, usual)  # the error of the usual way is said when it is captured


def _error(net: nn.Module, rows: Sequence[Tensor], call: Call) -> str:
    """What a network says where it does not run on two rows; nothing where it does."""
    try:
        TorchAnswers(net, call).outputs([x[:2] for x in rows])
    except Exception as error:  # in whatever way the network fails
        return str(error) or type(error).__name__
    return ""


def _runs(net: nn.Module, rows: Sequence[Tensor], call: Call) -> bool:
    """Whether a network takes rows in this way, few and more, and gives as many. Where a wrong shape is broadcast,
    samples meet.
    """
    answers = TorchAnswers(net, call)
    with suppress(Exception):  # in whatever way the network fails
        few, more = (answers.outputs([x[:count] for x in rows]) for count in (1, 2))
        return all(a.shape[1:] == b.shape[1:] and len(a) < len(b) for a, b in zip(few, more, strict=True))
    return False


def _input_names(net: ExportedProgram | str | os.PathLike[str]) -> list[str]:
    """By which a file or an exported program knows its inputs."""
    if isinstance(net, ExportedProgram):
        return [str(name) for name in net.graph_signature.user_inputs]
    from hrt.capture.onnx.file import read_onnx

    return [v.name for v in read_onnx(net).inputs]


def _captured(net: Network, samples: tuple[Tensor, ...] | None, call: Call) -> Captured:
    if isinstance(net, (str, os.PathLike)):
        if not os.fspath(usable(net, CaptureError)).endswith(".onnx"):
            raise CaptureError(f"Found the path {os.fspath(net)!r}. Expected a .onnx file, or a network.")
        from hrt.capture.onnx.file import opened  # onnx is not imported by those who do not use it

        network = Captured(*opened(net))
        count = CHECKED_ROWS if network.answers is None else min(CHECKED_ROWS, network.answers.at_once)
        shapes = [v.shape for v in network.program.inputs]
        example = _points(shapes, count) if samples is None else samples
        network.program.check_inputs(example)
        _check_capture(network, [x[:count] for x in example])
        return network
    if not isinstance(net, (nn.Module, ExportedProgram)):
        raise CaptureError(f"Found {type(net).__name__}. Expected an nn.Module, an ExportedProgram or a path to .onnx.")
    if isinstance(net, nn.Module):
        check_modules(net)
        check_weights(net := without_inference(net))
    example = _points([x.shape[1:] for x in guess_example(net)]) if samples is None else samples
    if samples is not None and isinstance(net, nn.Module):
        _check_runs(net, example, call)
    graph = None
    try:
        graph = exported(net, [x[:2] for x in example], call)
        program = program_of(graph, call.carries)
    except CaptureError as refusal:
        parts = ", ".join([] if graph is None or call.carries else carriable(graph))
        hint = f' compress(..., outside="carry") keeps {parts} dense and compresses the rest.' if parts else ""
        return _of_single_samples(net, example, call, CaptureError(f"{refusal}{hint}"))
    return _checked(net, (program, roundings(graph)), example, call)


def _of_single_samples(net: Any, example: tuple[Tensor, ...], call: Call, refusal: CaptureError) -> Captured:
    """The program of every sample alone, where it gives the network's answers to many: it may read of the first sample
    what all have in common, such as points. Raises the refusal where there is none.
    """
    graph = None if isinstance(net, ExportedProgram) or call.bare else one_by_one(net, [x[:2] for x in example], call)
    if graph is None:
        raise refusal
    try:
        return _checked(net, (program_of(graph, call.carries), roundings(graph)), example, call)
    except CaptureError:
        raise refusal from None


def _checked(
    net: nn.Module | ExportedProgram, captured: tuple[Program, dict[str, str]], example: tuple[Tensor, ...], call: Call
) -> Captured:
    """What was captured under the network's names, checked to give its answers to these rows."""
    (program, narrow), answers = captured, TorchAnswers(net, call)
    if isinstance(net, nn.Module):
        program = call.named(program, net)
        types = [str(t).removeprefix("torch.") for t in floating_types(net) if t.itemsize < 4]
        narrow = narrow or dict.fromkeys([""] if types else [], ", ".join(types))
    program.check_inputs(example)
    _check_capture(Captured(program, answers, narrow), [x[:CHECKED_ROWS] for x in example])
    return Captured(program, answers, narrow)


def rounding_places(places: Mapping[str, str]) -> str:
    """In words, where a network computes in less than float32; nothing where it does not."""
    named = [f"{dtype} in {path or 'its forward'}" for path, dtype in places.items()]
    rest = f" and {len(named) - SHOWN} more modules" if len(named) > SHOWN else ""
    return f"the network computes in {', '.join(named[:SHOWN])}{rest}" if named else ""


def _points(shapes: Sequence[Sequence[int]], count: int = CHECKED_ROWS) -> tuple[Tensor, ...]:
    """Rows of these shapes that differ: zeros would not tell one network from another."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(count, *shape, generator=generator, dtype=torch.float64) for shape in shapes)


def _check_runs(net: nn.Module, example: tuple[Tensor, ...], call: Call) -> None:
    """Raise InputError where the network does not take inputs of these shapes (a clearer word than export's)."""
    try:
        TorchAnswers(net, call).outputs([x[:2] for x in example])
    except CaptureError:
        raise
    except Exception as error:
        if any(f"'Tensor' object has no attribute '{name}'" in str(error) for name in NAMED):
            raise CaptureError(
                f"{type(net).__name__} names the dimensions of tensors{culprit(error, net)}, which torch "
                f"{torch.__version__} no longer does. Expected dimensions by number: x.mean(1) for x.mean('C')."
            ) from error
        if "'Tensor' object has no attribute" in str(error):
            raise CaptureError(
                f"{first_line(error)}, which {type(net).__name__} asks of its input{culprit(error, net)}: it takes "
                "tensors of a class of its own, with labels, say, which no trace follows. Expected a forward of plain "
                "tensors: columns by number, x[:, :2]; or the module inside it."
            ) from error
        if "int" in call.kinds and any(sign in str(error) for sign in BEYOND):
            raise CaptureError(
                f"The network does not run on two rows alone{culprit(error, net)}: {first_line(error)}. Expected rows "
                "that do not touch each other. If an input says which row is beside which (edge_index), one sample is "
                "the whole graph, (nodes, features), and the edges are a buffer of the network; or embed more rows."
            ) from error
        widths = [m.in_features for m in net.modules() if isinstance(m, nn.Linear)]
        expected = f" Its first linear layer expects {widths[0]} features." if widths else ""
        if len(example) > 1 and all(x.shape == (widths[0], 1) for x in example if widths):
            expected += " Rows, one array each, are one input as torch.stack(rows) or np.stack(rows)."
        if len(names := _required(net)) > len(example):
            expected = (
                f" It takes {len(names)} inputs ({', '.join(names)}). Expected a tuple of as many arrays or boxes; on "
                "the command line --inputs or --box once for each."
            )
        raise InputError(
            f"The network does not run on inputs of shapes {shown([('batch', *x.shape[1:]) for x in example])}: "
            f"{first_line(error)}.{expected}"
        ) from error


def _required(net: nn.Module) -> list[str]:
    """The inputs that a network cannot do without, by name; none where its forward does not say."""
    with suppress(TypeError, ValueError):
        given = [p for p in inspect.signature(net.forward).parameters.values() if p.default is p.empty]
        return [p.name for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return []


def _check_capture(network: Captured, rows: Sequence[Tensor]) -> None:
    """Raise CaptureError unless the program gives the network's answers: closely to those without any rounding, where
    the network runs so, and roughly to those that it gives. The rest is measured where inputs were given.
    """
    if network.answers is None:
        return
    with torch.no_grad():
        program = network.program.run(rows)
    given, unrounded = network.answers.outputs(rows), network.answers.unrounded(rows)
    if [y.shape for y in given] != [y.shape for y in program]:
        shapes = [[tuple(y.shape) for y in outputs] for outputs in (given, program)]
        raise CaptureError(f"The captured program gives outputs of shapes {shapes[1]}. The network gives {shapes[0]}.")
    exact = unrounded is not None and max(map(_difference, unrounded, program)) <= UNROUNDED
    narrow = rounding_places(network.roundings)
    allowed = NARROW if exact or (narrow and unrounded is None) else UNROUNDED if narrow else ROUNDED
    for k, (expected, actual) in enumerate(zip(given, program, strict=True)):
        error = _difference(expected, actual, 1.0 if allowed == NARROW else CANCELLED)
        if error > allowed:
            cause = "Does it draw random numbers, branch on its data, or subtract nearly equal numbers?"
            raise CaptureError(
                f"The captured program disagrees with the network on output {k}: relative difference {error:.3g}, "
                f"expected at most {allowed:.3g}. "
                + (f"That is its own rounding: {narrow}." if exact and narrow else cause)
            )
    _check_one_row(network, [x[:1] for x in rows], program, allowed)


def _check_one_row(network: Captured, row: Sequence[Tensor], program: Sequence[Tensor], allowed: float) -> None:
    """Raise CaptureError where the network gives one row alone another answer than the program gave it among others.
    A network that does not run on one row, or drops its dimension, is taken as it is for several.
    """
    try:
        alone = network.answers.outputs(row) if network.answers and len(row[0]) else ()
    except Exception:  # in whatever way the network fails
        return
    for k, (expected, actual) in enumerate(zip(alone, program, strict=False)):
        if expected.numel() == actual[:1].numel():
            error = _difference(expected.reshape(actual[:1].shape), actual[:1], 1.0)
            if error > allowed:
                raise CaptureError(
                    f"The network answers one row alone otherwise than among others: output {k} is {error:.3g} off. "
                    "Expected answers that do not depend on the number of rows; does it ask for x.shape[0]?"
                )


def _difference(expected: Tensor, actual: Tensor, share: float = CANCELLED) -> float:
    """The largest root mean square error of a column over its size or, if larger, `share` of that of all columns
    together; infinite where the shapes differ, or only one of two numbers is finite.
    """
    if expected.shape != actual.shape or not bool((torch.isfinite(expected) == torch.isfinite(actual)).all()):
        return float("inf")
    expected, actual = _finite(expected), _finite(actual)
    error, size = (y.square().mean(0).sqrt() for y in (actual - expected, expected))
    ratios = torch.where(error > 0, error / size.clamp_min(share * float(size.square().mean().sqrt())), 0.0)
    return float(ratios.max()) if ratios.numel() else 0.0


def _finite(y: Tensor) -> Tensor:
    """(rows, columns), zeros in the place of what is not finite."""
    return torch.where(torch.isfinite(y), y, 0.0).reshape(y.shape[0], -1)
