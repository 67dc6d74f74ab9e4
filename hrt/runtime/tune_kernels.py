"""`hrt tune`: time the kernels' configurations for one network on this machine's GPU, and remember the fastest."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from hrt.errors import BackendError, InputError
from hrt.kernels.launch import Config
from hrt.kernels.tuning import Key, candidates, fastest, remember, user_cache
from hrt.runtime.capturing import capture
from hrt.runtime.cuda_program import CudaProgram
from hrt.runtime.cuda_session import CudaSession
from hrt.runtime.session import Session
from hrt.support.progress import Advance, silent

BUCKETS = (1, 4, 16, 64, 256, 1024, 4096)
Timer = Callable[[CudaProgram, int, str, Config], float]


def time_on_device(program: CudaProgram, bucket: int, kernel: str, config: Config) -> float:
    """Median seconds of the whole network in one bucket, by events on the device: of its graph, as requests run it,
    which is launched while the device still empties its cache.
    """
    from triton.testing import do_bench

    workspace = program.new_workspace(bucket)
    workspace.normal_()
    with program.guard():
        graph = capture(partial(program.execute, workspace, bucket, kernel, config))
        milliseconds: Any = do_bench(graph.replay, warmup=10, rep=40, return_mode="median")
    return float(milliseconds) * 1e-3


def tune(
    session: Session, buckets: Sequence[int] = BUCKETS, advance: Advance = silent, timer: Timer | None = None
) -> dict[Key, tuple[Config, float]]:
    """The fastest configuration of every bucket and kernel with its seconds, also written to the user's cache.

    timer: seconds of (program, bucket, kernel, configuration), measured by default. Raises BackendError where no GPU
    can run the network, InputError for buckets that are not powers of two.
    """
    wrong = [b for b in buckets if not isinstance(b, int) or b < 1 or b & (b - 1)]
    if wrong:
        raise InputError(f"Found the batch buckets {wrong}. Expected powers of two: 1, 2, 4, ...")
    if not isinstance(session, CudaSession):
        raise BackendError("Only the cuda backend has anything to tune. Load the network with backend='cuda'.")
    program = session.program
    if timer is None and not program.graphs:
        raise BackendError("Kernels are interpreted here: their times say nothing. Unset TRITON_INTERPRET.")
    fitting = [bucket for bucket in buckets if bucket <= session.largest]
    work = [(bucket, kernel) for bucket in fitting for kernel in program.worth_timing(bucket)]
    best: dict[Key, tuple[Config, float]] = {}
    for done, (bucket, kernel) in enumerate(work):
        advance(f"bucket {bucket}, {kernel}", done / len(work))
        key = program.key(bucket, kernel)
        try:
            best[key] = fastest(candidates(key), partial(timer or time_on_device, program, bucket, kernel))
        except RuntimeError as error:
            raise BackendError(f"Batch {bucket}: {error}") from error
        try:
            remember({key: best[key][0]})  # bucket by bucket: nothing is lost when the user stops it
        except OSError as error:
            raise BackendError(
                f"{user_cache()} cannot be written: {error.strerror}. Set HRT_CACHE to a folder."
            ) from error
        if program.graphs:
            torch.cuda.empty_cache()
    advance("done", 1.0)
    return best
