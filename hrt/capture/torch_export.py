"""From a network to a Program by torch.export, whose graph `hrt.capture.torch_graph` reads."""

import inspect
import linecache
import os
import threading
import traceback
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from hrt.capture.calls import PLAIN_CALL, Call, with_state
from hrt.capture.torch_graph import program_of
from hrt.capture.tracing import (
    AnyBatch,
    Finite,
    Gradients,
    InVmap,
    Steps,
    dispatched,
    labels_followed,
    masks_as_given,
    quiet,
)
from hrt.capture.weights import check_modules, check_weights, computing_tensor, floating_types, without_inference
from hrt.errors import CaptureError, InputError, first_line
from hrt.program.program import Program
from hrt.support.torch_state import as_called

one_at_a_time = threading.RLock()  # while a network is read: torch.export puts tensors of its own into it
CONSTRAINED = "Constraints violated"  # torch.export of a batch of any size; it is often wrong about what is fixed
SAME_ROW = 1e-3  # relative, of one row's answer alone and among others: what rounding may do in half precision
MORE_ROWS = 10  # times as many, with which a loop over them takes more steps
BATCH_AT_EXPORT = 3  # neither 0 nor 1, which torch.export would take for constants

# What torch.export says of habits that it cannot follow, and what the caller did.
PLAIN = {
    "data-dependent expression": "it makes a Python number or a branch of a tensor's values (.item(), float(), if, "
    "if torch.any(mask)); keep it a tensor (torch.where(mask, f(x), x), with no branch), or make the number once in "
    "__init__",
    "pack_padded_sequence": "it packs sequences of different lengths (pack_padded_sequence); give it sequences of one "
    "length, and choose the last step of each by a mask or torch.gather",
    Steps.EXCEEDED: "it loops over its rows; write operations on all rows at once (torch.vmap)",
    "numpy() is not supported": "it leaves torch for numpy; use torch's functions",
    CONSTRAINED: "it fixes the number of rows: a loop over them, int(x.shape[0]), len(x), or a number in a shape "
    "where the batch stands; write x.shape[0] or -1 there, and operations on all rows at once (torch.vmap)",
    "does not require grad": "it differentiates inside its forward, where gradients are off; write "
    "'with torch.enable_grad():' around that, or give inputs=",
    "Creating a new Tensor subclass": "it makes tensors of a class of its own, of which the trace sees nothing; use "
    "plain tensors inside, x[:, :2] in the place of columns by label",
}
TABLES = (dict, OrderedDict)  # in which a module keeps its parts; others are the author's
HIDDEN = (  # what it says where a graph of autograd or .data kept a step from it
    "fake tensor in the exported program constant's list",
    "'Tensor' object has no attribute 'constant'",
    "functorch tensor",
)
DIFFERENTIATES = (
    "it differentiates inside its forward (by {}), which the trace does not see; let forward return the value that is "
    "differentiated, and ask for its derivatives by compress(..., derivatives=...)"
)
READS_DATA = "it reads .data of a tensor, or hides another step from the trace; use the tensor itself, or .detach()"


def _write_out_sparse(net: nn.Module) -> None:
    """Make sparse constants dense: torch.export has no sparse ones. `inference` puts them back."""
    for m in net.modules():
        for name, value in (*m.named_buffers(recurse=False), *list(vars(m).items())):
            if isinstance(value, Tensor) and value.layout != torch.strided:
                setattr(m, name, value.to_dense())


def capture(net: nn.Module | ExportedProgram, example: Sequence[Tensor]) -> Program:
    """A Program with float64 constants. example: one tensor per input, (batch, *shape); only shapes are used.

    Outputs in a list or a dictionary become a tuple, in their order. `net` is left as it was. Raises CaptureError for
    an op outside the table and InputError for weights that are NaN, infinite or without numbers.
    """
    if not isinstance(net, (ExportedProgram, nn.Module)):
        raise CaptureError(f"Found {type(net).__name__}. Expected an nn.Module, an ExportedProgram or a path to .onnx.")
    return program_of(exported(net, example))


def guess_example(net: nn.Module | ExportedProgram) -> tuple[Tensor, ...]:
    """Two rows, as wide as a weight, of which the network reads every column. Raises InputError where no width runs."""
    if isinstance(net, ExportedProgram):
        return tuple(torch.zeros(2, *map(int, f.shape[1:])) for f in fakes_of_inputs(net))
    check_modules(net)
    check_weights(net := without_inference(net))
    widths = [m.in_features for m in net.modules() if isinstance(m, nn.Linear)]
    for tensors in (net.buffers(), net.parameters()):  # input normalisation and Fourier features are buffers
        widths += sorted({n for t in tensors if t.ndim == 2 for n in t.shape})
    reference = computing_tensor(net)
    refusal, runs = "", []
    for width in dict.fromkeys([*widths, *range(1, 9)]):
        example = torch.zeros(2, width).to(reference)
        try:
            if _reads_all(net, example):
                return (example,)
            runs.append(example)
        except Exception as error:  # a wrong guess fails in whatever way the network fails
            refusal = refusal or first_line(error)
    if runs:
        return (runs[0],)
    raise InputError(
        f"The shape of the network's input cannot be guessed ({refusal}). "
        "Pass inputs=..., a few rows are enough (a tuple for several inputs)."
    )


