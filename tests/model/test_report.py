"""The report: every layer with its reason, losses like wins, and every figure under its own kind."""

import subprocess
import sys

import pytest
import torch

import hrt
from hrt.errors import printable
from hrt.hmatrix.hmatrix import HMatrix
from hrt.model.artifact import file_nbytes
from hrt.model.model import CompressedModel

from helpers import random_hmatrix
from models import linear_program, mixed_model, record

WIDTH = 100


def report(*records, kind="layers", measured=None, estimated=None, context=None, weight=None, **options) -> str:
    verbose = options.pop("verbose", False)
    weight = HMatrix.from_dense(torch.ones(4, 4)) if weight is None else weight
    certificate = hrt.Certificate(1e-3, kind, records, measured or {}, estimated or {}, {}, context or {})
    return CompressedModel(linear_program(weight), certificate, **options).report(verbose=verbose)


def lines_with(text: str, word: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(word)]


OUTPUT = {
    "kind": "output",
    "measured": {"output_error": 1.1e-4, "runtime_error": 1.2e-4, "per_output": [1e-5, 3e-4]},
    "estimated": {"output_error_upper_99": 1.3e-4},
    "context": {"held_out_rows": 512, "remarks": ["only 50 calibration rows"]},
}


class TestFigures:
    def test_measured_estimated_and_asked_stand_on_lines_of_their_own(self):
        text = report(**OUTPUT)
        assert any("1.20e-04" in line and "512" in line for line in lines_with(text, "measured:"))
        assert any("1.10e-04" in line for line in lines_with(text, "measured:"))
        assert lines_with(text, "estimated:") and all("1.30e-04" in line for line in lines_with(text, "estimated:"))
        assert lines_with(text, "measured per output:") == ["measured per output: 1.00e-05 to 3.00e-04"]
        (verdict,) = lines_with(text, "verdict:")
        assert verdict == text.splitlines()[0] and "held; the output is off by 1.20e-04" in verdict
        assert "asked: relative L2 error of at most 0.001" in verdict
        assert "remark: only 50 calibration rows" in text

    def test_guaranteed_and_measured_are_not_mixed_without_inputs(self):
        text = report(record("w", HMatrix.from_dense(torch.ones(4, 4)), frobenius=7e-4))
        assert lines_with(text, "guaranteed:") == ["guaranteed: every weight within 0.001 in relative Frobenius norm"]
        (measured,) = lines_with(text, "measured:")
        assert "7.00e-04" in measured and "not measured: no inputs were given" in text

    @pytest.mark.parametrize("missing", ["output_error", "runtime_error", "per_output"])
    def test_a_certificate_need_not_hold_every_figure_nor_finite_ones(self, missing):
        measured = {k: float("inf") for k in OUTPUT["measured"] if k not in (missing, "per_output")}
        text = report(**{**OUTPUT, "measured": measured, "estimated": {}, "context": {}})
        assert "asked:" in text and "measured: inf" in text

    @pytest.mark.parametrize(
        "error, limit, verdict",
        [
            (1e-3, 1e-3, "held;"),
            (9e-4, 1.1e-3, "held on the rows held out, not at 99 % confidence;"),
            (1.1e-3, 1.2e-3, "NOT held;"),
            (float("inf"), float("inf"), "NOT held;"),
            (float("nan"), float("nan"), "NOT held;"),
        ],
    )
    def test_the_verdict_is_what_the_figures_say(self, error, limit, verdict):
        figures = {"measured": {"runtime_error": error}, "estimated": {"output_error_upper_99": limit}}
        assert report(kind="output", **figures).startswith(f"verdict: {verdict}")

    def test_output_columns_over_tol_are_named_in_the_head(self):
        weight = HMatrix.from_dense(torch.ones(4, 4))
        measured = {"runtime_error": 1e-4, "per_output": [2e-3, 1e-4, float("inf"), 0.25], "output_rms": [1, 1, 0, 1]}
        text = report(record("w", weight), kind="output", measured=measured)
        (line,) = lines_with(text, "over tol")
        assert line.endswith("2 of 4 output columns: y[3] 2.50e-01, y[0] 2.00e-03")
        assert text.index(line) < text.index("layer")
        fine = report(kind="output", measured={**measured, "per_output": [1e-3] * 4})
        assert not lines_with(fine, "over tol")

    def test_stored_file_and_resident_stand_side_by_side_before_the_layers(self):
        h = random_hmatrix(0, 20, 20)
        program = linear_program(h, torch.zeros(20))
        certificate = hrt.Certificate(1e-3, "layers", (record("w", h),))
        model = CompressedModel(program, certificate, dense_nbytes=4 * 420, backend="torch")
        text, stored = model.report(), h.nbytes + 80
        lines = text[: text.index("layer ")].splitlines()
        assert f"stored: {stored:,} bytes, {1680 / stored:.2f}x smaller than dense float32 (1,680 bytes)" in lines
        assert f"file: {file_nbytes(model):,} bytes" in lines
        assert lines_with(text, "besides") == ["besides the layers: 80 bytes of biases and other constants"]
        more = ", more than dense" if model.session.resident_bytes > 1680 else ""
        assert f"resident: {model.session.resident_bytes:,} bytes in torch{more}" in lines

    def test_speed_is_marked_as_predicted(self):
        text = report(weight=random_hmatrix(0, 60, 60))
        (line,) = lines_with(text, "speed")
        assert line.startswith("speed, predicted") and "dense" in text[text.index(line) :][:200]

    def test_a_model_that_did_not_shrink_says_so(self):
        h = HMatrix.from_dense(torch.ones(4, 4))
        text = report(record("w", h, reason="no smaller form stays within tol"), weight=h, dense_nbytes=64)
        assert "not smaller" in text and "no gain on 1 of 1 layers" in text and "no smaller form stays" in text


