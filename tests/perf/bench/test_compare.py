"""Comparisons call what got slower, and nothing else: statistics over seeds, many rows at once."""

import io
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from hrt.errors import BackendError, InputError
from hrt.perf.__main__ import main as perf
from hrt.perf.bench import git_revisions as revisions
from hrt.perf.bench.compare import compare, show
from hrt.perf.measuring.results import FAILED, MISSING, NOISY, OK, UNREACHABLE, Results, Row

ROUNDS = 20


def result(
    seed, *, rows=40, dense=10, noise=0.03, drift=1.0, between=0.0, slow=None, nbytes=1000, rounds=ROUNDS, wander=0.0
):
    """A run in which row k takes 50 (k + 1) us. slow: factor by row.  between: how its rows differ from those of
    another run.  wander: the same of its dense rows.
    """
    rng = np.random.default_rng(seed)
    made, samples = [], {}
    for k in range(rows + dense):
        own = np.exp(rng.normal(0, between or 1e-12) + (rng.normal(0, wander) if k >= rows and wander else 0))
        values = 50 * (k + 1) * drift * own * np.exp(rng.normal(0, noise, rounds)) * (slow or {}).get(k, 1.0)
        samples[k] = values.tolist()
        method = "hrt" if k < rows else "dense, torch"
        made.append(Row("w", method, k + 1, "b", 1e-3, OK, 1e-4, nbytes, float(np.median(values))))
    return Results(tuple(made), {}, samples)


def main(arguments):
    return perf(["compare", *arguments])


def called(found):
    return [c.before.batch - 1 for c in found.regressions]


class TestStatistics:
    def test_a_slow_down_of_a_fifth_is_called_and_nothing_else(self):
        for seed in range(20):
            found = compare([result(seed)], [result(1000 + seed, slow={7: 1.2, 20: 1.2})])
            assert called(found) == [7, 20], seed

    @pytest.mark.parametrize("noise", [0.01, 0.1])
    def test_draws_of_one_distribution_are_no_regression_even_without_a_threshold(self, noise):
        alarms = 0
        for seed in range(40):
            sides = [result(k, rows=60, dense=0, noise=noise) for k in (2 * seed, 2 * seed + 1)]
            alarms += bool(compare([sides[0]], [sides[1]], threshold=0.0, draws=400).regressions)
        assert alarms <= 5  # 5 % of 40 are 2; 6 or more would be seen once in a hundred tries

    def test_heavy_tails_are_no_regression(self):
        rng = np.random.default_rng(0)
        alarms = 0
        for _ in range(30):
            a, b = result(1, dense=0), result(2, dense=0)
            sides = [
                Results(r.rows, {}, {k: np.exp(0.05 * abs(rng.standard_t(2, ROUNDS))) * 9 for k in r.samples})
                for r in (a, b)
            ]
            alarms += bool(compare([sides[0]], [sides[1]], threshold=0.0, draws=400).regressions)
        assert alarms <= 4

    def test_a_machine_that_became_slower_is_not_blamed_on_hrt(self):
        found = compare([result(1)], [result(2, drift=1.4)])
        assert not found.regressions and found.drift == pytest.approx(1.4, rel=0.03)
        assert called(compare([result(1)], [result(2, drift=1.4, slow={3: 1.25})])) == [3]

    def test_a_machine_whose_dense_rows_wander_judges_nothing(self):
        found = compare([result(1)], [result(2, wander=0.5, slow={3: 1.3})])
        assert found.noisy and not found.regressions

    def test_what_dense_rows_moved_by_raises_the_bar(self):
        slow = {45: 1.18, 3: 1.12}  # row 45 is dense, which no commit changes
        found = compare([result(1, noise=0.005)], [result(2, noise=0.005, slow=slow)])
        assert found.noise > 0.1 and not found.regressions

    def test_runs_that_differ_are_not_a_regression(self):
        alarms, hits = 0, 0
        for seed in range(8):
            runs = [[result(100 * seed + 10 * side + k, between=0.02) for k in range(5)] for side in (0, 1)]
            alarms += bool(compare(*runs, threshold=0.0, draws=300).regressions)
            slow = [result(100 * seed + 50 + k, between=0.02, slow={4: 1.2}) for k in range(5)]
            hits += called(compare(runs[0], slow, draws=300)) == [4]
        assert alarms <= 1 and hits >= 6

    def test_a_gain_is_no_regression(self):
        found = compare([result(1)], [result(2, slow={3: 0.5})])
        assert not found.regressions and found.changes[3].high is not None and found.changes[3].high < 0.6

    def test_methods_of_others_are_judged_only_if_asked(self):
        a, b = result(1, noise=0.01), result(2, noise=0.01, slow={45: 1.2})
        assert called(compare([a], [b])) == []
        assert called(compare([a], [b], judge_all=True)) == [45]


