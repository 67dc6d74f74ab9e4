"""Correctness on a GPU, run by `make gpu` (`HRT_ON_CARD=1 pytest tests/card.py`): every storage type, regime and
precision, batches around every bucket edge, 200 random schedules, streams, threads, and what must not happen.

Errors are compared with what the arithmetic may do at worst (`arithmetic_bound`), never with what was seen. Without
HRT_ON_CARD the same file runs on Triton's interpreter, which shows its own mistakes but not a card's.
"""

import os
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch

import hrt
from hrt.capture.torch_export import capture
from hrt.derivatives.differentiate import differentiate
from hrt.hmatrix.hmatrix import HMatrix
from hrt.kernels.precisions import PRECISIONS
from hrt.kernels.tuning import bucket_of
from hrt.runtime.cuda_graphs import Bucket
from hrt.runtime.cuda_program import CudaProgram
from hrt.runtime.cuda_session import CudaSession
from hrt.schedule.precision import EXACT_INPUTS

from helpers import absolute, noise, random_hmatrix
from models import linear_program, mixed_model

HAS_CARD = "HRT_ON_CARD" in os.environ  # "stub": one whose kernels are interpreted (stub_card.py)
ON_CARD = os.environ.get("HRT_ON_CARD") == "1"
DEVICE = torch.device("cuda" if HAS_CARD else "cpu")
SCHEDULES = 200 if ON_CARD else 20
EDGES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 257, 1023, 1025, 4097)
STORAGES = {
    "float32": (torch.float32,),
    "float16": (torch.float16,),
    "bfloat16": (torch.bfloat16,),
    "int8": (torch.int8,),
    "all": (torch.float32, torch.float16, torch.bfloat16, torch.int8),
}
# What one operand of a product may be off by, relative: tensor cores cut tf32, rounding to 16 bits is to nearest.
# tf32x3 drops products of two remainders, 2^-20, and what is left of a remainder of 11 bits, 2^-22.
OPERAND = {"ieee": 0.0, "tf32x3": 2.0**-19, "tf32": 2.0**-10, "fp16": 2.0**-11, "bf16": 2.0**-8}
STORED = {"fp16": 2.0**-11, "bf16": 2.0**-8}
SMALLEST = {"fp16": 2.0**-25}  # absolute, where numbers are too small for a full mantissa


def arithmetic_bound(x: torch.Tensor, h: HMatrix, bias: torch.Tensor, precision: str) -> torch.Tensor:
    """Entrywise bound (batch, m) on the error of x h^T + bias: two products after each other, each with two rounded
    operands, the stored T and the stored result, and float32 sums.
    """
    exact = precision == "tf32" and h.shape[1] <= EXACT_INPUTS
    operand, stored = (0.0 if exact else OPERAND[precision]), STORED.get(precision, 0.0)
    size = x.abs().double() @ absolute(h).T + bias.abs()
    terms = h.shape[1] + max((e.rank for e in h.leaves), default=0) + len(h.leaves) + 8
    relative = 4 * operand + 2 * stored + 2 * terms * 2.0**-24
    tiny = SMALLEST.get(precision, 0.0) * (2 * terms) * (1 + x.abs().double().sum(1, keepdim=True))
    spread = 1 + absolute(h).abs().sum(1)[None, :]
    return 1.5 * relative * size + tiny * spread + torch.finfo(torch.float32).tiny


def check(h: HMatrix, batch: int, precision: str, seed: int = 0, densify: bool = False) -> None:
    g = torch.Generator().manual_seed(seed)
    bias = torch.randn(h.shape[0], generator=g, dtype=torch.float64).float().double()
    x = torch.randn(batch, h.shape[1], generator=g)
    session = CudaSession(linear_program(h, bias), DEVICE, precision, warm=False, densify=densify)
    for bucket_fill in range(2):  # the second run finds what the first one left in the workspace
        (y,) = session.run([x.to(DEVICE)])
        expected = x.double() @ h.to_dense().T + bias
        error = (y.cpu().double() - expected).abs()
        allowed = arithmetic_bound(x, h, bias, precision)
        assert y.shape == expected.shape and y.device.type == DEVICE.type
        assert bool((error <= allowed).all()), (precision, batch, bucket_fill, float((error / allowed).max()))
    again = session.run([x.to(DEVICE)])[0]
    assert torch.equal(y, again), "the same bits every time"


def matrix(seed: int, m: int, n: int, storages, **options) -> HMatrix:
    """A random H-matrix whose products stay within float16's range."""
    h = random_hmatrix(seed, m, n, storages=storages, **options)
    for e in h.leaves:
        if e.scale is not None:
            e.scale.mul_(0.02)
    return h


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("storage", STORAGES)
def test_every_storage_and_regime(storage, precision):
    sizes = (200, 150) if ON_CARD else (60, 50)
    for k, batch in enumerate((1, 5, 16, 40, 64, 200) if ON_CARD else (1, 16, 64)):
        check(matrix(k, *sizes, STORAGES[storage]), batch, precision, k)


