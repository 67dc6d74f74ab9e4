"""Which steps fit: on a clock that moves as the steps take their time, with records that are whole at every moment."""

import json

import pytest
from fake_time import FakeTime

from hrt.perf.gpu.budget import DONE, FAILED, SKIPPED, STOPPED, WRONG, Outcome, allowance, run_steps
from hrt.perf.gpu.plan import STEPS
from hrt.perf.gpu.record import Record, read

NAMES = [step.name for step in STEPS]


class Rig:
    """Steps that take `pace` times their cost, unless `takes` or `ends` says otherwise."""

    def __init__(self, budget, pace=1.0, takes=(), ends=()):
        self.time, self.pace, self.takes, self.ends = FakeTime(), pace, dict(takes), dict(ends)
        self.begun: list[tuple[str, float, float]] = []
        self.notes: list[tuple[str, str | None]] = []
        self.outcomes = run_steps(STEPS, budget, self.execute, self.note, self.clock)

    def clock(self):
        return self.time.tell() * 1e-9

    def execute(self, step, seconds):
        self.begun.append((step.name, self.clock(), seconds))
        wanted = self.takes.get(step.name, self.pace * step.cost)
        self.time.sleep(min(wanted, seconds))
        return Outcome(STOPPED if wanted > seconds else self.ends.get(step.name, DONE))

    def note(self, step, outcome):
        self.notes.append((step.name, outcome and outcome.status))

    @property
    def run(self):
        return [name for name, _, _ in self.begun]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (60, ["smoke", "threads"]),
        (200, ["smoke", "correctness", "threads", "int8-stress", "memory", "sanitizer"]),
        (420, [*NAMES[:7], "sanitizer"]),
        (1200, NAMES),
    ],
)
def test_the_worthiest_steps_that_fit_are_run_in_order(budget, expected):
    rig = Rig(budget + 1e-3)  # asking the clock takes its time too
    assert rig.run == expected
    assert list(rig.outcomes) == NAMES
    skipped = {k: o for k, o in rig.outcomes.items() if o.status == SKIPPED}
    assert set(skipped) == set(NAMES) - set(expected)
    assert all("s were left" in o.remark for o in skipped.values())
    assert [n for n in rig.notes if n[1] is None] == [(name, None) for name in expected]


@pytest.mark.parametrize("budget", [1, 60, 200, 420, 1200])
@pytest.mark.parametrize("pace", [0.3, 1.0, 1.9, 50.0])
def test_the_budget_is_kept_whatever_steps_take(budget, pace):
    rig = Rig(budget, pace)
    assert rig.clock() <= budget + 1e-3
    assert all(at + seconds <= budget + 1e-3 for _, at, seconds in rig.begun)
    assert [n for n in NAMES if n in rig.run] == rig.run


def test_time_that_steps_do_not_take_is_spent_on_later_ones():
    assert Rig(420, pace=0.5).run == NAMES


def test_an_elastic_step_takes_what_later_ones_leave():
    elastic = next(s for s in STEPS if s.elastic)
    later = STEPS[STEPS.index(elastic) + 1 :]
    assert allowance(elastic, later, 1000.0) == 1000.0 - sum(s.cost for s in later)
    assert allowance(elastic, later, 70.0) == elastic.cost and allowance(elastic, later, 50.0) == 50.0


def test_a_hanging_step_is_ended_and_the_rest_goes_on():
    rig = Rig(1200, takes={"correctness": 1e9})
    assert rig.outcomes["correctness"].status == STOPPED and rig.run == NAMES
    assert rig.outcomes["correctness"].seconds == pytest.approx(160, abs=1)


@pytest.mark.parametrize("status", [WRONG, FAILED])
def test_nothing_follows_a_first_step_that_is_wrong(status):
    rig = Rig(420, ends={"smoke": status})
    assert rig.run == ["smoke"]
    assert all(o.status == SKIPPED and "one bf16 session" in o.remark for k, o in rig.outcomes.items() if k != "smoke")


def test_others_that_are_wrong_end_nothing():
    assert Rig(1200, ends={"correctness": WRONG, "memory": FAILED}).run == NAMES


class KilledError(BaseException):
    """Stands for a kill, which nothing catches."""


@pytest.mark.parametrize("budget", [60, 200, 420, 1200])
def test_the_record_is_whole_after_a_kill_at_any_step(tmp_path, budget):
    steps = Rig(budget + 1e-3).run
    for k, victim in enumerate(steps):
        record, time = Record.start(tmp_path / f"{k}", {"budget_s": budget}), FakeTime()

        def execute(step, seconds, record=record, time=time, victim=victim):
            record.write(step.name, {"rows": [step.name]})
            if step.name == victim:
                raise KilledError
            time.sleep(step.cost)
            return Outcome(DONE)

        with pytest.raises(KilledError):
            run_steps(STEPS, budget + 1e-3, execute, record.note, lambda time=time: time.tell() * 1e-9)
        content = read(record.path)
        ran = {name: e["status"] for name, e in content["steps"].items() if e["status"] != SKIPPED}
        assert ran == {**dict.fromkeys(steps[:k], DONE), victim: "running"}
        assert all(content["steps"][name]["results"] == {"rows": [name]} for name in steps[: k + 1])
        assert sorted(p.name for p in (tmp_path / f"{k}").iterdir()) == ["gpu.json"]


def test_a_kill_while_the_record_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    record = Record.start(tmp_path, {})
    record.write("smoke", {"a": 1})
    before = record.path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KilledError))
    with pytest.raises(KilledError):
        record.write("smoke", {"a": 2})
    assert record.path.read_bytes() == before and json.loads(before)["steps"]["smoke"]["results"] == {"a": 1}


def test_costs_are_the_plan():
    assert [s.cost for s in STEPS[:5]] == [15, 80, 35, 25, 150]
    assert len({s.name for s in STEPS}) == len(STEPS) == 10
