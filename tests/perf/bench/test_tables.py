"""Places among methods, and the tables made of them: the README's, the terminal's; what is worth tracking."""

import io
from dataclasses import replace

import pytest
from bench_cases import row
from rich.console import Console

from hrt.perf.bench.ranking import front, latency, nbytes, standing
from hrt.perf.bench.tables import methods, overview, reasons, show, summary, verdict
from hrt.perf.measuring.results import FAILED, MISSING, NOISY, UNREACHABLE, Results, Row, read

DENSE = [row("dense float32", 4000, 20.0, 1.0), row("dense float32", 4000, 200.0, 1.0, batch=256)]


def results(*rows: Row, why=()) -> Results:
    return Results((*DENSE, *rows), {"why": list(why)})


class TestStanding:
    def test_rounds_count_more_than_medians(self):
        quiet, unlucky = row("dense", 9, 6.5, 1.0, noise=0.02), row("hrt", 1, 9.7, 1.05, noise=0.02)
        assert standing([quiet, unlucky], latency).place == 1
        bare = replace(quiet, ratio_vs_best_dense=None)
        assert standing([bare, unlucky], latency).place == 2

    def test_times_within_noise_share_a_place(self):
        rows = [row("dense", 9, 10.0, noise=0.05), row("hrt", 1, 10.4, noise=0.05), row("svd", 5, 11.5, noise=0.05)]
        s = standing(rows, latency)
        assert (s.place, s.of, s.shared, s.text, s.even) == (1, 3, 1, "1 of 3, with another", True)
        clear = standing([replace(r, noise=0.0) for r in rows], latency)
        assert (clear.place, clear.shared) == (2, 0)

    def test_the_best_execution_counts_and_is_named(self):
        rows = [row("dense", 100, 9.0), row("dense", 100, 5.0), row("hrt", 40, 7.0), row("svd", 60, 8.0)]
        s = standing(rows, latency)
        assert (s.place, s.of, s.best.method, s.won) == (2, 3, "dense", False) and s.ratio == pytest.approx(5 / 7)
        assert standing(rows, nbytes).won

    def test_who_misses_the_error_or_was_not_measured_is_not_ranked(self):
        rows = [row("dense", 100, 9.0), row("quantized", 10, 1.0, error=0.5), row("svd", 5), row("hrt", 40, 7.0)]
        rows += [row("pruned", status=UNREACHABLE)]
        assert standing(rows, latency).place == 1 and standing(rows, latency).of == 2

    def test_equals_share_a_place(self):
        s = standing([row("dense", 1, 30.0), row("hrt", 1, 30.0)], nbytes)
        assert (s.place, s.of, s.ratio, s.shared, s.won) == (1, 2, 1.0, 1, True)

    def test_without_hrt_or_without_others(self):
        assert standing([row("dense", 1, 1.0)], nbytes).place is None
        s = standing([row("hrt", status=UNREACHABLE), row("dense", 1, 1.0)], latency)
        assert s.place is None and s.ratio is None
        s = standing([row("hrt", 1, 1.0)], latency)
        assert s.place == 1 and s.ratio is None

    def test_other_settings_of_hrt_do_not_count_beside_hrt(self):
        rows = [row("hrt", 9, 1.0), row("hrt, fewest bytes", 5, 1.0), row("dense", 20, 1.0)]
        assert standing(rows, nbytes).ours is rows[0] and standing(rows[1:], nbytes).ours is rows[1]

    def test_noise_is_neither_won_nor_lost(self):
        rows = [row("dense", 9, 30.0), row("hrt", 3, 20.0, status=NOISY)]
        s = standing(rows, latency)
        assert (s.place, s.noisy, s.won) == (1, True, False) and standing(rows, nbytes).won
        assert "too noisy" in verdict(Results(tuple(rows)), rows)[0]


def test_where_hrt_keeps_no_error_the_reason_stands_beside_the_table():
    rows = [row("dense", 9, 30.0), replace(row("hrt", status=UNREACHABLE), note="3 rows are too few")]
    assert verdict(Results(tuple(rows)), rows) == ["hrt: no row that keeps the error: 3 rows are too few"]


def test_a_front_is_undercut_by_nothing():
    rows = [row(nbytes=n, error=e) for n, e in ((10, 1e-2), (20, 1e-3), (20, 2e-3), (30, 1e-3), (40, 1e-5))]
    rows += [row(nbytes=5, error=None), row(), row(nbytes=1, status=FAILED)]
    assert [(r.nbytes, r.error) for r in front(rows, nbytes)] == [(10, 1e-2), (20, 1e-3), (40, 1e-5)]