class TestRows:
    def one(self, method="hrt", status=OK, nbytes: int | None = 1000, samples=None, note="", batch=1):
        row = Row("w", method, batch, "b", 1e-3, status, 1e-4 if status == OK else None, nbytes, note=note)
        return Results((row,), {}, {0: samples} if samples is not None else {})

    def test_larger_is_a_regression(self):
        found = compare([self.one(nbytes=1000)], [self.one(nbytes=1100)])
        assert found.regressions[0].why == "larger"
        assert not compare([self.one(nbytes=1000)], [self.one(nbytes=1040)]).regressions

    @pytest.mark.parametrize("status, bad", [(FAILED, True), (UNREACHABLE, True), (MISSING, True), (NOISY, False)])
    def test_what_cannot_be_measured_any_more(self, status, bad):
        found = compare([self.one()], [self.one(status=status, nbytes=None, note="boom")])
        assert bool(found.regressions) == bad and status in found.changes[0].why
        assert not compare([self.one(method="svd")], [self.one(method="svd", status=status)]).regressions

    def test_a_failure_in_one_of_several_runs_counts(self):
        assert compare([self.one()], [self.one(), self.one(status=FAILED), self.one()]).regressions

    def test_a_failure_after_a_noisy_run_counts(self):
        assert compare([self.one()], [self.one(status=NOISY), self.one(status=FAILED)]).regressions

    @pytest.mark.parametrize("samples", [None, [], [1.0, 2.0], [float("nan")] * 20, [0.0] * 20])
    def test_rows_without_rounds_are_listed_and_not_timed(self, samples):
        found = compare([self.one(samples=[1.0] * 20)], [self.one(samples=samples)])
        assert found.changes[0].ratio is None and "not compared" in found.changes[0].why and not found.regressions

    def test_rows_of_one_side_are_listed(self):
        a = Results((self.one().rows[0], self.one(batch=2).rows[0]))
        b = Results((self.one().rows[0], self.one(batch=3).rows[0]))
        found = compare([a], [b])
        assert [r.batch for r in found.only_before] == [2] and [r.batch for r in found.only_after] == [3]
        console = Console(width=150, record=True, file=io.StringIO())
        show(found, console)
        said = console.export_text()
        assert "only before: w, hrt, batch 2" in said and "only after: w, hrt, batch 3" in said

    def test_nothing_in_common_is_refused(self):
        with pytest.raises(InputError, match="share no row"):
            compare([self.one()], [self.one(batch=2)])


