"""The GPU backend on Triton's interpreter: the same session, launches and tables, on the CPU and without graphs."""

import threading
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

import hrt
from hrt.capture.torch_export import capture
from hrt.kernels.precisions import PRECISIONS
from hrt.kernels.tuning import LARGEST_BUCKET
from hrt.perf.networks.operators import log_kernel
from hrt.program.program import Node, Program, Value
from hrt.runtime import BACKENDS, Backend, choose, open_session
from hrt.runtime import cuda_session as cuda
from hrt.runtime.cuda_program import out_of_memory
from hrt.runtime.cuda_session import room_for
from hrt.schedule.build_schedule import build_schedule
from hrt.schedule.choose_layout import choose_schedule
from hrt.schedule.launch_plan import Tiles, make_plan
from hrt.schedule.precision import emulate
from hrt.schedule.roofline import CHIPS
from hrt.schedule.run_reference import execute
from hrt.schedule.schedule import Apply, Wave
from hrt.support import devices

from helpers import MIXED, hierarchical, random_hmatrix
from models import linear_program, mixed_model
from zoo import SOME_OF_THE_ZOO, ZOO

# Layers as they are: written out, small ones would show nothing of hierarchical structure.
CudaSession = partial(cuda.CudaSession, densify=False)


class Atan(torch.nn.Module):
    """An activation that no kernel knows."""

    def forward(self, x):
        return torch.atan(x)


def network(activation=torch.nn.Tanh, sizes=(5, 40, 40, 3)):
    torch.manual_seed(0)
    layers = []
    for a, b in pairwise(sizes):
        layers += [torch.nn.Linear(a, b), activation()]
    return torch.nn.Sequential(*layers[:-1])


def compressed(net=None, seed=0, **options):
    net = net or network()
    return hierarchical(capture(net, [torch.zeros(2, 5)]), seed, storages=MIXED, **options)


def relative_error(program, session, x):
    found = session.run(x)
    expected = execute(build_schedule(program), x)
    assert [tuple(y.shape) for y in found] == [tuple(y.shape) for y in expected]
    assert all(y.dtype == torch.float32 and y.is_contiguous() for y in found)
    a, b = (torch.cat([y.double().reshape(-1) for y in ys]) for ys in (found, expected))
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def float32_allowance(program, x):
    """What float32 sums in another order may be off by: several times what torch's own float32 is off by."""
    single, exact = (execute(build_schedule(program), x, dtype) for dtype in (torch.float32, torch.float64))
    a, b = (torch.cat([y.double().reshape(-1) for y in ys]) for ys in (single, exact))
    return 8 * float((a - b).norm() / b.norm()) + 1e-6


@pytest.mark.parametrize(("precision", "batch"), [*((p, 5) for p in PRECISIONS), ("tf32x3", 1), ("bf16", 70)])
def test_every_precision_and_regime(precision, batch):
    program = compressed()
    session = CudaSession(program, precision=precision)
    x = torch.randn(batch, 5, generator=torch.Generator().manual_seed(batch))
    allowed = float32_allowance(program, [x])
    if precision in (
        "bf16",
        "fp16",
    ):  # (tf32 is not shown here); the interpreter truncates to bfloat16: twice the error
        (emulated,), _ = emulate(program, [x], precision)
        (exact,) = execute(build_schedule(program), [x])
        allowed += 3 * float((emulated.double() - exact).norm() / exact.norm())
        assert allowed < 0.2, "the allowance would say nothing"
    assert relative_error(program, session, [x]) <= allowed


@pytest.mark.parametrize("name", SOME_OF_THE_ZOO)
def test_every_network_of_the_zoo(name):
    """Several inputs and outputs, residuals, layer norms, tied weights: whatever the op table holds."""
    inputs = ZOO[name].inputs(5)
    program = capture(ZOO[name].build(torch.float64), inputs)
    session = CudaSession(program, precision="ieee")
    reference = open_session(program, "torch").run([x.float() for x in inputs])
    expected = program.run(inputs)
    for y, single, exact in zip(session.run([x.float() for x in inputs]), reference, expected, strict=True):
        # float32 in another order of sums: not much further from float64 than torch's own float32
        allowed = 8 * (single.double() - exact).norm() + 2e-6 * exact.norm()
        assert y.shape == exact.shape and bool((y.double() - exact).norm() <= allowed), name


