"""What was worked out last is not worked out again; what was asked for longest ago goes first."""

from hrt.support.recent import Recent


def test_the_values_asked_for_last_stay():
    made, recent = [], Recent[int, int | None](2)

    def value(key: int) -> int | None:
        return recent.get(key, lambda: made.append(key))  # None, which is a value like others

    for key in (1, 2, 1, 3, 1, 2):
        value(key)
    assert made == [1, 2, 3, 2]