class TestOverview:
    def line(self, *rows: Row) -> str:
        return overview(results(*rows)).markdown().splitlines()[2]

    def test_a_win_and_a_loss(self):
        slow = row("hrt", 400, 300.0, 0.67, batch=256), row("svd", 900, 100.0, 2.0, batch=256)
        line = self.line(row("hrt", 400, 10.0, 2.0), *slow)
        won = "| net | 1e-3 | 10.0x, 1 of 2 | 2.00x (1.80 to 2.20), 1 of 2 | "
        assert line == won + "0.67x (0.60 to 0.74), 3 of 3, first: svd |"
        cells = overview(results(row("hrt", 400, 10.0, 2.0), *slow)).rows[0]
        assert [c.style for c in cells] == ["", "", "won", "won", "lost"]
        assert cells[-1].remark == "2.99x slower than the best other"

    def test_noise_gets_no_ratio_and_a_missed_error_no_place(self):
        assert "too noisy to compare" in self.line(row("hrt", 400, 10.0, status=NOISY))
        assert self.line(row("hrt", 400, 10.0, 2.0, error=2e-3)) == "| net | 1e-3 | - | - | - |"

    @pytest.mark.parametrize(
        "target, text", [(1e-3, "1e-3"), (1.4e-3, "1.4e-3"), (0.015, "1.5e-2"), (0.5, "5e-1"), (1e-10, "1e-10")]
    )
    def test_errors_keep_every_digit(self, target, text):
        table = overview(Results((replace(DENSE[0], target=target), replace(DENSE[0], target=0.9))))
        assert [r[1].text for r in table.rows] == ["9e-1", text]


def test_methods_stand_by_bytes_with_the_times_of_their_fastest_executions():
    """What misses the error is named last; an execution that misses it gives no time."""
    ours = (
        row("hrt", 400, 10.0, 2.0, backend="a"),
        row("hrt", 400, 7.0, 3.0, backend="b"),
        row("hrt", 400, 50.0, batch=256),
    )
    missed = row("svd", 900, 1.0, error=5e-2), row("svd", 900, 1.0, error=5e-2, batch=256)
    table = methods(results(*ours, *missed, row("pruned", status=UNREACHABLE)))
    assert table.markdown().splitlines()[2:] == [
        "| net | 1e-3 | hrt | 400 | 10.0x | 5.0e-04 | 7.0 | 50.0 |",
        "| net | 1e-3 | dense float32 | 4,000 | 1.0x | 5.0e-04 | 20.0 | 200.0 |",
        "| net | 1e-3 | svd | cannot reach | - | - | - | - |",
        "| net | 1e-3 | pruned | cannot reach | - | - | - | - |",
    ]


class TestReasons:
    def test_are_those_of_the_file_and_absent_networks(self):
        why = [{"workload": "net", "batch": 1, "target": 1e-3, "line": "time: dense is faster"}]
        absent = row("dense float32", workload="other", status=MISSING, note="pip install it")
        lines = reasons(results(row("hrt", 400, 10.0, 2.0), absent, why=why))
        assert lines == ["net, 0.001, batch 1: time: dense is faster", "other: not measured: pip install it"]

    def test_what_was_measured_without_hrt_or_not_at_all(self):
        (line,) = reasons(Results((*DENSE, row("svd", 900, 100.0, 2.0, note="n"))))
        assert line == "net: measured without hrt, which is not among the methods of this result"
        failed = [row(m, status=FAILED, note=n) for m, n in (("dense float32", ""), ("hrt", "no memory"))]
        assert reasons(Results(tuple(failed))) == ["net: not measured: no memory"]


def printed(found: Results, every: bool = False) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    show(found, console, every)
    return console.export_text()


def test_the_terminal_shows_losses_failures_and_what_holds_for_all():
    slow = row("svd", 900, 30.0, 0.5, note="ranks 3"), row("svd", 900, 90.0, 0.2, backend="other")
    facts = {"noise": {"net, batch 1": 0.03}, "interrupted": True, "about": {"net": "a net"}}
    found = Results((DENSE[0], *slow, row("pruned", status=UNREACHABLE, note="no sparsity does")), facts)
    text = printed(found)
    assert (
        "0.50x (0.45 to 0.55)" in text
        and "cannot reach: no sparsity does" in text
        and "net, error 0.001: a net" in text
    )
    assert "differs from itself by 3.0%" in text and "INTERRUPTED" in text
    assert "0.20x" not in text and "0.20x" in printed(found, every=True)


def test_a_summary_says_the_same_in_fewer_rows(tmp_path):
    """Slower executions and repeated refusals go; the table stays as it was, to the last digit."""
    rows = [
        r for b in (1, 256) for r in (row("hrt", 400, 10.0, 1.23456789, batch=b), row("hrt", 400, 99.0, 0.1, batch=b))
    ]
    refused = [row("svd", batch=b, backend="-", status=UNREACHABLE, note="no rank does") for b in (1, 256)]
    full = replace(results(*rows, *refused), samples={0: [1.0, 2.0]})
    summary(full).write(tmp_path / "s.json")
    read_back = read(tmp_path / "s.json")
    assert overview(read_back) == overview(full) and reasons(read_back) == reasons(full)
    assert len(read_back.rows) == 5 and not read_back.samples
    text = (tmp_path / "s.json").read_text().splitlines()
    assert sum('"method":"svd"' in line for line in text) == 1 and all(line.count('"method"') <= 1 for line in text)
