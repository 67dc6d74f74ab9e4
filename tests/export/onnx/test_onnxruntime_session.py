"""The CPU backend of ONNX Runtime: two graphs, parts, memory bound once, threads, forks; and when "auto" takes it."""

import copy
import multiprocessing
import pickle
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hrt
from hrt.capture.torch_export import capture
from hrt.export.onnx import onnxruntime_session as module
from hrt.export.onnx.check import open_runtime
from hrt.export.onnx.exporter import graph_of
from hrt.export.onnx.onnxruntime_session import OnnxSession
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.perf.networks.operators import log_kernel
from hrt.program.parallel_linears import beside
from hrt.program.program import Node, Program, Value
from hrt.runtime import BACKENDS, Backend, TorchSession, choose
from hrt.runtime.onnx_costs import ANY_BATCH, FEW_ROWS, MANY_ROWS, choose_forms, compressed_form, layer_us, program_us

from helpers import random_hmatrix
from models import allowed, any_hmatrix, linear_model, mixed_model
from zoo import SOME_OF_THE_ZOO, ZOO

EPS = torch.finfo(torch.float32).eps


def low_rank(m: int, n: int, rank: int) -> HMatrix:
    t = torch.Generator().manual_seed(rank)
    u, vt = torch.randn(m, rank, generator=t), torch.randn(rank, n, generator=t)
    return HMatrix((m, n), (Leaf(0, m, 0, n, u=u, vt=vt),))


def served(weight, **options) -> hrt.CompressedModel:
    return replace(linear_model(weight), backend="onnxruntime", **options)


def absolute(h: HMatrix) -> np.ndarray:
    """The entries with every product in them taken by its size."""
    total = np.zeros(h.shape)
    for e in h.leaves:
        first, *rest = (t.abs().numpy() for t in e.decoded(torch.float64))
        total += first @ rest[0] if rest else first
    return total


@pytest.fixture(scope="module")
def kernel() -> HMatrix:
    return hrt.compress_matrix(torch.from_numpy(log_kernel(1024)), tol=1e-3)


