"""The generator and the judge of random cases: every draw repeats, every broken promise is seen."""

import numpy as np
import pytest
import torch

import hrt
from hrt.errors import ToleranceError
from hrt.perf.studies import random_cases
from hrt.perf.studies.random_cases import Case, check, ladder, main, make_case, relative_error, storages


def case_of(w: np.ndarray, c: np.ndarray | None = None, tol: float = 0.1) -> Case:
    return Case(0, 0, "by hand", w, c, tol, "float32")


@pytest.mark.parametrize("index", range(20))
def test_promises_hold(index: int) -> None:
    assert check(make_case(index, 0)).faults == ()


class TestDraws:
    def test_equal_indices_give_equal_cases(self) -> None:
        a, b = make_case(7, 3), make_case(7, 3)
        assert (a.title, a.tol, a.storage) == (b.title, b.tol, b.storage)
        np.testing.assert_array_equal(a.w, b.w)

    def test_another_seed_gives_another_case(self) -> None:
        assert make_case(7, 3).title != make_case(7, 4).title

    def test_cover_what_they_promise(self) -> None:
        cases = [make_case(k, 1) for k in range(200)]
        text = " ".join(case.title for case in cases)
        for words in (
            "flat",
            "exponential",
            "kernel",
            "rows drawn",
            "zeros in",
            "permuted",
            "1e-310",
            "1e38",
            "moment",
        ):
            assert words in text
        assert {case.storage for case in cases} == set(random_cases.STORAGES)
        assert min(min(case.w.shape) for case in cases) <= 2 < 200 < max(max(case.w.shape) for case in cases)
        assert all(random_cases.TIGHTEST <= case.tol <= random_cases.LOOSEST for case in cases)
        assert all(np.isfinite(case.w).all() and np.abs(case.w).max() <= 1.1e38 for case in cases)

    def test_second_moments_are_symmetric_and_some_are_singular(self) -> None:
        moments = [case.c for case in (make_case(k, 1) for k in range(100)) if case.c is not None]
        assert all(np.array_equal(c, c.T) for c in moments)
        assert any(np.linalg.matrix_rank(c) < len(c) for c in moments)


class TestMeasuredError:
    def test_is_the_frobenius_error(self) -> None:
        w, other = np.random.default_rng(0).standard_normal((2, 6, 5))
        h = hrt.HMatrix.from_dense(torch.from_numpy(other), torch.float64)
        expected = np.linalg.norm(w - other) / np.linalg.norm(w)
        assert relative_error(case_of(w), h) == pytest.approx(expected, rel=1e-12)

    def test_is_the_mean_square_over_the_data(self) -> None:
        rng = np.random.default_rng(0)
        w, other = rng.standard_normal((2, 6, 5))
        x = rng.standard_normal((3, 5))  # fewer rows than features: singular
        h = hrt.HMatrix.from_dense(torch.from_numpy(other), torch.float64)
        expected = np.linalg.norm(x @ (w - other).T) / np.linalg.norm(x @ w.T)
        assert relative_error(case_of(w, x.T @ x / 3), h) == pytest.approx(expected, rel=1e-7)

    def test_zero_over_zero_is_zero(self) -> None:
        h = hrt.HMatrix.from_dense(torch.zeros(2, 3))
        assert relative_error(case_of(np.zeros((2, 3))), h) == 0
        assert relative_error(case_of(np.ones((2, 3)), np.zeros((3, 3))), h) == 0


class Broken:
    """A `compress_matrix` that answers as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer) -> None:
        monkeypatch.setattr(hrt, "compress_matrix", lambda w, **options: answer(w, **options))


class TestBrokenPromises:
    def test_error_above_tol(self, monkeypatch: pytest.MonkeyPatch) -> None:
        Broken(monkeypatch, lambda w, **options: hrt.HMatrix.from_dense(torch.from_numpy(1.2 * w)))
        (fault,) = check(case_of(np.ones((4, 4)))).faults
        assert "error 0.2 above tol 0.1" in fault

    def test_larger_than_dense(self, monkeypatch: pytest.MonkeyPatch) -> None:
        Broken(monkeypatch, lambda w, **options: hrt.HMatrix.from_dense(torch.from_numpy(w), torch.float64))
        (fault,) = check(case_of(np.ones((4, 4)))).faults
        assert "128 bytes, dense float32 64" in fault

    def test_any_other_exception(self, monkeypatch: pytest.MonkeyPatch) -> None:
        Broken(monkeypatch, lambda w, **options: np.linalg.inv(np.zeros((2, 2))))
        (fault,) = check(case_of(np.ones((4, 4)))).faults
        assert "LinAlgError" in fault

    def test_refused_without_need(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(w, **options):
            raise ToleranceError("no")

        Broken(monkeypatch, refuse)
        (fault,) = check(case_of(np.ones((4, 4)))).faults
        assert "refused" in fault
        assert check(case_of(np.full((4, 4), 1e-45 / 3))).faults == ()  # float32 itself cannot hold it

    def test_more_bytes_for_a_looser_tolerance(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def grow(w, *, tol: float, **options):
            wide = torch.float64 if tol > 0.1 else torch.float32
            return hrt.HMatrix.from_dense(torch.from_numpy(w), wide)

        Broken(monkeypatch, grow)
        (fault,) = ladder(case_of(np.ones((4, 4))))
        assert fault == "64 bytes at tol 1e-06 but 128 at the looser 0.3"

    def test_more_bytes_for_a_wider_choice_of_storage(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def narrow(w, *, storage: str, **options):
            return hrt.HMatrix.from_dense(torch.from_numpy(w), torch.float16 if storage == "float16" else torch.float32)

        Broken(monkeypatch, narrow)
        assert storages(case_of(np.ones((4, 4)))) == ("storage auto needs 64 bytes, float16 alone 32",)


class TestCommand:
    def test_prints_a_summary(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--count", "3", "--ladder-every", "100"]) == 0
        assert "3 cases, seed 0" in capsys.readouterr().out

    def test_names_the_command_that_repeats_a_failure(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Broken(monkeypatch, lambda w, **options: hrt.HMatrix.from_dense(torch.from_numpy(3.0 * w)))
        assert main(["--only", "5", "--seed", "2"]) == 1
        assert "python -m hrt.perf.studies.random_cases --seed 2 --only 5" in capsys.readouterr().out
