"""The GPU backend where it finds a card: graphs, streams, devices and what goes wrong there. Run on the stub card by
`tests/runtime/test_on_stub_card.py`.
"""

import ctypes
import gc
import threading
import weakref
from itertools import pairwise

import numpy as np
import pytest
import torch

import hrt
from hrt.capture.torch_export import capture
from hrt.derivatives.differentiate import differentiate
from hrt.kernels.launch import Config, NetworkList, TileList
from hrt.kernels.precisions import Epilogue
from hrt.runtime import capturing, choose, open_session, tune_kernels
from hrt.runtime.cuda_graphs import Bucket
from hrt.runtime.cuda_program import CudaProgram
from hrt.runtime.cuda_session import CudaSession, room_for
from hrt.support import devices

from helpers import hierarchical, random_hmatrix
from models import linear_program, mixed_model
from stub_cuda import CARD, POOL, Event, Graph

DEVICE = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def card():
    """The card as it is when nothing is wrong with it; no capture may be lost that a test does not expect."""
    CARD.seconds, CARD.refused, CARD.answers, CARD.arch, CARD.memory = {}, {}, True, 90, 80 * 10**9
    CARD.lost.clear()
    CARD.captures.clear()
    yield CARD
    assert not CARD.capturing
    assert not CARD.lost


def network(sizes=(5, 40, 40, 3)):
    torch.manual_seed(0)
    layers = [layer for a, b in pairwise(sizes) for layer in (torch.nn.Linear(a, b), torch.nn.Tanh())]
    return capture(torch.nn.Sequential(*layers[:-1]), [torch.zeros(2, sizes[0])])


@pytest.fixture(scope="module")
def program():
    return hierarchical(network(), 0, ordered=False)


@pytest.fixture(scope="module")
def session(program):
    return CudaSession(program, warm=False)


def expected(program, *x):
    return program.run([v.double().cpu() for v in x])


def close(y, e):
    return float((y.double().cpu() - e).norm()) <= 1e-5 * float(e.norm())


def test_a_request_runs_in_a_graph_wherever_its_numbers_are(program, session, card):
    x = torch.randn(5, 5)
    (e,) = expected(program, x)
    before = sum(card.launches.values())
    for k in range(2):
        (there,), (here,), (array,) = session.run([x.to(DEVICE)]), session.run([x]), session.run([x.numpy()])
        assert there.device == DEVICE and here.device.type == "cpu" and isinstance(array, np.ndarray)
        assert close(there, e) and torch.equal(there.cpu(), here) and np.array_equal(array, here.numpy())
        if k == 0:
            captured = sum(card.launches.values())
    assert captured > before and sum(card.launches.values()) == captured, "graphs are replayed: nothing is launched"


def test_inputs_on_the_cpu_and_on_the_card_together():
    model = mixed_model()
    session = CudaSession(model.program, warm=False)
    x = [torch.randn(6, *v.shape) for v in model.program.inputs]
    e = expected(model.program, *x)
    answers = [session.run(v) for v in ([x[0].to(DEVICE), x[1]], [x[0], x[1].to(DEVICE)], x)]
    for ys in answers:
        assert all(close(y, v) for y, v in zip(ys, e, strict=True))
    served = hrt.CompressedModel(model.program, model.certificate, "cuda", 1, backend="cuda")
    vars(served)["session"] = session
    first = served.predict((x[0].to(DEVICE), x[1]))
    assert all(y.device == DEVICE for y in first)
    second = served.predict((x[0], x[1].to(DEVICE)))
    assert all(y.device.type == "cpu" and torch.equal(y, z.cpu()) for y, z in zip(second, first, strict=True))