class TestForms:
    def test_follow_the_predicted_time(self, kernel):
        forms = {
            "w": low_rank(128, 128, 9),
            "full": low_rank(128, 128, 120),
            "kernel": kernel,
            "dense": torch.ones(3, 3),
        }
        assert compressed_form(forms["w"]) == "low rank" and compressed_form(kernel) == "batched"
        assert compressed_form(HMatrix((4, 4), low_rank(4, 4, 1).leaves, torch.tensor([1, 0, 2, 3]))) == "batched"
        for name, batches, expected in [
            ("w", MANY_ROWS, "low rank"),
            ("full", MANY_ROWS, "multiplied"),
            ("kernel", MANY_ROWS, "batched"),
            ("dense", ANY_BATCH, "dense"),
        ]:
            weight = forms[name]
            assert choose_forms(linear_model(weight).program, batches) == {"w": expected}
        small = hrt.compress_matrix(torch.from_numpy(log_kernel(128)), tol=1e-3)
        assert choose_forms(linear_model(small).program, FEW_ROWS) == {"w": "multiplied"}

    @pytest.mark.parametrize("rows", [1, 64])
    def test_time_grows_with_what_there_is_to_do(self, kernel, rows):
        forms = ("low rank", "dense")
        assert all(
            layer_us(low_rank(512, 512, 200), f, rows) < layer_us(low_rank(900, 900, 300), f, rows) for f in forms
        )
        assert layer_us(kernel, "batched", rows) < layer_us(kernel, "batched", 4 * rows)

    @pytest.mark.parametrize("form", ["dense", "multiplied", "low rank", "batched"])
    @pytest.mark.parametrize("narrow", [False, True])
    @pytest.mark.parametrize("shape", [(40, 30), (1, 30), (5, 1)])
    @pytest.mark.parametrize("bias", [False, True])
    def test_all_say_the_same(self, form, narrow, shape, bias):
        m, n = shape
        h = HMatrix.from_dense(torch.randn(m, n)) if form == "dense" else low_rank(m, n, min(4, m, n))
        net = nn.Linear(n, m, bias=bias)
        program = capture(net, [torch.zeros(2, n)])
        (name,) = program.weights
        program = program.with_constants({name: h})
        runtime = open_runtime(graph_of(program, narrow=narrow, forms={name: form}))
        for batch in (1, 2, 17):
            x = np.random.default_rng(batch).standard_normal((batch, n)).astype(np.float32)
            (y,) = runtime.run(None, {runtime.get_inputs()[0].name: x})
            dense, b = h.to_dense().numpy(), net.bias.detach().numpy() if bias else np.zeros(m)
            size = np.abs(x).astype(np.float64) @ absolute(h).T + np.abs(b)
            assert y.shape == (batch, m)
            assert (np.abs(y - (x.astype(np.float64) @ dense.T + b)) <= (n + 8) * EPS * size).all()

    @pytest.mark.parametrize("narrow", [False, True])
    @pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
    def test_blocks_on_the_diagonal_are_one_batched_product(self, narrow, lead):
        """Of any leaves and orders, under biases, whatever stands before the last axis."""
        parts = [any_hmatrix(seed, 6, 5, depth=2, ordered=seed % 2 == 1) for seed in range(4)]
        h, bias = beside(parts, [0, 5, 10, 15], 20), torch.randn(24, dtype=torch.float32)
        node = Node("y", "linear", ("x", "w", "b"), (*lead, 24), {})
        program = Program((Value("x", (*lead, 20)),), (node,), ("y",), {"w": h, "b": bias})
        graph = graph_of(program, narrow=narrow, forms={"w": "stacked"})
        assert sum(n.op_type == "MatMul" and "blocks" in n.output[0] for n in graph.graph.node) >= 1
        assert all(n.op_type != "Shape" for n in graph.graph.node)
        for batch in (1, 5):
            x = torch.randn(batch, *lead, 20, dtype=torch.float32)
            (y,) = open_runtime(graph).run(None, {"x": x.numpy()})
            (exact,) = program.run([x.double()])
            limit = allowed(x, h) + 4 * EPS * (exact.abs() + bias.abs())
            assert y.shape == exact.shape and bool(((torch.from_numpy(y) - exact).abs() <= limit).all())

    def test_blocks_of_a_stack_are_chosen_by_count(self):
        """Dense blocks multiply a twelfth of the numbers; of rank 1 they are fewer still, but in more products."""
        dense = beside([HMatrix.from_dense(torch.randn(64, 32)) for _ in range(12)], range(0, 384, 32), 384)
        node = Node("y", "linear", ("x", "w"), (2, 768), {})
        program = Program((Value("x", (2, 384)),), (node,), ("y",), {"w": dense})
        assert {choose_forms(program, rows, never_slower=True)["w"] for rows in (FEW_ROWS, MANY_ROWS)} == {"stacked"}
        assert layer_us(dense, "stacked", 32) < layer_us(dense, "multiplied", 32) / 2
        few, several = (program_us(program, {"w": "stacked"}, rows) for rows in (1, 2))
        assert few == layer_us(dense, "stacked", 2) and several == layer_us(dense, "stacked", 4)


