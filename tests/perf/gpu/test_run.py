"""Runs on a GPU where there is none: what is refused, in one line, and the whole script on the stub card."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from hrt.errors import InputError
from hrt.perf.gpu import steps
from hrt.perf.gpu.budget import DONE, FAILED, SKIPPED, STOPPED, WRONG, Step
from hrt.perf.gpu.command import main
from hrt.perf.gpu.ground import Ground, WrongError
from hrt.perf.gpu.pack import ROOT
from hrt.perf.gpu.plan import STEPS, STUB, TRIAL
from hrt.perf.gpu.record import Record, read
from hrt.perf.gpu.workers import RefusedError, Workers

PLAIN = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "HRT_"))}
NAMES = [step.name for step in STEPS]


@pytest.fixture
def ground(small_pack, tmp_path):
    return Ground(small_pack, Record.start(tmp_path, {}), "smoke", time.monotonic() + 60)


@pytest.fixture
def card(monkeypatch):
    """A machine that is said to have a card, on Triton's interpreter."""
    here = {"arch": "sm_90", "compiler": "0" * 64, "triton": "3.6.0", "python": "3.12.3"}
    for name, value in (
        ("missing_for_cuda", lambda: None),
        ("cuda_device", lambda device: torch.device("cpu")),
        ("machine", lambda arch: here),
        ("gpu", lambda: {"name": "none"}),
    ):
        monkeypatch.setattr(steps, name, value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 << 30, 80 << 30))
    return here


def test_the_first_step_compares_the_graph_with_float64(ground, card):
    steps.smoke(ground)
    content = ground.record.read()
    results = content["steps"]["smoke"]["results"]
    assert set(results["errors"]) == {"graph", "launches"} and results["same_bits_again"]
    assert all(0 < e <= results["allowed"] for e in results["errors"].values())
    assert content["facts"]["machine"] == card and content["facts"]["versions"]["torch"] == torch.__version__


def test_a_wrong_number_ends_everything_and_is_kept(ground, card, monkeypatch):
    run = steps.CudaSession.run
    monkeypatch.setattr(steps.CudaSession, "run", lambda self, x: [y * 1.02 for y in run(self, x)])
    with pytest.raises(WrongError, match="see wrong-smoke"):
        steps.smoke(ground)
    from safetensors.torch import load_file

    kept = load_file(ground.record.path.with_name("wrong-smoke.safetensors"))
    assert {"x", "expected", "graph", "launches", "tiles", "steps", "weights0"} <= set(kept)


def test_int8_again_and_again_finds_a_bit_that_changes(ground, card, monkeypatch):
    """On the stub's few replays; the third answer of a session is off by an ulp."""
    monkeypatch.setenv(STUB, "answers")
    monkeypatch.setattr(steps, "STRESSED", ("burgers-1e-2",))
    stressed = replace(ground, step="int8-stress")
    steps.stress(stressed)
    batches = stressed.record.read()["steps"]["int8-stress"]["results"]["burgers-1e-2"]["batches"]
    assert batches == {str(b): {"replays": 3, "differing": 0} for b in (16, 64, 256)}
    run, calls = steps.CudaSession.run, []

    def moved(self, x):
        calls.append(len(x[0]))
        return [torch.nextafter(y, y + 1) if calls.count(64) == 3 else y for y in run(self, x)]

    monkeypatch.setattr(steps.CudaSession, "run", moved)
    with pytest.raises(WrongError, match="1 of 3 replays of 64 rows differ"):
        steps.stress(stressed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "sm_100"}, "for sm_90. Found sm_100. Run `make gpu-pack` again, or go on"),
        ({"compiler": "1" * 64, "triton": "3.7.1"}, "compiled by Triton 3.6.0, Python 3.12.3. Found 3.7.1"),
    ],
)
def test_another_card_or_triton_is_refused(ground, card, change, message):
    card |= change
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        steps.smoke(ground)


