"""CompressedModel.predict: numpy or torch in, the same kind out, any batch, and clear words for anything else."""

import gc
import re
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

import hrt
from hrt.hmatrix.hmatrix import HMatrix
from hrt.model.model import CompressedModel
from hrt.model.rows import say_float32
from hrt.program.program import Node, Program, Value

from models import allowed, any_hmatrix, linear_model, linear_program, mixed_model

EPS = torch.finfo(torch.float32).eps
CERTIFICATE = hrt.Certificate(1e-3, "layers", ())


@pytest.fixture(scope="module")
def h() -> HMatrix:
    return any_hmatrix(0, 30, 20, depth=4, ordered=True)


@pytest.fixture(scope="module")
def model(h) -> CompressedModel:
    return linear_model(h)


def samples(batch: int, width: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, width)).astype(np.float32)


def bound(x: np.ndarray, h: HMatrix, dtype=np.float32) -> np.ndarray:
    """Rounding of the input and the arithmetic in float32, then of the answer in `dtype`."""
    y = np.abs(x.astype(np.float64)) @ np.abs(h.to_dense().numpy()).T
    return allowed(torch.from_numpy(x.astype(np.float64)), h).numpy() + y * np.finfo(dtype).eps


class TestNumpy:
    @pytest.mark.parametrize("batch", [0, 1, 3, 257])
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
    def test_any_batch_and_dtype(self, batch, dtype, model, h):
        x = samples(batch).astype(dtype)
        y = model.predict(x)
        assert type(y) is np.ndarray and y.dtype == dtype and y.shape == (batch, 30)
        error = np.abs(y.astype(np.float64) - x.astype(np.float64) @ h.to_dense().numpy().T)
        assert (error <= bound(x, h, dtype)).all()

    @pytest.mark.parametrize(
        "arrange",
        [
            np.asfortranarray,
            lambda x: np.repeat(x, 2, axis=1)[:, ::2],
            lambda x: np.repeat(x, 3, axis=0)[::3],
            lambda x: x[::-1].copy()[::-1],
            lambda x: x[:, ::-1].copy()[:, ::-1],
            lambda x: x.astype(">f4"),
            lambda x: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),  # read-only
            lambda x: np.frombuffer(b"\0" + x.tobytes(), np.float32, offset=1).reshape(x.shape),  # an odd address
        ],
    )
    @pytest.mark.filterwarnings("error")
    def test_any_layout(self, arrange, model):
        x = samples(6)
        y = model.predict(arrange(x))
        assert np.array_equal(y, model.predict(x))

    @pytest.mark.parametrize("dense", [False, True])
    @pytest.mark.parametrize("batch", [1, 3, 9])
    def test_equal_inputs_give_equal_bits_wherever_they_lie(self, dense, batch, model, h):
        model = linear_model(HMatrix.from_dense(h.to_dense())) if dense else model
        x, room = samples(batch), np.zeros(batch * 20 + 32, np.float32)
        answers = set()
        for start in range(32):
            moved = room[start : start + x.size].reshape(x.shape)
            moved[:] = x
            answers |= {model.predict(moved).tobytes(), model.predict(torch.from_numpy(moved)).numpy().tobytes()}
        assert len(answers) == 1

    def test_lists_of_arrays_are_several_inputs(self):
        model = mixed_model()
        x, z = samples(4, 7), samples(4, 5)
        for a, b in zip(model.predict([x, z]), model.predict((x, z)), strict=True):
            assert np.array_equal(a, b)

    def test_numbers_beyond_the_dtype_are_infinite_not_an_error(self):
        model = linear_model(HMatrix.from_dense(torch.ones(2, 3)))
        with np.errstate(all="raise"):
            assert np.isposinf(model.predict(np.full((1, 3), 1e300))).all()
            assert np.isposinf(model.predict(np.full((1, 3), 6e4, np.float16))).all()