class TestRun:
    @pytest.mark.parametrize("batch", [0, 1, 5, 16, 17, 63, 64, 65, 300])
    def test_every_batch_size_meets_float64(self, kernel, batch):
        model = served(kernel)
        x = np.random.default_rng(batch).standard_normal((batch, 1024)).astype(np.float32)
        y = model.predict(x)
        exact = x.astype(np.float64) @ kernel.to_dense().numpy().T
        assert y.shape == (batch, 1024) and y.dtype == np.float32
        assert np.linalg.norm(y - exact) <= 3e-6 * np.linalg.norm(exact)

    def test_parts_do_not_mix_rows(self, kernel, monkeypatch):
        monkeypatch.setattr(module, "PART_BYTES", 0)  # parts of PART_ROWS
        model = served(kernel)
        x = np.random.default_rng(0).standard_normal((3 * module.PART_ROWS + 7, 1024)).astype(np.float32)
        whole, part = model.predict(x), module.part_rows(len(x), module.PART_ROWS)
        for start in range(0, len(x), part):
            if len(x) - start > module.SMALL:
                assert np.array_equal(model.predict(x[start : start + part]), whole[start : start + part])
        x[part + 3] = np.nan
        y = model.predict(x)
        good = np.arange(len(x)) != part + 3
        assert np.isnan(y[~good]).all() and np.isfinite(y[good]).all()

    @given(st.integers(1, 100_000), st.integers(64, 5000))
    def test_parts_are_alike_and_about_as_large_as_wanted(self, rows, wanted):
        size = module.part_rows(rows, wanted)
        count = -(-rows // size)
        assert size <= min(rows, 1.5 * wanted + 1) and (count == 1 or size >= 0.66 * wanted)
        assert rows - (count - 1) * size >= size - count, "the last part is not a small rest"

    def test_a_few_rows_come_through_fixed_memory_and_are_new_arrays(self):
        model = served(random_hmatrix(3, 30, 20))
        x = np.random.default_rng(0).standard_normal((4, 20)).astype(np.float32)
        once = model.predict(x)
        first = model.predict(x)
        kept = first.copy()
        assert np.array_equal(once, kept)
        second = model.predict(2 * x)
        assert np.array_equal(first, kept) and not np.shares_memory(first, second)
        first[:] = 7
        assert np.array_equal(model.predict(x), kept)
        assert model.session.waiting_nbytes == 4 * 4 * (20 + 30), "one caller at a time needs one memory"
        assert np.array_equal(model.predict(np.asfortranarray(x)), kept) and np.array_equal(model.predict(x[::1]), kept)
        assert np.array_equal(model.predict(torch.from_numpy(x)).numpy(), kept)
        assert model.predict(x.astype(np.float64)).dtype == np.float64

    @pytest.mark.parametrize(
        "wrong", [np.zeros((2, 19), np.float32), np.zeros(19, np.float32), np.zeros((2, 20), complex)]
    )
    def test_what_does_not_fit_is_named_even_after_good_calls(self, wrong):
        model = served(random_hmatrix(3, 30, 20))
        model.predict(np.zeros((2, 20), np.float32))
        with pytest.raises(hrt.InputError, match=r"[Ff]ound"):
            model.predict(wrong)

    def test_several_inputs_and_outputs(self):
        model, reference = replace(mixed_model(), backend="onnxruntime"), replace(mixed_model(), backend="torch")
        g = np.random.default_rng(0)
        for batch in (1, 3, 40):
            x = tuple(g.standard_normal((batch, *v.shape)).astype(np.float32) for v in model.program.inputs)
            for _ in range(2):
                for a, b in zip(model.predict(x), reference.predict(x), strict=True):
                    assert a.shape == b.shape and np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)
            with pytest.raises(hrt.InputError):
                model.predict(x[:1])

    def test_threads_get_their_own_answers(self):
        model = served(random_hmatrix(5, 60, 50))
        inputs = [np.random.default_rng(k).standard_normal((1 + k, 50)).astype(np.float32) for k in range(8)]
        expected = [served(random_hmatrix(5, 60, 50)).predict(x) for x in inputs]
        wrong = []

        def ask(k: int) -> None:
            for _ in range(200):
                if not np.array_equal(model.predict(inputs[k]), expected[k]):
                    wrong.append(k)

        callers = [threading.Thread(target=ask, args=(k % 8,)) for k in range(16)]
        [t.start() for t in callers]
        [t.join(60) for t in callers]
        assert not wrong and not any(t.is_alive() for t in callers)

    def test_a_forked_process_can_ask(self):
        """It has none of the runtime's threads: the session it inherits would wait for them for ever."""
        model = served(random_hmatrix(5, 300, 300))
        x = np.random.default_rng(0).standard_normal((50, 300)).astype(np.float32)
        expected = model.predict(x), model.predict(x[:2])
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()
        child = context.Process(target=lambda: answers.put((model.predict(x), model.predict(x[:2]))))
        child.start()
        child.join(60)
        alive = child.is_alive()
        child.kill()
        assert not alive and child.exitcode == 0
        assert all(np.array_equal(a, b) for a, b in zip(answers.get(), expected, strict=True))
        assert np.array_equal(model.predict(x), expected[0])

    def test_a_model_can_be_copied_and_pickled_after_it_has_answered(self):
        model = served(random_hmatrix(5, 30, 30))
        x = np.zeros((2, 30), np.float32)
        expected = model.predict(x)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert np.array_equal(other.predict(x), expected)


