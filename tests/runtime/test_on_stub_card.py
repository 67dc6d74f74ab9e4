"""What runs only where there is a card, on one that is not there: in a process of its own, where Triton compiles."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def on_stub_card(*arguments: str) -> subprocess.CompletedProcess:
    """pytest of these files on the stub card."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "PYTEST_"))}
    environment |= {"HRT_ON_CARD": "stub", "TRITON_DEFAULT_FP_FUSION": "1", "PYTHONPATH": os.fspath(TESTS)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "stub_card", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, timeout=600)


# Of the card's own tests those of the session; its kernels are compiled ahead of time and interpreted elsewhere.
OF_A_CARD = "cpu_and_on or tangents or callers or streams or strict or several or memory or largest"


RUNS = {"runtime": ["on_stub_card/runtime.py"], "perf": ["on_stub_card/perf.py"], "card": ["card.py", "-k", OF_A_CARD]}


SLOW = ("perf", "card")


@pytest.mark.parametrize("run", [pytest.param(r, marks=pytest.mark.slow) if r in SLOW else r for r in RUNS])
def test_branches_that_need_a_card(run):
    file, *options = RUNS[run]
    done = on_stub_card(os.fspath(TESTS / file), *options)
    assert done.returncode == 0, done.stdout + done.stderr
