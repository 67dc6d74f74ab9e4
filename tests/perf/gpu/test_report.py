"""The report of a run: its table, goals met or missed, what was not measured; and that it invents no figure."""

import pytest

from hrt.perf.gpu import report
from hrt.perf.gpu.budget import DONE, SKIPPED, Outcome
from hrt.perf.gpu.command import main
from hrt.perf.gpu.plan import STEPS
from hrt.perf.gpu.record import Record

CHIP = {"copy_bytes_per_s": 2e12, "matmul_flops": {"bf16": 5e14}}


def row(workload, batch, method, p50, ratio, moved=1 << 20, flops=10**6, **more):
    entry = {"workload": workload, "precision": "bf16", "batch": batch, "method": method, "p50_us": p50}
    entry |= {"p05_us": 0.9 * p50, "p95_us": 1.1 * p50, "error": 4e-3, "nbytes": 1, "moved_bytes": moved}
    return entry | {"flops": flops, "roofline_fraction": 0.5, "ratio_vs_best_dense": ratio, "remark": ""} | more


def measured(rows, **facts):
    """A made-up record: no figure in it was measured anywhere."""
    known = {"stub": "", "commit": "0" * 40, "budget_s": 420, "gpu": {"name": "Made up"}, "chip": CHIP, **facts}
    steps = {"main-figures": {"status": DONE, "results": {"rows": rows}}}
    steps["correctness"] = {"status": "wrong", "remark": "a test", "results": {"passed": 3, "failed": 1, "skipped": 0}}
    steps["tuning"] = {"status": SKIPPED, "remark": "takes about 60 s, 2 s were left"}
    steps["memory"] = {"status": "running"}
    return {"facts": known, "steps": steps}


ROWS = [
    row("burgers-1e-3", 1, "hrt step", 9.0, 1.0),
    row("burgers-1e-3", 1, "hrt network", 5.5, 2.0),
    row("burgers-1e-3", 1, "hrt end to end", 1.0, 9.0),  # a clock of the host: no figure of the kernels
    row("burgers-1e-3", 1, "dense linear", 12.0, 0.9),
    row("burgers-1e-3", 1, "dense compiled", 11.0, 1.0),
    row("dense-4096", 1, "hrt", 20.0, 0.96, moved=36 << 20),
    row("dense-4096", 1, "dense linear", 19.2, 1.0, moved=36 << 20),
    row("log-4096", 4096, "hrt", 100.0, 3.0, flops=4 * 10**10),
    row("log-4096", 4096, "dense linear", 300.0, 1.0),
]


def test_the_faster_graph_counts_beside_the_fastest_dense_form():
    text = report.render(measured(ROWS))
    line = next(x for x in text.splitlines() if x.startswith("| burgers-1e-3"))
    assert line == (
        "| burgers-1e-3 | bf16 | 1 | 11.00 (dense compiled) | 5.50 (4.95 to 6.05), hrt network | "
        "2.00x | 50% | 4.0e-03 |"
    )
    assert len([x for x in text.splitlines() if x.startswith("| ") and "batch" not in x]) == 3


def test_goals_are_judged_by_their_worst_row():
    lines = report.render(measured(ROWS)).splitlines()
    judged = [x for x in lines if x.startswith(("- met", "- missed", "- not measured"))]
    assert judged == [
        "- met in all 1: 70 % of the copy bandwidth for batches up to 16 that move 32 MB or more; worst 94%, "
        "dense-4096 bf16 batch 1",
        "- met in all 1: 60 % of the measured matmul rate from batch 4096; worst 80%, log-4096 bf16 batch 4096",
        "- missed in 1 of 3: never below 0.97 of the best dense form; worst 0.96x, dense-4096 bf16 batch 1",
        "- met in all 1: 6 us for one row of the PINN; worst 5.5 us, burgers-1e-3 bf16 batch 1",
    ]


@pytest.mark.parametrize(
    ("change", "goal"),
    [
        ({"p50_us": 27.0, "workload": "dense-4096"}, "70 % of the copy"),
        ({"p50_us": 134.0, "batch": 4096, "workload": "log-4096"}, "60 % of the measured"),
        ({"p50_us": 6.1, "workload": "burgers-1e-3"}, "6 us for one row"),
    ],
)
def test_a_goal_that_is_missed_is_said(change, goal):
    moved, flops = (36 << 20) if "dense" in change["workload"] else 1, 4 * 10**10
    rows = [row("x", 1, "hrt", 1.0, 1.0, **{"moved": moved, "flops": flops}) | change]
    assert f"- missed in 1 of 1: {goal}" in report.render(measured(rows))


def test_what_was_not_measured_is_said():
    content = measured([row("laplace-4096", 64, "hrt", 3.0, None)])
    content["steps"]["main-figures"]["results"]["left_out"] = [
        {"workload": "log-4096", "precision": "bf16", "batch": 65536, "remark": "out of memory: none"}
    ]
    text = report.render(content)
    assert text.count("- not measured: ") == 4
    assert "| not measured | 3.00" in text and "| not measured | 50% |" in text
    assert "- main-figures: log-4096 bf16 batch 65536: out of memory: none" in text
    assert "- tuning: skipped: takes about 60 s, 2 s were left" in text
    assert "- memory: cut off while it ran" in text
    assert "- correctness: wrong (3 passed, 1 failed, 0 skipped): a test" in text


def test_without_a_card_every_goal_is_open():
    text = report.render({"facts": {"stub": ""}, "steps": {}})
    assert "no GPU was reached" in text and "Nothing was timed." in text and "every goal" in text


def test_a_stub_run_is_no_cards(tmp_path, capsys):
    record = Record.start(tmp_path, {"stub": "answers", **{"chip": CHIP}})
    record.note(STEPS[0], Outcome(DONE))
    assert main(["report", str(record.path)]) == 2
    error = capsys.readouterr()
    assert error.out == "" and error.err.count("\n") == 1 and "stub card" in error.err


@pytest.mark.parametrize("content", ["", "{}", '{"format": "hrt-gpu", "version": 2}', '{"format": "hrt-bench"}'])
def test_another_file_is_refused_in_one_line(content, tmp_path, capsys):
    (tmp_path / "gpu.json").write_text(content)
    assert main(["report", str(tmp_path / "gpu.json")]) == 2
    assert capsys.readouterr().err.startswith("hrt.perf.gpu: ")
