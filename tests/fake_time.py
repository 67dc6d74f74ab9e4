"""A clock that moves when it is asked and when somebody sleeps, and calls that take their time on it."""

from hrt.perf.realtime.open_loop import NS, Clock


class FakeTime:
    """Asking takes 10 ns; whoever sleeps oversleeps by `late` seconds."""

    def __init__(self, late: float = 0.0) -> None:
        self.now, self.late, self.slept = 0, late, 0

    def tell(self) -> int:
        self.now += 10
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept += 1
        self.now += round((seconds + self.late) * NS)

    def clock(self, spin_ns: int = 200_000) -> Clock:
        return Clock(self.tell, self.sleep, spin_ns)


def busy(time: FakeTime, seconds: float, at: dict[int, float] | None = None):
    def call(k: int) -> None:
        time.now += round((at or {}).get(k, seconds) * NS)

    return call