def test_without_page_locked_memory(program, monkeypatch):
    make = torch.empty

    def refused(*args, pin_memory=False, **kwargs):
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return make(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", refused)
    session, x = CudaSession(program, warm=False), torch.randn(3, 5)
    assert close(session.run([x])[0], expected(program, x)[0])


@pytest.mark.parametrize("ordered", [False, True])
def test_every_answer_is_copied_once(ordered, card):
    session = CudaSession(linear_program(random_hmatrix(1, 30, 40, ordered=ordered)), warm=False, densify=False)
    ports = session.program.plan
    assert [p.index is not None for p in (*ports.entries, *ports.exits)] == [ordered, ordered]
    x = torch.randn(4, 40).to(DEVICE)
    session.run([x])
    card.ops.clear()
    session.run([x])
    made = card.ops["_to_copy"] + card.ops["clone"] + card.ops["index_select"]
    assert made == 1 + ordered, "one for the answer, one more where columns of the input are picked"


def test_a_model_and_its_graphs_are_freed_without_garbage_collection(program):
    served = hrt.CompressedModel(program, mixed_model().certificate, "cuda", 1, backend="cuda")
    vars(served)["session"] = CudaSession(program, warm=False)
    served.predict(torch.randn(2, 5))
    gc.collect()
    gc.disable()
    try:
        freed = weakref.ref(served.session.program)
        del served
        assert freed() is None
    finally:
        gc.enable()


def test_garbage_is_not_collected_during_a_capture(program):
    """A graph in a cycle of the user's that nobody holds any more: destroyed during a capture, it would spoil it."""
    thresholds, plain, watched = gc.get_threshold(), Graph.capture_begin, []

    def capture_begin(graph, *args, **options):
        plain(graph, *args, **options)
        holder = {"graph": Graph()}
        holder["itself"] = holder
        watched.append(weakref.ref(holder["graph"]))
        gc.set_threshold(1)

    Graph.capture_begin = capture_begin
    try:
        CudaSession(program, warm=False).run([torch.randn(2, 5)])
        assert gc.isenabled()
    finally:
        Graph.capture_begin = plain
        gc.set_threshold(*thresholds)
    gc.collect()
    assert watched and all(garbage() is None for garbage in watched)


def test_the_faster_kernel_is_taken(program, card):
    for slow, fast in (("network_kernel", "step"), ("step_kernel", "network")):
        card.seconds = {slow: 1e-4}
        assert Bucket(CudaProgram(program), 4).kernel == fast


def test_a_replay_is_timed_without_its_launch(program, card):
    card.seconds = {"network_kernel": 3e-6}
    bucket = Bucket(CudaProgram(program), 4, kernel="network")
    assert capturing.device_seconds(bucket.graph.replay) == pytest.approx(3e-6, rel=0.02)
    card.seconds = {"network_kernel": 2e-3}
    host = card.host
    assert capturing.device_seconds(bucket.graph.replay) == pytest.approx(2e-3, rel=0.01)
    assert card.host - host < 0.03, "long ones are not timed twenty times"


def test_the_network_kernel_that_fails_is_left_out(program, card):
    card.refused = {"network_kernel": RuntimeError("out of resource: registers\nmore")}
    session, x = CudaSession(program, warm=False), torch.randn(3, 5)
    with pytest.warns(UserWarning, match=r"of 4 do not run in one launch on cuda:0: RuntimeError: out of resource"):
        assert close(session.run([x])[0], expected(program, x)[0])
    assert session.program.worth_timing(4) == ("step",) and list(session.program.left_out) == [4]
    card.refused.clear()
    assert session.program.worth_timing(8) == ("step", "network"), "other buckets have other configurations"
    card.refused = {"network_kernel": RuntimeError("out of resource: registers\nmore")}
    with pytest.warns(UserWarning, match="launch by launch") as warned:
        warmed = CudaSession(program, largest=2)
    assert len(warned) == 1 and list(warmed.program.left_out) == [1, 2]
    assert close(warmed.run([x[:2]])[0], expected(program, x[:2])[0])
    with pytest.raises(RuntimeError, match="registers"):
        Bucket(CudaProgram(program), 4, kernel="network")
    card.refused["step_kernel"] = RuntimeError("no kernel image")
    for warm in (False, True):
        with pytest.raises(RuntimeError, match="no kernel image"):
            CudaSession(program, warm=warm).run([x])


def test_one_launch_is_not_timed_where_it_cannot_win(card):
    deep = CudaProgram(hierarchical(network((5, 300, 300, 300, 3)), 0, ordered=False, depth=4), densify=False)
    assert deep.kernels == ("step", "network") and deep.worth_timing(1) == ("step",)
    before = card.launches["network_kernel"]
    card.answers = False
    assert Bucket(deep, 1).kernel == "step" and card.launches["network_kernel"] == before
    small = CudaProgram(network())
    assert small.worth_timing(1) == ("step", "network")


def test_captures_have_a_stream_of_their_own(program, card):
    for size in (1, 2, 4):
        Bucket(CudaProgram(program), size)
    assert len(set(card.captures)) == 1 and card.captures[0] > POOL
    assert torch.cuda.Stream().cuda_stream <= POOL


def test_without_the_drivers_library_a_stream_is_the_pools(monkeypatch):
    def absent(*_):
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert 0 < capturing.private_stream.__wrapped__(0).cuda_stream <= POOL


def test_a_capture_that_fails_leaves_the_stream_and_the_collector_as_they_were(card):
    x = torch.ones(3).to(DEVICE)

    def call():
        if capturing.is_capturing():
            x.cpu()

    with pytest.raises(RuntimeError, match="during capture"):
        capturing.capture(call)
    assert torch.cuda.current_stream().cuda_stream == 0 and gc.isenabled()
    assert card.lost == ["_to_copy"]
    card.lost.clear()


def test_the_callers_capture(program):
    session = CudaSession(program, warm=False)
    x = torch.randn(3, 5).to(DEVICE)
    session.run([x])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (y,) = session.run([x])
    for _ in range(2):
        x.copy_(torch.randn(3, 5))
        graph.replay()
        assert close(y, expected(program, x)[0])


def test_what_cannot_be_in_the_callers_capture(program, card):
    session = CudaSession(program, warm=False)
    x = torch.randn(3, 5)
    session.run([x])
    refused = [
        (
            hrt.InputError,
            r"input 0 on the CPU while a CUDA graph is captured\. Expected a tensor on cuda:0",
            session,
            x,
        ),
        (hrt.BackendError, r"before a batch of 16 rows was ever run", session, torch.zeros(16, 5).to(DEVICE)),
    ]
    for error, words, asked, given in refused:
        with torch.cuda.graph(torch.cuda.CUDAGraph()), pytest.raises(error, match=words):
            asked.run([given])
    with torch.cuda.graph(torch.cuda.CUDAGraph()), pytest.raises(hrt.BackendError, match="predict once, then capture"):
        CudaSession(program)


def test_tangents_are_written_again_before_each_replay():
    """A hidden layer as wide as the input takes its columns."""
    origin = network((3, 20, 3, 20, 2))
    session = CudaSession(origin, derivatives=["d0"], warm=False)
    assert session.program.reseeds
    derived = differentiate(origin, ["d0"]).program
    for seed in range(2):
        x = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))
        answers = session.run([x.to(DEVICE)])
        assert all(close(y, e) for y, e in zip(answers, expected(derived, x), strict=True))


