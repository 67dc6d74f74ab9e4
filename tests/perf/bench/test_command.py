"""`python -m hrt.perf` and `hrt bench`: what is passed on, printed and written, and every exit status."""

import json

import pytest
from bench_cases import row

from hrt.cli.main import main as hrt_main
from hrt.perf.__main__ import main
from hrt.perf.bench import command as bench
from hrt.perf.bench import runner
from hrt.perf.bench.runner import Plan
from hrt.perf.measuring.results import FAILED, Results, read
from hrt.perf.methods.catalogue import METHODS
from hrt.perf.methods.matched_error import Offer, Refusal
from hrt.perf.networks import registry

pytestmark = pytest.mark.usefixtures("cheap")


class TestCommandLine:
    def test_prints_a_table_and_writes_rows(self, files, tmp_path, capsys):
        arguments = ["--workload", str(files / "net.pt2"), "--method", "hrt", "svd", "--tol", "1e-2", "--batch", "1"]
        assert main([*arguments, "--rounds", "2", "--threads", "1", "--json", str(tmp_path / "a" / "rows.json")]) == 0
        out = capsys.readouterr().out
        assert "hrt is number" in out and "dense float32" in out and "the same call differs from itself" in out
        body = json.loads((tmp_path / "a" / "rows.json").read_text())
        assert {r["method"] for r in body["rows"]} == {
            "dense float32",
            "hrt",
            "hrt, fewest bytes",
            "svd",
            "svd, data-weighted",
            "svd, data-weighted float16",
        }

    def test_rows_that_are_not_there_are_a_mistake(self, tmp_path, capsys):
        (tmp_path / "mine.onnx").write_bytes(b"looked at later")
        assert main(["--workload", str(tmp_path / "mine.onnx"), "--inputs", str(tmp_path / "none.npy")]) == 2
        assert "none.npy does not exist" in capsys.readouterr().err

    @pytest.mark.parametrize("arguments", [["--workload", "nothing"], ["--method", "magic"], ["--tol", "-1"]])
    def test_a_mistake_is_one_line_and_status_2(self, arguments, capsys):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("hrt.perf: Found") and err.count("\n") == 1

    def test_an_interruption_writes_what_there_is(self, monkeypatch, tmp_path, capsys, registered):
        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(runner, "measure_batch", interrupted)
        arguments = ["--workload", "small", "--method", "svd", "--tol", "1e-2", "--threads", "1"]
        assert main([*arguments, "--json", str(tmp_path / "rows.json")]) == 130
        assert read(tmp_path / "rows.json").facts["interrupted"] and "INTERRUPTED" in capsys.readouterr().out


class TestPages:
    def results(self, folder):
        facts = {"command": ["--workload", "net"], "date": "2026-11-29T01:02:03", "seconds": 120.0, "threads": 2}
        facts |= {
            "machine": {"processor": "a chip"},
            "commit": "0123456789",
            "versions": {"torch": "2.13.0", "b": "1"},
            "about": {"net": "a net"},
        }
        rows = Results((row("dense float32", 4000, 20.0, 1.0), row("hrt", 400, 10.0, 2.0)), facts)
        rows.write(folder / "rows.json")
        return str(folder / "rows.json")

    def test_figures_take_the_place_of_older_ones_and_words_stay(self, tmp_path):
        page = tmp_path / "page.md"
        page.write_text(f"words\n\n{bench.BEGIN}\nold\n{bench.END}\n\nmore\n")
        for _ in range(2):
            assert main(["table", self.results(tmp_path), "--methods", "--into", str(page)]) == 0
        text = page.read_text()
        assert text.startswith("words\n") and text.endswith(f"{bench.END}\n\nmore\n") and "old" not in text
        assert text.count("| net | 1e-3 | hrt | 400 | 10.0x | 5.0e-04 | 10.0 |") == 1
        assert "`python -m hrt.perf --workload net` on 2026-11-29: 2 minutes, 2 threads of a chip" in text
        assert "commit 0123456; torch 2.13.0.\n\n- net: a net\n\n|" in text

    def test_a_run_that_ended_early_says_so(self, tmp_path):
        page, rows = tmp_path / "page.md", (row("dense float32", 4000, 20.0, 1.0),)
        for facts, words in (
            ({}, " (ended early), "),
            ({"seconds": 60, "interrupted": True}, "1 minutes (ended early), "),
        ):
            page.write_text(f"{bench.BEGIN}{bench.END}")
            Results(rows, facts).write(tmp_path / "rows.json")
            assert main(["table", str(tmp_path / "rows.json"), "--into", str(page)]) == 0
            assert words in page.read_text()

    def test_a_page_without_a_place_is_left_alone(self, tmp_path, capsys):
        page = tmp_path / "page.md"
        page.write_text(f"words {bench.END}")
        for path in (page, tmp_path / "none.md"):
            assert main(["table", self.results(tmp_path), "--into", str(path)]) == 2
            assert "Found no place for figures" in capsys.readouterr().err
        assert page.read_text() == f"words {bench.END}" and not (tmp_path / "none.md").exists()