@pytest.mark.parametrize("precision", PRECISIONS if ON_CARD else ["tf32x3"])
@pytest.mark.parametrize("batch", EDGES if ON_CARD else EDGES[:9])
def test_batches_around_bucket_edges(batch, precision):
    check(matrix(3, 130, 90, STORAGES["all"]), batch, precision)


@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_random_schedules(seed):
    rng = np.random.default_rng(seed)
    m, n = (int(k) for k in rng.integers(1, 700 if ON_CARD else 80, 2))
    storage = list(STORAGES)[int(rng.integers(len(STORAGES)))]
    precision = PRECISIONS[int(rng.integers(len(PRECISIONS)))]
    batch = int(rng.choice(EDGES if ON_CARD else EDGES[:12]))
    check(matrix(seed, m, n, STORAGES[storage], depth=int(rng.integers(0, 5))), batch, precision, seed, seed % 4 == 0)


def network(seed: int = 0, sizes=(3, 128, 128, 128, 128, 1)):
    torch.manual_seed(seed)
    layers = [layer for a, b in pairwise(sizes) for layer in (torch.nn.Linear(a, b), torch.nn.Tanh())]
    return torch.nn.Sequential(*layers[:-1])


@pytest.fixture(scope="module")
def model():
    if packed := os.environ.get("HRT_CARD_MODEL"):  # compressed where there was time
        return hrt.load(packed, backend="torch")
    return hrt.compress(network(), inputs=hrt.Box([-1.0] * 3, [1.0] * 3), tol=1e-2, target="cuda", progress=False)


def serve(model, **options):
    if HAS_CARD:
        return hrt.CompressedModel(model.program, model.certificate, "cuda", 1, backend="cuda", **options)
    served = hrt.CompressedModel(model.program, model.certificate, "cuda", 1, **options)
    vars(served)["session"] = CudaSession(model.program, None, model.precision)  # what was not opened yet
    return served