def test_threads_on_streams_of_their_own(program, session):
    inputs = [torch.rand(1 + k, 5).to(DEVICE) for k in range(4)]
    first = [session.run([x])[0].cpu() for x in inputs]
    answers: dict[int, list[torch.Tensor]] = {k: [] for k in range(4)}

    def ask(k):
        for _ in range(5):
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                answers[k].append(session.run([inputs[k]])[0].cpu())

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(len(ys) == 5 and all(torch.equal(y, first[k]) for y in ys) for k, ys in answers.items())


def test_memory_that_runs_out(program, card):
    session = CudaSession(program, warm=False)
    card.memory = 1000
    with pytest.raises(hrt.BackendError, match=r"cuda:0 has not enough free memory: CUDA out of memory\. Tried"):
        session.run([torch.zeros(64, 5)])
    with pytest.raises(hrt.BackendError, match="not enough free memory"):
        CudaSession(program, warm=False)
    card.memory = 10**6
    assert room_for(DEVICE, 1000) == 128


def test_memory_that_runs_out_while_a_session_opens(program, card, monkeypatch):
    def full(self, largest):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    monkeypatch.setattr(CudaProgram, "warm_up", full)
    with pytest.raises(hrt.BackendError, match="Tried to allocate 20 GiB"):
        CudaSession(program)


def test_the_network_kernel_is_not_left_out_for_want_of_memory(program):
    launched = CudaProgram(program)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        launched.do_without(4, torch.cuda.OutOfMemoryError("CUDA out of memory."))
    assert not launched.left_out


def test_which_card_is_meant(program, card, monkeypatch):
    assert devices.cuda_device(None) == devices.cuda_device("cuda") == devices.cuda_device("cuda:0") == DEVICE
    assert devices.architecture(DEVICE) == "sm_90"
    assert choose("auto", None, "cuda") == choose("auto", "cuda:0", "cpu") == ("cuda",)
    card.arch = 75
    with pytest.raises(hrt.BackendError, match=r"Stub sm_\d+ has compute capability 7\.5\. Expected 8\.0"):
        CudaSession(program)
    card.arch = 80
    assert CudaProgram(program).arch == "sm_80"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert devices.missing_for_cuda() is None
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "found torch for ROCm" in str(devices.missing_for_cuda())