def test_too_little_memory_is_refused(ground, card, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 << 30, 80 << 30))
    with pytest.raises(InputError, match=r"Found 3\.2 GB of free memory"):
        steps.smoke(ground)


def test_a_driver_that_is_too_old_is_said_as_cuda_says_it(ground, card, monkeypatch):
    def refuse():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Update it.\nMore.")

    monkeypatch.setattr(steps, "missing_for_cuda", lambda: "torch sees no usable CUDA device.")
    monkeypatch.setattr(torch.cuda, "init", refuse)
    with pytest.raises(InputError, match=r"^No CUDA device can be used: The NVIDIA driver .* \(found version 11040\)"):
        steps.smoke(ground)


@pytest.mark.parametrize("budget", ["0", "-1", "nan", "inf"])
def test_a_budget_that_makes_no_sense(small_pack, budget, tmp_path, capsys):
    assert main(["run", "--pack", str(small_pack.folder), "--out", str(tmp_path / "x"), "--budget", budget]) == 2
    assert "Expected a positive number of seconds." in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_a_folder_that_cannot_be_written(small_pack, capsys):
    assert main(["run", "--pack", str(small_pack.folder), "--out", "/proc/none"]) == 2
    assert capsys.readouterr().err.startswith("hrt.perf.gpu: /proc/none cannot be written")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_device_there_is_one_line_and_status_2(small_pack, tmp_path):
    command = [sys.executable, str(ROOT / "perf" / "gpu"), "run", "--pack", str(small_pack.folder), "--out"]
    done = subprocess.run([*command, str(tmp_path)], env=PLAIN, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("hrt.perf.gpu: ") == 1 and done.stderr.count("\n") == 1
    assert "CUDA" in done.stderr and "Nothing was measured." in done.stderr
    assert read(tmp_path / "gpu.json")["steps"]["smoke"]["status"] == FAILED


@pytest.fixture
def bare(tmp_path):
    """Run the command of a copy of this checkout by its path, with the standard library alone."""
    for name in ("hrt", "kernels", "export", "perf"):
        shutil.copytree(ROOT / name, tmp_path / "tree" / name, ignore=shutil.ignore_patterns("__pycache__", "*.js"))

    def run(*arguments):
        command = [sys.executable, "-S", str(tmp_path / "tree" / "perf" / "gpu"), *map(str, arguments)]
        done = subprocess.run(command, env=PLAIN | {"PYTHONPATH": ""}, capture_output=True, text=True, timeout=100)
        assert not (tmp_path / "tree" / "build").exists()  # no step was run
        return done

    return run


def test_help_and_report_need_the_standard_library_alone(bare, tmp_path):
    for arguments in (["--help"], ["run", "--help"]):
        done = bare(*arguments)
        assert done.returncode == 0 and done.stdout.startswith("usage: hrt.perf.gpu") and not done.stderr
    record = Record.start(tmp_path, {"commit": "c" * 40})
    record.note(STEPS[0], None)
    done = bare("report", record.path)
    assert done.returncode == 0 and "smoke: cut off while it ran" in done.stdout and not done.stderr
    (tmp_path / "other.json").write_text("{}")
    done = bare("report", tmp_path / "other.json")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "is no record of a run on a GPU" in done.stderr


@pytest.mark.parametrize("command", [["run"], ["worker", "--step", "smoke"], ["pack"]])
def test_a_python_without_torch_is_said(bare, command, tmp_path):
    done = bare(*command, "--out", tmp_path / "out")
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    message = "Not installed: torch, triton, numpy, scipy. Expected a Python with torch, Triton, NumPy and SciPy."
    assert done.stderr == f"hrt.perf.gpu: {message}\n"


WORKER = """
import json, sys, time
order = json.loads(sys.stdin.readline() or sys.exit(0))
print("something before")
match order["step"]:
    case "well": print("all is well")
    case "wrong": print("error 0.5"); sys.exit(3)
    case "refused": print("not this machine"); sys.exit(2)
    case "absent": print("no tool"); sys.exit(4)
    case "crash": raise RuntimeError("broken")
    case "hang": time.sleep(60)
"""


@pytest.mark.parametrize(
    ("name", "status", "remark"),
    [
        ("well", DONE, ""),
        ("wrong", WRONG, "error 0.5"),
        ("absent", SKIPPED, "no tool"),
        ("crash", FAILED, "RuntimeError: broken"),
        ("hang", STOPPED, "was not over after 1 s"),
    ],
)
def test_a_step_has_a_process_of_its_own(name, status, remark, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # which would hide that output is kept back
    workers = Workers([sys.executable, "-c", WORKER], tmp_path / "log.txt")
    try:
        outcome = workers.execute(Step(name, name, 1.0), 1.0 if name == "hang" else 30.0)
        assert (outcome.status, outcome.remark) == (status, remark)
        assert workers.execute(Step("well", "", 1.0), 30.0).status == DONE, "the next one has another"
    finally:
        waiting = workers.waiting
        workers.close()
    assert waiting.returncode is not None


def test_a_mistake_is_handed_on(tmp_path):
    workers = Workers([sys.executable, "-c", WORKER], tmp_path / "log.txt")
    with pytest.raises(RefusedError, match="not this machine"):
        workers.execute(Step("refused", "", 1.0), 30.0)
    workers.close()


@pytest.fixture(scope="module")
def stub_run(small_pack, tmp_path_factory):
    """The whole script, on the stub card, in small numbers: the exit status, its output, and the record's folder."""
    out = tmp_path_factory.mktemp("out")
    environment = {**PLAIN, STUB: "answers", TRIAL: "20", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "perf" / "gpu"), "run", "--pack", str(small_pack.folder), "--out", str(out)]
    command += ["--anyway", "--budget", "20000"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    return done, out


@pytest.mark.slow
def test_the_whole_script_runs_on_the_stub_card(stub_run, capsys):
    done, out = stub_run
    log = (out / "log.txt").read_text()
    content = read(out / "gpu.json")
    statuses = {name: entry["status"] for name, entry in content["steps"].items()}
    assert list(statuses) == NAMES, done.stderr
    absent = {"sanitizer", "onnxruntime"}
    present = [n for n in NAMES if n not in absent]
    assert {k: statuses[k] for k in present} == dict.fromkeys(present, DONE), log[-3000:]
    assert all(statuses[name] in (SKIPPED, DONE) for name in absent)
    assert done.returncode == 0
    tests = content["steps"]["correctness"]["results"]
    assert tests["passed"] >= 2 and tests["failed"] == 0
    rows = content["steps"]["main-figures"]["results"]["rows"]
    assert {(r["workload"], r["batch"]) for r in rows} == {
        (w, b) for w in ("burgers-1e-3", "log-4096") for b in (1, 16)
    }
    assert content["steps"]["int8-stress"]["results"]["card"]["batches"]["64"]["differing"] == 0
    assert main(["report", str(out / "gpu.json")]) == 2, "times without a card are no figures"
    assert "stub card" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interruption_leaves_what_was_written(small_pack, tmp_path):
    environment = {**PLAIN, STUB: "answers", TRIAL: "1", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        str(ROOT / "perf" / "gpu"),
        "run",
        "--pack",
        str(small_pack.folder),
        "--out",
        str(tmp_path),
    ]
    process = subprocess.Popen([*command, "--anyway"], env=environment, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 300
    while time.monotonic() < until:
        path = tmp_path / "gpu.json"
        if path.exists() and "correctness" in json.loads(path.read_text())["steps"]:
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and error == "hrt.perf.gpu: interrupted; what was written so far stays\n"
    steps_then = read(tmp_path / "gpu.json")["steps"]
    assert steps_then["smoke"]["status"] == DONE and steps_then["correctness"]["status"] == "running"
