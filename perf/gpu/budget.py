"""Which steps fit into the time there is: in order of worth, each with an estimated cost; what does not fit is named.

A step begins where its cost still fits. The first step decides whether the numbers are right at all: where it is wrong,
nothing after it is run. Whatever a step takes, the time that is over at last is never more than the budget.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

DONE, WRONG, FAILED, STOPPED, SKIPPED = "done", "wrong", "failed", "stopped", "skipped"
OVERRUN = 2.0  # times its cost that a step may take, if the budget has it: an estimate is no promise
LEAST_GRACE = 20.0  # seconds beyond its cost that even a short step may take


@dataclass(frozen=True)
class Step:
    """A piece of work of about `cost` seconds, its process included. elastic: it takes what later steps leave."""

    name: str
    title: str
    cost: float
    elastic: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a step ended: done; wrong, a result was not what it must be; failed, it could not be carried out; stopped,
    its time was over; skipped. remark: why.
    """

    status: str
    remark: str = ""
    seconds: float = 0.0


Execute = Callable[[Step, float], Outcome]  # a step, and the seconds after which it is ended
Note = Callable[[Step, Outcome | None], None]  # None: it begins


def allowance(step: Step, later: Sequence[Step], left: float) -> float:
    """Seconds that a step may take of those left: an elastic one what later steps do not need, others an overrun."""
    if step.elastic:
        return min(left, max(step.cost, left - sum(s.cost for s in later)))
    return min(left, max(OVERRUN * step.cost, step.cost + LEAST_GRACE))


def run_steps(
    steps: Sequence[Step], budget: float, execute: Execute, note: Note, clock: Callable[[], float]
) -> dict[str, Outcome]:
    """Carry out what fits into `budget` seconds from now on, in order. Returns how every step ended, by name; `note`
    hears of each before and after. clock: seconds from any moment on.
    """
    end, outcomes = clock() + budget, dict[str, Outcome]()
    for k, step in enumerate(steps):
        left, begun = end - clock(), clock()
        if outcomes and outcomes[steps[0].name].status != DONE:
            outcome = Outcome(SKIPPED, f"{steps[0].title} comes first and was not done")
        elif step.cost > left:
            outcome = Outcome(SKIPPED, f"takes about {step.cost:g} s, {max(0.0, left):.0f} s were left")
        else:
            note(step, None)
            ended = execute(step, allowance(step, steps[k + 1 :], left))
            outcome = Outcome(ended.status, ended.remark, clock() - begun)
        outcomes[step.name] = outcome
        note(step, outcome)
    return outcomes