class TestNoRows:
    @pytest.mark.parametrize("name", SOME_OF_THE_ZOO)
    def test_every_network_of_the_zoo_answers_nothing_to_nothing(self, name):
        """ONNX Runtime itself crashed on some, and gave other shapes for others."""
        inputs = ZOO[name].inputs(5)
        program = capture(ZOO[name].build(torch.float64), inputs)
        certificate = hrt.Certificate(1e-2, "layers", ())
        none = tuple(x[:0].float().numpy() for x in inputs)
        found, expected = (
            hrt.CompressedModel(program, certificate, backend=b).predict(none) for b in ("onnxruntime", "torch")
        )
        pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
        assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)


class TestMemory:
    def test_the_same_graph_stands_there_twice_only_where_that_is_still_less_than_dense(self, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        small, full = served(low_rank(400, 400, 9)).session, served(torch.randn(400, 400)).session
        once = 4 * 9 * (400 + 400)
        assert 2 * once <= small.resident_bytes <= 2 * once + 64 < 4 * 400 * 400
        assert full.resident_bytes <= 4 * 400 * 400 + 64

    def test_one_thread_has_one_graph_for_equal_forms(self, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        assert served(low_rank(400, 400, 9)).session.resident_bytes <= 4 * 9 * (400 + 400) + 64

    def test_many_batch_sizes_keep_little(self):
        model = served(random_hmatrix(3, 30, 20))
        for rows in range(1, 300):
            for _ in range(2):
                model.predict(np.zeros((rows, 20), np.float32))
        assert 0 < model.session.waiting_nbytes <= 2 * module.FIXED_SHAPES * module.FIXED_BYTES


class TestAuto:
    def test_takes_onnxruntime_where_the_certificate_speaks_of_it(self, tmp_path):
        net = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1))
        model = hrt.compress(net, inputs=hrt.Box([-1] * 3, [1] * 3), tol=1e-2, progress=False)
        assert model.certificate.runtimes == ("torch", "onnxruntime")
        assert isinstance(model.session, OnnxSession)
        model.save(tmp_path / "m.hrt")
        loaded = hrt.load(tmp_path / "m.hrt")
        assert isinstance(loaded.session, OnnxSession)
        x = np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32)
        assert np.array_equal(loaded.predict(x), model.predict(x))
        old = replace(model.certificate, context={"held_out_rows": 10})
        assert isinstance(hrt.CompressedModel(model.program, old).session, TorchSession)
        assert isinstance(hrt.load(tmp_path / "m.hrt", backend="torch").session, TorchSession)

    @pytest.mark.parametrize("off, expected", [(5e-3, ("torch", "onnxruntime")), (5e-2, ("torch",))])
    def test_a_backend_is_taken_only_if_the_bound_holds_in_it(self, off, expected, monkeypatch):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1))

        class Off(TorchSession):
            def run(self, inputs):
                return tuple(y * (1 + off) for y in super().run(inputs))

        maker = Backend(lambda request: Off(request.program, request.device), on_cpu=True)
        monkeypatch.setitem(BACKENDS, "onnxruntime", maker)
        model = hrt.compress(net, inputs=hrt.Box([-1] * 3, [1] * 3), tol=1e-2, progress=False)
        assert model.certificate.runtimes == expected
        figures = model.certificate.measured
        assert figures["runtime_error"] > figures["output_error"] or "onnxruntime" not in expected
        assert model.certificate.estimated["output_error_upper_99"] <= 1e-2
        assert type(model.session) is (Off if len(expected) == 2 else TorchSession)

    def test_is_torch_where_onnxruntime_is_not_installed_or_fails(self, monkeypatch):
        assert choose("auto", None, "cpu", ("torch", "onnxruntime"))[0] == "onnxruntime"
        assert choose("auto", None, "cpu", ("torch",))[0] == "torch"
        assert choose("auto", "cpu", "cpu", ("onnxruntime",))[0] == "onnxruntime"
        assert choose("auto", "meta", "cpu", ("onnxruntime",))[0] == "torch"
        monkeypatch.setitem(BACKENDS, "onnxruntime", Backend("nowhere:at_all", lambda: "not installed."))
        assert choose("auto", None, "cpu", ("torch", "onnxruntime"))[0] == "torch"

        def broken(request):
            raise hrt.BackendError("refused")

        monkeypatch.setitem(BACKENDS, "onnxruntime", Backend(broken))
        model = linear_model(torch.eye(3))
        assert isinstance(model.session, TorchSession)
        with pytest.raises(hrt.BackendError, match="refused"):
            _ = replace(model, backend="onnxruntime").session