def test_activations_that_no_kernel_knows_are_applied_in_place():
    program = compressed(network(Atan))
    session = CudaSession(program)
    assert any(isinstance(launch, Apply) for launch in session.program.plan.launches)
    assert relative_error(program, session, [torch.randn(20, 5)]) <= 2e-6


class Scaled(torch.nn.Module):
    """A network between normalised inputs and outputs in units."""

    def __init__(self, last=torch.nn.Identity):
        super().__init__()
        torch.manual_seed(3)
        self.net, self.last = network(), last()
        self.low, self.span = torch.nn.Buffer(torch.randn(5)), torch.nn.Buffer(torch.rand(5) + 1)
        self.mean, self.scale = torch.nn.Buffer(torch.randn(3)), torch.nn.Buffer(torch.rand(3) + 1)

    def forward(self, x):
        y = self.last(self.net((x - self.low) / self.span))
        return (0.5 - y) * self.scale / 3.0 + self.mean


@pytest.mark.parametrize("last", [torch.nn.Identity, torch.nn.Sigmoid, Atan])
def test_scaled_outputs_are_part_of_the_last_wave(last):
    program = hierarchical(capture(Scaled(last), [torch.zeros(2, 5)]), 1, storages=MIXED, ordered=False)
    session = CudaSession(program)
    after = session.program.plan.launches[-1]
    assert isinstance(after, Tiles) == (last is not Atan)
    assert (len(session.program.plan.rescaling) > 0) == (last is not Atan)
    for batch in (1, 20):
        x = [torch.randn(batch, 5)]
        assert relative_error(program, session, x) <= float32_allowance(program, x)
    if last is Atan:
        return
    dense = capture(Scaled(last), [torch.zeros(2, 5)])  # the whole network in one launch but for x
    assert relative_error(dense, CudaSession(dense), [torch.randn(3, 5)]) <= 2e-6


def test_a_scaled_output_that_is_read_again_keeps_its_launches():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(5, 7), torch.nn.Linear(7, 7)

        def forward(self, x):
            u = self.a(x)
            return u * 2.0, self.b(u)

    program = capture(Twice(), [torch.zeros(2, 5)])
    session = CudaSession(program)
    assert not session.program.plan.rescaling
    assert relative_error(program, session, [torch.randn(3, 5)]) <= 2e-6


def test_dense_leaves_do_not_wait_for_the_first_wave():
    """Tiles of the second wave that read nothing of T are launched with the first, and nothing else moves."""
    moved = 0
    for seed in range(6):
        h = random_hmatrix(seed, 100, 100, depth=4, ordered=False)
        program = linear_program(h, torch.randn(100, dtype=torch.float64))
        schedule = build_schedule(program, tile_rows=16, step_columns=16, unit=8)
        launches = [launch.numbers for launch in make_plan(schedule, "ieee").launches if isinstance(launch, Tiles)]
        waves = [s for s in schedule.stages if isinstance(s, Wave)]
        assert sorted(k for numbers in launches for k in numbers) == list(range(len(schedule.tables.tiles)))
        if len(waves) < 2:
            continue
        first, second = waves
        late = {k for k in launches[1]} if len(launches) > 1 else set()
        for k in range(second.first_tile, second.end_tile):
            own = schedule.tables.steps[schedule.tables.tiles[k, 2] : schedule.tables.tiles[k, 3]]
            t = set(first.output.columns.tolist())
            needs = any(t & set(range(c, c + n)) for c, n, *_ in own.tolist())
            assert (k in late) == needs
            moved += not needs
        session = CudaSession(program, precision="ieee")
        assert relative_error(program, session, [torch.randn(3, 100)]) <= 2e-6
    assert moved > 0


