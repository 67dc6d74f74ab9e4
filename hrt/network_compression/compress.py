"""`hrt.network_compression.compress`: a network in, the smallest network found that keeps the promised error out."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hrt.calibration.objective import Aim
from hrt.calibration.samples import Box, Split, as_boxes, as_samples, distinct
from hrt.capture.network import program_of_network
from hrt.capture.torch_export import check_weights
from hrt.certificate.certificate import Certificate
from hrt.certificate.layer_records import layer_records
from hrt.errors import InputError, ToleranceError
from hrt.hmatrix.hmatrix import HMatrix
from hrt.matrix_compression.block_choices import LEAF_OVERHEAD
from hrt.matrix_compression.checks import check_tol, check_whole, storages_of
from hrt.matrix_compression.compress_matrix import compress_alone, compress_for
from hrt.model.model import CompressedModel
from hrt.model.trainable import TrainableNetwork, densified, partitions
from hrt.network_compression.allocator import Allocator
from hrt.network_compression.verify import Held, output_certificate, served_errors
from hrt.program.dense_view import DenseView, stored
from hrt.program.program import Program, program_nbytes
from hrt.support.parallel import executor_map
from hrt.support.progress import Advance, part, track

FEWEST_HELD_OUT = 8  # rows; fewer say next to nothing about others, so that the network stays dense
PANELS_FROM = 1 << 20  # entries; from here on a matrix is spread over an executor by panels, below as a whole
VERIFICATIONS = 4  # tries to pass on the held-out rows before the network stays dense


def compress(
    net: Any,
    *,
    inputs: Any = None,
    tol: float = 1e-3,
    target: str = "cpu",
    derivatives: Sequence[str] | None = None,
    storage: str = "auto",
    seed: int = 0,
    progress: bool = True,
    executor: Any = None,
) -> CompressedModel:
    """Compress every weight matrix of `net` under one error bound.

    net: nn.Module, torch.export.ExportedProgram or the path of an .onnx file; it is not changed. What
        `hrt.to_trainable` made, and every HLinear in a module, keeps its partition: blocks are truncated and stored as
        the tolerance allows.
    inputs: tensor or array (rows, features), a dataset, or hrt.Box(low, high); a tuple for several inputs. With them
        the relative L2 error of the network's *output* on held-out rows is at most `tol` (its 99 % upper confidence
        limit is). Without them every weight satisfies ||W - H||_F <= tol ||W||_F.
    target: "cpu" or "cuda" price a leaf's time beside its bytes; "bytes" counts bytes only. For "cpu" one larger
        low-rank leaf stands for several where predicted time falls by more than bytes rise. For "cuda" the fastest
        arithmetic that keeps the bound is worked out too (see `hrt.schedule.precision`) and kept in the certificate.
    derivatives: by input coordinates, such as ["d0", "d1", "d0d0"] (see `hrt.derivatives.differentiate`): the relative L2 error of
        each, of all outputs together, is held to `tol` as the value's is. They need `inputs`. What is stored is the
        network alone, which `predict(x, derivatives=...)` differentiates. DerivativeError where an op has no rule.
    storage: "auto" (per leaf, under the bound), "float32", "float16", "bfloat16", "int8".
    seed: same seed, same bytes.  progress: a bar on stderr.
    executor: a concurrent.futures.Executor (processes, or a cluster's) over which layers, and panels of large matrices,
        are spread; the bytes are the same as without. BackendError where it fails half-way; nothing is written then.

    A layer that would not get smaller stays dense, and the report says so. Raises CaptureError, InputError or
    ToleranceError; see their messages.
    """
    tol = check_tol(tol)
    storages = storages_of(storage)
    seed = check_whole(seed, "seed", 0)
    if target not in LEAF_OVERHEAD:
        raise InputError(f"Found target {target!r}. Expected one of {', '.join(LEAF_OVERHEAD)}.")
    if derivatives is not None and inputs is None:
        raise InputError(
            f"Found derivatives={derivatives!r} and no inputs. Expected inputs too: without them only the weights are "
            "held to tol, and from that nothing follows for a derivative. Pass inputs=hrt.Box(low, high) or rows."
        )
    if executor is not None and (isinstance(executor, type) or not callable(getattr(executor, "submit", None))):
        raise InputError(f"Found executor {executor!r}. Expected a concurrent.futures.Executor or None.")
    with track("compress", progress) as advance:
        samples = None if inputs is None else as_samples(inputs, seed)
        advance("capture", 0.0)
        kept: dict[str, HMatrix] = {}
        if isinstance(net, TrainableNetwork):
            check_weights(net)
            program = net.to_program()
            kept, program = partitions(program.constants), program.with_constants(DenseView(program).constants)
        else:
            if isinstance(net, nn.Module):
                net, kept = densified(net)
            program = program_of_network(net, samples)
            kept = {name: h for name, h in kept.items() if name in program.weights}
        if samples is None:
            return by_layers(program, tol, storages, target, seed, part(advance, 0.02, 1.0), executor, kept)
        boxes, rest = as_boxes(inputs), part(advance, 0.02, 1.0)
        names = () if derivatives is None else derivatives
        return by_output(program, samples, tol, storages, target, seed, rest, boxes, executor, kept, names)


def by_layers(
    program: Program,
    tol: float,
    storages: tuple[str, ...],
    target: str,
    seed: int,
    advance: Advance,
    executor: Executor | None = None,
    kept: Mapping[str, HMatrix] | None = None,
) -> CompressedModel:
    """Every weight within `tol` in relative Frobenius norm, by construction."""
    storage = storages[0] if len(storages) == 1 else "auto"
    options = {"tol": tol, "storage": storage, "seed": seed, "target": target}
    sizes = {name: _tensor(program, name).numel() for name in program.weights}
    changed = {k: compress_alone(program.constants[k], **options, partition=h) for k, h in (kept or {}).items()}
    small = [name for name, size in sizes.items() if size < PANELS_FROM and name not in changed]
    behind, total = sum(sizes[name] for name in changed), max(1, sum(sizes.values()))
    work, matrices = partial(compress_alone, **options), (program.constants[k] for k in small)
    for name, h in zip(small, executor_map(work, matrices, executor), strict=True):
        behind += sizes[name]
        advance(f"compressed {name}", behind / total)
        changed[name] = h
    for name in (k for k in sizes if k not in changed):  # a large matrix is spread by its panels of rows
        here = part(advance, behind / total, (behind + sizes[name]) / total)
        changed[name] = compress_for(program.constants[name], **options, advance=here, executor=executor)
        behind += sizes[name]
    result = stored(program.with_constants(changed))
    certificate = Certificate(
        tol=tol,
        kind="layers",
        layers=layer_records(DenseView(program), DenseView(result), {}, tol),
        guaranteed={"relative_frobenius_error_of_every_weight": tol},
        context={
            "seed": seed,
            "torch": torch.__version__,
            "target": target,
            "no_output_bound": "no inputs were given: nothing says where the network is used",
        },
    )
    return CompressedModel(result, certificate, target, program_nbytes(stored(program)))


def by_output(
    program: Program,
    samples: tuple[Tensor, ...],
    tol: float,
    storages: tuple[str, ...],
    target: str,
    seed: int,
    advance: Advance,
    boxes: tuple[Box, ...] | None = None,
    executor: Executor | None = None,
    kept: Mapping[str, HMatrix] | None = None,
    derivatives: Sequence[str] = (),
) -> CompressedModel:
    """The output's relative L2 error on held-out inputs at most `tol`, dense where nothing else can.

    boxes: where the samples come from, for a bound over all of it; None if they are the user's own.
    kept: partitions of weights that stay (see `hrt.matrix_compression.fixed_planner`).  derivatives: names, each held to `tol` like the output.
    """
    program.check_inputs(samples)
    aim = Aim.of(program, derivatives)
    given, samples = samples, distinct(samples)
    split = Split.make(samples, seed)
    advance("calibrate", 0.0)
    references = [aim.outputs(x) for x in (split.search, split.held_out)]
    if not all(bool(torch.isfinite(r).all()) for r in references):
        what = f"output, or one of {', '.join(aim.names)}," if aim.names else "output"
        raise InputError(
            f"The network's {what} is NaN or infinite on some calibration inputs. Expected finite outputs."
        )
    moments = aim.moments(split.calibration, seed)
    dense = stored(program.with_constants({k: HMatrix.from_dense(_tensor(program, k)) for k in program.weights}))
    served = served_errors(dense, split.held_out, references[1], aim)
    floor = served["torch"]
    if floor.largest > tol:
        raise ToleranceError(
            f"tol = {tol:.3g} is below what float32 can hold for this network: the dense float32 network already "
            f"differs from float64 by {floor.largest:.3g}{aim.where(floor)}. Ask for a larger tol."
        )
    best = dense
    served = {name: e for name, e in served.items() if e.largest <= tol}
    goal = tol
    verifiable = split.held_out[0].shape[0] >= FEWEST_HELD_OUT and samples[0].shape[0] >= 4
    setting = None
    for _ in range(VERIFICATIONS if verifiable else 0):
        allocator = Allocator(
            program,
            moments,
            split.search,
            references[0],
            tol=goal,
            storages=storages,
            target=target,
            seed=seed,
            advance=part(advance, 0.05, 0.95),
            executor=executor,
            partitions=kept,
            aim=aim,
            setting=setting,  # a little tighter than the last: what was best then is tried first
        )
        found, setting = allocator.search(), allocator.setting
        if found is None or found.nbytes >= program_nbytes(dense):
            break
        advance("verify", 0.95)
        # The search chose among many candidates on its rows; these rows it never saw, and float32 does the sums.
        verified = served_errors(found.program, split.held_out, references[1], aim)
        if verified["torch"].limit <= tol:
            best, served = found.program, {name: e for name, e in verified.items() if e.limit <= tol}
            break
        goal *= min(0.95, 0.98 * tol / verified["torch"].limit)
    advance("certify", 0.96)
    few = f"{samples[0].shape[0]} distinct rows are too few to verify anything: the network stays dense"
    certificate = output_certificate(
        program,
        best,
        Held(given, samples, split, references[1]),
        served,
        moments,
        tol=tol,
        target=target,
        seed=seed,
        boxes=boxes,
        remarks=() if verifiable else (few,),
        aim=aim,
    )
    return CompressedModel(best, certificate, target, program_nbytes(stored(program)))


def _tensor(program: Program, name: str) -> Tensor:
    value = program.constants[name]
    return value if isinstance(value, Tensor) else value.to_dense()
