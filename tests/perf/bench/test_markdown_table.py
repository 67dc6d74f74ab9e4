"""The README's table: ranks, who is first, why, and what was not measured."""

from dataclasses import replace

import pytest

from hrt.perf.bench.markdown_table import main, reasons, table
from hrt.perf.measuring.results import FAILED, MISSING, NOISY, Results, Row


def row(method: str, nbytes: int, p50: float, ratio: float | None, batch: int = 1, **changes) -> Row:
    known = {"error": 5e-4, "nbytes": nbytes, "p50_us": p50, "ratio_vs_best_dense": ratio}
    around = {} if ratio is None else {"ratio_low": ratio * 0.9, "ratio_high": ratio * 1.1}
    return Row("net", method, batch, "b", 1e-3, **{**known, **around, **changes})


DENSE = [row("dense float32", 4000, 20.0, 1.0), row("dense float32", 4000, 200.0, 1.0, 256)]


def results(*rows: Row, why=()) -> Results:
    return Results((*DENSE, *rows), {"why": list(why)})


class TestTable:
    def test_a_win_and_a_loss(self):
        text = table(
            results(row("hrt", 400, 10.0, 2.0), row("hrt", 400, 300.0, 0.67, 256), row("svd", 900, 100.0, 2.0, 256))
        )
        line = text.splitlines()[2]
        assert line.startswith(
            "| net | 1e-3 | 10.0x, 1 of 2 | 2.00x (1.80 to 2.20), 1 of 2 | 0.67x (0.60 to 0.74), 3 of 3"
        )
        assert line.endswith("first: svd |")

    def test_noise_gets_no_ratio(self):
        assert "too noisy to compare" in table(results(row("hrt", 400, 10.0, None, status=NOISY)))

    def test_who_keeps_no_error_has_no_place(self):
        line = table(results(row("hrt", 400, 10.0, 2.0, error=2e-3))).splitlines()[2]
        assert line == "| net | 1e-3 | - | - | - |"

    @pytest.mark.parametrize(
        "target, said", [(1e-3, "1e-3"), (1.4e-3, "1.4e-3"), (0.015, "1.5e-2"), (0.5, "5e-1"), (1e-10, "1e-10")]
    )
    def test_errors_keep_every_digit(self, target, said):
        line = table(Results(tuple(replace(r, target=target) for r in DENSE))).splitlines()[2]
        assert line.startswith(f"| net | {said} |")

    def test_errors_that_differ_in_a_later_digit_stay_apart(self):
        rows = [replace(DENSE[0], target=t) for t in (1e-3, 1.4e-3)]
        assert [line.split(" | ")[1] for line in table(Results(tuple(rows))).splitlines()[2:]] == ["1.4e-3", "1e-3"]


def test_reasons_are_those_of_the_file_and_absent_networks():
    why = [{"workload": "net", "batch": 1, "target": 1e-3, "line": "time: dense is faster"}]
    absent = Row("other", "dense float32", 1, "-", 1e-3, MISSING, note="pip install it")
    said = reasons(results(row("hrt", 400, 10.0, 2.0), absent, why=why))
    assert said == ["net, 0.001, batch 1: time: dense is faster", "other: not measured: pip install it"]


def test_a_result_without_hrt_was_measured_all_the_same():
    (said,) = reasons(Results((*DENSE, row("svd", 900, 100.0, 2.0, note="n"))))
    assert said == "net: measured without hrt, which is not among the methods of this result"


def test_a_network_of_which_nothing_could_be_measured_says_why():
    failed = [Row("net", m, 1, "-", 1e-3, FAILED, note=n) for m, n in (("dense float32", ""), ("hrt", "no memory"))]
    assert reasons(Results(tuple(failed))) == ["net: not measured: no memory"]


class TestCommand:
    def test_prints_the_table_or_the_reasons(self, tmp_path, capsys):
        results(row("hrt", 400, 10.0, 2.0)).write(tmp_path / "r.json")
        assert main([str(tmp_path / "r.json")]) == 0 and "10.0x" in capsys.readouterr().out
        assert main([str(tmp_path / "r.json"), "--why"]) == 0

    @pytest.mark.parametrize("text", ["", "{}", "[1]"])
    def test_another_file_is_a_mistake(self, text, tmp_path, capsys):
        (tmp_path / "r.json").write_text(text)
        assert main([str(tmp_path / "r.json")]) == 2 and "r.json" in capsys.readouterr().err

    def test_a_real_time_result_is_sent_to_its_own_report(self, tmp_path, capsys):
        clocked = Row("net, open loop at 100/s", "hrt", 1, "auto", 0.0, p50_us=12.0)
        Results((clocked,), {"realtime": []}).write(tmp_path / "r.json")
        assert main([str(tmp_path / "r.json")]) == 2
        said = capsys.readouterr()
        assert "r.json" in said.err and "python -m hrt.perf.bench.html_report" in said.err and not said.out

    @pytest.mark.parametrize(
        "facts, named",
        [
            ({"threads": 2, "machine": {"processor": "A"}}, "threads: 1, 2"),
            ({"threads": 1, "machine": {"processor": "B"}}, "processor: A, B"),
        ],
    )
    def test_files_of_different_machines_are_not_merged(self, facts, named, tmp_path, capsys):
        paths = [str(tmp_path / name) for name in ("a.json", "b.json")]
        for path, known in zip(paths, ({"threads": 1, "machine": {"processor": "A"}}, facts), strict=True):
            Results(tuple(DENSE), known).write(path)
        assert main([paths[0], paths[0]]) == 0
        capsys.readouterr()
        assert main(paths) == 2
        assert named in capsys.readouterr().err