def test_a_default_device_that_is_a_card():
    torch.set_default_device("cuda")
    try:
        with devices.on_the_cpu():
            assert torch.zeros(2).device.type == "cpu"
    finally:
        torch.set_default_device(None)


def test_a_model_finds_the_card_by_itself(program):
    certificate = mixed_model().certificate
    opened = open_session(program, "auto", None, target="cuda")
    assert isinstance(opened, CudaSession) and opened.device == DEVICE
    assert opened.workspace_bytes == 0
    served = hrt.CompressedModel(program, certificate, "cuda", 1, backend="cuda", strict=True)
    vars(served)["session"] = opened
    with pytest.raises(hrt.InputError, match=r"Input 0 is on cpu\. Expected cuda:0"):
        served.predict(torch.rand(2, 5))
    assert served.predict(torch.rand(2, 5).to(DEVICE)).device == DEVICE


def test_tuning_times_on_the_device(program, card, monkeypatch, tmp_path):
    monkeypatch.setenv("HRT_CACHE", str(tmp_path))
    configs = [Config("swapped", 16), Config("swapped", 16, 8)]
    monkeypatch.setattr(tune_kernels, "candidates", lambda key: configs)
    card.answers, step = False, 3e-6  # shorter than a launch; emptying the cache takes longer
    card.seconds = {"step_kernel": step, "network_kernel": step, "zero_": 1e-3}
    session = CudaSession(program, warm=False)
    best = tune_kernels.tune(session, [4])
    assert {key.kernel for key in best} == {"step", "network"}
    launches = session.program.plan.launches
    for key, (config, seconds) in best.items():
        assert config in configs
        assert seconds == pytest.approx(step * (1 if key.kernel == "network" else len(launches)), rel=0.05)
    assert (tmp_path / "tuning.json").is_file()
    monkeypatch.setattr(tune_kernels, "remember", lambda _: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    with pytest.raises(hrt.BackendError, match="Read-only file system"):
        tune_kernels.tune(session, [4])


CONFIGS = [Config("batch", 64), Config("swapped", 16), Config("swapped", 16, programs=1 << 28)]


@pytest.mark.parametrize("rows", [65_536 * 16 + 5, 1 << 24])
@pytest.mark.parametrize("config", CONFIGS)
def test_launches_of_more_rows_than_a_grid_has_blocks(rows, config, card):
    """The stub refuses what CUDA refuses."""
    card.answers = False
    program = CudaProgram(linear_program(torch.randn(40, 1024)), None, "ieee", densify=False)
    tables, tiles = program.plan.tables, range(len(program.plan.tables.tiles))
    listed = TileList.build(tables, tiles, Epilogue(), 4 * len(tiles) if config.programs else 0)
    assert (listed.finish is not None) == (config.programs > 0)
    partial = listed.finish is not None
    workspace = torch.zeros(1, program.pitch).to(DEVICE).expand(rows, program.pitch)  # one row stands for all
    card.grids.clear()
    listed.run(workspace, config)
    assert sum(y for _, y, _ in card.grids) * config.block >= (1 + partial) * rows
    NetworkList.build(tables, [tiles], Epilogue()).run(workspace, Config("batch", 64))


def test_the_stub_refuses_what_a_card_refuses(card):
    """What the tests above rely on."""
    x = torch.ones(3).to(DEVICE)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(TypeError, match="cuda:0"):
        x.numpy()
    side, graph = torch.cuda.Stream(), Graph()
    event = Event()
    event.record()
    with torch.cuda.stream(side):
        graph.capture_begin()
        for fault in (torch.cuda.synchronize, x.sum().item, x.cpu, lambda: side.wait_event(event), Graph().replay):
            with pytest.raises(RuntimeError):
                fault()
        with pytest.raises(RuntimeError, match="during capture"):
            graph.capture_end()
    y, graph = torch.zeros(3).to(DEVICE), Graph()
    with torch.cuda.stream(side):
        graph.capture_begin()
        y.add_(x)
        Graph()
        with pytest.raises(RuntimeError, match="a graph was destroyed"):
            graph.capture_end()
    assert len(card.lost) == 2
    card.lost.clear()