class TestTable:
    def test_every_layer_is_there_with_its_reason_and_errors(self):
        h = random_hmatrix(0, 30, 20)
        records = [record(f"net.{k}", h, reason=f"reason {k}", frobenius=k * 1e-3, weighted=2e-2) for k in range(9)]
        text = report(*records)
        for k in range(9):
            (row,) = [line for line in text.splitlines() if f"net.{k} " in line]
            assert f"reason {k}" in row and "30 x 20" in row and "2.0e-02" in row
        more = report(*records, verbose=True).removeprefix(text)
        for k in range(9):
            (row,) = [line for line in more.splitlines() if f"net.{k} " in line]
            assert f"{k * 1e-3:.1e}" in row and "2.0e-02" in row

    def test_without_inputs_there_is_no_weighted_error_and_without_entries_no_error(self):
        text = report(record("net.0", random_hmatrix(0, 9, 9)), verbose=True)
        first, second = [line for line in text.splitlines() if "net.0" in line]
        assert "1.0e-04 F" in first and " - " in second and "0 x 5" in report(record("empty", HMatrix((0, 5), ())))

    @pytest.mark.parametrize(
        "name", ["w", "a." * 60 + "weight", "[bold]x[/bold]", "blocks[0]", ":smile:", "雪" * 30, ""]
    )
    def test_fits_the_width_and_loses_nothing(self, name):
        layer = record(name, random_hmatrix(0, 3000, 7), structure="H 382 leaves, " * 5, reason="because " * 20)
        assert all(len(line) <= WIDTH for line in report(layer, **OUTPUT, verbose=True).splitlines())
        text = report(layer)
        table = [line for line in text.splitlines() if line[:1] in "┏┃┡│└"]
        assert len(table) >= 5 and all(len(line) <= WIDTH for line in table)
        cells = "".join(line.split("│")[1].strip() for line in table if line.startswith("│"))
        assert cells == name
        assert text.count("because") == 20 and "…" not in text

    def test_what_a_stranger_wrote_cannot_move_the_cursor(self):
        evil = "a\x1b[2J\nb\r\x9bc\u202ed"
        layer = record(evil, random_hmatrix(0, 9, 9), structure=evil, reason=evil)
        text = report(layer, **{**OUTPUT, "context": {"remarks": [evil], "no_ntk_drift": evil}}, verbose=True)
        assert printable(text.replace("\n", "")) == text.replace("\n", "") and "\\x1b[2J" in text
        assert f"remark: {printable(evil)}" in text.splitlines()

    @pytest.mark.parametrize(
        "variable, value", [("FORCE_COLOR", "1"), ("COLUMNS", "40"), ("TERM", "dumb"), ("NO_COLOR", "1")]
    )
    def test_is_plain_text_in_any_environment(self, variable, value, monkeypatch):
        expected = mixed_model().report()
        monkeypatch.setenv(variable, value)
        assert mixed_model().report() == expected and "\x1b" not in expected


def test_a_report_leaves_random_numbers_alone():
    """In a process of its own: rich draws one when it is imported."""
    code = (
        "import random, numpy, torch, hrt\n"
        "model = hrt.compress(torch.nn.Linear(3, 2), progress=False)\n"
        "state = lambda: (random.getstate(), numpy.random.get_state()[1].tobytes(), torch.get_rng_state().tolist())\n"
        "before = state()\n"
        "model.report(verbose=True)\n"
        "assert state() == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