def fakes_of_inputs(net: ExportedProgram) -> list[Tensor]:
    """Tensors without numbers, of the type and the shape of every input."""
    placeholders = {n.name: n.meta["val"] for n in net.graph.nodes if n.op == "placeholder"}
    values = [placeholders[name] for name in net.graph_signature.user_inputs if name in placeholders]
    return [v for v in values if isinstance(v, Tensor)]


def in_its_type(net: nn.Module, rows: Sequence[Tensor], call: Call = PLAIN_CALL) -> tuple[Tensor, ...]:
    """Rows on the network's device, floats in the widest floating type of its numbers that it runs with."""
    device, types = computing_tensor(net).device, floating_types(net)
    for dtype in types[:-1]:
        try:
            with inference(net, call.slopes):
                call.answers(net, [x[:2] for x in call.placed(rows, device, dtype)])
        except Exception:  # in whatever way the network fails
            continue
        return call.placed(rows, device, dtype)
    return call.placed(rows, device, types[-1])


def _reads_all(net: nn.Module, example: Tensor) -> bool:
    """Run `net` on numbers of the example's shape; whether its answer has a slope in every column."""
    x = torch.rand(example.shape, generator=torch.Generator().manual_seed(0)).to(example).requires_grad_()
    buffers = {k: b.clone() for k, b in net.named_buffers()}
    with inference(net), torch.enable_grad():
        outputs = tree_leaves(torch.func.functional_call(net, buffers, (x,)))
        tensors = [y for y in outputs if isinstance(y, Tensor) and y.requires_grad]
        total = sum((y.double().sum() for y in tensors), torch.zeros(()))
        if not total.requires_grad:
            return False
        (slope,) = torch.autograd.grad(total, x, allow_unused=True)
    return slope is not None and bool(slope.ne(0).any(dim=0).all())


@contextmanager
def inference(net: nn.Module, slopes: bool = False) -> Iterator[None]:
    """Evaluation mode, without gradients unless `slopes`, in the caller's torch state. Modules are restored: tracing
    assigns to computed weights.
    """
    with one_at_a_time, _restored(net), as_called(), torch.set_grad_enabled(slopes):
        net.eval()
        yield


@contextmanager
def _restored(net: nn.Module) -> Iterator[None]:
    before = [
        (m.__dict__, dict(m.__dict__), [(v, v.copy()) for v in m.__dict__.values() if type(v) in TABLES])
        for m in net.modules()
    ]
    try:
        yield
    finally:
        for attributes, values, tables in before:
            for current, old in ((attributes, values), *tables):
                current.clear()
                current.update(old)


def exported(net: nn.Module | ExportedProgram, example: Sequence[Tensor], call: Call = PLAIN_CALL) -> ExportedProgram:
    """The network's graph, traced where it is none yet. Raises as `capture` does."""
    if isinstance(net, ExportedProgram):
        return net
    check_modules(net)
    check_weights(net := without_inference(net))
    if any(x.ndim == 0 for x in example):
        raise InputError("Found an input without dimensions. Expected (batch, ...).")
    rows = in_its_type(net, [torch.zeros(BATCH_AT_EXPORT, *x.shape[1:]) for x in example], call)
    try:
        try:
            graph = _traced(net, rows, call, torch.export.Dim("batch", min=1))
        except Exception as error:
            if CONSTRAINED not in str(error):
                raise
            graph = _traced(net, rows, call, torch.export.Dim.AUTO)
            fixed = [f for f in fakes_of_inputs(graph) if str(f.shape[0]).isdigit()]  # a symbol may be a number
            if fixed or not _is_rowwise(net, rows, call):
                raise
        if any(isinstance(c, Tensor) and is_functorch_wrapped_tensor(c) for c in graph.constants.values()):
            raise ValueError("a functorch tensor without numbers was taken for a constant")  # see HIDDEN
        return graph
    except Exception as error:
        graph = _as_dispatched(net, rows, call)
        if graph is not None:
            return graph
        error = _loop_over_rows(net, rows, call) or error
        lines = [line.partition("For more information")[0].strip(" -.") for line in str(error).splitlines()]
        cause = ". ".join([line for line in lines if line][:2]) or type(error).__name__
        cause = next((plain for sign, plain in PLAIN.items() if sign in str(error)), cause)
        if any(sign in str(error) for sign in HIDDEN):
            cause = _hidden_step(net, rows, call)
        raise CaptureError(
            f"torch.export could not trace {type(net).__name__} with inputs of shapes "
            f"{[('batch', *x.shape[1:]) for x in example]}{culprit(error, net)}: {cause}. "
            "Every input needs a leading batch dimension of any size, and its rows must not touch each other; control "
            "flow must not depend on the data (torch.maximum, clamp or a smooth blend may say the same)."
        ) from error


