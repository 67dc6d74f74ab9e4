"""How long compressing takes, in the rows of the harness and in a table of its own."""

import re

import pytest
from bench_cases import plan, small

from hrt.perf.__main__ import main
from hrt.perf.bench import compress_time
from hrt.perf.bench.runner import run
from hrt.perf.measuring.results import OK
from hrt.perf.networks.registry import MissingError
from hrt.support.progress import silent


@pytest.mark.usefixtures("cheap")
def test_every_row_says_how_long_its_method_took_to_set_up(registered):
    rows = run(plan("svd", "hrt")).rows
    made = {r.method: r.made_s for r in rows if r.status == OK}
    assert made["hrt"] > 0.01, "it searches"
    assert all(r.made_s is None for r in rows if r.nbytes is None)


def test_a_line_per_case_and_dashes_for_what_is_missing(monkeypatch):
    monkeypatch.setattr(compress_time, "build", lambda name: small())

    def missing(workload):
        raise MissingError("no library")

    monkeypatch.setattr(compress_time, "all_int8", missing)
    table = compress_time.compress_time([("small", 1e-2), ("small", 1e-3)], silent)
    assert table.columns == compress_time.COLUMNS
    for line, tol in zip(table.rows, ("0.01", "0.001"), strict=True):
        name, error, seconds, cpu, nbytes, int8, svd = (c.text for c in line)
        assert (name, error, int8) == ("small", tol, "-")
        assert float(seconds) >= 0 and float(cpu) >= 0 and float(svd) >= 0 and int(nbytes.replace(",", "")) > 0


def test_a_workload_that_is_missing_has_a_line_that_says_so(monkeypatch):
    def missing(name):
        raise MissingError("pip install it")

    monkeypatch.setattr(compress_time, "build", missing)
    (line,) = compress_time.compress_time([("neuralfoil-xxxlarge", 1e-2)], silent).rows
    assert line[-1].text == "pip install it"


def test_the_command_prints_the_table(capsys):
    assert main(["compress-time", "--workload", "random:32", "--tol", "0.1"]) == 0
    assert re.search(r"random:32.*0\.1", capsys.readouterr().out)
    assert main(["compress-time", "--workload", "no such"]) == 2
