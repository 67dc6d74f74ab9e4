"""`python -m hrt.perf.bench.native_limits net.hrt`: how near generated C comes to what this machine can do.

    python -m hrt.perf.bench.native_limits net.hrt other.hrt

One row cannot take less than its weights take to be read: their bytes, as stored, over the bandwidth at which a core
reads so many bytes again and again. Many rows cannot take less than their multiply-adds at the core's peak. Both are
measured here, by a compiled loop over vectors of the generated code's own type. Everything is the thread's own time on
one thread, in the shortest of many bursts; beside it stands the same network with dense weights in ONNX Runtime.
"""

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

import hrt
from hrt.export.c.library_cache import SOURCE, library
from hrt.export.c.source import native
from hrt.export.c.toolchain import LONGEST, compiler
from hrt.hmatrix.hmatrix import HMatrix
from hrt.perf.bench.native_constants import asked, shortest_us
from hrt.program.dense_view import written_out
from hrt.program.parallel_linears import joined
from hrt.program.program import Program
from hrt.runtime.backends import open_session

BATCHES = (1, 16, 256)
REPEATS = 1 << 12  # of eight independent chains of four multiply-adds
READ = 1 << 23  # bytes of a call at least
PROBE = r"""
#define HRT_EIGHT(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7)
float hrt_sink;
size_t hrt_multiply_adds(size_t repeats) { /* and how many those were */
    const hrt_v a = hrt_splat(HRT_R(0.999)), b = hrt_splat(HRT_R(0.001));
#define HRT_ONE(i) hrt_v v##i = hrt_splat(i);
    HRT_EIGHT(HRT_ONE)
#undef HRT_ONE
    for (size_t k = 0; k < repeats; k++) {
#define HRT_ONE(i) v##i = hrt_rounded(hrt_fma(v##i, a, b));
        HRT_EIGHT(HRT_ONE) HRT_EIGHT(HRT_ONE) HRT_EIGHT(HRT_ONE) HRT_EIGHT(HRT_ONE)
#undef HRT_ONE
    }
    hrt_sink = (float)hrt_sum(v0 + v1 + v2 + v3 + v4 + v5 + v6 + v7);
    return repeats * 4 * 8 * HRT_LANES;
}
void hrt_read(const real *p, size_t numbers, size_t repeats) { /* numbers: a multiple of 8 vectors */
#define HRT_ONE(i) hrt_v v##i = hrt_splat(0);
    HRT_EIGHT(HRT_ONE)
#undef HRT_ONE
    for (; repeats; repeats--) for (size_t k = 0; k < numbers; k += 8 * HRT_LANES) {
#define HRT_ONE(i) v##i = hrt_rounded(v##i + hrt_load(p + k + i * HRT_LANES));
        HRT_EIGHT(HRT_ONE)
#undef HRT_ONE
    }
    hrt_sink = (float)hrt_sum(v0 + v1 + v2 + v3 + v4 + v5 + v6 + v7);
}
"""


@dataclass(frozen=True)
class Machine:
    """multiply_adds: in float32, in a microsecond.  code: that reads memory."""

    multiply_adds: float
    code: ctypes.CDLL

    def bytes_per_us(self, nbytes: int) -> float:
        """The bandwidth at which so many bytes are read again and again."""
        numbers = np.zeros(max(1, nbytes // 512) * 128, np.float32)
        repeats = max(1, READ // numbers.nbytes)
        given = ctypes.c_void_p(numbers.ctypes.data), ctypes.c_size_t(numbers.size), ctypes.c_size_t(repeats)
        return repeats * numbers.nbytes / shortest_us(lambda: self.code.hrt_read(*given))


def machine() -> Machine:
    """This one. Raises BackendError where nothing can be compiled."""
    text = "\n".join([*(native(f"{file}.h") for file in ("vectors", "coefficients", "activations")), PROBE])
    code = library({SOURCE: text.encode()}, compiler(), LONGEST)
    code.hrt_multiply_adds.restype = ctypes.c_size_t
    count = code.hrt_multiply_adds(ctypes.c_size_t(REPEATS))
    return Machine(count / shortest_us(lambda: code.hrt_multiply_adds(ctypes.c_size_t(REPEATS))), code)


def multiply_adds(program: Program) -> int:
    """Of the linear layers, for a row."""
    total = 0
    for node in program.linear_nodes:
        weight = program.constants[node.inputs[1]]
        stored = (
            sum(e.rows * e.cols if e.is_dense else e.rank * (e.rows + e.cols) for e in weight.leaves)
            if isinstance(weight, HMatrix)
            else weight.numel()
        )
        total += stored * prod(node.shape) // max(1, node.shape[-1])
    return total


def main(paths: Sequence[str]) -> int:
    """Measure and print."""
    torch.set_num_threads(1)
    here = machine()
    print(f"peak: {here.multiply_adds / 1e3:.1f} thousand million multiply-adds a second")
    for path in paths:
        program = joined(hrt.load(path, backend="torch").program)
        session, other = (
            open_session(program, "native"),
            open_session(written_out(program, program.weights), "onnxruntime"),
        )
        count, nbytes = multiply_adds(program), session.resident_bytes
        read = nbytes / here.bytes_per_us(nbytes)
        print(f"{path}: {count:,} multiply-adds a row, {nbytes:,} bytes, read at {nbytes / read / 1e3:.1f} GB/s")
        for rows in BATCHES:
            x = asked(program, rows)
            ours, theirs = (shortest_us(lambda s=s, x=x: s.run_as_given(x)) for s in (session, other))
            work = rows * count / here.multiply_adds
            print(
                f"  {rows} rows: {ours:.2f} us, dense in ONNX Runtime {theirs:.2f} ({theirs / ours:.1f} x). "
                f"Reading alone {read:.2f} us ({read / ours:.0%}), multiply-adds alone {work:.2f} ({work / ours:.0%})",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