class TestCommand:
    def write(self, folder: Path, name: str, made: Results) -> str:
        made.write(folder / name)
        return str(folder / name)

    def test_exit_status(self, tmp_path, capsys):
        a = self.write(tmp_path, "a.json", result(1))
        b = self.write(tmp_path, "b.json", result(2))
        c = self.write(tmp_path, "c.json", result(3, slow={5: 1.3}))
        assert main([a, b]) == 0 and "No regression" in capsys.readouterr().out
        assert main([a, c]) == 1 and "1 regression(s)" in capsys.readouterr().out
        assert main([a, c, "--threshold", "0.5"]) == 0
        assert main([a, a]) == 0

    def ended(self, folder: Path, capsys, before: Results, after: Results, *options: str) -> tuple[int, str]:
        """Exit status and what was printed."""
        status = main([self.write(folder, "a.json", before), self.write(folder, "b.json", after), *options])
        return status, capsys.readouterr().out

    def test_rows_of_hrt_that_vanished_are_a_regression(self, tmp_path, capsys):
        full = result(1, rows=5)
        gone = Results(full.rows[1:], {}, {k - 1: v for k, v in full.samples.items() if k})
        status, said = self.ended(tmp_path, capsys, full, gone)
        assert status == 1 and "only before: w, hrt, batch 1, b, 0.001 (lost" in said and "1 regression(s)" in said
        assert self.ended(tmp_path, capsys, gone, full)[0] == 0
        unmeasured = Results((replace(full.rows[0], status=FAILED), *full.rows[1:]), {}, full.samples)
        assert self.ended(tmp_path, capsys, unmeasured, gone)[0] == 0, "it was not there before either"

    def test_dense_rows_that_vanished_are_lost_only_if_asked_for(self, tmp_path, capsys):
        full = result(1, rows=5, dense=5)
        gone = Results(full.rows[:-1], {}, {k: v for k, v in full.samples.items() if k < 9})
        assert self.ended(tmp_path, capsys, full, gone)[0] == 0
        assert self.ended(tmp_path, capsys, full, gone, "--all")[0] == 1

    @pytest.mark.parametrize("status", [MISSING, FAILED, UNREACHABLE])
    def test_a_row_that_is_measured_no_more_is_a_regression(self, status, tmp_path, capsys):
        full = result(1, rows=5)
        after = Results((replace(full.rows[0], status=status), *full.rows[1:]), {}, full.samples)
        assert self.ended(tmp_path, capsys, full, after)[0] == 1

    def test_fewer_rounds_than_an_interval_needs_are_not_judged(self, tmp_path, capsys):
        status, said = self.ended(tmp_path, capsys, result(1, rows=12), result(1, rows=12, rounds=4))
        assert status == 3 and "Times of 12 row(s) not judged." in said and "No regression" not in said

    @pytest.mark.parametrize("row_status, ended", [(OK, 3), (NOISY, 0)])
    def test_only_rows_called_noisy_may_be_left_out(self, row_status, ended, tmp_path, capsys):
        full = result(1, rows=12)
        after = Results(
            (replace(full.rows[0], status=row_status), *full.rows[1:]), {}, {k: v for k, v in full.samples.items() if k}
        )
        status, said = self.ended(tmp_path, capsys, full, after)
        assert status == ended and "among 11 rows. Times of 1 row(s) not judged." in said

    def test_a_machine_that_wanders_is_not_judged(self, tmp_path, capsys):
        status, said = self.ended(tmp_path, capsys, result(1), result(2, wander=0.5))
        assert status == 3 and "TOO NOISY" in said and "Times of 40 row(s) not judged." in said
        assert "No regression" not in said

    def test_without_a_row_of_hrt_nothing_is_judged(self, tmp_path, capsys):
        status, said = self.ended(tmp_path, capsys, result(1, rows=0), result(2, rows=0))
        assert status == 3 and "not judged: no row" in said and "No regression" not in said

    @pytest.mark.parametrize(
        "facts, named",
        [
            ({"threads": 2, "machine": {"processor": "A"}}, "threads: 1, 2"),
            ({"threads": 1, "machine": {"processor": "B"}}, "processor: A, B"),
        ],
    )
    def test_another_machine_is_not_judged_but_for_bytes(self, facts, named, tmp_path, capsys):
        here = {"threads": 1, "machine": {"processor": "A"}}
        a, b, c = result(1), result(2, slow={5: 3.0}), result(2, nbytes=1200)
        assert self.ended(tmp_path, capsys, replace(a, facts=here), replace(a, facts=here))[0] == 0
        status, said = self.ended(tmp_path, capsys, replace(a, facts=here), replace(b, facts=facts))
        assert status == 3 and named in said and "Times of 40 row(s) not judged." in said
        status, said = self.ended(tmp_path, capsys, replace(a, facts=here), replace(c, facts=facts))
        assert status == 1 and "40 regression(s). Times of 40 row(s) not judged." in said

    @pytest.mark.parametrize("threshold", ["nan", "inf", "-inf", "-0.1", "0"])
    def test_a_threshold_that_judges_nothing_is_a_mistake(self, threshold, tmp_path, capsys):
        a = self.write(tmp_path, "a.json", result(1, rows=2))
        assert main([a, a, f"--threshold={threshold}"]) == 2
        assert "Expected a positive finite number" in capsys.readouterr().err

    @pytest.mark.parametrize("text", ["", "{}", "[1]", "not json", '{"format": "hrt-bench", "version": 99}'])
    def test_bad_files_are_a_mistake(self, tmp_path, text, capsys):
        (tmp_path / "bad.json").write_text(text)
        assert main([str(tmp_path / "bad.json"), str(tmp_path / "bad.json")]) == 2
        assert "bad.json" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "arguments", [[], ["a"], ["a", "b", "--commits", "x", "y"], ["a", "b", "--threshold", "-1"]]
    )
    def test_mistakes(self, arguments, capsys):
        assert main(arguments) == 2
        assert "Expected" in capsys.readouterr().err