def _as_dispatched(net: nn.Module, rows: Sequence[Tensor], call: Call) -> ExportedProgram | None:
    """The graph that the dispatcher sees, where it is one that can be captured: that of derivatives, say."""
    graph = None
    for any_batch in (True, False):
        if not any_batch and _loop_over_rows(net, rows, call):
            break
        with (
            suppress(Exception),
            inference(net, call.slopes),
            quiet(),
            AnyBatch(),
            Finite(),
            InVmap(),
        ):  # tracers raise nearly anything
            _write_out_sparse(net)
            graph = dispatched(net, rows, call, any_batch=any_batch)
            break
    if graph is not None:
        with suppress(Exception):
            program_of(graph, call.carries)
            return graph if _is_rowwise(net, rows, call) else None
    return None


def one_by_one(net: nn.Module, example: Sequence[Tensor], call: Call) -> ExportedProgram | None:
    """The graph of a network that is given every sample alone, as a batch of one, where it is one."""
    rows = in_its_type(net, [torch.zeros(BATCH_AT_EXPORT, *x.shape[1:]) for x in example], call)
    return _as_dispatched(net, rows, replace(call, bare=(False,) * len(rows)))


def _traced(net: nn.Module, rows: Sequence[Tensor], call: Call, batch: Any) -> ExportedProgram:
    shapes = tuple({0: batch} for _ in rows)
    with (
        inference(net, call.slopes),
        call.flat(net),
        quiet(),
        AnyBatch(),
        Finite(),
        labels_followed(),
        masks_as_given(),
    ):
        _write_out_sparse(net)
        return torch.export.export(net, tuple(rows), dynamic_shapes=_match_signature(net, shapes), strict=False)


def _is_rowwise(net: nn.Module, rows: Sequence[Tensor], call: Call) -> bool:
    """Whether a row's answer does not depend on how many there are. The trace is of more than one: where its author
    asks for the batch size, another may take another way.
    """
    generator = torch.Generator().manual_seed(0)
    given = [torch.rand(x.shape, generator=generator).to(x) for x in rows]
    buffers = {k: b.clone() for k, b in net.named_buffers()}

    def answers(x: Sequence[Tensor]) -> Tensor:
        y = call.answers(with_state(net, buffers), x)
        return torch.cat([v.reshape(len(x[0]), -1).double() for v in tree_leaves(y) if isinstance(v, Tensor)], dim=1)

    try:
        with inference(net, call.slopes):
            together, first = answers(given), answers([x[:1] for x in given])
    except Exception:  # the batch is in a shape: that is said better where the graph is read
        return True
    if together.shape[1] != first.shape[1]:
        return True
    return bool((together[:1] - first).norm() <= SAME_ROW * together[:1].norm())


def _loop_over_rows(net: nn.Module, rows: Sequence[Tensor], call: Call) -> Exception | None:
    """The error of the first step that more rows add, where they do: a trace would be as long as the batch."""
    steps = Steps()
    try:
        for times in (1, MORE_ROWS):
            buffers = {k: b.clone() for k, b in net.named_buffers()}
            with inference(net, call.slopes), quiet(), steps:
                call.answers(with_state(net, buffers), [x.repeat(times, *[1] * (x.ndim - 1)) for x in rows])
            steps = Steps(most=steps.count)
    except Exception as error:  # else the network fails, in whatever way
        return error if Steps.EXCEEDED in str(error) else None
    return None


def _hidden_step(net: nn.Module, rows: Sequence[Tensor], call: Call) -> str:
    """Which step the trace did not see: the network is run once more, on copies of its buffers, to find out."""
    buffers = {k: b.clone() for k, b in net.named_buffers()}
    with inference(net, call.slopes), quiet(), suppress(Exception), Gradients() as gradients:
        call.answers(with_state(net, buffers), rows)
    return DIFFERENTIATES.format(gradients.names[0]) if gradients.names else READS_DATA


def culprit(error: Exception, net: nn.Module) -> str:
    """The module and the user's source line in which tracing failed, where the traceback has them."""
    paths = {id(m): f"{name} ({type(m).__name__})" if name else "forward" for name, m in net.named_modules()}
    library, standard = os.path.dirname(torch.__file__), os.path.dirname(os.__file__)
    path = source = ""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = frame.f_code.co_filename
        if frame.f_code.co_filename == AnyBatch.__torch_function__.__code__.co_filename:
            continue  # it stands around every call
        if file == __file__:
            break
        path = path or next((paths[id(v)] for v in frame.f_locals.values() if id(v) in paths), "")
        foreign = file.startswith(library) or (file.startswith(standard) and "site-packages" not in file)
        if not source and os.path.isfile(file) and not foreign:
            source = f" at {os.path.basename(file)}:{line}: {linecache.getline(file, line).strip()!r}"
    return f" in {path}{source}" if source or path != "forward" else ""


def _match_signature(net: nn.Module, shapes: tuple) -> Any:
    """dynamic_shapes as export wants it: what a forward(..., *xs) collects is one tuple."""
    kinds = [p.kind for p in inspect.signature(net.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return shapes
    first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:first], shapes[first:])