def test_batches_beyond_the_largest_bucket_are_computed_in_parts():
    program = compressed()
    x = torch.randn(22, 5)
    small = CudaSession(program, largest=16)
    assert torch.equal(small.run([x])[0][:16], small.run([x[:16]])[0])
    assert torch.allclose(small.run([x])[0], CudaSession(program).run([x])[0], rtol=1e-5, atol=1e-6)
    assert small.workspace_bytes == (8 + 16) * small.program.pitch * 4


def test_rows_of_an_earlier_request_leave_no_trace():
    """A bucket's workspace keeps old rows; NaN in one row of one request reaches nothing else."""
    session = CudaSession(compressed())
    x = torch.randn(4, 5)
    expected = session.run([x])[0]
    spoilt = x.clone()
    spoilt[1] = float("nan")
    found = session.run([spoilt])[0]
    assert found[1].isnan().all() and torch.equal(found[[0, 2, 3]], expected[[0, 2, 3]])
    assert torch.equal(session.run([x[:3]])[0], expected[:3])


def test_strides_and_types_of_inputs():
    session = CudaSession(compressed())
    x = torch.randn(6, 5)
    expected = session.run([x])[0]
    wide = torch.zeros(6, 11)
    wide[:, 1::2] = x
    assert torch.equal(session.run([wide[:, 1::2]])[0], expected)
    assert torch.equal(session.run([x.T.contiguous().T])[0], expected)
    assert torch.equal(session.run([x.double()])[0], expected)


def test_threads_share_a_session():
    session = CudaSession(compressed())
    inputs = [torch.randn(k % 2 + 1, 5) for k in range(4)]
    expected = [session.run([x])[0] for x in inputs]
    found = {k: [] for k in range(4)}

    def ask(k):
        found[k] += [session.run([inputs[k]])[0] for _ in range(2)]

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(len(ys) == 2 and all(torch.equal(y, expected[k]) for y in ys) for k, ys in found.items())


def test_small_networks_run_in_one_launch_and_give_the_same_numbers():
    program = compressed(ordered=False)
    session = CudaSession(program)
    assert session.program.plan.waves is not None and session.program.one_launch(1)
    x = torch.randn(3, 5)
    one, several = session.program.new_workspace(4), session.program.new_workspace(4)
    for workspace in (one, several):
        workspace[:3, :5] = x
    assert session.program.schedule.inputs[0].start == 0
    session.program.execute(one, 4, "network", session.program.config(4))
    session.program.execute(several, 4, "step", session.program.config(4))
    out = session.program.schedule.outputs[0]
    a, b = (w[:3, out.start : out.start + 3] for w in (one, several))
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)  # tiles are cut in one and whole in the other
    deep = compressed(network(sizes=(5, *[300] * 3, 3)), ordered=False, depth=4)
    assert not CudaSession(deep).program.one_launch(1), "one program would walk through hundreds of tiles"


def test_all_storage_types_are_resident_as_they_are():
    program = linear_program(random_hmatrix(1, 96, 96, storages=(torch.int8,), ordered=False))
    session = CudaSession(program)
    assert [w.dtype for w in session.program.plan.tables.weights] == [torch.int8]
    narrow = CudaSession(compressed(), precision="bf16")
    assert {w.dtype for w in narrow.program.plan.tables.weights} <= {torch.int8, torch.bfloat16}
    assert session.resident_bytes == session.program.plan.tables.nbytes


def test_the_tile_that_moves_least_is_taken():
    tall = linear_program(torch.randn(512, 64))
    flat = linear_program(torch.randn(20, 64))
    assert choose_schedule(tall, "bf16", CHIPS["h100"]).schedule.tables.tile_rows >= 64
    assert choose_schedule(flat, "bf16", CHIPS["h100"]).schedule.tables.tile_rows == 32
    assert choose_schedule(flat, "tf32", CHIPS["h100"]).schedule.tables.step_columns == 32


