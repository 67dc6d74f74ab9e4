"""The large log kernel: built in strips, judged in strips, and its command line."""

import numpy as np
import pytest
import torch

import hrt
from hrt.perf.networks.operators import log_kernel
from hrt.perf.studies import large


@pytest.mark.parametrize("size", [1, 63, 64, 200])
def test_strips_give_the_same_matrix(size: int) -> None:
    np.testing.assert_allclose(large.log_kernel(size), log_kernel(size), rtol=1e-14)


def test_error_is_that_of_the_dense_matrices() -> None:
    w = log_kernel(150)
    h = hrt.compress_matrix(w, tol=1e-2)
    expected = np.linalg.norm(w - h.to_dense().numpy()) / np.linalg.norm(w)
    assert large.relative_error(w, h) == pytest.approx(expected, rel=1e-9)


def test_svd_is_timed_only_where_it_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    assert large.svd_seconds(log_kernel(50), "float32") > 0
    u, s, vt = torch.linalg.svd(torch.from_numpy(log_kernel(50)))
    monkeypatch.setattr(large.torch.linalg, "svd", lambda matrix, full_matrices: (u, 2 * s, vt))
    with pytest.raises(ArithmeticError, match="reproduces the matrix to 1 only"):
        large.svd_seconds(log_kernel(50), "float64")


def test_peak_grows_with_what_is_held() -> None:
    before = large.own_peak_bytes()
    held = np.ones(before // 8)  # as much again
    assert large.own_peak_bytes() >= before + 0.5 * held.nbytes


def test_command_prints_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "peak_bytes", lambda job, size, tol, threads: 2**30)
    assert large.main(["--size", "128", "--threads", "1"]) == 0
    text = capsys.readouterr().out
    assert "float64 SVD" in text or "SVD of the same matrix" in text
    assert large.main(["--size", "128", "--threads", "1", "--no-svd"]) == 0
    assert "not run" in capsys.readouterr().out


def test_broken_bound_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "peak_bytes", lambda job, size, tol, threads: 2**30)
    monkeypatch.setattr(hrt, "compress_matrix", lambda w, **options: hrt.HMatrix.from_dense(2 * torch.as_tensor(w)))
    assert large.main(["--size", "64", "--threads", "1", "--no-svd"]) == 1
    assert "BROKEN" in capsys.readouterr().out


def test_child_prints_its_peak(capsys: pytest.CaptureFixture[str]) -> None:
    assert large.main(["--size", "64", "--threads", "1", "--child", "build"]) == 0
    assert int(capsys.readouterr().out) > 2**20
