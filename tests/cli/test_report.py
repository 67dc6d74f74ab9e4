"""`hrt report`: the report as text, or as a page that is written whole or not at all."""

from pathlib import Path

import pytest

import hrt
from hrt.cli.main import main

from models import mixed_model


class TestText:
    def test_is_the_models_report(self, lab, capsys):
        mixed_model().save("m.hrt")
        model = hrt.load("m.hrt")
        assert main(["report", "m.hrt"]) == 0 and capsys.readouterr().out == model.report().rstrip() + "\n"
        assert main(["report", "m.hrt", "--verbose"]) == 0
        assert capsys.readouterr().out == model.report(verbose=True).rstrip() + "\n"


class TestPage:
    def test_is_written_with_the_figures_of_the_file(self, lab, capsys):
        mixed_model().save("m.hrt")
        assert main(["report", "m.hrt", "--html", "m.html"]) == 0
        text, model = Path("m.html").read_text("utf-8"), hrt.load("m.hrt")
        assert capsys.readouterr().out == f"wrote m.html: {len(text.encode()):,} bytes\n"
        assert f"{Path('m.hrt').stat().st_size:,} bytes" in text and f"{model.nbytes:,} bytes" in text
        assert f"{model.certificate.estimated['output_error_upper_99']:.2e}" in text and "Made by hand" in text
        assert f"{model.session.resident_bytes:,} bytes" in text and "<title>m.hrt" in text

    def test_times_it_here_on_request(self, lab, monkeypatch):
        monkeypatch.setattr("hrt.cli.report.ROUNDS", 1)
        monkeypatch.setattr("hrt.perf.measuring.bursts.LONG_S", 0.0)
        assert main(["report", "net.hrt", "--html", "n.html", "--measure"]) == 0
        text = Path("n.html").read_text("utf-8")
        assert "1 row, measured here" in text and "<h3>Measured</h3>" in text and "<h3>Predicted</h3>" in text

    def test_what_is_there_stays(self, lab, mistake):
        Path("there.html").write_text("a")
        assert "--force" in mistake("report", "net.hrt", "--html", "there.html")
        assert main(["report", "net.hrt", "--html", "there.html", "--force"]) == 0
        assert Path("there.html").read_text("utf-8").startswith("<!DOCTYPE html>")

    def test_a_page_is_named_like_one(self, lab, capsys):
        assert main(["report", "net.hrt", "--html", "page.pdf"]) == 0
        assert capsys.readouterr().err.startswith("hrt: page.pdf ends with .pdf")

    @pytest.mark.parametrize(
        "arguments, words",
        [
            (["no.hrt"], "no.hrt cannot be read"),
            (["no.hrt", "--html", "p.html"], "no.hrt cannot be read"),
            (["x.npy", "--html", "p.html"], "not a usable .hrt file"),
            (["net.hrt", "--html", "no/p.html"], "does not exist"),
            (["net.hrt", "--html", "."], "folder"),
            (["net.hrt", "--measure"], "--html"),
        ],
    )
    def test_a_mistake(self, arguments, words, lab, mistake):
        assert words in mistake("report", *arguments)