def test_small_layers_are_written_out_and_large_smooth_ones_are_not():
    """A launch costs more than a small layer's bytes; the log kernel at 2048 is worth two."""
    small = compressed()
    session = cuda.CudaSession(small)
    assert set(session.program.dense_layers) == set(small.weights)
    assert relative_error(small, session, [torch.randn(9, 5)]) <= 2e-6
    h = hrt.compress_matrix(log_kernel(2048), tol=1e-2, min_leaf=128)
    choice = choose_schedule(linear_program(h), "tf32", CHIPS["h100"])
    assert choice.dense == () and choice.schedule.tables.weight_bytes < 4 * 2048**2 / 4
    assert choose_schedule(linear_program(h), "tf32", CHIPS["h100"], densify=False).dense == ()


def test_a_whole_model_through_the_backend(monkeypatch, tmp_path):
    """predict on the backend: numpy and torch, dtypes, max_batch and strict, as on any other."""
    monkeypatch.setitem(BACKENDS, "cuda", Backend(BACKENDS["cuda"].opens))
    model = mixed_model()
    model.save(tmp_path / "m.hrt")
    served = hrt.load(tmp_path / "m.hrt", backend="cuda", max_batch=4)
    assert isinstance(served.session, cuda.CudaSession) and served.session.program.precision == "tf32x3"
    rng = np.random.default_rng(0)
    x = tuple(rng.standard_normal((10, *v.shape)) for v in model.program.inputs)
    expected, found = model.predict(x), served.predict(x)
    as_torch = served.predict(tuple(torch.from_numpy(v) for v in x))
    for a, b, c in zip(expected, found, as_torch, strict=True):
        assert isinstance(b, np.ndarray) and b.dtype == a.dtype and np.array_equal(b, c.numpy())
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)
    assert served.predict(tuple(v[:0] for v in x))[0].shape == (0, 3)
    strict = hrt.load(tmp_path / "m.hrt", backend="cuda", strict=True)
    assert np.allclose(strict.predict(x)[0], found[0], rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(strict.session, "device", torch.device("cuda:0"))
    with pytest.raises(hrt.InputError, match=r"Input 0 is on cpu\. Expected cuda:0"):
        strict.predict(tuple(torch.from_numpy(v) for v in x))


def test_what_cannot_run_is_refused(monkeypatch):
    with pytest.raises(hrt.BackendError, match="fp8"):
        CudaSession(compressed(), precision="fp8")
    with pytest.raises(hrt.BackendError, match="runs on CUDA devices"):
        devices.cuda_device("cpu")
    with pytest.raises(hrt.BackendError, match="cannot be used"):
        devices.cuda_device("nowhere")
    if not torch.cuda.is_available():
        with pytest.raises(hrt.BackendError, match="TRITON_INTERPRET=1 is set"):
            open_session(compressed(), "cuda")
        monkeypatch.delenv("TRITON_INTERPRET")
        with pytest.raises(hrt.BackendError, match="Expected an NVIDIA GPU"):
            open_session(compressed(), "cuda")
        with pytest.raises(hrt.BackendError, match="cannot be used"):
            devices.cuda_device("cuda:3")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    with pytest.raises(hrt.BackendError, match=r"Tesla T4 has compute capability 7\.5\. Expected 8\.0"):
        devices.cuda_device("cuda:0")


@pytest.mark.parametrize(
    "found, expected", [("3.5.1", "found Triton 3.5.1"), ("2.1.0", "Expected 3.6"), ("3.6.0", None)]
)
def test_an_old_triton_is_named(monkeypatch, found, expected):
    monkeypatch.setattr(devices, "version", lambda _: found)
    why = devices.missing_triton()
    assert (why is None) if expected is None else (why is not None and expected in why)


def test_a_missing_triton_is_named(monkeypatch):
    def absent(name):
        raise devices.PackageNotFoundError(name)

    monkeypatch.setattr(devices, "version", absent)
    assert "pip install triton" in (devices.missing_triton() or "")


def test_memory_that_runs_out(monkeypatch):
    session = CudaSession(compressed())

    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nmore")

    monkeypatch.setattr(session.program, "new_workspace", full)
    with pytest.raises(hrt.BackendError, match=r"Tried to allocate 20 GiB\. Load with a smaller max_batch"):
        session.run([torch.zeros(2, 5)])
    assert "backend='torch'" in out_of_memory(torch.device("cuda:0"), RuntimeError("x"))


def test_the_largest_bucket_fits_the_memory(monkeypatch):
    assert room_for(torch.device("cpu"), 10**12) == LARGEST_BUCKET
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (80 * 10**9, 80 * 10**9))
    assert room_for(torch.device("cuda:0"), 40_000) == 1 << 18
    assert room_for(torch.device("cuda:0"), 10**12) == 1


