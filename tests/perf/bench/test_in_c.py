"""Generated C beside every other runtime: what is measured, what "auto" is blamed for, what the page says."""

import msgspec
import numpy as np
import pytest
import torch

from hrt.errors import InputError
from hrt.perf.bench import in_c
from hrt.perf.bench.candidates import Timing
from hrt.perf.bench.in_c import Line, Ratio
from hrt.perf.bench.runner import Plan
from hrt.perf.measuring.bursts import Latency
from hrt.perf.measuring.results import Results, read


def latency(us: float) -> Latency:
    rounds = us * (1 + 0.01 * np.random.default_rng(int(us)).standard_normal(12))
    return Latency(us, us, us, tuple(rounds.tolist()))


def line(auto: str, onnx: float, native: float, **more) -> Line:
    """One row of a network whose times are given; dense takes twice as long as ONNX Runtime."""
    known = {"us": {"dense": 2 * onnx, "hrt, onnxruntime": onnx, "hrt, native": native}, "dense": "torch", "auto": auto}
    choice = Ratio.of(latency(onnx), latency(native), 0.02)
    return Line("net", 1e-3, more.pop("batch", 1), **{**known, "error": 5e-4, "choice": choice, **more})


def result(*lines: Line) -> Results:
    return Results((), {"threads": 2, in_c.KEY: [msgspec.to_builtins(x) for x in lines]})


@pytest.mark.parametrize(
    ("auto", "onnx", "native", "wrong"),
    [
        ("native", 10, 5, False),
        ("native", 5, 10, True),
        ("onnxruntime", 5, 10, False),
        ("onnxruntime", 10, 5, True),
        ("native", 1000, 1005, False),  # noise does not tell them apart
        ("torch", 10, 5, False),
    ],
)
def test_auto_is_blamed_for_the_slower_one_alone(auto, onnx, native, wrong):
    x = line(auto, onnx, native)
    assert x.wrong == wrong
    assert ("in 1 of 1 cases: net" in in_c.verdicts([x])[1]) == wrong


def test_an_error_that_is_not_kept_is_named():
    lines = [line("native", 10, 5), line("native", 10, 5, batch=16, error=2e-3)]
    assert "1 of 2 measured: not net at 16 rows (2.0e-03)" in in_c.verdicts(lines)[0]
    assert "worst" not in in_c.choices(lines).rows[0][2].text and in_c.choices(lines).rows[0][2].text == "2.0e-03"


def test_a_page_is_made_of_what_was_written(tmp_path):
    x = line("native", 10, 5, runtime=Ratio(2.5, 2.0, 3.0, "slower"), compression=Ratio(1.5, 1.4, 1.6, "slower"))
    missing = Line("other", 1e-3, 1, note="not installed: pip install it")
    in_c.write(result(x, missing), tmp_path / "a.json", tmp_path / "a.md")
    text = (tmp_path / "a.md").read_text()
    assert in_c.known_lines(read(tmp_path / "a.json")) == [x, missing]
    for part in ("| net | 1 | 20 (torch) |", "2.5x (2 to 3)", "1.5x (1.4 to 1.6)", "| n 2x |", "pip install it"):
        assert part in text, part
    both = in_c.together([read(tmp_path / "a.json"), read(tmp_path / "a.json")])
    assert len(in_c.known_lines(both)) == 4


def test_a_busy_machine_is_named():
    quiet = result(line("native", 10, 5))
    loads = {"machine": {"load_average": [1.0, 1.0, 1.0]}, "load_average_after": [2.5, 2.0, 1.0]}
    assert "was busy" not in in_c.page(Results((), {**quiet.facts, **loads}))
    assert "was busy" in in_c.page(Results((), {**quiet.facts, **loads, "load_average_after": [9.0, 2.0, 1.0]}))


def test_files_without_lines_or_of_other_machines_are_refused():
    with pytest.raises(InputError, match="in-c --json"):
        in_c.known_lines(Results(()))
    one, two = result(line("native", 10, 5)), result(line("native", 10, 5))
    with pytest.raises(InputError, match="threads: 2, 3"):
        in_c.together([one, Results((), {**two.facts, "threads": 3})])


@pytest.mark.slow
@pytest.mark.usefixtures("cheap", "registered", "native")
def test_every_form_is_measured_after_its_error():
    before, written = torch.get_num_threads(), []
    plan = Plan(
        ("small",), tols=(1e-2,), batches=(1, 2), threads=1, timing=Timing(5, 0.0, cold=0), methods=Plan.methods
    )
    try:
        results = in_c.measure(plan, keep=written.append)
    finally:
        torch.set_num_threads(before)
    one, two = in_c.known_lines(results)
    assert set(one.us) >= {"dense", "dense in C", "SVD in C", "hrt, onnxruntime", "hrt, native"}
    assert set(two.us) == {"hrt, onnxruntime", "hrt, native"} and two.choice and two.runtime is None
    assert one.runtime and one.compression and one.total and one.auto in ("native", "onnxruntime")
    assert 0 < (one.error or 1) <= 1e-2 and not one.note and len(written) == 1
