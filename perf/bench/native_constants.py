"""`python -m hrt.perf.bench.native_constants`: the constants of `hrt.runtime.native_costs`, measured on this machine.

    python -m hrt.perf.bench.native_constants
    python -m hrt.perf.bench.native_constants net.hrt other.hrt

Networks of many widths and depths, and those of any files, run as generated C on one thread and in ONNX Runtime. The
thread's own time counts, which a busy machine disturbs least, in the shortest of many bursts. The constants are the
non-negative least squares solution for relative errors. Printed: the constants, and how far the predictions are off.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn

import hrt
from hrt.capture.torch_export import capture
from hrt.errors import BackendError
from hrt.hmatrix.hmatrix import HMatrix
from hrt.matrix_compression.compress_matrix import compress_matrix
from hrt.perf.networks.operators import log_kernel
from hrt.program.parallel_linears import joined
from hrt.program.program import Node, Program, Value
from hrt.runtime.backends import open_session
from hrt.runtime.native_costs import FEW, LARGE, SMALL, block_features, onnx_features, row_features

BATCHES = (1, 16, 64, 256, 1024)
BURST_S, BURSTS = 2e-3, 25


def networks(paths: Sequence[str]) -> Iterator[tuple[str, Program]]:
    """Plain networks, layers of a log kernel, and the files' networks."""
    for width in (16, 64, 256):
        for depth, act in ((1, nn.Tanh), (4, nn.Tanh), (3, nn.ReLU), (3, nn.SiLU)):
            layers = [m for _ in range(depth) for m in (nn.Linear(width, width), act())]
            net = nn.Sequential(nn.Linear(3, width), *layers, nn.Linear(width, 2))
            yield f"{depth} x {width} {act.__name__}", capture(net, [torch.rand(4, 3)])
    for size in (512, 2048):
        yield f"log kernel {size}", _layer(compress_matrix(torch.from_numpy(log_kernel(size)), tol=1e-3))
    for path in paths:
        yield Path(path).stem, hrt.load(path, backend="torch").program


def _layer(weight: HMatrix) -> Program:
    m, n = weight.shape
    return Program((Value("x", (n,)),), (Node("y", "linear", ("x", "w"), (m,), {}),), ("y",), {"w": weight})


def shortest_us(call: Callable[[], Any]) -> float:
    """Microseconds of a call on this thread: the mean of the shortest of many bursts."""
    call()
    start = time.thread_time()
    call()
    count = max(1, int(BURST_S / max(1e-7, time.thread_time() - start)))
    times = []
    for _ in range(BURSTS):
        start = time.thread_time()
        for _ in range(count):
            call()
        times.append((time.thread_time() - start) / count)
    return 1e6 * min(times)


def asked(program: Program, rows: int) -> Any:
    """So many rows of random inputs, as `predict` takes them."""
    generator = np.random.default_rng(0)
    inputs = tuple(generator.random((rows, *v.shape), np.float32) for v in program.inputs)
    return inputs if len(inputs) > 1 else next(iter(inputs))


def measured(program: Program, backend: str) -> dict[int, float]:
    """Microseconds by rows."""
    session, times = open_session(program, backend), {}
    for rows in BATCHES:
        x = asked(program, rows)
        session.run_as_given(x)  # memory is bound
        times[rows] = shortest_us(lambda x=x: session.run_as_given(x))
    return times


def fitted(rows: Sequence[tuple[dict[str, float], float]]) -> dict[str, float]:
    """Constants, by feature, that predict the times best in relative terms."""
    names = list(rows[0][0])
    a = np.array([[features[n] / us for n in names] for features, us in rows])
    solution, _ = nnls(a, np.ones(len(rows)))
    return dict(zip(names, solution.tolist(), strict=True))


def main(paths: Sequence[str]) -> int:
    """Measure, fit and print."""
    torch.set_num_threads(1)
    one, block, onnx, table = [], [], [], []
    for name, program in networks(paths):
        program = joined(program)
        try:
            native, runtime = measured(program, "native"), measured(program, "onnxruntime")
        except BackendError as error:
            print(f"{name}: {error}")
            continue
        for rows in BATCHES:
            if rows < FEW:
                one.append((row_features(program), native[rows] / rows))
            else:
                size = SMALL if rows <= SMALL else LARGE
                block.append((block_features(program, size), native[rows] / (rows / size)))
            onnx.append((onnx_features(program, rows), runtime[rows]))
        table.append((name, native, runtime))
        print(name, *(f"{rows}: {native[rows]:.3g} {runtime[rows]:.3g};" for rows in BATCHES), flush=True)
    for title, data in (("ROW", one), ("BLOCK", block), ("ONNX", onnx)):
        constants = fitted(data)
        off = [sum(constants[k] * v for k, v in features.items()) / us for features, us in data]
        print(f"{title} = {{{', '.join(f'{k!r}: {v:.3g}' for k, v in constants.items())}}}")
        print(f"    predicted over measured: {np.quantile(off, [0.0, 0.1, 0.5, 0.9, 1.0]).round(2).tolist()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