def test_auto_takes_the_gpu_where_it_is_wanted(monkeypatch):
    assert choose("auto", None, "cuda")[0] == ("cuda" if torch.cuda.is_available() else "torch")
    monkeypatch.setitem(BACKENDS, "cuda", Backend("nowhere:at_all"))
    assert choose("auto", None, "cuda")[0] == "cuda"
    assert choose("auto", "cuda:1", "cpu")[0] == "cuda"
    assert choose("auto", None, "cpu")[0] == "torch"
    assert choose("auto", "cpu", "cuda")[0] == "torch"
    assert choose("torch", "cuda:1", "cuda")[0] == "torch"


def test_layers_without_any_weights():
    """A layer of no inputs has biases only: no buffer, no step, and its tiles still write."""
    program = linear_program(torch.zeros(40, 0), torch.arange(40.0))
    session = CudaSession(program)
    assert session.program.plan.tables.weights == () or session.program.plan.tables.weights[0].numel() == 0
    assert torch.equal(session.run([torch.zeros(3, 0)])[0], torch.arange(40.0).expand(3, 40))
    empty = linear_program(hrt.HMatrix((40, 0), ()), torch.arange(40.0))
    assert torch.equal(CudaSession(empty).run([torch.zeros(3, 0)])[0], torch.arange(40.0).expand(3, 40))


def test_one_value_returned_twice():
    h = random_hmatrix(3, 4, 6, ordered=True)
    nodes = (Node("y", "linear", ("x", "w"), (4,), {}),)
    program = Program((Value("x", (6,)),), nodes, ("y", "y"), {"w": h})
    x = torch.randn(3, 6)
    for y in CudaSession(program).run([x]):
        assert torch.allclose(y.double(), x.double() @ h.to_dense().T, rtol=1e-5, atol=1e-5)


def test_scaling_does_not_write_where_its_own_layer_still_reads():
    """A square last layer: the scaled output takes the columns of the layer's input, which other tiles still read."""
    torch.manual_seed(0)
    net = network(sizes=(5, 100, 100))

    class Units(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.scale = net, torch.nn.Buffer(torch.rand(100) + 1)

        def forward(self, x):
            return self.net(x) * self.scale

    program = capture(Units(), [torch.zeros(2, 5)])
    session = CudaSession(program)
    x = [torch.randn(9, 5)]
    assert relative_error(program, session, x) <= float32_allowance(program, x)


def test_the_callers_modes_change_nothing():
    program = compressed()
    session = CudaSession(program)
    x = torch.randn(3, 5)
    with torch.inference_mode():
        first = session.run([x])[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(session.run([x])[0], first)
    assert torch.equal(session.run([x])[0], first) and not session.run([x])[0].is_inference()


def test_tf32_networks_of_few_inputs_run_in_one_launch_too():
    session = CudaSession(compressed(ordered=False), precision="tf32")
    assert session.program.plan.has_exact and session.program.kernels == ("step", "network")
    assert session.program.network_precision == "tf32x3"