@pytest.mark.parametrize("batch", (0, 1, 2, 100, 5000) if ON_CARD else (0, 1, 20))
def test_a_compressed_network_keeps_its_bound(model, batch):
    """In one launch and launch by launch: within the certificate's tolerance of the network itself."""
    served = serve(model)
    x = torch.rand(batch, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    y = served.predict(x.to(DEVICE)).cpu()
    with torch.no_grad():
        expected = network()(x)
    assert y.shape == expected.shape
    assert float((y - expected).norm()) <= (1e-2 if batch >= 100 else 3e-2) * float(expected.norm())
    by_numpy = served.predict(x.numpy())
    assert np.array_equal(by_numpy, y.numpy())


def test_both_kernels_agree(model):
    program = serve(model).session.program
    assert program.kernels == ("step", "network")
    x = torch.rand(64, 3)
    answers = []
    for kernel in program.kernels:
        workspace = program.new_workspace(64)
        start = program.schedule.inputs[0].start
        workspace[:, start : start + 3] = x.to(DEVICE)
        program.execute(workspace, 64, kernel)
        out = program.schedule.outputs[0].start
        answers.append(workspace[:, out].float().cpu())
    size = float(answers[0].abs().max())
    assert float((answers[0] - answers[1]).abs().max()) <= (2.0**-6 if model.precision == "bf16" else 2.0**-10) * size


@pytest.mark.parametrize("kernel", ["network", "step"])
@pytest.mark.parametrize("batch", (1, 2, 100, 5000) if ON_CARD else (1, 20))
def test_derivatives_that_the_kernels_carry(batch, kernel):
    """In float32, within 16 times what roundings of half an ulp do at random: functions err by a few ulps."""
    names = ["d0", "d1", "d0d0", "d0d2"]
    program = capture(network(), [torch.zeros(2, 3)])
    derived = differentiate(program, names).program
    cuda = CudaProgram(program, DEVICE, "ieee", derivatives=names)
    x = torch.rand(batch, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    bucket = Bucket(cuda, bucket_of(batch), kernel=kernel, capture=False)
    for y, e, limit in zip(bucket.run([x.to(DEVICE)], batch), derived.run([x]), noise(derived, [x]), strict=True):
        assert float((y.cpu() - e).norm()) <= 16 * limit


def test_nan_stays_in_its_row(model):
    served = serve(model)
    x = torch.rand(33, 3)
    clean = served.predict(x.to(DEVICE))
    x[5, 1] = float("nan")
    spoilt = served.predict(x.to(DEVICE))
    others = torch.arange(33) != 5
    assert bool(spoilt[5].isnan().all()) and torch.equal(spoilt[others], clean[others])
    assert torch.equal(served.predict(torch.rand(33, 3).to(DEVICE)).isfinite().all().cpu(), torch.tensor(True))


def test_rows_of_an_input_that_is_not_contiguous(model):
    served = serve(model)
    wide = torch.rand(20, 7).to(DEVICE)
    assert torch.equal(served.predict(wide[:, 1::2]), served.predict(wide[:, 1::2].contiguous()))
    assert torch.equal(served.predict(wide[:, 2:5]), served.predict(wide[:, 2:5].clone()))


def test_several_inputs_and_outputs():
    model = mixed_model()
    served = serve(model)
    x = tuple(torch.randn(9, *v.shape, generator=torch.Generator().manual_seed(2)) for v in model.program.inputs)
    for a, b in zip(served.predict(tuple(v.to(DEVICE) for v in x)), model.predict(x), strict=True):
        assert float((a.cpu() - b).norm()) <= 1e-4 * float(b.norm())


def test_threads_and_streams(model):
    """Requests from several threads, each on a stream of its own, do not mix."""
    served = serve(model)
    inputs = [torch.rand(1 + k % 5, 3).to(DEVICE) for k in range(8)]
    expected = [served.predict(x).clone() for x in inputs]
    found: dict[int, list[torch.Tensor]] = {k: [] for k in range(8)}

    def ask(k: int) -> None:
        for _ in range(50 if ON_CARD else 2):
            if HAS_CARD:
                stream = torch.cuda.Stream()
                with torch.cuda.stream(stream):
                    y = served.predict(inputs[k])
                stream.synchronize()
            else:
                y = served.predict(inputs[k])
            found[k].append(y)

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(len(ys) >= 2 and all(torch.equal(y, expected[k]) for y in ys) for k, ys in found.items())


def test_batches_beyond_the_largest_bucket(model):
    session = CudaSession(model.program, DEVICE, model.precision, largest=64, warm=False)
    x = torch.rand(200, 3).to(DEVICE)
    parts = torch.cat([session.run([x[k : k + 64]])[0] for k in range(0, 200, 64)])
    assert torch.equal(session.run([x])[0], parts)


def test_inputs_on_the_cpu_and_on_the_card():
    """Either may come first; answers are where the first input is, with the same bits."""
    model = mixed_model()
    served = serve(model)
    g = torch.Generator().manual_seed(3)
    x = [torch.randn(9, *v.shape, generator=g) for v in model.program.inputs]
    expected = served.predict(tuple(x))
    for given in ((x[0].to(DEVICE), x[1]), (x[0], x[1].to(DEVICE))):
        answers = served.predict(given)
        assert all(y.device.type == given[0].device.type for y in answers)
        assert all(torch.equal(y.cpu(), e) for y, e in zip(answers, expected, strict=True))


def test_tangents_that_a_layer_overwrites_are_written_again():
    """A hidden layer as wide as the input takes its columns, in a graph too."""
    origin = capture(network(sizes=(3, 20, 3, 20, 2)), [torch.zeros(2, 3)])
    session = CudaSession(origin, DEVICE, "ieee", derivatives=["d0"], warm=False)
    assert session.program.reseeds
    derived = differentiate(origin, ["d0"]).program
    for seed in range(3):
        x = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))
        for y, e, limit in zip(session.run([x.to(DEVICE)]), derived.run([x]), noise(derived, [x]), strict=True):
            assert float((y.cpu() - e).norm()) <= 16 * limit


def test_the_callers_own_graph(model):
    """predict in a graph of the caller's: right at every replay, and a typed error where it cannot be there."""
    if not HAS_CARD:
        pytest.skip("there are no graphs")
    served = serve(model)
    x = torch.rand(3, 3).to(DEVICE)
    served.predict(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = served.predict(x)
    for seed in range(3):
        x.copy_(torch.rand(3, 3, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        assert torch.equal(y, served.predict(x))
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        with pytest.raises(hrt.InputError, match="input 0 on the CPU while a CUDA graph is captured"):
            served.predict(x.new_zeros(3, 3, device="cpu"))
        with pytest.raises(hrt.BackendError, match="predict once, then capture"):
            serve(model).predict(x)
    assert torch.equal(y, served.predict(x))


def test_strict_models_refuse_other_devices(model):
    if not HAS_CARD:
        pytest.skip("there is one device only")
    with pytest.raises(hrt.InputError, match="Input 0 is on cpu"):
        serve(model, strict=True).predict(torch.rand(2, 3))
    assert serve(model, strict=True).predict(np.random.rand(2, 3)).shape == (2, 1)


def test_memory_that_runs_out_is_said():
    if not ON_CARD:
        pytest.skip("needs a card's memory")
    session = CudaSession(linear_program(torch.randn(16384, 16384)), DEVICE, "ieee", warm=False)
    held = torch.empty(int(torch.cuda.mem_get_info()[0] * 0.98), dtype=torch.uint8, device=DEVICE)
    with pytest.raises(hrt.BackendError, match="not enough free memory"):
        session.run([torch.zeros(65536, 16384)])
    del held
