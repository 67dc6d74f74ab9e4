"""`hrt.network_compression.compress`: a network in, the smallest network found that keeps the promised error out."""

import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from hrt.calibration.samples import Inputs, as_boxes, given_inputs
from hrt.capture.answers import TorchAnswers
from hrt.capture.calls import PLAIN_CALL, Call, in_arguments_order
from hrt.capture.network import Captured, call_for, captured_network, rounding_places, unwrapped
from hrt.capture.torch_export import one_at_a_time
from hrt.capture.weights import check_weights
from hrt.certificate.certificate import Certificate
from hrt.certificate.layer_records import layer_records
from hrt.errors import InputError, ToleranceError, shown
from hrt.hmatrix.hmatrix import HMatrix
from hrt.matrix_compression.compress_matrix import compress_alone, compress_for
from hrt.matrix_compression.request import check_tol
from hrt.model.model import CompressedModel, prepare
from hrt.model.trainable import TrainableNetwork, densified, partitions
from hrt.network_compression.request import CompressionRequest, Network
from hrt.network_compression.verified import verified
from hrt.network_compression.verify import Original, output_certificate
from hrt.program.dense_view import DenseView, stored, to_float64
from hrt.program.program import Program, carried_nbytes, program_nbytes
from hrt.runtime.backends import on_cpu
from hrt.support.parallel import executor_map
from hrt.support.progress import part, track
from hrt.support.torch_state import guarded

CAPTURED = 0.12  # share of the time that capture takes; later ones count from there
FEWEST_HELD_OUT = 8  # rows; fewer say next to nothing about others, so that the network stays dense
FEWEST_SAMPLES = 4  # rows in all, so that those for the search are others than the held-out ones
PANELS_FROM = 1 << 20  # entries; from here on a matrix is spread over an executor by panels, below as a whole