MODULE = """
import json, os, sys
out = sys.argv[sys.argv.index("--json") + 1]
with open(os.environ["HRT_TEST_LOG"], "a") as log:
    log.write("{word} " + " ".join(sys.argv[1:3]) + chr(10))
if {fails}:
    sys.exit("boom: no luck")
row = dict(workload="w", method="hrt", batch=1, backend="b", target=1e-3, error=1e-4, nbytes=10)
samples = [{microseconds} + k for k in range(10)]
body = dict(format="hrt-bench", version=1, facts=dict(), rows=[row], samples=dict([("0", samples)]))
json.dump(body, open(out, "w"))
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository laid out as ours whose commits `a`, `b` and `broken` have a harness that measures at once."""
    root = tmp_path / "repository"
    for name in ("hrt", "perf", "kernels", "export"):
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").write_text("")
    for key, value in {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("GIT_COMMITTER_EMAIL", "t@t")
    monkeypatch.setenv("HRT_TEST_LOG", str(tmp_path / "log"))

    def git(*arguments):
        subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True)

    git("init", "-q")
    for word, microseconds, fails in (("a", 100, False), ("b", 150, False), ("broken", 1, True)):
        text = MODULE.replace("{word}", word).replace("{microseconds}", str(microseconds))
        (root / "perf" / "__main__.py").write_text(text.replace("{fails}", str(fails)))
        git("add", "-A")
        git("commit", "-qm", word)
        git("tag", word)
    return root


class TestCommits:
    def test_are_measured_in_turns_and_leave_nothing_behind(self, repository, tmp_path):
        before, after = revisions.measured("a", "b", ["--quick"], 3, tmp_path / "kept", root=repository)
        log = (tmp_path / "log").read_text().split("\n")
        assert [line.split()[0] for line in log if line] == ["a", "b", "b", "a", "a", "b"]
        assert all(line.split()[1] == "--quick" for line in log if line)
        assert len(before) == len(after) == 3 and len(list((tmp_path / "kept").iterdir())) == 6
        assert compare(before, after).regressions[0].ratio == pytest.approx(1.48, abs=0.02)
        listed = subprocess.run(["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True)
        assert len(listed.stdout.strip().splitlines()) == 1

    def test_that_are_none_or_cannot_be_measured(self, repository):
        with pytest.raises(InputError, match="'nowhere' is no commit"):
            revisions.measured("a", "nowhere", root=repository)
        with pytest.raises(InputError, match="no commit"):
            revisions.resolve("--all", repository)
        with pytest.raises(BackendError, match="no luck"):
            revisions.measured("a", "broken", repeats=1, root=repository)