class TestTorch:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("batch", [0, 1, 3, 257])
    def test_any_batch_and_dtype(self, batch, dtype, model):
        x = torch.from_numpy(samples(batch)).to(dtype)
        y = model.predict(x)
        assert isinstance(y, torch.Tensor) and y.dtype == dtype and tuple(y.shape) == (batch, 30)
        assert torch.equal(y, torch.from_numpy(model.predict(x.float().numpy())).to(dtype))

    @pytest.mark.parametrize(
        "arrange",
        [
            lambda x: x.clone().requires_grad_(),
            lambda x: x.clone().requires_grad_() * 1,
            torch.nn.Parameter,
            lambda x: x.T.contiguous().T,
            lambda x: x.repeat_interleave(2, 1)[:, ::2],
            lambda x: x[:1].expand(6, 20),
        ],
    )
    def test_any_layout(self, arrange, model):
        x = arrange(torch.from_numpy(samples(6)))
        with torch.no_grad():
            y = model.predict(x)
        assert torch.equal(y, model.predict(x.detach().clone())) and not y.requires_grad

    @pytest.mark.parametrize("derivatives", [None, ["d0"]])
    def test_a_gradient_that_would_be_lost_is_refused(self, derivatives, model):
        x = torch.from_numpy(samples(6)).requires_grad_()
        for given in (x, (x,), x * 1):
            with pytest.raises(hrt.InputError, match=r"(?s)derivatives=.*to_trainable.*no_grad"):
                model.predict(given, derivatives=derivatives)
        with pytest.raises(hrt.InputError, match="to_trainable"):
            hrt.residual(linear_model(torch.ones(1, 20)), x, "u + d0")
        with torch.inference_mode():
            assert model.predict(x).shape == (6, 30)


class TestAnswers:
    def program(self) -> Program:
        """Outputs that would be views: of the input, of a constant, and one twice."""
        nodes = (
            Node("same", "reshape", ("x",), (4,), {"shape": [4]}),
            Node("constant", "repeat", ("c", "x"), (4,), {"shape": [4]}),
            Node("part", "slice", ("x",), (2,), {"axis": -1, "start": 0, "stop": 2, "step": 1}),
        )
        return Program((Value("x", (4,)),), nodes, ("x", "same", "constant", "part", "part"), {"c": torch.ones(1, 4)})

    @pytest.mark.parametrize("kind", ["numpy", "torch"])
    def test_are_fresh_writable_and_contiguous(self, kind):
        model = CompressedModel(self.program(), CERTIFICATE)
        x = samples(3, 4)
        given, kept = (x if kind == "numpy" else torch.from_numpy(x)), x.copy()
        first = model.predict(given)
        expected = [torch.as_tensor(y).clone() for y in first]
        for y in first:
            assert y.flags.writeable and y.flags.c_contiguous if kind == "numpy" else y.is_contiguous()
            y[:] = 77
        assert np.array_equal(x, kept)
        for y, e in zip(model.predict(given), expected, strict=True):
            assert torch.equal(torch.as_tensor(y), e)

    def test_input_is_neither_changed_nor_kept(self, model):
        x = samples(5)
        kept, reference = x.copy(), weakref.ref(x)
        y = model.predict(x)
        assert np.array_equal(x, kept)
        del x
        gc.collect()
        assert reference() is None and y.shape == (5, 30)

    def test_several_outputs_are_a_tuple_and_one_is_not(self, model):
        y = mixed_model().predict((samples(2, 7), samples(2, 5)))
        assert isinstance(y, tuple) and [a.shape for a in y] == [(2, 3), (2, 40)]
        assert isinstance(model.predict((samples(2),)), np.ndarray)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_a_bad_row_stays_alone(self, bad, model):
        x = samples(9)
        clean = model.predict(x)
        x[4] = bad
        y = model.predict(x)
        assert np.array_equal(np.delete(y, 4, 0), np.delete(clean, 4, 0)) and not np.isfinite(y[4]).all()

    def test_eight_threads_get_their_own_answers(self, model):
        inputs = [samples(11, seed=k) for k in range(8)]
        expected = [model.predict(x) for x in inputs]
        fresh, barrier = linear_model(model.program.constants["w"]), threading.Barrier(8)

        def work(k: int) -> bool:
            barrier.wait()
            return all(np.array_equal(fresh.predict(inputs[k]), expected[k]) for _ in range(60))

        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(work, range(8)))


