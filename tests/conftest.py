"""Before anything imports Triton: in the tests' own process kernels run on its interpreter. What is compiled ahead of
time is compiled in processes of its own (see test_aot.py), and `make gpu` runs card.py on the card itself.
"""

import os
from importlib.util import find_spec

if find_spec("hypothesis"):  # card.py does without
    from hypothesis import settings

    settings.register_profile("untimed", deadline=None)  # how long an example takes is the machine's affair
    settings.load_profile("untimed")

os.environ.setdefault("HRT_NATIVE", "off")  # no test compiles C but those that ask for it, by the fixture below

if "HRT_ON_CARD" not in os.environ:
    os.environ["TRITON_INTERPRET"] = "1"


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
