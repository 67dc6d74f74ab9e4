"""The backend "native": bits and errors beside torch, threads, forks, memory, and what it refuses."""

import gc
import platform
import sys
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hrt
from hrt.export.c import native_session as module
from hrt.export.c import python_call, session_source
from hrt.export.c.native_session import NativeSession
from hrt.export.c.session_source import PART_ROWS
from hrt.program.program import Node, Program, Value
from hrt.runtime import TorchSession, open_session

from forked import forked
from models import any_hmatrix, linear_program

pytestmark = pytest.mark.usefixtures("native")
EPS = torch.finfo(torch.float32).eps
ROWS = (0, 1, 2, 9, 10, 31, 32, 33, 63, 64, 65, 97, 200)
usual_only = pytest.mark.skipif(not python_call.is_usual(), reason="another interpreter than session.c is written for")


@pytest.fixture(scope="module")
def program() -> Program:
    """Two inputs, three outputs: tanh layers with every storage type, joined at the end."""
    first, second = any_hmatrix(1, 40, 5), any_hmatrix(2, 23, 40)
    nodes = (
        Node("h", "linear", ("x", "w", "b"), (40,), {}),
        Node("t", "tanh", ("h",), (40,), {}),
        Node("y", "linear", ("t", "v"), (23,), {}),
        Node("z", "concat", ("y", "s"), (27,), {"axis": -1}),
        Node("part", "slice", ("z",), (2,), {"axis": -1, "start": 1, "stop": 3, "step": 1}),
    )
    constants = {"w": first, "v": second, "b": torch.linspace(-1, 1, 40)}
    return Program((Value("x", (5,)), Value("s", (4,))), nodes, ("y", "z", "part"), constants)


def open_on(program: Program, threads: int) -> NativeSession:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return NativeSession(program)
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def session(native, program) -> NativeSession:
    return open_on(program, 2)


