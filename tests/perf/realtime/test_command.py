"""The real-time command: short runs of the real thing, what it writes, and mistakes in one line."""

import gc
import sys

import numpy as np
import pytest
import torch
from fake_time import FakeTime, busy
from inference_stand_in import served

import hrt
from hrt.errors import InputError
from hrt.perf.__main__ import main as harness
from hrt.perf.measuring.gc_watch import CollectorWatch
from hrt.perf.measuring.results import FAMILIES, read
from hrt.perf.realtime import command
from hrt.perf.realtime.command import main, measure
from hrt.perf.realtime.latencies import decoded, summarise
from hrt.perf.realtime.open_loop import Options, serve
from hrt.perf.realtime.subjects import questions


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 24), torch.nn.Tanh(), torch.nn.Linear(24, 2)).eval()
    path = tmp_path_factory.mktemp("realtime") / "net.hrt"
    hrt.compress(net, tol=1e-2, progress=False).save(path)
    return path


class TestCommand:
    def test_measures_and_writes_what_the_harness_reads(self, artifact, tmp_path, capsys):
        out = tmp_path / "figures.json"
        assert main([str(artifact), "--rate", "200", "--seconds", "0.3", "--json", str(out)]) == 0
        printed = capsys.readouterr().out
        assert all(name in printed for name in ("hrt", "dense, ONNX Runtime", "dense, torch eager", "empty call"))
        written = read(out)
        assert {r.family for r in written.rows} <= set(FAMILIES) and len(written.rows) == 3
        assert all(r.calls == 60 and r.workload == "net, open loop at 200/s" for r in written.rows)
        assert len(written.samples) == 3 and len(written.facts["realtime"]) == 4
        assert all(decoded(f["histogram"]) for f in written.facts["realtime"])

    @pytest.mark.parametrize(
        "arguments, said",
        [
            (["missing.hrt"], "missing.hrt"),
            (["{net}", "--rate", "0"], "rate of 0"),
            (["{net}", "--seconds", "-1"], "seconds"),
            (["{net}", "--inputs", "missing.npy"], "missing.npy"),
            (["{net}", "--http", "127.0.0.1:9"], "No server answers at 127.0.0.1:9 (http)"),
            *(
                (["{net}", f"--{k}", v], f"{a} of {v}")
                for k, a in (("rate", "rate"), ("deadline-us", "deadline"), ("spin-us", "spin"))
                for v in ("nan", "inf")
            ),
            (["--self-test", "--rate", "nan"], "rate of nan"),
            (["--self-test", "--rate", "1e-9"], "Expected at least one request"),
            (["--self-test", "--spin-us", "inf"], "spin of inf"),
            *(
                (["{net}", f"--{k}", a], "Expected HOST:PORT")
                for k in ("http", "grpc")
                for a in ("http://x:y/z", "", "x:0", "x:65536", "[x]:1")
            ),
            (["{net}", "--grpc", "127.0.0.1:9"], "No server answers at 127.0.0.1:9 (grpc)"),
        ],
    )
    def test_a_mistake_is_one_line_and_status_2(self, artifact, arguments, said, capsys):
        assert main([a.format(net=artifact) for a in arguments]) == 2
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error and error.count("\n") == 1

    @pytest.mark.parametrize("name", ["", "net.hrt/figures.json", "/proc/figures.json"])
    def test_figures_that_cannot_be_written_are_refused_before_measuring(
        self, artifact, name, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.setattr(command, "measure", lambda *_, **__: pytest.fail("measured"))
        (tmp_path / "net.hrt").write_bytes(b"")
        assert main([str(artifact), "--json", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert "folder" in error or "cannot be written" in error

    @pytest.mark.parametrize("arguments", [["{net}"], ["--self-test"]])
    def test_a_missing_library_is_said_before_measuring(self, artifact, arguments, monkeypatch, capsys):
        monkeypatch.setattr(command, "measure", lambda *_, **__: pytest.fail("measured"))
        monkeypatch.setattr(command, "self_test", lambda *_, **__: pytest.fail("measured"))
        monkeypatch.setitem(sys.modules, "hdrh.histogram", None)
        assert main([a.format(net=artifact) for a in arguments]) == 2
        assert "pip install hdrhistogram" in capsys.readouterr().err

    def test_ctrl_c_keeps_the_turns_until_then(self, artifact, monkeypatch, capsys):
        calls = {"n": 0}

        def stopped(_):
            calls["n"] += 1
            if calls["n"] > 150:
                raise KeyboardInterrupt

        monkeypatch.setattr(command, "in_process", lambda *_: {"hrt": stopped})
        found = measure(artifact, Options(rate=100, seconds=5))
        assert 1 <= len(found) <= 2 and all(f.offered % 100 == 0 and f.served for f in found)
        assert "interrupted" in capsys.readouterr().err

    def test_a_disturbed_machine_is_said_so(self):
        time = FakeTime()
        bad = summarise("empty call", [serve(busy(time, 1e-6, {3: 0.05}), 1000, 100, clock=time.clock())])
        assert any("TOO DISTURBED" in line for line in command.remarks([bad]))

    def test_rows_from_a_file_in_turn(self, artifact):
        program = hrt.load(artifact, backend="torch").program
        found = questions(program, 2, np.arange(18.0).reshape(3, 6))
        assert found[1][0].shape == (2, 6) and found[1][0][0, 0] == 12 and found[1][0][1, 0] == 0
        with pytest.raises(InputError):
            questions(program, 1, np.zeros((3, 5)))

    @pytest.mark.parametrize("bad", [np.nan, -np.inf, 1e300])
    def test_rows_that_are_not_finite_are_refused(self, artifact, bad, tmp_path, capsys):
        rows = np.zeros((5, 6))
        rows[3, 2] = bad
        np.save(tmp_path / "rows.npy", rows)
        assert main([str(artifact), "--inputs", str(tmp_path / "rows.npy"), "--seconds", "0.1"]) == 2
        assert "1 of 5 rows" in capsys.readouterr().err

    def test_nothing_to_measure_is_a_mistake(self, capsys):
        assert main([]) == 2 and main(["--rate", "10"]) == 2
        assert "Found no network" in capsys.readouterr().err


class TestServers:
    def test_are_asked_by_the_clock(self, artifact, capsys, tmp_path):
        out = tmp_path / "served.json"
        with served(hrt.load(artifact, backend="torch")) as address:
            arguments = [str(artifact), "--http", address, "--name", "m", "--rate", "50", "--seconds", "0.4"]
            assert main([*arguments, "--json", str(out)]) == 0
        assert "server, http" in capsys.readouterr().out
        (row,) = read(out).rows
        assert row.calls == 20 and row.p50_us and read(out).facts["realtime"][0]["failed"] == 0

    @pytest.mark.parametrize(
        "state, said",
        [
            ({"live": False}, "until it is live"),
            ({"ready": "other"}, "no model 'm'"),
            ({"change": lambda _, y: [1.5 * v for v in y]}, "otherwise"),
        ],
    )
    def test_that_are_not_as_expected_are_said_so(self, artifact, state, said, capsys):
        with served(hrt.load(artifact, backend="torch"), **state) as address:
            assert main([str(artifact), "--http", address, "--name", "m", "--seconds", "0.1"]) == 2
        assert said in capsys.readouterr().err

    @pytest.mark.parametrize("factor, status", [(1.0, 0), (1.5, 2)])
    def test_are_loaded_with_many_requests_at_once(self, artifact, factor, status, capsys):
        with served(hrt.load(artifact, backend="torch"), lambda _, y: [v * np.float32(factor) for v in y]) as address:
            arguments = ["serving", str(artifact), "--name", "m", "--http", address, "--requests", "30"]
            assert harness([*arguments, "--json-tensors"]) == status
        printed = capsys.readouterr()
        assert address in printed.out and ("30 answers failed or differ" in printed.err) == (status == 2)


def test_collections_are_counted_and_can_be_kept_off():
    assert gc.isenabled()
    with CollectorWatch() as seen:
        gc.collect()
    assert seen.seen.count == 1 and seen.seen.longest_us > 0
    with CollectorWatch(off=True):
        assert not gc.isenabled()
    assert gc.isenabled() and not any(getattr(c, "__self__", None) is seen for c in gc.callbacks)


def test_no_server_to_ask_is_a_mistake(tmp_path, capsys):
    assert harness(["serving", str(tmp_path / "net.hrt"), "--name", "m"]) == 2
    assert "Found no server to ask. Expected --http" in capsys.readouterr().err