class TestBench:
    """`hrt bench` beside `python -m hrt.perf`: the same plan, one network."""

    @pytest.fixture
    def asked(self, monkeypatch) -> list[Plan]:
        plans: list[Plan] = []

        def remember(plan, advance, keep):
            plans.append(plan)
            results = Results((row("hrt", 1, 1.0),), {"interrupted": len(plans) > 1})
            keep(results)
            return results

        monkeypatch.setattr(bench, "run", remember)
        return plans

    def test_takes_the_error_that_a_file_was_made_for(self, files, asked):
        assert hrt_main(["bench", str(files / "net.hrt")]) == 0
        assert asked[0].workloads == (str(files / "net.hrt"),) and asked[0].tols == (1e-2,)

    def test_passes_on_what_it_is_told(self, files, asked, tmp_path):
        options = ["-i", str(files / "x.npy"), "--tol", "0.05", "--batch", "3", "--batch", "5", "--threads", "1"]
        assert hrt_main(["bench", str(files / "net.onnx"), *options, "--json", str(tmp_path / "rows.json")]) == 0
        (plan,) = asked
        assert (plan.tols, plan.batches, plan.threads, plan.inputs) == ((0.05,), (3, 5), 1, (files / "x.npy",))
        assert read(tmp_path / "rows.json").rows == (row("hrt", 1, 1.0),)

    def test_no_rows_do_not_replace_those_of_an_earlier_run(self, tmp_path, monkeypatch, capsys):
        path = tmp_path / "rows.json"
        Results((row("hrt", 1, 1.0),)).write(path)
        monkeypatch.setattr(bench, "run", lambda plan, advance, keep: keep(Results(())) or Results(()))
        bench.measure(Plan(workloads=("burgers",)), path)
        assert len(read(path).rows) == 1 and "no rows" in capsys.readouterr().out

    def test_a_file_is_not_ranked_at_errors_it_was_not_made_for(self, files):
        workload = registry.build(str(files / "net.hrt"))
        made = workload.served.certificate.tol
        refused = METHODS["hrt"](workload, made / 10)
        assert isinstance(refused, Refusal) and f"{made:g}" in refused.note
        assert isinstance(METHODS["hrt"](workload, made), Offer)

    def test_an_interruption_is_status_130(self, files, asked):
        assert [hrt_main(["bench", str(files / "net.pt2")]) for _ in range(2)] == [0, 130]

    def test_a_network_that_could_not_be_measured_is_status_1(self, tmp_path, monkeypatch, capsys):
        rows = (row("hrt", 1, 1.0), row("dense float32", 1, None, status=FAILED, workload="mine.onnx"))
        monkeypatch.setattr(bench, "run", lambda plan, advance, keep: keep(Results(rows)) or Results(rows))
        assert bench.measure(Plan(workloads=("burgers",))) == 1
        assert "not measured: mine.onnx" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["gone.hrt", "gone.onnx", "net.txt", "burgers"])
    def test_a_mistake_is_status_2(self, name, asked, capsys):
        assert hrt_main(["bench", name]) == 2 and not asked
        assert capsys.readouterr().err.count("\n") == 1