@guarded
def compress(
    net: Network,
    *,
    inputs: Inputs | None = None,
    tol: float = 1e-3,
    target: str = "cpu",
    derivatives: Sequence[str] | None = None,
    storage: str = "auto",
    per_output: bool = False,
    seed: int = 0,
    outside: str = "refuse",
    progress: bool = True,
    executor: Executor | None = None,
) -> CompressedModel:
    """Compress every weight matrix of a network under one error bound.

    A layer that would not get smaller stays dense, and the report says so.

    Args:
        net: nn.Module, also inside torch.compile, DataParallel or DistributedDataParallel, an ExportedProgram of
            torch.export, or the path of an .onnx file; it is not changed. The partitions of every HLinear, and of what
            `hrt.to_trainable` made, stay. While it is read, no other thread may call it.
        inputs: rows (rows, features) or (rows,) for one, as any array, data frame or list of numbers; a tuple for
            several inputs, a dictionary for inputs by name, a list, dictionary or dataclass in them where `net` takes
            one; a data set or loader of torch, whose samples are inputs, pairs (inputs, targets) or
            dictionaries with the inputs as "x", "input" or "inputs" or alone (16,384 of a stream without length); or
            hrt.Box(low, high). Whole numbers become floats where `net` runs on those, else they stay what they are, as
            truth values do; they are refused above 2^24, where float32 has gaps. Masked entries are refused. None: see
            tol.
        tol: with inputs, of the output's relative L2 error on held-out rows, by its 99 % upper confidence limit over
            all tests that are made, and against what `net` itself answers in evaluation mode: its casts and autocast
            regions count.
            Without, ||W - H||_F <= tol ||W||_F for every weight.
        target: "cpu" and "cuda" price a leaf's time beside its bytes, "bytes" counts bytes alone. For "cuda" the
            certificate names the fastest arithmetic that keeps the bound (see `hrt.schedule.precision`).
        derivatives: such as ["d0", "d1", "d0d0"]: the relative L2 error of each is held to `tol` too. The network
            alone is stored; `predict(x, derivatives=...)` differentiates it.
        storage: "float32", "float16", "bfloat16", "int8", or "auto": per leaf, under the bound.
        per_output: hold every output column (of every derivative, too) to tol by itself. The 99 % limits are of one
            column each: of a thousand at the limit ten may exceed tol on new rows. A column of zeros counts in the
            whole output alone. False: a UserWarning and a remark name the columns whose own error exceeds tol.
        seed: same seed, same bytes.
        outside: what is done with ops that the op table has no row for. "refuse": a CaptureError, which names those
            that could be carried. "carry": each is kept as it is, dense, as an ONNX model in the file, which ONNX
            Runtime runs on the CPU; the report names its bytes. Such a network has no derivatives, no C and no GPU.
        progress: show a bar on stderr.
        executor: spreads layers, and panels of large matrices, over processes; the bytes are the same as without.

    Returns:
        The model with its certificate.

    Raises:
        CaptureError: the network cannot be captured.
        InputError: an argument, or the inputs, do not fit.
        ToleranceError: tol is not positive, above 1, or below what float32, or the network's own rounding, holds.
        DerivativeError: an op has no rule for a derivative.
        BackendError: the executor fails half-way; nothing is written then.

    Example:
        >>> import hrt
        >>> net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
        >>> model = hrt.compress(net, tol=1e-2, progress=False)
        >>> model.predict(torch.zeros(5, 2)).shape
        torch.Size([5, 1])
    """
    request = CompressionRequest(check_tol(tol), storage, target, seed, executor, bool(per_output))
    if outside not in ("refuse", "carry"):
        raise InputError(f"Found outside={shown(outside)}. Expected 'refuse' or 'carry'.")
    if derivatives is not None and inputs is None:
        raise InputError(
            f"Found derivatives={shown(derivatives)} and no inputs. Expected inputs too: without them only the weights "
            "are held to tol, and from that nothing follows for a derivative. Pass inputs=hrt.Box(low, high) or rows."
        )
    if not isinstance(per_output, bool):
        raise InputError(f"Found per_output={shown(per_output)}. Expected True or False.")
    if per_output and inputs is None:
        raise InputError(
            "Found per_output=True and no inputs. Expected rows or hrt.Box(low, high) to measure outputs on."
        )
    with track("compress", progress) as advance:
        inputs = in_arguments_order(unwrapped(net), inputs)
        given = None if inputs is None else given_inputs(inputs, request.seed)
        advance("capture", 0.0)
        with one_at_a_time:
            samples, call = (None, PLAIN_CALL) if given is None else call_for(net, given)
            network, structures = captured(net, samples, replace(call, carries=outside == "carry"))
        program = network.program
        if target == "cuda" and (parts := carried_nbytes(program)):
            raise InputError(f"Found target='cuda' and parts for the CPU, {', '.join(parts)}. Expected target='cpu'.")
        request = replace(request, partitions=structures, advance=part(advance, CAPTURED, 1.0))
        if inputs is None or samples is None:
            best, certificate = by_layers(network, request)
        else:
            names = () if derivatives is None else derivatives
            original = Original.of(network, samples, request, as_boxes(inputs), names)
            best, certificate = by_output(original, request)
        dense_nbytes = program_nbytes(stored(program))
        return prepare(CompressedModel(best, certificate, request.target, dense_nbytes=dense_nbytes))


def captured(
    net: Network, samples: tuple[Tensor, ...] | None, call: Call = PLAIN_CALL
) -> tuple[Captured, dict[str, HMatrix]]:
    """The network with dense weights, and the partitions of those whose structure it brought along."""
    net = unwrapped(net)
    if isinstance(net, TrainableNetwork):
        check_weights(net)
        program = net.to_program()
        dense = program.with_constants(DenseView(program).constants)
        return Captured(dense, TorchAnswers(net)), partitions(program.constants)
    if not isinstance(net, nn.Module):
        return captured_network(net, samples, call), {}
    dense_net, structures = densified(net)
    network = replace(captured_network(dense_net, samples, call), answers=TorchAnswers(net, call))
    return network, {name: h for name, h in structures.items() if name in network.program.weights}


