"""The command line as a process: what only a process of its own can show."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

SLOW = """
import time
from pathlib import Path

from torch import nn


def builds():
    Path("started").touch()
    time.sleep(60)


class Large(nn.Sequential):
    def forward(self, x):
        Path("started").touch()
        return super().forward(x)


def compresses():
    sides = [300, *[512] * 8, 4]
    layers = [nn.Linear(a, b) for a, b in zip(sides, sides[1:])]
    return Large(*[part for layer in layers for part in (layer, nn.Tanh())])
"""


def test_a_mistake_is_status_2_and_one_line(lab):
    command = [sys.executable, "-m", "hrt.cli", "predict", "net.hrt", "no.npy"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "hrt: no.npy does not exist.\n")


def test_help_waits_for_no_torch():
    code = "import sys; from hrt.cli.main import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "hrt compress" in done.stdout, done.stderr


def test_a_reader_that_stops_reading_is_no_error_of_ours(lab):
    np.save("long.npy", np.ones((200_000, 2)))
    command = [sys.executable, "-m", "hrt.cli", "predict", "net.hrt", "long.npy"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert "Traceback" not in process.stderr.read() and process.wait(60) in (0, 1)
    process.stderr.close()


IMPORTED = """
import time
from pathlib import Path

Path("started").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("while_it", ["imports", "builds", "compresses"])
def test_an_interruption_leaves_nothing(while_it, lab, contents):
    Path("slow.py").write_text(IMPORTED if while_it == "imports" else SLOW)
    np.save("x.npy", np.random.default_rng(0).standard_normal((4000, 300)).astype(np.float32))
    before = contents()
    command = [sys.executable, "-m", "hrt.cli", "compress", f"slow.py:{while_it}", "-o", "out.hrt"]
    command += ["--inputs", "x.npy", "--tol", "1e-3"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 60
    while not Path("started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1 if while_it == "compresses" else 0)
    assert process.poll() is None, "it was done before it could be interrupted"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    Path("started").unlink()
    assert (process.returncode, out, err) == (130, "", "hrt: interrupted; nothing was written\n")
    assert contents() == before


@pytest.mark.parametrize("delay", [0.0, *(pytest.param(0.15 + 0.1 * k, marks=pytest.mark.slow) for k in range(30))])
def test_an_interruption_at_any_moment_is_one_line(delay, lab):
    """From torch's import, whose C++ makes errors of its own of an exception, to the end."""
    command = [sys.executable, "-m", "hrt.cli", "compress", "net.py:build", "--box", "-1,-1:1,1", "-o", "out.hrt"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    if process.returncode == 0:  # it was done
        assert Path("out.hrt").exists() and err == ""
    else:
        assert (process.returncode, out, err) == (130, "", "hrt: interrupted; nothing was written\n")