class TestMaxBatch:
    @pytest.mark.parametrize("max_batch", [1, 2, 5, 256, 257, 1000])
    def test_splits_and_answers_the_same(self, max_batch, h, model):
        x = samples(257)
        error = np.abs(linear_model(h, max_batch=max_batch).predict(x).astype(np.float64) - model.predict(x))
        assert (error <= 2 * bound(x, h)).all()

    def test_no_part_is_larger(self, h):
        model, seen = linear_model(h, max_batch=4), []
        run = model.session.run
        vars(model)["session"] = type("Spy", (), {"run": lambda self, x: seen.append(len(x[0])) or run(x)})()
        model.predict(samples(10))
        model.predict(samples(0))
        assert seen == [4, 4, 2, 0]

    @pytest.mark.parametrize("max_batch", [0, -1, 2.5, "4"])
    def test_that_makes_no_sense(self, max_batch, h):
        with pytest.raises(hrt.InputError, match="max_batch"):
            linear_model(h, max_batch=max_batch)


BATCH, FLOATS, ONE = r"\(batch, 20\)", "floating-point", "Expected 1"


class TestMistakes:
    @pytest.mark.parametrize(
        "x, found, expected",
        [
            *((np.zeros(shape), re.escape(str(shape)), BATCH) for shape in ((3, 19), (19,), (2, 20, 2), ())),
            *((torch.zeros(shape), re.escape(str(shape)), BATCH) for shape in ((3, 21), ())),
            *(
                (np.zeros(shape), re.escape(str(shape)), r"x.reshape\(-1, 20\)")
                for shape in ((40,), (20, 3), (2, 20, 2))
            ),
            *((np.zeros((3, 20), kind), kind, FLOATS) for kind in ("bool", "complex128", "object")),
            *((torch.zeros(3, 20, dtype=getattr(torch, kind)), kind, FLOATS) for kind in ("bool", "complex64")),
            (np.ma.masked_less(np.ones((3, 20)), 2), "masked", "no value"),
            (torch.zeros(3, 20).to_sparse(), "sparse", FLOATS),
            *((x, "<U1|<U5|object", FLOATS) for x in (np.full((3, 20), "a"), "x.npy", None)),
            ({"x": 1}, r"\(\)", BATCH),
            ({"z": np.zeros((3, 20))}, r"inputs \['z'\]", r"\['x'\]"),
            *(((np.zeros((3, 20)),) * count, rf"{count} input\(s\)", ONE) for count in (0, 2)),
            (([[1.0], [1.0, 2.0]],), "", "no array"),
        ],
    )
    def test_say_found_and_expected(self, x, found, expected, model):
        with pytest.raises(hrt.InputError, match=rf"(?s)({found}).*{expected}"):
            model.predict(x)

    def test_an_unknown_backend_is_an_error_on_first_use(self, h):
        with pytest.raises(hrt.BackendError):
            linear_model(h, backend="none").predict(samples(1))