def rows_of(program: Program, rows: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(seed)
    return tuple(generator.standard_normal((rows, *v.shape), np.float32) for v in program.inputs)


def same(a, b) -> bool:
    return len(a) == len(b) and all(x.shape == y.shape and np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("rows", ROWS)
def test_answers_are_torchs(rows, program, session):
    inputs = rows_of(program, rows)
    for a, b in zip(session.run(inputs), TorchSession(program).run(inputs), strict=True):
        assert a.shape == b.shape and a.dtype == np.float32 and a.flags.c_contiguous
        assert np.abs(a - b).max(initial=0.0) <= 200 * EPS * max(1.0, np.abs(b).max(initial=0.0))


@usual_only
@pytest.mark.parametrize("rows", ROWS)
def test_both_ways_give_the_same_new_arrays(rows, program, session):
    inputs = rows_of(program, rows)
    expected = session.run(inputs)
    first, second = session.run_as_given(inputs), session.run_as_given(inputs)
    assert same(first, expected) and same(second, expected)
    for y in first:
        assert y.flags.owndata and y.flags.writeable and y.flags.c_contiguous
        y[...] = 7
    assert same(second, expected)


@given(rows=st.integers(0, 150), threads=st.sampled_from([1, 3, 5]))
@settings(max_examples=30)
def test_bits_do_not_depend_on_the_number_of_threads(rows, threads, program, session):
    sessions = THREADED.setdefault(threads, open_on(program, threads))
    assert same(sessions.run(rows_of(program, rows)), session.run(rows_of(program, rows)))


THREADED: dict[int, NativeSession] = {}


def test_bits_do_not_depend_on_where_inputs_lie(program, session):
    x, s = rows_of(program, 70)
    expected = session.run((x, s))
    memory = np.zeros(x.nbytes + 64, np.uint8)
    for offset in (0, 1, 4, 16):
        there = memory[offset : offset + x.nbytes].view(np.float32) if offset % 4 == 0 else unaligned(memory, offset, x)
        there = there.reshape(x.shape)
        there[...] = x
        assert same(session.run((there, s)), expected)
    read_only = x.copy()
    read_only.flags.writeable = False
    assert same(session.run((read_only, s)), expected)


def unaligned(memory: np.ndarray, offset: int, like: np.ndarray) -> np.ndarray:
    return np.ndarray(like.shape, np.float32, memory, offset)


def test_tensors_come_back_as_tensors(program, session):
    inputs = rows_of(program, 3)
    answers = session.run([torch.from_numpy(x) for x in inputs])
    assert all(isinstance(y, torch.Tensor) for y in answers)
    assert same([y.numpy() for y in answers], session.run(inputs))


@usual_only
def test_whatever_does_not_fit_is_left_to_the_checks(program, session):
    x, s = rows_of(program, 4)
    for given_ in (
        None, 3, "x", x, [x, s], (x,), (x, s, s), (x, 1), (x, s[:3]), (x[:, :4], s), (x.astype(np.float64), s),
        (x.astype(np.int32), s), (x.astype(">f4"), s), (np.asfortranarray(x), s), (x[::2], s[::2]), (x[0], s[0]),
        (x[None], s[None]), (x.view(np.recarray), s), (torch.from_numpy(x), s),
        (unaligned(np.zeros(99, np.uint8), 1, x), s),
    ):  # fmt: skip
        assert session.run_as_given(given_) is None
    assert session.run_as_given((x, s)) is not None


@usual_only
def test_calls_leave_no_reference_behind(program, session):
    inputs = rows_of(program, 2)
    session.run_as_given(inputs)
    before = [sys.getrefcount(v) for v in (*inputs, inputs, None)]
    for _ in range(1000):
        session.run_as_given(inputs)
        session.run_as_given((inputs[0], 3))
    after = [sys.getrefcount(v) for v in (*inputs, inputs, None)]
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) < 100


def test_threads_of_python_do_not_disturb_each_other(program, session):
    asked = [rows_of(program, rows, rows) for rows in (1, 5, 40, 130)]
    expected = [session.run(x) for x in asked]
    wrong = []

    def ask(k: int) -> None:
        for _ in range(100):
            answer = session.run_as_given(asked[k])
            if not same(session.run(asked[k]) if answer is None else answer, expected[k]):
                wrong.append(k)

    threads = [threading.Thread(target=ask, args=(k % 4,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def tasks() -> set[str]:
    return {p.name for p in Path("/proc/self/task").iterdir()}


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux shows them")
def test_threads_start_when_needed_sleep_between_calls_and_end_with_the_session(program):
    before, session = tasks(), open_on(program, 3)
    session.run(rows_of(program, 2 * PART_ROWS - 1))
    assert not tasks() - before
    session.run(rows_of(program, 4 * PART_ROWS))
    assert len(tasks() - before) == 2
    start = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - start < 0.05
    del session
    gc.collect()
    assert not tasks() - before


@usual_only
def test_the_builtin_outlives_its_session(program):
    session = open_on(program, 2)
    inputs = rows_of(program, 100)
    expected, answer, gone = session.run(inputs), session.run_as_given, weakref.ref(session)
    del session
    gc.collect()
    assert gone() is None and same(answer(inputs), expected)


def test_a_forked_process_goes_on(program, session):
    inputs = [rows_of(program, rows) for rows in (1, 300)]
    expected = [session.run(x) for x in inputs]

    def work() -> str:
        return str(
            [
                same(session.run(x), e) and same(session.run_as_given(x) or e, e)
                for x, e in zip(inputs, expected, strict=True)
            ]
        )

    assert forked(work) == ("[True, True]", 0)
    assert [same(session.run(x), e) for x, e in zip(inputs, expected, strict=True)] == [True, True]


@pytest.fixture(scope="module")
def model(native) -> hrt.CompressedModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    return hrt.compress(net, inputs=hrt.Box([-1, -1], [1, 1]), tol=1e-2, derivatives=["d0"], progress=False)


class TestModels:
    def test_compress_verifies_it_and_says_what_compiled(self, model):
        assert set(model.certificate.runtimes) >= {"torch", "native"}
        assert "-ffp-contract=fast" in model.certificate.context["compiler"]

    def test_derivatives(self, model):
        native, torchs = replace(model, backend="native"), replace(model, backend="torch")
        for rows in (1, 50):
            x = np.random.default_rng(1).random((rows, 2), np.float32)
            for a, b in zip(*(m.predict(x, derivatives=["d0"]) for m in (native, torchs)), strict=True):
                assert a.shape == (rows, 1) and np.allclose(a, b, atol=1e-5)
        assert isinstance(native.differentiated(["d0"]).session, NativeSession)

    def test_other_kinds_of_input(self, model):
        native, x = replace(model, backend="native"), np.random.default_rng(1).random((3, 2))
        expected = native.predict(x.astype(np.float32))
        assert native.predict(x).dtype == np.float64
        assert np.array_equal(native.predict(np.asfortranarray(x.astype(np.float32))), expected)
        assert np.array_equal(native.predict(torch.from_numpy(x).float()).numpy(), expected)

    def test_resident_are_the_stored_bytes(self, model):
        assert model.nbytes <= replace(model, backend="native").session.resident_bytes <= 2 * model.nbytes + 4096


@pytest.mark.skipif(platform.machine() != "x86_64", reason="flushed on x86 alone")
def test_small_results_are_flushed_while_it_runs_and_not_after():
    tiny = np.float32(1e-30)
    session = open_on(linear_program(torch.full((1, 1), 1e-10)), 1)
    assert session.run([np.full((3, 1), tiny)])[0].tolist() == [[0.0]] * 3
    assert tiny * np.float32(1e-10) > 0


def test_numbers_may_be_a_file_of_their_own(monkeypatch):
    monkeypatch.setattr(session_source, "IN_TEXT", 0)
    weight = torch.linspace(-1, 1, 400).reshape(20, 20)
    source = session_source.session_source(linear_program(weight))
    assert set(source.files) == ({"network.c", "network.bin"} if sys.platform == "linux" else {"network.c"})
    x = np.random.default_rng(0).random((40, 20), np.float32)
    assert np.allclose(open_on(linear_program(weight), 1).run([x])[0], x @ weight.numpy().T, atol=1e-5)


def test_another_device_is_refused(program):
    with pytest.raises(hrt.BackendError, match="runs on the CPU"):
        NativeSession(program, "cuda:0")


def test_without_a_compiler_the_remedy_is_named(program, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("HRT_CACHE", str(tmp_path))
    with pytest.raises(hrt.BackendError, match="CC=no-such-compiler"):
        open_session(program, "native")


def test_it_can_be_switched_off(program, monkeypatch):
    monkeypatch.setenv("HRT_NATIVE", "off")
    with pytest.raises(hrt.BackendError, match="HRT_NATIVE=off"):
        open_session(program, "native")


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads as Linux shows them")
def test_another_interpreter_is_answered_through_ctypes(program, monkeypatch):
    monkeypatch.setattr(python_call, "is_usual", lambda: False)
    session = open_on(program, 1)
    inputs = rows_of(program, 3)
    assert session.run_as_given(inputs) is None
    assert same(session.run(inputs), open_on(program, 1).run(inputs))


def test_what_c_cannot_do_is_a_backend_error(program, monkeypatch):
    def refused(program):
        raise hrt.ExportError("Node y is the op roll, which cannot be written in C.")

    monkeypatch.setattr(module, "session_source", refused)
    with pytest.raises(hrt.BackendError, match=r"cannot be written in C\. Or use backend='torch'"):
        NativeSession(program)
