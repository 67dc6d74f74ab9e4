"""Python's random numbers, which are the caller's."""

import random
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unmoved_random() -> Iterator[None]:
    """Inside, others may draw, as rich does when it is imported; the caller's next numbers stay what they were."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