class TestHabits:
    """What people pass, and mean, though it is not (batch, features)."""

    def test_lists_and_whole_numbers_are_answered_in_float32(self, model):
        whole = np.random.default_rng(0).integers(-9, 9, (5, 20))
        expected = model.predict(whole.astype(np.float32))
        for x in (whole, whole.tolist(), whole.astype(np.uint8).astype(np.int8), whole.astype(float).tolist()):
            y = model.predict(x)
            assert y.dtype == np.float32 and np.array_equal(y, expected)
        y = model.predict(torch.from_numpy(whole))
        assert y.dtype == torch.float32 and np.array_equal(y.numpy(), expected)

    @pytest.mark.parametrize("lead", [(), (1,), (4, 3), (2, 1, 3), (0, 2)])
    @pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
    def test_one_sample_and_grids_of_samples_keep_their_axes(self, lead, kind, model):
        x = samples(max(1, int(np.prod(lead))))[: int(np.prod(lead))]
        rows, y = model.predict(kind(x)), model.predict(kind(x.reshape(*lead, 20)))
        assert type(y) is type(rows) and tuple(y.shape) == (*lead, 30)
        assert np.array_equal(np.asarray(y).reshape(-1, 30), np.asarray(rows))

    def test_also_of_several_inputs_and_derivatives(self):
        model = mixed_model()
        a, b = samples(6, 7), samples(6, 5)
        whole, grid = (model(x, derivatives=["d0"]) for x in ((a, b), (a.reshape(2, 3, 7), b.reshape(2, 3, 5))))
        for one, other in zip(whole, grid, strict=True):
            for y, z in zip(one, other, strict=True):
                assert z.shape[:2] == (2, 3) and np.array_equal(z.reshape(y.shape), y)
        with pytest.raises(hrt.InputError, match="samples"):
            model.predict((a.reshape(2, 3, 7), b.reshape(3, 2, 5)))

    def test_times_are_one_feature(self):
        model = linear_model(torch.ones(2, 1))
        for rows in (0, 1, 5):
            t = samples(rows, 1)
            assert np.array_equal(model.predict(t[:, 0]), model.predict(t)) and model.predict(t[:, 0]).shape == (
                rows,
                2,
            )

    def test_a_residual_on_a_grid(self):
        model = linear_model(torch.ones(1, 20))
        x = samples(6)
        flat, grid = (hrt.residual(model, v, "u - x0 + d1") for v in (x, x.reshape(3, 2, 20)))
        assert flat.dtype == np.float64 and grid.shape == (3, 2) and np.array_equal(grid.reshape(-1), flat)

    @pytest.mark.parametrize("second", [samples(300), ["d0"], torch.zeros(500, 20)])
    def test_a_second_positional_argument_is_an_error_of_a_few_words(self, second, model):
        for call in (model.predict, model):
            with pytest.raises(hrt.InputError, match=r"predict\(\(x0, x1\)\).*derivatives=") as error:
                call(samples(300), second)
            assert len(str(error.value)) < 400

    def test_values_in_messages_are_cut(self, model):
        for wrong in (samples(300), torch.zeros(300, 20), ["d0"] * 9999, "d" * 9999):
            with pytest.raises(hrt.InputError, match=r"Found.*derivative") as error:
                model.predict(samples(3), derivatives=wrong)
            assert len(str(error.value)) < 500

    @pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
    def test_the_default_dtype_of_other_threads_stays(self, backend, model, monkeypatch):
        served = replace(model, backend=backend)
        expected = served.predict(samples(3))
        torch.set_default_dtype(torch.float64)
        try:
            with monkeypatch.context() as patch:
                patch.setattr(torch, "set_default_dtype", None)  # it belongs to the whole process
                answers = served.predict(samples(3)), served.predict(torch.from_numpy(samples(3))).numpy()
        finally:
            torch.set_default_dtype(torch.float32)
        assert all(np.array_equal(y, expected) for y in answers)

    def test_float64_is_warned_about_once(self, model):
        say_float32.cache_clear()
        with pytest.warns(UserWarning, match="float32") as caught:
            for x in (samples(3), samples(3).tolist(), samples(3).astype(np.float64), torch.zeros(3, 20).double()):
                model.predict(x)
        assert len(caught) == 1 and caught[0].filename == __file__


class TestFigures:
    def test_bytes_and_ratio(self, h):
        model = CompressedModel(linear_program(h, torch.zeros(30)), CERTIFICATE, dense_nbytes=4 * 630)
        assert model.nbytes == h.nbytes + 120
        assert model.compression_ratio == pytest.approx(4 * 630 / model.nbytes)

    def test_of_a_network_without_numbers(self):
        program = Program((Value("x", (2,)),), (Node("y", "tanh", ("x",), (2,), {}),), ("y",), {})
        assert CompressedModel(program, CERTIFICATE).compression_ratio == 1.0

    def test_repr_says_what_matters(self, model):
        assert "1 weight matrices" in repr(model) and f"{model.nbytes:,} bytes" in repr(model)
