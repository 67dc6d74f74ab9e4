"""Before anything imports Triton: in the tests' own process kernels run on its interpreter. What is compiled ahead of
time is compiled in processes of its own (see test_aot.py), and `make gpu` runs card.py on the card itself.
"""

import gc
import os
from importlib.util import find_spec

import pytest

if find_spec("hypothesis"):  # card.py does without
    from hypothesis import settings

    settings.register_profile("untimed", deadline=None)  # how long an example takes is the machine's affair
    settings.load_profile("untimed")

os.environ.setdefault("HRT_NATIVE", "off")  # no test compiles C but those that ask for it, by the fixture below

if "HRT_ON_CARD" not in os.environ:
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_finish():
    """Thousands of tests and their modules live as long as the run: it need not be gone through again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """The backend "native", switched on, with flags that compile in little time and a cache of its own."""
    from hrt.export.c import toolchain

    if lacks := toolchain.missing_compiler():
        pytest.skip(lacks)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HRT_NATIVE", "on")
        patched.setenv("HRT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patched.setattr(toolchain, "LIBRARY", ("-O1", *toolchain.LIBRARY[1:]))
        yield


def pytest_terminal_summary(terminalreporter):
    """The lines that tests of real servers recorded, as one table."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, []) if r.when == "call"]
    lines = [value for r in reports for name, value in r.user_properties if name == "transcript"]
    if lines:
        from hrt.perf.realtime.server_load import HEADER

        terminalreporter.section("real servers")
        terminalreporter.write_line(f"{HEADER}  ready s")
        for line in lines:
            terminalreporter.write_line(line)
