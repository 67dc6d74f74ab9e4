"""Layer records: every figure against its definition, each kind in a field of its own."""

import pytest
import torch

import hrt
from hrt.certificate import norms
from hrt.certificate.certificate import Certificate
from hrt.certificate.layer_records import block_errors, describe, layer_record, reason
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.model.model import CompressedModel

from models import linear_program


def pair(m: int = 40, n: int = 30, tol: float = 1e-2):
    g = torch.Generator().manual_seed(0)
    w = torch.randn(m, n, generator=g, dtype=torch.float64) * 2.0 ** -torch.arange(n, dtype=torch.float64)
    return w, hrt.compress_matrix(w, tol=tol, storage="auto")


def record(name, w, h, second, tol):
    """The record of `w`, which became `h`: an H-matrix or a plain matrix."""
    h = HMatrix.from_dense(h) if isinstance(h, torch.Tensor) else h
    return layer_record(name, w, (h, h.to_dense()), second, tol)


def norm2(a) -> float:
    return float(torch.linalg.matrix_norm(a, 2))


class TestFigures:
    def test_small_matrices_are_measured(self):
        w, h = pair()
        r, e = record("w", w, h, None, 1e-2), w - h.to_dense()
        assert r.frobenius == pytest.approx(float(e.norm() / w.norm())) and r.weighted is None
        assert r.spectral == pytest.approx(norm2(e) / norm2(w), rel=1e-9)
        assert r.spectral_estimate is None and r.spectral_upper is None
        assert r.spectral <= r.spectral_bound <= r.spectral * (1 + 1e-9) + 1e-12
        assert r.condition == pytest.approx(float(torch.linalg.cond(w)), rel=1e-5)

    def test_large_matrices_are_estimated_and_still_guaranteed(self, monkeypatch):
        w, h = pair(tol=1e-1)
        exact = record("w", w, h, None, 1e-1)
        monkeypatch.setattr(norms, "EXACT_SIDE", 8)
        r = record("w", w, h, None, 1e-1)
        assert r.spectral is None and r.condition is None and r.condition_compressed is None
        assert r.condition_note == "not computed for 40 x 30"
        assert r.spectral_estimate == pytest.approx(exact.spectral, rel=2e-2)
        assert exact.spectral <= r.spectral_upper * (1 + 1e-9) and exact.spectral <= r.spectral_bound
        assert r.spectral_bound == pytest.approx(float((w - h.to_dense()).norm()) / norm2(w), rel=1e-2)
        assert [s.name for s in r.statements] == ["Frobenius"]

    def test_rank_deficiency_is_said_in_words(self):
        w = pair()[0] + 0.1 * torch.eye(40, 30, dtype=torch.float64)
        u = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
        r = record("w", w, HMatrix((40, 30), (Leaf(0, 40, 0, 30, u=u, vt=u[:30].T.contiguous()),)), None, 1e-2)
        assert r.condition is not None and r.condition_compressed is None
        assert r.condition_note == "H is rank-deficient (3 of 30): its condition number is infinite"

    def test_with_inputs_the_weighted_error_is_measured(self):
        w, h = pair()
        c = torch.diag(torch.arange(30, dtype=torch.float64))
        r, e = record("w", w, h, c, 1e-2), w - h.to_dense()
        assert r.weighted == pytest.approx((float((e @ c * e).sum()) / float((w @ c * w).sum())) ** 0.5)
        assert r.statements[0].remark == "sum of blocks" and r.statements[2].remark == "rms over the inputs seen"

    def test_every_statement_is_there_and_none_is_violated(self):
        r = record("w", *pair(), None, 1e-2)
        names = ["Frobenius", "singular values", "product", "condition (paper)", "condition (Weyl)"]
        assert [s.name for s in r.statements] == names
        assert all(s.verdict in ("holds", "vacuous") for s in r.statements)
        assert r.statements[0].bound == pytest.approx(1e-2 * float(pair()[0].norm()))

    def test_an_unchanged_matrix_is_off_by_nothing(self):
        w = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
        r = record("w", w.double(), w, None, 1e-3)
        assert r.frobenius == r.spectral == r.spectral_bound == 0 and r.condition == r.condition_compressed

    @pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
    def test_of_nothing(self, shape):
        r = record("w", torch.zeros(shape, dtype=torch.float64), HMatrix(shape, ()), None, 1e-3)
        assert (r.frobenius, r.spectral_estimate, r.spectral_bound, r.nbytes) == (0, 0, 0, 0)

    def test_of_zeros(self):
        r = record("w", torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, 4), None, 1e-3)
        assert r.spectral == 0 and r.condition is None and "W is rank-deficient (0 of 4)" in r.condition_note


class TestReport:
    """The figures as a reader sees them."""

    def text(self, *records) -> list[str]:
        program = linear_program(torch.ones(2, 2))
        return CompressedModel(program, Certificate(1e-3, "layers", records)).report(verbose=True).splitlines()

    def test_says_what_holds_and_what_is_infinite_within_the_width(self):
        w, h = pair()
        low = HMatrix((40, 30), (Leaf(0, 40, 0, 30, u=torch.ones(40, 1), vt=torch.ones(1, 30)),))
        second = record("b", torch.eye(40, 30).double(), low, None, 1e-2)
        lines = self.text(record("first." * 9, w, h, None, 1e-2), second)
        assert all(len(line) <= 100 for line in lines if line[:1] in "┏┃┡│└")
        _, errors, verdicts = [line for line in lines if line.startswith("│ b ")]
        assert errors.count("∞") == 1 and "vacuous" in verdicts
        assert "violated" in verdicts, "a rank of 1 misses the tolerance in Frobenius norm"

    def test_marks_estimates(self, monkeypatch):
        w, h = pair(tol=1e-1)
        measured = record("w", w, h, None, 1e-1)
        monkeypatch.setattr(norms, "EXACT_SIDE", 8)
        estimated = record("w", w, h, None, 1e-1)
        errors = [[line for line in self.text(r) if line.startswith("│ w ")][1] for r in (measured, estimated)]
        assert f" {measured.spectral:.1e}" in errors[0] and "~" not in errors[0]
        assert f"~{estimated.spectral_estimate:.1e}" in errors[1]


def test_block_errors_add_leaves_over_one_block():
    u, v = torch.ones(3, 1), torch.ones(1, 2)
    h = HMatrix((3, 2), (Leaf(0, 3, 0, 2, u=u, vt=v), Leaf(0, 3, 0, 2, u=2 * u, vt=v)))
    assert block_errors(torch.full((3, 2), 3.0, dtype=torch.float64), h) == [0.0]


@pytest.mark.parametrize(
    ("h", "words", "why"),
    [
        (HMatrix.from_dense(torch.ones(3, 3)), "dense float32", "no smaller form"),
        (HMatrix.from_dense(torch.ones(3, 3), torch.float16), "dense float16", "low rank does not pay"),
        (HMatrix((3, 3), (Leaf(0, 3, 0, 3, u=torch.ones(3, 1), vt=torch.ones(1, 3)),)), "rank 1 float32", "globally"),
        (HMatrix((0, 3), ()), "dense empty", "no smaller form"),
    ],
)
def test_structures_and_reasons_in_words(h, words, why):
    assert describe(h) == words and reason(h, 1e-3, False).startswith(why)