def by_layers(network: Captured, request: CompressionRequest) -> tuple[Program, Certificate]:
    """Every weight within the tolerance in relative Frobenius norm, by construction."""
    program, places = network.program, rounding_places(network.roundings)
    sizes = {name: math.prod(program.constants[name].shape) for name in program.weights}
    changed = {k: compress_alone(program.constants[k], request.of_weight(k)) for k in request.partitions}
    small = [name for name, size in sizes.items() if size < PANELS_FROM and name not in changed]
    behind, total = sum(sizes[name] for name in changed), max(1, sum(sizes.values()))
    work, matrices = partial(compress_alone, request=request.of_weight()), (program.constants[k] for k in small)
    for name, h in zip(small, executor_map(work, matrices, request.executor), strict=True):
        behind += sizes[name]
        request.advance(f"compressed {name}", behind / total)
        changed[name] = h
    for name in (k for k in sizes if k not in changed):  # a large matrix is spread by its panels of rows
        here = part(request.advance, behind / total, (behind + sizes[name]) / total)
        weight = program.constants[name]
        changed[name] = compress_for(weight, request.of_weight(name), advance=here, executor=request.executor)
        behind += sizes[name]
    result = stored(program.with_constants(changed))
    certificate = Certificate(
        tol=request.tol,
        kind="layers",
        layers=layer_records(DenseView(program), DenseView(result), {}, request.tol),
        guaranteed={"relative_frobenius_error_of_every_weight": request.tol},
        context={
            "seed": request.seed,
            "torch": torch.__version__,
            "target": request.target,
            "runtimes": on_cpu(),
            "no_output_bound": "no inputs were given: nothing says where the network is used",
            **({"remarks": [f"{places}: what that rounding does to its answers was not measured"]} if places else {}),
        },
    ).brief()
    return result, certificate


def by_output(original: Original, request: CompressionRequest) -> tuple[Program, Certificate]:
    """The output's relative L2 error on held-out inputs within the tolerance, dense where nothing else can."""
    program, aim, tol = original.program, original.aim, request.tol
    request.advance("calibrate", 0.0)
    if not all(bool(torch.isfinite(r).all()) for r in (original.search_reference, original.reference)):
        what = f"output, or one of {', '.join(aim.names)}," if aim.names else "output"
        raise InputError(f"The network's {what} is NaN or infinite on some calibration inputs. Expected finite ones.")
    moments = aim.moments(original.split.calibration, request.seed)
    plain = {k: HMatrix.from_dense(to_float64(program.constants[k])) for k in program.weights}
    dense = stored(program.with_constants(plain))
    floor = original.served_errors(dense, backends=("torch",))["torch"]
    if (original.capture_difference or 0.0) > tol:
        raise ToleranceError(
            f"tol = {tol:.3g} is below what the network's own rounding allows: {original.rounding}. Ask for a larger "
            "tol, or give the network in a wider type."
        )
    if floor.largest > tol:
        raise ToleranceError(
            f"tol = {tol:.3g} is below what float32 can hold for this network: the dense float32 network already "
            f"differs from float64 by {floor.largest:.3g}{aim.where(floor)}. Ask for a larger tol."
        )
    count, held_out = original.samples[0].shape[0], original.split.held_out[0].shape[0]
    remarks, chosen = [], None
    if held_out >= FEWEST_HELD_OUT and count >= FEWEST_SAMPLES:
        chosen = verified(original, moments, request, program_nbytes(dense))
    else:
        remarks = [f"{count} distinct rows are too few to verify anything: the network stays dense"]
    request.advance("certify", 0.96)
    best, served = chosen or (dense, {k: e for k, e in original.served_errors(dense).items() if e.largest <= tol})
    return best, output_certificate(original, best, served, moments, request, remarks)
